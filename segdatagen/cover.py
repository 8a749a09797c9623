"""Cover: few images that bring every class to its quota, by a greedy multicover, and how few are certainly needed.

It knows which classes stand in which source, and counts. It knows nothing of masks, methods, rounds or storage. The
greedy choice alone could need more images than Algorithm 1; `cover` takes the better of the two, so it never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from segdatagen.balance import (
    BoolArray,
    ClassOrders,
    Copies,
    IntArray,
    Presence,
    Progress,
    balance,
    places_of_rows,
    source_hashes,
)

FloatArray = npt.NDArray[np.float64]

PRUNED_AT_ONCE = 8192
"""Copies that are looked at between two passes over all, which drop those that cannot be spared any more."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Whose turn it is: `planned` int64 [num_sources] rows were planned of each source so far.

    None is copied more than `at_most` times, or than Algorithm 1 copies the source that it copies most.
    """

    planned: IntArray
    at_most: int = 0


@dataclass(frozen=True, eq=False)
class CoverPlan:
    """`copies` bring every reachable class to its quota; no plan does so with fewer than `at_least` images.

    `algorithm_1` is the number of images that Algorithm 1 makes for the same quotas: never fewer.
    """

    copies: Copies
    at_least: int
    algorithm_1: int


def cover(presence: Presence, wanted: IntArray, orders: ClassOrders, progress: Progress, turns: Turns) -> CoverPlan:
    """Few copies after which every class counts `wanted` (int64 [num_classes], 0: no quota) images.

    `greedy_cover` without what it can spare; where that is more than Algorithm 1 makes, Algorithm 1 without what it can
    spare.
    """
    wanted = np.where(presence.counted, wanted, 0)
    algorithm_1 = balance(presence, wanted, orders.seed, progress=progress, orders=orders)
    lacking = LackingClasses.of(presence, wanted - progress.counts, progress.available, orders.seed)
    best = without_spare(greedy_cover(lacking, turns, algorithm_1), presence, wanted, progress.counts)
    if best.num_generated > algorithm_1.num_generated:
        best = without_spare(algorithm_1, presence, wanted, progress.counts)
    return CoverPlan(best, lower_bound(lacking), algorithm_1.num_generated)


@dataclass(frozen=True, eq=False)
class LackingClasses:
    """The sources that hold a class that lacks images, and of their classes only those.

    `sources` int64 [N] index those of `presence`, fewest classes first, ties by a hash of (seed, source); `indptr` and
    `indices`: their lacking classes, as in `Presence`; `deficits` int64 [num_classes]: images that a class lacks, 0 for
    a class that lacks none or that no available source holds.
    """

    presence: Presence
    sources: IntArray
    indptr: IntArray
    indices: IntArray
    deficits: IntArray

    @classmethod
    def of(cls, presence: Presence, deficits: IntArray, available: BoolArray, seed: int) -> LackingClasses:
        """Keep what an available source can give."""
        order = np.lexsort((source_hashes(presence, seed, "cover"), presence.sizes))
        order = order[available[order]]
        channels = presence.classes_of(order)
        kept = deficits[channels] > 0
        row = np.repeat(np.arange(len(order)), presence.sizes[order])[kept]
        sizes = np.bincount(row, minlength=len(order))
        indptr = np.concatenate(([0], np.cumsum(sizes[sizes > 0])))
        indices = channels[kept].astype(np.int64)
        held = np.bincount(indices, minlength=presence.num_classes) > 0
        return cls(presence, order[sizes > 0], indptr, indices, np.where(held, deficits, 0))

    @cached_property
    def sizes(self) -> IntArray:
        """Number of lacking classes in each of `sources`, int64 [N]; at least 1."""
        return np.diff(self.indptr)

    @cached_property
    def holders(self) -> list[IntArray]:
        """For every class the places in `sources` of those that hold it, ascending; empty where it lacks nothing."""
        row = np.repeat(np.arange(len(self.sources)), self.sizes)
        order = np.argsort(self.indices, kind="stable")
        ends = np.cumsum(np.bincount(self.indices, minlength=len(self.deficits)))
        return np.split(row[order], ends[:-1])


def greedy_cover(lacking: LackingClasses, turns: Turns, algorithm_1: Copies) -> Copies:
    """Image by image the source that shows most of the classes that still lack images.

    Of several the one of which fewest rows were planned so far, then the one with fewest classes in all, then by a
    hash: sources that show the same classes take turns. A copy is made on behalf of the rarest class that it helps.
    Sources that had all the copies that `turns` allows are left out; since Algorithm 1 fills the quotas within that
    bound, so do the sources that are left.

    Between two moments at which a class is complete, or a source left out, nothing but turns happens: whole turns are
    added at once. What is unreachable is known from `algorithm_1`.
    """
    presence, deficits = lacking.presence, lacking.deficits.copy()
    rarity = np.argsort(np.argsort(presence.num_holders, kind="stable"))
    busiest = int(algorithm_1.per_source(presence.num_sources).max(initial=0))
    score, level = lacking.sizes.copy(), turns.planned[lacking.sources]
    end = level + max(busiest, turns.at_most)
    made = np.zeros(len(lacking.indices), dtype=np.int64)
    while deficits.any():
        usable = np.where(level < end, score, 0)
        group = np.flatnonzero(usable == usable.max())
        lowest = level[group].min()
        turn, later = group[level[group] == lowest], group[level[group] > lowest]
        room = int(min(end[turn].min(), level[later].min(initial=end.max())) - lowest)
        places = places_of_rows(lacking.indptr, turn)
        is_open = deficits[lacking.indices[places]] > 0
        row, places = np.repeat(np.arange(len(turn)), lacking.sizes[turn])[is_open], places[is_open]
        channels = lacking.indices[places]
        targets = places[_first_smallest(row, rarity[channels])]
        held = np.bincount(channels, minlength=len(deficits))
        times = min(room, int(((deficits[held > 0] - 1) // held[held > 0]).min()))
        made[targets] += times
        level[turn] += times
        deficits -= times * held
        if times == room:
            continue
        last = _row_that_completes(row, channels, deficits)
        made[targets[: last + 1]] += 1
        level[turn[: last + 1]] += 1
        deficits -= np.bincount(channels[row <= last], minlength=len(deficits))
        for channel in np.flatnonzero((held > 0) & (deficits == 0)):
            score[lacking.holders[channel]] -= 1
    return _copies_of_pairs(lacking, made, algorithm_1)


def _first_smallest(row: IntArray, keys: IntArray) -> IntArray:
    """For every row the place of its smallest key; keys of a row differ, and rows count from 0 without a gap."""
    smallest = np.minimum.reduceat(keys, np.flatnonzero(np.diff(row, prepend=-1)))
    return np.flatnonzero(keys == smallest[row])


def _row_that_completes(row: IntArray, channels: IntArray, deficits: IntArray) -> int:
    """The first row after which some class lacks nothing; there is one."""
    held = np.bincount(channels, minlength=len(deficits))
    complete = np.flatnonzero((held > 0) & (held >= deficits))
    return min(int(row[np.flatnonzero(channels == channel)[deficits[channel] - 1]]) for channel in complete)


def _copies_of_pairs(lacking: LackingClasses, made: IntArray, algorithm_1: Copies) -> Copies:
    """Copies from their number for each (source, class) pair of `lacking`."""
    presence = lacking.presence
    place = np.flatnonzero(made)
    sources = lacking.sources[np.searchsorted(lacking.indptr, place, side="right") - 1]
    per_source = np.bincount(sources, weights=made[place], minlength=presence.num_sources).astype(np.int64)
    before = algorithm_1.counts - presence.counts_of_copies(algorithm_1.per_source(presence.num_sources))
    counts = before + presence.counts_of_copies(per_source)
    return Copies(sources, lacking.indices[place], made[place], counts, algorithm_1.unreachable)


def without_spare(plan: Copies, presence: Presence, wanted: IntArray, before: IntArray) -> Copies:
    """The plan without copies whose classes all keep their quotas without them, least useful sources first.

    `before` int64 [num_classes]: what the classes counted before the plan.
    """
    useful = wanted > before
    spare = np.where(useful, plan.counts - wanted, np.iinfo(np.int64).max)
    useful_up_to = np.concatenate(([0], np.cumsum(useful[presence.indices])))
    begin, end = presence.indptr[plan.source_index], presence.indptr[plan.source_index + 1]
    pending = np.argsort(useful_up_to[end] - useful_up_to[begin], kind="stable")
    copies = plan.copies.copy()
    while len(pending):
        sources = plan.source_index[pending]
        sizes = presence.sizes[sources]
        least = np.minimum.reduceat(spare[presence.classes_of(sources)], np.cumsum(sizes) - sizes)
        pending = pending[least > 0]
        for entry in pending[:PRUNED_AT_ONCE].tolist():
            channels = presence.indices[begin[entry] : end[entry]]
            spared = min(int(copies[entry]), int(spare[channels].min()))
            copies[entry] -= spared
            spare[channels] -= np.where(useful[channels], spared, 0)
        pending = pending[PRUNED_AT_ONCE:]
    removed = np.bincount(plan.source_index, weights=plan.copies - copies, minlength=presence.num_sources)
    counts = plan.counts - presence.counts_of_copies(removed.astype(np.int64))
    kept = copies > 0
    return Copies(plan.source_index[kept], plan.target_channel[kept], copies[kept], counts, plan.unreachable)


def lower_bound(lacking: LackingClasses) -> int:
    """A number of images below which no choice of sources reaches the quotas, however often each is copied.

    Give every class a price such that no source's classes cost more than 1 together: then an image pays for no more
    than 1 of the sum of deficit x price (weak duality). Two lists of prices are raised, class after class from the
    largest deficit on, as high as the sources allow: no price at all, which gives at least the largest deficit, and
    1 / the most lacking classes that a holder of the class shows, which gives at least the sum of all deficits / the
    most classes of a source.
    """
    if not lacking.deficits.any():
        return 0
    crowd = np.ones(len(lacking.deficits), dtype=np.int64)
    np.maximum.at(crowd, lacking.indices, np.repeat(lacking.sizes, lacking.sizes))
    by_crowd = np.where(lacking.deficits > 0, 1 / crowd, 0)
    best = max(_worth(lacking, _raised(lacking, prices)) for prices in (np.zeros(len(crowd)), by_crowd))
    return int(np.ceil(best * (1 - 1e-9)))


def _raised(lacking: LackingClasses, prices: FloatArray) -> FloatArray:
    """Prices as high as the sources allow, those of large deficits first."""
    prices = prices.copy()
    room = 1 - np.add.reduceat(prices[lacking.indices], lacking.indptr[:-1])
    for channel in np.argsort(-lacking.deficits, kind="stable")[: np.count_nonzero(lacking.deficits)]:
        holders = lacking.holders[channel]
        more = room[holders].min()
        prices[channel] += more
        room[holders] -= more
    return prices


def _worth(lacking: LackingClasses, prices: FloatArray) -> float:
    """The bound that prices give, scaled down where rounding lets a source's classes cost more than 1."""
    costliest = np.add.reduceat(prices[lacking.indices], lacking.indptr[:-1]).max()
    return float((lacking.deficits * prices).sum() / max(1.0, costliest))
