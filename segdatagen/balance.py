"""Class balance: how many copies of which source bring every class to its quota (SGA, Algorithm 1 and section 3.3).

It knows which classes stand in which source, and counts images, or pixels where `Presence.in_pixels` is balanced. It
knows nothing of masks, methods, rounds or storage. `balance_reference.literal_balance` is the same algorithm, written
as the loop that the paper prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_QUOTA = 1_000_000_000  # sums over all classes then stay far inside int64 and float64


@dataclass(frozen=True, eq=False)
class Presence:
    """Which classes stand in which source, as compressed rows.

    Classes of source s are the channels `indices[indptr[s]:indptr[s + 1]]`, ascending, each once. `excluded` holds the
    channels that never count (background): no source holds them and no quota applies to them. `pixels` int64, shaped as
    `indices`: how many pixels of the source show that class, where it is known.
    `weights`, of the same shape, is what a source adds to a class that it holds; without it, one image.
    Raises ValueError when the arrays do not describe such rows.
    """

    source_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    indptr: IntArray
    indices: npt.NDArray[np.int32]
    excluded: tuple[int, ...] = ()
    pixels: IntArray | None = None
    weights: IntArray | None = None

    def __post_init__(self) -> None:
        if len(self.indptr) != self.num_sources + 1 or self.indptr[0] != 0 or self.indptr[-1] != len(self.indices):
            raise ValueError("indptr does not fit the number of sources and of indices")
        if np.any(np.diff(self.indptr) < 0):
            raise ValueError("indptr decreases")
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < self.num_classes:
            raise ValueError(f"a channel lies outside 0..{self.num_classes - 1}")
        keys = self._rows() * self.num_classes + self.indices
        if np.any(np.diff(keys) <= 0):
            raise ValueError("the channels of a source do not ascend strictly")
        if np.isin(self.indices, self.excluded).any():
            raise ValueError("a source holds an excluded channel")
        for values in (self.pixels, self.weights):
            if values is not None and (values.shape != self.indices.shape or (len(values) and values.min() < 1)):
                raise ValueError("pixels or weights are not one positive number for each channel of each source")

    @classmethod
    def from_pairs(
        cls,
        source_ids: Iterable[str],
        class_names: Sequence[str],
        source_index: npt.ArrayLike,
        channel: npt.ArrayLike,
        excluded: Sequence[int] = (),
    ) -> Presence:
        """Presence from (source, channel) pairs in any order; repeated pairs count once, excluded channels drop out."""
        ids, names = tuple(source_ids), tuple(class_names)
        rows = np.asarray(source_index, dtype=np.int64)
        channels = np.asarray(channel, dtype=np.int64)
        if len(channels) and not 0 <= channels.min() <= channels.max() < len(names):
            raise ValueError(f"a channel lies outside 0..{len(names) - 1}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
            raise ValueError(f"a source index lies outside 0..{len(ids) - 1}")
        keys = (rows * len(names) + channels)[~np.isin(channels, excluded)]
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique hashes first: 0.4 s more for a million pairs
        rows, channels = np.divmod(keys, max(1, len(names)))
        indptr = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(ids)), out=indptr[1:])
        return cls(ids, names, indptr, channels.astype(np.int32), tuple(excluded))

    @classmethod
    def from_lists(
        cls,
        source_ids: Iterable[str],
        class_names: Sequence[str],
        channels: Sequence[npt.ArrayLike],
        excluded: Sequence[int] = (),
    ) -> Presence:
        """Presence from one list of channels per source."""
        rows = [np.asarray(row, dtype=np.int64) for row in channels]
        source_index = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        flat = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return cls.from_pairs(source_ids, class_names, source_index, flat, excluded)

    @property
    def num_sources(self) -> int:
        """Number of sources, those without any class included: |D_origin| of the paper."""
        return len(self.source_ids)

    @property
    def num_classes(self) -> int:
        """Number of classes of the label set, excluded ones included."""
        return len(self.class_names)

    @cached_property
    def sizes(self) -> IntArray:
        """Number of classes in each source, int64 [num_sources]."""
        return np.diff(self.indptr)

    @cached_property
    def counts(self) -> IntArray:
        """Number of sources that hold each class, or what they weigh together, int64 [num_classes]."""
        return self._sum(self.indices, self.weights)

    @cached_property
    def num_holders(self) -> IntArray:
        """Number of sources that hold each class, int64 [num_classes]."""
        return np.bincount(self.indices, minlength=self.num_classes)

    @cached_property
    def in_pixels(self) -> Presence:
        """The same sources, where a quota and a count mean pixels. Raises ValueError where pixels are not known."""
        if self.pixels is None:
            raise ValueError("the pixels of these sources were never counted")
        return replace(self, weights=self.pixels)

    @cached_property
    def counted(self) -> BoolArray:
        """True for the classes that are not excluded, bool [num_classes]."""
        mask = np.ones(self.num_classes, dtype=np.bool_)
        mask[list(self.excluded)] = False
        return mask

    def classes_of(self, sources: IntArray) -> npt.NDArray[np.int32]:
        """The channels held by `sources`, one source after the other, flat."""
        return self.indices[places_of_rows(self.indptr, sources)]

    def counts_of(self, sources: IntArray) -> IntArray:
        """What one copy of each of `sources` adds to every class, int64 [num_classes]."""
        places = places_of_rows(self.indptr, sources)
        return self._sum(self.indices[places], None if self.weights is None else self.weights[places])

    def counts_of_copies(self, copies: IntArray) -> IntArray:
        """What is added to every class, int64 [num_classes], when source s is copied `copies[s]` times."""
        times = np.repeat(copies, self.sizes)
        return self._sum(self.indices, times if self.weights is None else times * self.weights)

    def _sum(self, channels: npt.NDArray[np.int32], weights: IntArray | None) -> IntArray:
        # Sums of weights are float64, hence exact below 2**53 images or pixels.
        total: IntArray = np.bincount(channels, weights, self.num_classes).astype(np.int64, copy=False)
        return total

    def _rows(self) -> IntArray:
        return np.repeat(np.arange(self.num_sources), self.sizes)


def places_of_rows(indptr: IntArray, rows: IntArray) -> IntArray:
    """Where the entries of the compressed rows `rows` lie, one row after the other, without a loop."""
    sizes = indptr[rows + 1] - indptr[rows]
    ends = np.cumsum(sizes)
    position = np.arange(ends[-1] if len(ends) else 0)
    places: IntArray = position + np.repeat(indptr[rows] - ends + sizes, sizes)
    return places


def entropy(counts: npt.ArrayLike) -> float:
    """-sum p log2 p in bits, p = counts / sum (SGA, section 4.3.2); 0.0 when nothing is counted."""
    values = np.asarray(counts, dtype=np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return max(0.0, float(-(p * np.log2(p)).sum()))


def cir(counts: npt.ArrayLike) -> float:
    """Class imbalance ratio: the largest share that one class has, max p (SGA, section 4.3.2); 0.0 for nothing."""
    values = np.asarray(counts, dtype=np.float64)
    total = float(np.nansum(values))
    return float(np.nanmax(values)) / total if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class ClassOrders:
    """For every class its sources in the order in which they are cycled; `of(channel)` gives one class's.

    `places` says where each (source, class) pair lies in `Presence.indices`.
    """

    starts: IntArray
    sources: IntArray
    places: IntArray
    seed: int

    def of(self, channel: int) -> IntArray:
        """Indices of the sources that hold `channel`, fewest classes first."""
        return self.sources[self.starts[channel] : self.starts[channel + 1]]

    def of_sources(self, usable: BoolArray) -> ClassOrders:
        """The same orders without the sources that are not `usable`, bool [num_sources]."""
        kept = usable[self.sources]
        before = np.concatenate(([0], np.cumsum(kept)))
        return ClassOrders(before[self.starts], self.sources[kept], self.places[kept], self.seed)

    def weights_of(self, channel: int, presence: Presence) -> IntArray:
        """What a copy of each of these sources adds to `channel`: int64, as long as `of(channel)`."""
        places = self.places[self.starts[channel] : self.starts[channel + 1]]
        return np.ones(len(places), dtype=np.int64) if presence.weights is None else presence.weights[places]


def class_orders(presence: Presence, seed: int) -> ClassOrders:
    """Stage 2 of Algorithm 1: a class's sources by how many classes they hold, ties by a hash of (seed, class, source).

    The hash is splitmix64(xxh3_64(source_id) xor xxh3_64("seed|class name")): a source is hashed once, a pair is mixed
    in numpy, and neither the order of the sources nor that of the classes shows in it. Sources whose 64 bits collide
    keep the order that they have in `presence`.
    """
    source_keys = _hash_texts(presence.source_ids)
    class_keys = _hash_texts([f"{seed}|{name}" for name in presence.class_names])
    rows = np.repeat(np.arange(presence.num_sources), presence.sizes)
    ties = splitmix64(source_keys[rows] ^ class_keys[presence.indices])
    class_and_size = presence.indices.astype(np.int64) * (presence.num_classes + 1) + presence.sizes[rows]
    order = np.lexsort((ties, class_and_size))
    starts = np.zeros(presence.num_classes + 1, dtype=np.int64)
    np.cumsum(presence.num_holders, out=starts[1:])
    return ClassOrders(starts, rows[order], order, seed)


def source_hashes(presence: Presence, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """A hash of (seed, purpose, source) to order sources by, made as in `class_orders`: uint64 [num_sources]."""
    return splitmix64(_hash_texts(presence.source_ids) ^ _hash_texts([f"{seed}|{purpose}"]))


def _hash_texts(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64, len(texts))


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Steele, Lea and Flood's 64-bit mixer (OOPSLA 2014), elementwise; a bijection."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class Progress:
    """Where balancing goes on from, when it does not begin with the real sources alone.

    `counts` int64 [num_classes]: images (or pixels) per class so far, real ones included. `available` bool
    [num_sources]: sources that may be copied; the others stay counted as real. `cycle_start` int64 [num_classes]:
    copies made so far on behalf of each class, so that a later round goes on in the cycle and does not burden its first
    sources again.
    """

    counts: IntArray
    available: BoolArray
    cycle_start: IntArray

    @classmethod
    def at_start(cls, presence: Presence) -> Progress:
        """Nothing generated yet, every source available."""
        zeros = np.zeros(presence.num_classes, dtype=np.int64)
        return cls(presence.counts, np.ones(presence.num_sources, dtype=np.bool_), zeros)


@dataclass(frozen=True, eq=False)
class Copies:
    """What Algorithm 1 generates: `copies[i]` images of source `source_index[i]` on behalf of `target_channel[i]`.

    Rows stand in the order of generation: class after class, sources in cycle order, each (class, source) pair once.
    `counts` int64 [num_classes]: images per class afterwards. `unreachable`: channels that stay below their quota
    because no available source holds them.
    """

    source_index: IntArray
    target_channel: IntArray
    copies: IntArray
    counts: IntArray
    unreachable: tuple[int, ...]

    @property
    def num_generated(self) -> int:
        """|D_gen|."""
        return int(self.copies.sum())

    def per_source(self, num_sources: int) -> IntArray:
        """Number of copies of each source over all classes, int64 [num_sources]."""
        totals = np.bincount(self.source_index, weights=self.copies, minlength=num_sources)
        return totals.astype(np.int64)


def balance(
    presence: Presence,
    n_balance: int | IntArray,
    seed: int = 0,
    *,
    progress: Progress | None = None,
    orders: ClassOrders | None = None,
) -> Copies:
    """Algorithm 1 of SGA: cycle through each class's real sources until the class counts `n_balance` images.

    `n_balance` is one quota for all counted classes, or int64 [num_classes] with 0 for a class without a quota; where
    the presence is weighted (`Presence.in_pixels`), quotas and counts are of that kind, and a copy adds its weight to
    every class that it holds.
    Classes are taken in label order, a generated image counts at once for every class it holds, and only real sources
    are cycled. `orders` saves sorting again where the caller has them for this presence and seed.

    Every source of a class holds that class, so a class that lacks d images gets exactly d copies: d // L full cycles
    of its L sources and the first d % L of another; with weights the cycle is as long as it has to be (`cycle_length`).
    That replaces the paper's loop, and only the loop.
    """
    progress = progress or Progress.at_start(presence)
    orders = orders or class_orders(presence, seed)
    quotas = np.where(presence.counted, n_balance, 0)
    counts = progress.counts.astype(np.int64, copy=True)
    parts: list[tuple[IntArray, IntArray, IntArray]] = []
    unreachable = []
    for channel in range(presence.num_classes):
        deficit = int(quotas[channel] - counts[channel])
        if deficit <= 0:
            continue
        kept = progress.available[orders.of(channel)]
        sources, weights = orders.of(channel)[kept], orders.weights_of(channel, presence)[kept]
        if not len(sources):
            unreachable.append(channel)
            continue
        start = int(progress.cycle_start[channel] % len(sources))
        sources, weights = np.roll(sources, -start), np.roll(weights, -start)
        cycles, rest = divmod(int(cycle_length(np.cumsum(weights), np.array([deficit]))[0]), len(sources))
        counts += presence.counts_of(sources[:rest])
        if cycles:
            counts += cycles * presence.counts_of(sources)
        used = len(sources) if cycles else rest
        copies = np.full(used, cycles, dtype=np.int64)
        copies[:rest] += 1
        parts.append((sources[:used], np.full(used, channel, dtype=np.int64), copies))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, np.int64)] * 3
    return Copies(columns[0], columns[1], columns[2], counts, tuple(unreachable))


def cycle_length(weighed: IntArray, deficits: IntArray) -> IntArray:
    """How many copies of a cycle bring each of `deficits`, int64 of the same shape; 0 for a deficit of 0.

    `weighed` int64 [L]: what the first 1, 2, ... L sources of the cycle weigh together.
    """
    cycles, rest = np.divmod(np.maximum(deficits, 0), weighed[-1])
    length: IntArray = cycles * len(weighed) + np.where(rest > 0, np.searchsorted(weighed, rest) + 1, 0)
    return length
