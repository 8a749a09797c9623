"""What goals lack: by class in images or pixels, by method in samples, and nothing exactly where they are met."""

from dataclasses import replace

import numpy as np
from test_goals import after

from segdatagen.balance import Presence
from segdatagen.goals import BalancePixels, Cover, Quotas, RandomSamples, Uniform
from segdatagen.missing import Shortfall, State, missing_rows, shortfalls_of
from segdatagen.status import goals_in_words


def test_unavailable_sources_are_left_out_and_lost_goals_are_not_met() -> None:
    presence = Presence.from_lists(["a", "b"], ["x", "y"], [[0], [1]])
    lost_b = replace(State.at_start(presence), available=np.array([True, False]))
    uniform, quotas = Uniform(method="m", per_source=2), Quotas(method="m", quotas={"x": 5, "y": 5})
    planned = missing_rows([uniform, quotas], lost_b, seed=0)
    assert set(planned.source_index.tolist()) == {0}
    assert planned.num_rows == 4
    assert planned.goals[1].unreachable == ("y",)
    done = after(lost_b, planned, planned.copies)
    assert missing_rows([uniform, quotas], done, seed=0).num_rows == 0
    assert shortfalls_of(uniform, done, 0) == (Shortfall("m", 2, 4, "samples"),)
    assert shortfalls_of(quotas, done, 0) == (Shortfall("y", 1, 5, "images"),)


def test_a_method_gets_the_sources_that_it_can_start_from() -> None:
    presence = Presence.from_lists(["a", "b", "c"], ["x", "y"], [[0], [1], [0, 1]])
    state = replace(State.at_start(presence), usable={"m": np.array([True, False, True])})
    goals = (
        *(Uniform(method="m", per_source=2), RandomSamples(method="m", num_samples=9)),
        *(Quotas(method="m", quotas={"y": 14}), Cover(method="m", quotas={"y": 20})),
    )
    planned = missing_rows([*goals, Uniform(method="n", per_source=1)], state, seed=0)
    rows = zip(planned.source_index.tolist(), planned.method_index.tolist(), strict=True)
    assert {(planned.methods[method], source) for source, method in rows} == {
        *(("m", 0), ("m", 2), ("n", 0), ("n", 1), ("n", 2))
    }
    done = after(state, planned, planned.copies)
    assert missing_rows(goals, done, seed=0).num_rows == 0
    assert not any(shortfalls_of(goal, done, 0) for goal in goals), "what it cannot start from is nothing that it lacks"
    one_lost = replace(done, accepted_per_source={"m": np.array([2, 2, 0])})
    assert shortfalls_of(goals[0], one_lost, 0) == (Shortfall("m", 2, 4, "samples"),)


def test_a_pixel_goal_follows_the_pixels_that_came_out() -> None:
    presence = Presence.from_lists(["a", "b"], ["x", "y"], [[0], [0, 1]])
    presence = replace(presence, pixels=np.array([10, 30, 5]))
    goals = [BalancePixels(method="m", n_pixels=60)]
    state = State.at_start(presence)
    first = missing_rows(goals, state, seed=0)
    assert first.goals[0].in_pixels
    assert (first.wanted.tolist(), first.wanted_pixels.tolist()) == ([0, 0], [60, 60])
    done = after(state, first, first.copies)
    assert not shortfalls_of(goals[0], done, 0)
    smaller = replace(done, accepted_class_pixels=done.accepted_class_pixels - [0, 12])
    assert shortfalls_of(goals[0], smaller, 0) == (Shortfall("y", 48, 60, "pixels"),)
    rest = missing_rows(goals, smaller, seed=0)
    assert (rest.source_index.tolist(), rest.copies.tolist()) == ([1], [3])


def test_samples_beyond_those_of_a_source_do_not_stand_in_for_another() -> None:
    presence = Presence.from_lists(["a", "b"], ["x"], [[0], [0]])
    state = replace(State.at_start(presence), accepted_per_source={"m": np.array([7, 1])})
    assert shortfalls_of(Uniform(method="m", per_source=3), state, 0) == (Shortfall("m", 4, 6, "samples"),)
    assert not shortfalls_of(RandomSamples(method="m", num_samples=8), state, 0)
    assert shortfalls_of(RandomSamples(method="m", num_samples=9), state, 0) == (Shortfall("m", 8, 9, "samples"),)


def test_goals_that_are_not_met_are_named_and_counted() -> None:
    one = Shortfall("bicycle", 40, 100, "images")
    assert goals_in_words(True, ()) == "goals met"
    assert goals_in_words(False, ()) == "goals not met"
    assert goals_in_words(False, (one,)) == "1 goal not met (bicycle 40 of 100)"
    two = (one, Shortfall("car", 4_000, 10_000, "pixels"))
    assert goals_in_words(False, two) == "2 goals not met (bicycle 40 of 100, car 4,000 of 10,000 pixels)"
    many = tuple(Shortfall(name, 0, 1, "images") for name in "abcdefgh")
    expected = "8 goals not met (a 0 of 1, b 0 of 1, c 0 of 1, d 0 of 1, e 0 of 1 and 3 more)"
    assert goals_in_words(False, many) == expected
