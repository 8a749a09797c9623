"""Algorithm 1 with pixels for images, against a literal loop, and its `auto` against brute force."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matrices import presence_of_matrix

from segdatagen.balance import Presence, Progress, balance, class_orders, cycle_length
from segdatagen.balance_auto import QuotaTable, auto_n_balance
from segdatagen.balance_reference import tie_hash
from segdatagen.errors import UsageError
from segdatagen.goals import BalancePixels
from segdatagen.missing import State, check_goals, missing_rows, shortfalls_of


def random_sources(rng: np.random.Generator, most_sources: int = 50, largest: int = 400) -> Presence:
    """Sources with pixels per class; some classes are rare, some never present, some excluded."""
    num_sources, num_classes = int(rng.integers(1, most_sources)), int(rng.integers(1, 9))
    frequency = rng.random(num_classes) ** rng.integers(1, 4) * (rng.random(num_classes) > 0.1)
    matrix = rng.random((num_sources, num_classes)) < frequency
    matrix[0, 0] = True
    excluded = [num_classes - 1] if num_classes > 1 and rng.random() < 0.3 else []
    names = [f"class {channel}" for channel in range(num_classes)]
    presence = presence_of_matrix([f"s{index}" for index in range(num_sources)], names, matrix, excluded)
    return replace(presence, pixels=rng.integers(1, largest, len(presence.indices)))


def literal_pixels(
    presence: Presence, wanted: list[int], seed: int, progress: Progress | None
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """(channel, source) of each image in order, pixels per class at the end, and the classes that no source shows.

    Classes in label order; a class's sources with the fewest classes first; round and round until the class has the
    pixels that are wanted, where each image counts at once with all its pixels of every class.
    """
    assert presence.pixels is not None
    images = [
        dict(zip(presence.indices[a:b].tolist(), presence.pixels[a:b].tolist(), strict=True))
        for a, b in zip(presence.indptr, presence.indptr[1:], strict=False)
    ]
    pixels = [sum(image.get(channel, 0) for image in images) for channel in range(presence.num_classes)]
    available, start = [True] * len(images), [0] * presence.num_classes
    if progress is not None:
        pixels, available, start = (getattr(progress, n).tolist() for n in ("counts", "available", "cycle_start"))
    made: list[tuple[int, int]] = []
    unreachable = []
    for channel, name in enumerate(presence.class_names):
        holders = [s for s, image in enumerate(images) if channel in image and available[s]]
        holders.sort(key=lambda s: (len(images[s]), tie_hash(seed, name, presence.source_ids[s])))
        position = start[channel]
        while pixels[channel] < wanted[channel]:
            if not holders:
                unreachable.append(channel)
                break
            source = holders[position % len(holders)]
            position += 1
            made.append((channel, source))
            for held, count in images[source].items():
                pixels[held] += count
    return made, pixels, unreachable


@pytest.mark.parametrize("case", range(250))
def test_vectorised_equals_the_literal_loop(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_sources(rng)
    n_pixels = int(rng.integers(1, 40_000)) if case % 3 else rng.integers(0, 40_000, presence.num_classes)
    progress = None
    if case % 2:
        accepted = rng.integers(0, 2000, presence.num_classes)
        available = rng.random(presence.num_sources) < 0.7
        starts = rng.integers(0, 99, presence.num_classes)
        progress = Progress(presence.in_pixels.counts + accepted, available, starts)

    copies = balance(presence.in_pixels, n_pixels, case, progress=progress)

    wanted = np.where(presence.counted, n_pixels, 0).tolist()
    made, pixels, unreachable = literal_pixels(presence, wanted, case, progress)
    pairs = list(zip(copies.target_channel.tolist(), copies.source_index.tolist(), strict=True))
    assert dict(zip(pairs, copies.copies.tolist(), strict=True)) == Counter(made)
    assert pairs == list(dict.fromkeys(made))
    assert copies.counts.tolist() == pixels
    assert list(copies.unreachable) == unreachable


def test_hand_worked_case() -> None:
    # cat: a 10, ab 30 pixels; dog: ab 5. Wanted are 60: cat lacks 20: a, then ab, which makes dog 10.
    # dog lacks 50: ten of ab.
    presence = replace(Presence.from_lists(["a", "ab"], ["cat", "dog"], [[0], [0, 1]]), pixels=np.array([10, 30, 5]))
    copies = balance(presence.in_pixels, 60)
    assert copies.source_index.tolist() == [0, 1, 1]
    assert copies.target_channel.tolist() == [0, 0, 1]
    assert copies.copies.tolist() == [1, 1, 10]
    assert copies.counts.tolist() == [40 + 10 + 30 + 300, 60]


@pytest.mark.parametrize("case", range(40))
def test_one_pixel_each_is_the_balance_of_images(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_sources(rng)
    presence = replace(presence, pixels=np.ones(len(presence.indices), np.int64))
    n = int(rng.integers(1, 200))
    images, pixels = balance(presence, n, case), balance(presence.in_pixels, n, case)
    for column in ("source_index", "target_channel", "copies", "counts"):
        assert getattr(images, column).tolist() == getattr(pixels, column).tolist()
    assert auto_n_balance(presence, 1.5, case) == auto_n_balance(presence.in_pixels, 1.5, case)


@pytest.mark.parametrize("case", range(60))
def test_auto_equals_brute_force(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_sources(rng, most_sources=14, largest=25)
    ratio = float(rng.choice([0.1, 0.5, 1.0, 2.0]))
    goal = round(ratio * presence.num_sources, 6)
    found = auto_n_balance(presence.in_pixels, ratio, case)
    last = max(found + 1, int(presence.in_pixels.counts.max() + 2 * 25 * goal))
    errors = [abs(balance(presence.in_pixels, n, case).num_generated - goal) for n in range(1, last + 1)]
    assert found == 1 + int(np.argmin(errors))


@pytest.mark.parametrize("case", range(60))
@pytest.mark.parametrize("in_pixels", [False, True])
def test_auto_counts_on_the_usable_sources_alone(case: int, in_pixels: bool) -> None:
    rng = np.random.default_rng(case)
    presence = random_sources(rng, most_sources=14, largest=25)
    presence = presence.in_pixels if in_pixels else presence
    usable = rng.random(presence.num_sources) < 0.5
    usable[0] = True
    goal = 1.5 * presence.num_sources
    found = auto_n_balance(presence, 1.5, case, usable=usable)
    last = max(found + 1, int(presence.counts.max() + 2 * 25 * goal))
    progress = replace(Progress.at_start(presence), available=usable)
    totals = [balance(presence, n, case, progress=progress).num_generated for n in range(1, last + 1)]
    assert found == 1 + int(np.argmin(np.abs(np.array(totals) - goal)))


def test_bounds_of_a_range_hold_the_total_of_each_of_its_quotas_and_are_exact_for_one() -> None:
    rng = np.random.default_rng(1)
    for case in range(30):
        presence = random_sources(rng, largest=9).in_pixels
        table = QuotaTable.build(presence, class_orders(presence, case), 400)
        totals = np.array([balance(presence, quota, case).num_generated for quota in range(1, 401)])
        first = rng.integers(1, 401, 50)
        last = np.minimum(first + rng.integers(0, 90, 50), 400)
        least, most = table.bounds(first, last)
        for begin, end, low, high in zip(first, last, least, most, strict=True):
            assert low <= totals[begin - 1 : end].min() <= totals[begin - 1 : end].max() <= high
        least, most = table.bounds(np.arange(1, 401), np.arange(1, 401))
        assert least.tolist() == most.tolist() == totals.tolist()


def test_the_length_of_a_cycle_is_the_fewest_copies_that_suffice() -> None:
    weights = np.array([3, 1, 5])
    endless = np.cumsum(np.tile(weights, 20))
    deficits = np.arange(0, 150)
    expected = [0 if d == 0 else int(np.argmax(endless >= d)) + 1 for d in deficits]
    assert cycle_length(np.cumsum(weights), deficits).tolist() == expected


@pytest.mark.parametrize("pixels", [np.array([1]), np.array([1, 0, 2]), np.array([[1, 2, 3]])])
def test_pixels_that_fit_no_pairs_are_refused(pixels: np.ndarray) -> None:
    presence = Presence.from_lists(["a", "ab"], ["cat", "dog"], [[0], [0, 1]])
    with pytest.raises(ValueError, match="pixels"):
        replace(presence, pixels=pixels)


def test_sources_whose_pixels_were_never_counted_have_no_balance_of_pixels() -> None:
    with pytest.raises(ValueError, match="never counted"):
        _ = Presence.from_lists(["a"], ["cat"], [[0]]).in_pixels


def test_a_goal_that_few_sources_can_serve_is_checked_with_these() -> None:
    """40 sources show a class, two of them a few pixels of it, and the method can start from these two alone."""
    usable = np.arange(40) < 2
    pixels = np.where(usable, 5, 100_000)
    presence = replace(
        Presence.from_pairs([f"s{n:02d}" for n in range(40)], ["sky"], np.arange(40), np.zeros(40, int)), pixels=pixels
    )
    goals = [BalancePixels(method="inpaint", n_pixels=200_000_000)]
    check_goals(goals, presence, 0)
    with pytest.raises(UsageError, match="the plan asks for 39,239,998 samples, more than one run can plan"):
        check_goals(goals, presence, 0, {"inpaint": usable})


@pytest.mark.parametrize("strategy", [{"n_pixels": "auto", "ratio": 0.5}, {"n_pixels": "auto"}])
def test_auto_of_a_method_that_few_sources_can_serve_plans_its_ratio(strategy: dict[str, Any]) -> None:
    """Two of 40 sources show little of a class that all others are full of, and `inpaint` starts from these alone."""
    usable = np.arange(40) < 2
    presence = Presence.from_pairs([f"s{n:02d}" for n in range(40)], ["sky"], np.arange(40), np.zeros(40, int))
    presence = replace(presence, pixels=np.where(usable, 5, 100_000))
    goal = BalancePixels(method="inpaint", **strategy)
    state = State.at_start(presence, {"inpaint": usable})
    check_goals([goal], presence, 0, {"inpaint": usable})
    planned = missing_rows([goal], state, seed=0)
    assert planned.num_rows == goal.ratio * 40
    made = replace(state, accepted_class_pixels=np.array([5 * planned.num_rows]))
    assert [str(short) for short in shortfalls_of(goal, state, 0)] != []
    assert shortfalls_of(goal, made, 0) == ()


def test_auto_of_a_method_that_can_start_from_no_counted_class_is_refused_before_the_plan() -> None:
    presence = replace(Presence.from_lists(["a", "b"], ["cat"], [[0], []]), pixels=np.array([5]))
    goal = BalancePixels(method="inpaint", n_pixels="auto")
    with pytest.raises(UsageError, match="auto needs a class with at least one source"):
        check_goals([goal], presence, 0, {"inpaint": np.array([False, True])})
