"""`n_balance: auto`: the quota that makes about `ratio` generated images for each real one (SGA, section 3.3).

It bounds what Algorithm 1 generates over ranges of quotas and narrows the ranges down. It knows nothing of progress:
the quota depends on the real sources, the ratio and the seed alone, so that it stays the same in every round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segdatagen.balance import BoolArray, ClassOrders, IntArray, Presence, class_orders, gather_rows
from segdatagen.errors import UsageError

PARTS = 64  # parts into which a range of quotas is split: a pass over the sources costs more than the parts do
CHUNK = 4096  # ranges per pass: 4096 x 150 classes x 8 bytes = 5 MB


def auto_n_balance(presence: Presence, ratio: float = 1.0, seed: int = 0, *, orders: ClassOrders | None = None) -> int:
    """The smallest n >= 1 whose number of generated images f(n) comes nearest to `ratio * |D_origin|`. Exact.

    f is not monotone: one more copy for each of two early classes may spare a later class two. So bisection will not
    do. Instead ranges of n are split into parts, `QuotaTable.bounds` says between which numbers f lies on a part, and
    a part that lies farther from the goal than another one certainly comes is dropped, until single quotas are left.
    Raises UsageError when no class has a source.
    """
    reachable = reachable_classes(presence)
    goal = round(ratio * presence.num_sources, 6)  # 0.1 * 30 is a little over 3, which would decide ties
    orders = orders or class_orders(presence, seed)
    # f(1) = 0 misses the goal by itself, and past this quota the rarest class alone gets more than twice the goal.
    largest = int(presence.counts[reachable].min() + 2 * goal)
    first, last = np.array([1]), np.array([max(1, largest)])
    while (last > first).any():
        first, last = _split(first, last)
        first, last = _nearest(QuotaTable.build(presence, orders, int(last.max())), first, last, goal)
    return int(first[0])


def reachable_classes(presence: Presence) -> BoolArray:
    """Classes that count and have a source, bool [num_classes]. Raises UsageError where there is none."""
    reachable: BoolArray = presence.counted & (presence.counts > 0)
    if not reachable.any():
        raise UsageError("n_balance: auto needs a class with at least one source, and there is none.")
    return reachable


def _split(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """Every range `first[i]..last[i]` as up to PARTS ranges of almost equal length, in order."""
    size = -(-(last - first + 1) // PARTS)
    begins = first[:, None] + np.arange(PARTS) * size[:, None]
    ends = np.minimum(begins + size[:, None] - 1, last[:, None])
    filled = begins <= ends
    return begins[filled], ends[filled]


def _nearest(table: QuotaTable, first: IntArray, last: IntArray, goal: float) -> tuple[IntArray, IntArray]:
    """The ranges that may hold a quota as near to the goal as any."""
    chunks = range(0, len(first), CHUNK)
    bounds = [table.bounds(first[start : start + CHUNK], last[start : start + CHUNK]) for start in chunks]
    least, most = (np.concatenate(part) for part in zip(*bounds, strict=True))
    at_best = np.maximum(np.maximum(least - goal, goal - most), 0)
    at_worst = np.maximum(np.abs(least - goal), np.abs(most - goal))
    kept = at_best <= at_worst.min()
    return first[kept], last[kept]


@dataclass(frozen=True)
class QuotaTable:
    """The classes that some quota leaves short, and what their sources share; other classes need no copies.

    `real` int64 [D]: sources per class; `indptr` and `indices`: the D classes of each source, as in `Presence`;
    `orders`: the cycle of each class.
    """

    real: IntArray
    indptr: IntArray
    indices: npt.NDArray[np.int32]
    orders: tuple[IntArray, ...]

    @classmethod
    def build(cls, presence: Presence, orders: ClassOrders, largest_quota: int) -> QuotaTable:
        """Keep the counted classes that have a source, but fewer than `largest_quota`."""
        kept = np.flatnonzero(presence.counted & (presence.counts > 0) & (presence.counts < largest_quota))
        new_channel = np.full(presence.num_classes, -1, dtype=np.int32)
        new_channel[kept] = np.arange(len(kept))
        indices = new_channel[presence.indices]
        ends = np.concatenate(([0], np.cumsum(indices >= 0)))
        cycles = tuple(orders.of(int(channel)) for channel in kept)
        return cls(presence.counts[kept], ends[presence.indptr], indices[indices >= 0], cycles)

    def bounds(self, first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
        """`least[i] <= f(n) <= most[i]` for first[i] <= n <= last[i]; equal, and f itself, where first[i] == last[i].

        This is Algorithm 1 in interval arithmetic, for all ranges at once. A class that counts between `low` and
        `high` when its turn comes lacks between `first - high` and `last - low` images, and a longer cycle never holds
        fewer images of any class than a shorter one.
        """
        low = np.repeat(self.real[None, :], len(first), axis=0)
        high = low.copy()
        least, most = np.zeros(len(first), dtype=np.int64), np.zeros(len(first), dtype=np.int64)
        for channel in range(len(self.real)):
            fewest = np.maximum(first - high[:, channel], 0)
            greatest = np.maximum(last - low[:, channel], 0)
            if not greatest.any():
                continue
            least += fewest
            most += greatest
            held = self._held_by_cycle(channel, np.concatenate((fewest, greatest)))
            low += held[: len(first)]
            high += held[len(first) :]
        return least, most

    def _held_by_cycle(self, channel: int, lengths: IntArray) -> IntArray:
        """Images per class among the first `lengths[i]` of the class's cycle, int64 [len(lengths), D]."""
        sources = self.orders[channel]
        num_classes = len(self.real)
        cycles, rest = np.divmod(lengths, len(sources))
        cuts, cut_of_length = np.unique(rest, return_inverse=True)
        # A source belongs to row i when it lies in the first cuts[i] of the cycle, but not in the first cuts[i - 1].
        row_of_source = np.searchsorted(cuts, np.arange(len(sources)), side="right")
        sizes = self.indptr[sources + 1] - self.indptr[sources]
        cells = np.repeat(row_of_source * num_classes, sizes) + gather_rows(self.indptr, self.indices, sources)
        rows = np.bincount(cells, minlength=(len(cuts) + 1) * num_classes).reshape(-1, num_classes)
        up_to_cut = np.cumsum(rows, axis=0)
        held: IntArray = up_to_cut[cut_of_length] + cycles[:, None] * up_to_cut[-1]
        return held
