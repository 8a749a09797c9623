"""Cover against a literal greedy loop, Algorithm 1, brute force over tiny sets, and the class facts of Pascal VOC."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matrices import presence_of_matrix

from segdatagen.balance import Presence, Progress, balance, class_orders, source_hashes
from segdatagen.balance_report import presence_of_stats
from segdatagen.cover import LackingClasses, Turns, cover, greedy_cover, lower_bound, without_spare


def random_presence(rng: np.random.Generator, most_sources: int = 40, most_classes: int = 9) -> Presence:
    num_sources, num_classes = int(rng.integers(1, most_sources)), int(rng.integers(1, most_classes))
    frequency = rng.random(num_classes) ** rng.integers(1, 4) * (rng.random(num_classes) > 0.1)
    matrix = rng.random((num_sources, num_classes)) < frequency
    excluded = [num_classes - 1] if num_classes > 1 and rng.random() < 0.3 else []
    names = [f"class {channel}" for channel in range(num_classes)]
    return presence_of_matrix([f"s{index}" for index in range(num_sources)], names, matrix, excluded)


def random_case(rng: np.random.Generator, presence: Presence) -> tuple[np.ndarray, Progress, Turns]:
    """Quotas, some of them 0, from a start or from a later round, with and without `max_copies`."""
    wanted = np.where(presence.counted, rng.integers(0, 90, presence.num_classes), 0)
    wanted[rng.random(presence.num_classes) < 0.2] = 0
    progress, planned = Progress.at_start(presence), np.zeros(presence.num_sources, np.int64)
    if rng.random() < 0.5:
        counts = presence.counts + rng.integers(0, 9, presence.num_classes)
        progress = Progress(counts, rng.random(presence.num_sources) < 0.7, rng.integers(0, 99, presence.num_classes))
        planned = rng.integers(0, 4, presence.num_sources)
    return wanted, progress, Turns(planned, int(rng.choice([0, 3, 1000])))


def literal_greedy(presence: Presence, wanted: np.ndarray, seed: int, progress: Progress, turns: Turns) -> list[int]:
    """The sources in the order in which they are copied, one image at a time."""
    classes = [set(row.tolist()) for row in np.split(presence.indices, presence.indptr[1:-1])]
    hashes = source_hashes(presence, seed, "cover").tolist()
    algorithm_1 = balance(presence, wanted, seed, progress=progress).per_source(presence.num_sources)
    most = max(int(algorithm_1.max(initial=0)), turns.at_most)
    counts, planned = progress.counts.tolist(), turns.planned.tolist()
    made: list[int] = []
    while True:
        usable = [s for s in range(len(classes)) if progress.available[s] and made.count(s) < most]
        useful = {s: sum(counts[c] < wanted[c] for c in classes[s]) for s in usable}
        if not any(useful.values()):
            return made
        source = min(usable, key=lambda s: (-useful[s], planned[s], len(classes[s]), hashes[s]))
        made.append(source)
        planned[source] += 1
        for channel in classes[source]:
            counts[channel] += 1


@pytest.mark.parametrize("case", range(220))
def test_whole_turns_equal_the_literal_loop(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    wanted, progress, turns = random_case(rng, presence)
    lacking = LackingClasses.of(presence, wanted - progress.counts, progress.available, case)
    algorithm_1 = balance(presence, wanted, case, progress=progress)

    greedy = greedy_cover(lacking, turns, algorithm_1)

    made = literal_greedy(presence, wanted, case, progress, turns)
    assert greedy.per_source(presence.num_sources).tolist() == np.bincount(made, minlength=len(turns.planned)).tolist()
    added = presence.counts_of_copies(greedy.per_source(presence.num_sources))
    assert greedy.counts.tolist() == (progress.counts + added).tolist()


@pytest.mark.parametrize("case", range(220))
def test_a_cover_fills_every_quota_that_algorithm_1_fills_with_no_more_images(case: int) -> None:
    rng = np.random.default_rng(1000 + case)
    presence = random_presence(rng, most_sources=120, most_classes=14)
    wanted, progress, turns = random_case(rng, presence)
    algorithm_1 = balance(presence, wanted, case, progress=progress)

    plan = cover(presence, wanted, class_orders(presence, case), progress, turns)

    copies, per_source = plan.copies, plan.copies.per_source(presence.num_sources)
    assert plan.at_least <= copies.num_generated <= plan.algorithm_1 == algorithm_1.num_generated
    assert (copies.counts >= np.minimum(wanted, algorithm_1.counts)).all()
    assert copies.counts.tolist() == (progress.counts + presence.counts_of_copies(per_source)).tolist()
    assert copies.unreachable == algorithm_1.unreachable
    assert not per_source[~progress.available].any()
    busiest = int(algorithm_1.per_source(presence.num_sources).max(initial=0))
    assert per_source.max(initial=0) <= max(busiest, turns.at_most)
    pairs = list(zip(copies.source_index.tolist(), copies.target_channel.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(channel in presence.classes_of(np.array([source])) for source, channel in pairs)
    assert all(progress.counts[channel] < wanted[channel] for _, channel in pairs)


def test_nothing_that_a_cover_plans_can_be_spared() -> None:
    for case in range(60):
        rng = np.random.default_rng(case)
        presence = random_presence(rng)
        wanted, progress, turns = random_case(rng, presence)
        copies = cover(presence, wanted, class_orders(presence, case), progress, turns).copies
        for source in np.flatnonzero(copies.per_source(presence.num_sources)):
            held = presence.classes_of(np.array([source]))
            assert (copies.counts[held] <= wanted[held]).any()


def test_what_can_be_spared_goes() -> None:
    # Algorithm 1: cat lacks 3, dog lacks 4 minus what cat's copies bring; the pair brings both.
    presence = Presence.from_lists(["c", "cd", "d"], ["cat", "dog"], [[0], [0, 1], [1]])
    wanted, start = np.array([5, 6]), Progress.at_start(presence)
    algorithm_1 = balance(presence, wanted, 0)
    spared = without_spare(algorithm_1, presence, wanted + 2, presence.counts)
    assert spared.copies.tolist() == algorithm_1.copies.tolist(), "quotas that are not met spare nothing"
    plan = cover(presence, wanted, class_orders(presence, 0), start, Turns(np.zeros(3, np.int64), 99))
    assert plan.copies.per_source(3).tolist() == [0, 3, 1]
    assert plan.at_least == 4


def fewest_images(classes: list[set[int]], deficits: np.ndarray) -> int:
    """The least number of images that fill the deficits, by trying every multiset of sources."""
    for count in itertools.count():
        for chosen in itertools.combinations_with_replacement(range(len(classes)), count):
            held = [sum(channel in classes[s] for s in chosen) for channel in range(len(deficits))]
            if all(have >= lacks for have, lacks in zip(held, deficits, strict=True)):
                return count
    raise AssertionError


@pytest.mark.parametrize("case", range(60))
def test_the_lower_bound_is_one(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng, most_sources=6, most_classes=6)
    deficits = np.where(presence.counts > 0, rng.integers(0, 4, presence.num_classes), 0)
    lacking = LackingClasses.of(presence, deficits, np.ones(presence.num_sources, bool), case)
    classes = [set(row.tolist()) for row in np.split(presence.indices, presence.indptr[1:-1])]
    bound = lower_bound(lacking)
    assert bound <= fewest_images(classes, deficits)
    sizes = [len(row & set(np.flatnonzero(deficits).tolist())) for row in classes]
    assert bound >= deficits.max(initial=0)
    assert bound >= deficits.sum() / max([*sizes, 1])


def test_sources_that_show_the_same_classes_take_turns() -> None:
    rng = np.random.default_rng(0)
    kinds = [[0], [1], [0, 1], [0, 1, 2], [2]]
    rows = [kinds[kind] for kind in rng.integers(0, 5, 90)]
    presence = Presence.from_lists([str(i) for i in range(90)], list("abc"), rows)
    turns = Turns(np.zeros(90, np.int64), 10**6)
    lacking = LackingClasses.of(presence, np.array([500, 333, 90]), np.ones(90, bool), 0)
    per_source = greedy_cover(lacking, turns, balance(presence, 0)).per_source(90)
    assert per_source.sum() >= 500
    for kind in kinds:
        copies = per_source[[row == kind for row in rows]]
        assert copies.max() - copies.min() <= 1


def test_a_copy_is_made_on_behalf_of_the_rarest_class_that_it_helps() -> None:
    presence = Presence.from_lists(list("abcd"), ["often", "seldom"], [[0], [0], [0], [0, 1]])
    turns = Turns(np.zeros(4, np.int64))
    copies = cover(presence, np.array([6, 4]), class_orders(presence, 0), Progress.at_start(presence), turns).copies
    assert (copies.source_index.tolist(), copies.target_channel.tolist(), copies.copies.tolist()) == ([3], [1], [3])


def test_where_the_greedy_choice_is_worse_algorithm_1_is_taken() -> None:
    """The textbook case: two sources show all 14 classes, but one that shows 8 of both looks better at first."""
    left, right = [0, 1, 2, 3, 8, 9, 12], [4, 5, 6, 7, 10, 11, 13]
    lists = [left, right, list(range(8)), [8, 9, 10, 11], [12, 13]]
    presence = Presence.from_lists(list("abcde"), [f"{channel}" for channel in range(14)], lists)
    wanted, start, turns = np.full(14, 3), Progress.at_start(presence), Turns(np.zeros(5, np.int64))
    lacking = LackingClasses.of(presence, wanted - presence.counts, start.available, 0)
    assert greedy_cover(lacking, turns, balance(presence, wanted)).per_source(5).tolist() == [0, 0, 1, 1, 1]
    plan = cover(presence, wanted, class_orders(presence, 0), start, turns)
    assert plan.copies.per_source(5).tolist() == [1, 1, 0, 0, 0]
    assert (plan.at_least, plan.algorithm_1) == (2, 2)


@pytest.mark.parametrize("n_balance", [100, 200, 311, 1000])
def test_pascal_voc_needs_fewer_images_than_algorithm_1(shared: Path, n_balance: int) -> None:
    facts = json.loads((shared / "data" / "voc" / "class_pixels.json").read_text())
    presence = presence_of_stats(facts, min_pixels=1)
    wanted = np.full(presence.num_classes, n_balance)
    orders, start = class_orders(presence, 0), Progress.at_start(presence)
    zeros = np.zeros(presence.num_sources, np.int64)
    spread, fewest = (cover(presence, wanted, orders, start, Turns(zeros, most)) for most in (0, 10**6))
    assert (spread.copies.counts >= n_balance).all()
    assert (fewest.copies.counts >= n_balance).all()
    assert spread.copies.num_generated < 0.9 * spread.algorithm_1
    assert fewest.copies.num_generated < 0.7 * fewest.algorithm_1
    assert fewest.copies.num_generated < 1.25 * fewest.at_least
    busiest = balance(presence, wanted, 0).per_source(presence.num_sources).max()
    assert spread.copies.per_source(presence.num_sources).max() <= busiest
