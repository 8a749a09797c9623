"""Random sources without repetition: every source once in a random order, then every source again in another.

It knows how often each source was planned, and nothing of classes, methods, rounds or storage.
"""

from __future__ import annotations

import numpy as np

from segdatagen.balance import BoolArray, IntArray, Presence, source_hashes


def random_copies(presence: Presence, count: int, seed: int, available: BoolArray, planned: IntArray) -> IntArray:
    """How many of `count` new copies fall to each source: int64 [num_sources].

    One by one a source of which fewest rows were planned so far (`planned` int64 [num_sources]) is drawn without
    replacement from the available ones, in the order of a hash of (seed, that number, source). So more copies go on
    where fewer ended, whatever the rounds. No source is available: no copies.
    """
    copies = np.zeros(presence.num_sources, dtype=np.int64)
    sources = np.flatnonzero(available)
    if not len(sources) or count <= 0:
        return copies
    level = _water_level(planned[sources], count)
    copies[sources] = np.maximum(level - planned[sources], 0)
    last = sources[planned[sources] <= level]
    hashes = source_hashes(presence, seed, f"random|{level}")
    order = np.lexsort((last, hashes[last]))
    copies[last[order[: count - int(copies.sum())]]] += 1
    return copies


def _water_level(planned: IntArray, count: int) -> int:
    """The highest number to which all that have fewer can be brought with `count` copies."""
    ordered = np.sort(planned)
    # To bring the first k to the level of the k-th costs k * ordered[k - 1] - (sum of the first k).
    costs = np.arange(1, len(ordered) + 1) * ordered - np.cumsum(ordered)
    raised = int(np.searchsorted(costs, count, side="right"))
    return int((count + ordered[:raised].sum()) // raised)
