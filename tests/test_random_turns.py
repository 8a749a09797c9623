"""Random sources against a literal loop: every source once before any stands twice, in the order of the seed."""

import numpy as np
import pytest

from segdatagen.balance import Presence, source_hashes
from segdatagen.random_turns import random_copies


def sources_of(count: int) -> Presence:
    return Presence.from_lists([f"s{i}" for i in range(count)], ["x"], [[0]] * count)


@pytest.mark.parametrize("case", range(200))
def test_equals_drawing_one_by_one(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = sources_of(int(rng.integers(1, 30)))
    available = rng.random(presence.num_sources) < 0.8
    planned = rng.integers(0, 6, presence.num_sources) if case % 2 else np.zeros(presence.num_sources, np.int64)
    count = int(rng.integers(0, 200))

    copies = random_copies(presence, count, case, available, planned)

    have = planned.tolist()
    for _ in range(count if available.any() else 0):
        fewest = min(have[s] for s in np.flatnonzero(available))
        hashes = source_hashes(presence, case, f"random|{fewest}")
        source = min((s for s in np.flatnonzero(available) if have[s] == fewest), key=lambda s: hashes[s])
        have[source] += 1
    assert (planned + copies).tolist() == have


def test_no_source_stands_twice_before_all_stood_once() -> None:
    presence = sources_of(100)
    everywhere, zeros = np.ones(100, bool), np.zeros(100, np.int64)
    for count in (1, 60, 100, 130, 250):
        copies = random_copies(presence, count, 0, everywhere, zeros)
        assert copies.sum() == count
        assert copies.max() - copies.min() <= 1


def test_every_cycle_has_an_order_of_its_own_and_every_source_its_chance() -> None:
    presence = sources_of(40)
    everywhere, zeros = np.ones(40, bool), np.zeros(40, np.int64)
    halves = {tuple(random_copies(presence, 40 * cycle + 20, 0, everywhere, zeros) - cycle) for cycle in range(5)}
    assert len(halves) == 5
    drawn = sum(random_copies(presence, 10, seed, everywhere, zeros) for seed in range(2000))
    assert abs(drawn - 500).max() < 5 * np.sqrt(500 * 0.75), "each source is drawn by a quarter of the seeds"


def test_where_no_source_is_available_nothing_is_planned() -> None:
    presence = sources_of(3)
    assert random_copies(presence, 9, 0, np.zeros(3, bool), np.zeros(3, np.int64)).tolist() == [0, 0, 0]
