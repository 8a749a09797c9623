"""`n_balance: auto` against brute force with the literal loop, and the bounds that make it exact."""

import numpy as np
import pytest
from matrices import presence_of_matrix

from segdatagen import balance_auto
from segdatagen.balance import Presence, balance, class_orders
from segdatagen.balance_auto import QuotaTable, auto_n_balance
from segdatagen.balance_reference import literal_balance
from segdatagen.errors import UsageError


def random_presence(rng: np.random.Generator, most_sources: int = 25, most_classes: int = 6) -> Presence:
    num_sources, num_classes = int(rng.integers(1, most_sources)), int(rng.integers(1, most_classes))
    matrix = rng.random((num_sources, num_classes)) < rng.random(num_classes) ** 2
    matrix[0, 0] = True
    excluded = [num_classes - 1] if num_classes > 1 and rng.random() < 0.3 else []
    ids, names = [f"s{index}" for index in range(num_sources)], [f"c{channel}" for channel in range(num_classes)]
    return presence_of_matrix(ids, names, matrix, excluded)


def literal_total(presence: Presence, quota: int, seed: int) -> int:
    rows = np.split(presence.indices, presence.indptr[1:-1])
    images = [(name, row.tolist()) for name, row in zip(presence.source_ids, rows, strict=True)]
    quotas = np.where(presence.counted, quota, 0).tolist()
    return len(literal_balance(images, presence.class_names, quotas, seed).generated)


@pytest.mark.parametrize("case", range(60))
def test_auto_equals_brute_force(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    ratio = float(rng.choice([0.0, 0.1, 0.5, 1.0, 1.7, 3.0]))
    goal = ratio * presence.num_sources
    # Every quota past this one generates more than twice the goal, for its largest deficit alone.
    last = int(presence.counts.max() + 2 * goal) + 2
    errors = [abs(literal_total(presence, quota, case) - goal) for quota in range(1, last + 1)]
    assert auto_n_balance(presence, ratio, case) == 1 + int(np.argmin(errors))


def test_auto_equals_brute_force_over_many_passes_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance_auto, "PARTS", 3)
    monkeypatch.setattr(balance_auto, "CHUNK", 2)
    for case in range(40):
        rng = np.random.default_rng(1000 + case)
        presence = random_presence(rng, most_sources=60)
        goal = 1.3 * presence.num_sources
        totals = [balance(presence, quota, case).num_generated for quota in range(1, int(60 + 2 * goal) + 2)]
        assert auto_n_balance(presence, 1.3, case) == 1 + int(np.argmin(np.abs(np.array(totals) - goal)))


def test_bounds_of_a_range_hold_the_total_of_each_of_its_quotas_and_are_exact_for_one() -> None:
    rng = np.random.default_rng(3)
    for case in range(40):
        presence = random_presence(rng, most_sources=60, most_classes=12)
        table = QuotaTable.build(presence, class_orders(presence, case), 100)
        totals = np.array([balance(presence, quota, case).num_generated for quota in range(1, 101)])
        first = rng.integers(1, 101, 50)
        last = np.minimum(first + rng.integers(0, 30, 50), 100)
        least, most = table.bounds(first, last)
        for begin, end, low, high in zip(first, last, least, most, strict=True):
            inside = totals[begin - 1 : end]
            assert low <= inside.min() <= inside.max() <= high
        least, most = table.bounds(np.arange(1, 101), np.arange(1, 101))
        assert least.tolist() == most.tolist() == totals.tolist()


def falling_presence() -> Presence:
    """Six classes: after five lone images, the first two classes come to an image each that holds the other four."""
    lists = [[0]] * 5 + [[1]] * 5 + [[0, 2, 3, 4, 5], [1, 2, 3, 4, 5]] + [[channel] for channel in (2, 3, 4, 5)] * 6
    return Presence.from_lists([str(i) for i in range(len(lists))], list("abcdef"), lists)


def test_the_total_can_fall_as_the_quota_rises_and_the_smallest_quota_is_still_found() -> None:
    presence = falling_presence()
    totals = {quota: balance(presence, quota).num_generated for quota in range(1, 40)}
    assert totals[11] == 22
    assert totals[12] == 20
    for goal in range(1, 60):
        _, nearest = min((abs(total - goal), quota) for quota, total in totals.items())
        assert auto_n_balance(presence, goal / presence.num_sources) == nearest


def test_auto_depends_on_the_seed_only_through_ties_and_repeats() -> None:
    presence = Presence.from_lists([str(i) for i in range(30)], ["a", "b"], [[0]] * 25 + [[1]] * 5)
    assert auto_n_balance(presence, 1.0, 1) == auto_n_balance(presence, 1.0, 2) == 30
    assert balance(presence, 30).num_generated == 30


def test_rounding_of_the_ratio_decides_no_tie() -> None:
    # Totals are 0, 2, 4, ... and 0.1 * 30 lies halfway between two of them.
    presence = Presence.from_lists([str(i) for i in range(30)], ["a", "b"], [[0], [1]] + [[]] * 28)
    assert auto_n_balance(presence, 0.1) == 2


def test_auto_without_any_source_is_an_error() -> None:
    for presence in (Presence.from_lists([], ["a"], []), Presence.from_lists(["x"], ["a"], [[0]], excluded=[0])):
        with pytest.raises(UsageError, match="auto needs a class"):
            auto_n_balance(presence)
