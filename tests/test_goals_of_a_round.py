"""Goals of one round: a later one goes on where those before it stopped, in the cycle of a class and in turns."""

from collections.abc import Sequence

import numpy as np
import pytest

from segdatagen.balance import Presence
from segdatagen.goals import AnyGoal, Balance, Cover, Quotas, RandomSamples
from segdatagen.missing import State, missing_rows

FOUR = Presence.from_lists(list("abcd"), ["x"], [[0]] * 4)


def copies_of(goals: Sequence[AnyGoal], presence: Presence = FOUR) -> dict[str, list[int]]:
    """Copies of each source by method, of a first round with these goals."""
    planned = missing_rows(goals, State.at_start(presence), seed=0)
    found = np.zeros((len(planned.methods), presence.num_sources), np.int64)
    np.add.at(found, (planned.method_index, planned.source_index), planned.copies)
    return dict(zip(planned.methods, found.tolist(), strict=True))


@pytest.mark.parametrize("second", [Balance(method="n", n_balance=8), Quotas(method="n", quotas={"x": 8})])
def test_two_goals_of_two_samples_each_use_different_sources(second: AnyGoal) -> None:
    found = copies_of([Balance(method="m", n_balance=6), second])
    assert (sorted(found["m"]), sorted(found["n"])) == ([0, 0, 1, 1], [0, 0, 1, 1])
    assert np.add(found["m"], found["n"]).tolist() == [1, 1, 1, 1]


def test_goals_that_raise_a_quota_step_by_step_burden_sources_as_one_goal_does() -> None:
    steps = [Balance(method=f"method {number}", n_balance=number) for number in (5, 8, 9, 13, 14)]
    assert np.sum(list(copies_of(steps).values()), axis=0).tolist() == copies_of(steps[-1:])["method 14"]


@pytest.mark.parametrize("first", [Cover(method="m", n_balance=6), RandomSamples(method="m", num_samples=2)])
def test_it_is_the_turn_of_sources_that_no_goal_before_a_cover_has_copied(first: AnyGoal) -> None:
    alone, both = copies_of([first])["m"], copies_of([first, Cover(method="m", n_balance=8)])["m"]
    assert sorted(alone) == [0, 0, 1, 1]
    assert both == [1, 1, 1, 1]


@pytest.mark.parametrize(("max_copies", "copies"), [(None, [1, 2, 2]), (1, [1, 2, 2]), (3, [0, 3, 1]), (9, [0, 3, 1])])
def test_a_cover_copies_a_source_as_often_as_its_goal_allows(max_copies: int | None, copies: list[int]) -> None:
    """Algorithm 1 copies none more than twice; three of the source with both classes save an image."""
    presence = Presence.from_lists(["c", "cd", "d"], ["cat", "dog"], [[0], [0, 1], [1]])
    quotas = {"cat": 5, "dog": 6}
    assert max(copies_of([Quotas(method="m", quotas=quotas)], presence)["m"]) == 2
    assert copies_of([Cover(method="m", quotas=quotas, max_copies=max_copies)], presence)["m"] == copies
