"""`n_balance: auto`: the quota that makes about `ratio` generated images for each real one (SGA, section 3.3).

It bounds what Algorithm 1 generates over ranges of quotas and narrows the ranges down, for quotas of images and for
quotas of pixels. It knows nothing of progress: the quota depends on the real sources, the ratio and the seed alone, so
that it stays the same in every round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segdatagen.balance import (
    BoolArray,
    ClassOrders,
    IntArray,
    Presence,
    class_orders,
    cycle_length,
    places_of_rows,
)
from segdatagen.errors import UsageError

PARTS = 64  # parts into which a range of quotas is split: a pass over the sources costs more than the parts do
CHUNK = 4096  # ranges per pass: 4096 x 150 classes x 8 bytes = 5 MB


def auto_n_balance(
    presence: Presence,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    orders: ClassOrders | None = None,
    usable: BoolArray | None = None,
) -> int:
    """The smallest n >= 1 whose number of generated images f(n) comes nearest to `ratio * |D_origin|`. Exact.

    f is not monotone: one more copy for each of two early classes may spare a later class two. So bisection will not
    do. Instead ranges of n are split into parts, `QuotaTable.bounds` says between which numbers f lies on a part, and
    a part that lies farther from the goal than another one certainly comes is dropped, until f is known on all.
    n counts what `presence` counts: images, or pixels. Only sources that are `usable`, bool [num_sources], are copied;
    all by default. Raises UsageError when no class has a source.
    """
    goal = round(ratio * presence.num_sources, 6)  # 0.1 * 30 is a little over 3, which would decide ties
    orders = orders or class_orders(presence, seed)
    orders = orders if usable is None else orders.of_sources(usable)
    best = (np.inf, 0)  # how far f(n) is from the goal, and n
    first, last = np.array([1]), np.array([_largest_quota(presence, goal, orders)])
    while len(first):
        first, last = _split(first, last)
        least, most = _bounds(QuotaTable.build(presence, orders, int(last.max())), first, last)
        known = least == most
        best = min([best, *zip(np.abs(least - goal)[known].tolist(), first[known].tolist(), strict=True)])
        at_best = np.maximum(np.maximum(least - goal, goal - most), 0)
        at_worst = np.maximum(np.abs(least - goal), np.abs(most - goal))
        hopeful = (at_best < best[0]) | ((at_best == best[0]) & (first < best[1]))
        kept = ~known & hopeful & (at_best <= at_worst.min())
        first, last = first[kept], last[kept]
    return best[1]


def _largest_quota(presence: Presence, goal: float, orders: ClassOrders) -> int:
    """Past this quota some class alone gets more than twice the goal, and f(1) = 0 misses the goal by itself.

    An image adds to a class no more than the heaviest of its sources does.
    """
    reachable = reachable_classes(presence, np.diff(orders.starts))
    if presence.weights is None:
        return max(1, int(presence.counts[reachable].min() + 2 * goal))
    heaviest = np.zeros(presence.num_classes, dtype=np.int64)
    np.maximum.at(heaviest, presence.indices[orders.places], presence.weights[orders.places])
    return max(1, int((presence.counts + 2 * goal * heaviest)[reachable].min()))


def reachable_classes(presence: Presence, num_holders: IntArray) -> BoolArray:
    """Classes that count and have a source, bool [num_classes]. Raises UsageError where there is none.

    `num_holders` int64 [num_classes]: sources of each class that may be copied.
    """
    reachable: BoolArray = presence.counted & (num_holders > 0)
    if not reachable.any():
        raise UsageError("auto needs a class with at least one source, and there is none: lower min_pixels.")
    return reachable


def _split(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """Every range `first[i]..last[i]` as up to PARTS ranges of almost equal length, in order."""
    size = -(-(last - first + 1) // PARTS)
    begins = first[:, None] + np.arange(PARTS) * size[:, None]
    ends = np.minimum(begins + size[:, None] - 1, last[:, None])
    filled = begins <= ends
    return begins[filled], ends[filled]


def _bounds(table: QuotaTable, first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """`QuotaTable.bounds` in chunks of ranges."""
    chunks = range(0, len(first), CHUNK)
    bounds = [table.bounds(first[start : start + CHUNK], last[start : start + CHUNK]) for start in chunks]
    least, most = (np.concatenate(part) for part in zip(*bounds, strict=True))
    return least, most


@dataclass(frozen=True)
class QuotaTable:
    """The classes that some quota leaves short, and what their sources share; other classes need no copies.

    `real` int64 [D]: images (or pixels) per class; `indptr` and `indices`: the D classes of each source, as in
    `Presence`; `weights`: its weights, if it has any; `orders`: the cycle of each class; `weighed`:
    what its first 1, 2, ... sources weigh together.
    """

    real: IntArray
    indptr: IntArray
    indices: npt.NDArray[np.int32]
    weights: IntArray | None
    orders: tuple[IntArray, ...]
    weighed: tuple[IntArray, ...]

    @classmethod
    def build(cls, presence: Presence, orders: ClassOrders, largest_quota: int) -> QuotaTable:
        """Keep the counted classes that have a source in `orders`, but count less than `largest_quota`."""
        kept = np.flatnonzero(presence.counted & (np.diff(orders.starts) > 0) & (presence.counts < largest_quota))
        new_channel = np.full(presence.num_classes, -1, dtype=np.int32)
        new_channel[kept] = np.arange(len(kept))
        indices = new_channel[presence.indices]
        ends = np.concatenate(([0], np.cumsum(indices >= 0)))
        return cls(
            real=presence.counts[kept],
            indptr=ends[presence.indptr],
            indices=indices[indices >= 0],
            weights=None if presence.weights is None else presence.weights[indices >= 0],
            orders=tuple(orders.of(int(channel)) for channel in kept),
            weighed=tuple(np.cumsum(orders.weights_of(int(channel), presence)) for channel in kept),
        )

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
            fewest = cycle_length(self.weighed[channel], first - high[:, channel])
            greatest = cycle_length(self.weighed[channel], last - low[:, channel])
            if not greatest.any():
                continue
            least += fewest
            most += greatest
            held = self._held_by_cycle(channel, np.concatenate((fewest, greatest)))
            low += held[: len(first)]
            high += held[len(first) :]
        return least, most

    def _held_by_cycle(self, channel: int, lengths: IntArray) -> IntArray:
        """Images (or pixels) per class in the first `lengths[i]` of the class's cycle, int64 [len(lengths), D]."""
        sources = self.orders[channel]
        num_classes = len(self.real)
        cycles, rest = np.divmod(lengths, len(sources))
        cuts, cut_of_length = np.unique(rest, return_inverse=True)
        # A source belongs to row i when it lies in the first cuts[i] of the cycle, but not in the first cuts[i - 1].
        row_of_source = np.searchsorted(cuts, np.arange(len(sources)), side="right")
        sizes = self.indptr[sources + 1] - self.indptr[sources]
        places = places_of_rows(self.indptr, sources)
        cells = np.repeat(row_of_source * num_classes, sizes) + self.indices[places]
        weights = None if self.weights is None else self.weights[places]
        rows = np.bincount(cells, weights=weights, minlength=(len(cuts) + 1) * num_classes).astype(np.int64, copy=False)
        up_to_cut = np.cumsum(rows.reshape(-1, num_classes), axis=0)
        held: IntArray = up_to_cut[cut_of_length] + cycles[:, None] * up_to_cut[-1]
        return held
