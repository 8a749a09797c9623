"""Goals over a state: nothing is planned twice, nothing that is missing is forgotten."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import presence_of_matrix
from pydantic import TypeAdapter, ValidationError

from segdatagen.balance import Presence, balance
from segdatagen.balance_auto import auto_n_balance
from segdatagen.errors import UsageError
from segdatagen.goals import (
    AnyGoal,
    Balance,
    BalancePixels,
    Cover,
    Goal,
    Quotas,
    RandomSamples,
    Uniform,
    at_most_rows,
    wanted_per_class,
)
from segdatagen.missing import PlannedCopies, State, expand, missing_rows, shortfalls_of


def random_presence(rng: np.random.Generator) -> Presence:
    """Some sources without a class; class 0 is present, the last one may be excluded."""
    num_sources, num_classes = int(rng.integers(1, 30)), int(rng.integers(1, 8))
    matrix = rng.random((num_sources, num_classes)) < rng.random(num_classes) ** 2
    matrix[0, 0] = True
    excluded = [num_classes - 1] if num_classes > 1 and rng.random() < 0.3 else []
    ids, names = [f"s{index}" for index in range(num_sources)], [f"c{channel}" for channel in range(num_classes)]
    presence = presence_of_matrix(ids, names, matrix, excluded)
    return replace(presence, pixels=rng.integers(1, 300, len(presence.indices)))


def random_goals(rng: np.random.Generator, presence: Presence) -> list[AnyGoal]:
    goals: list[AnyGoal] = []
    for _ in range(rng.integers(1, 5)):
        method = str(rng.choice(["masksyn", "imgsyn", "guided"]))
        kind = rng.integers(8)
        if kind == 0:
            goals.append(Uniform(method=method, per_source=int(rng.integers(1, 5))))
        elif kind == 1:
            goals.append(Balance(method=method, n_balance=int(rng.integers(1, 60))))
        elif kind == 2:
            goals.append(Balance(method=method, n_balance="auto", ratio=float(rng.uniform(0.2, 3))))
        elif kind == 3:
            goals.append(BalancePixels(method=method, n_pixels=int(rng.integers(1, 9000))))
        elif kind == 4:
            goals.append(BalancePixels(method=method, n_pixels="auto", ratio=float(rng.uniform(0.2, 3))))
        elif kind == 5:
            goals.append(RandomSamples(method=method, num_samples=int(rng.integers(1, 90))))
        elif kind == 6:
            goals.append(Cover(method=method, n_balance=int(rng.integers(1, 60))))
        else:
            counted = np.flatnonzero(presence.counted)
            names = [presence.class_names[c] for c in counted if rng.random() < 0.7] or ["c0"]
            quotas = {name: int(rng.integers(0, 50)) for name in names}
            goals.append(rng.choice([Quotas, Cover])(method=method, quotas=quotas))
    return goals


def after(state: State, planned: PlannedCopies, accepted: Sequence[int] | np.ndarray) -> State:
    """The state once `accepted[i]` copies of entry i have come out with the classes of their source."""
    presence = state.presence
    accepted = np.asarray(accepted, dtype=np.int64)
    accepted_per_source = {method: counts.copy() for method, counts in state.accepted_per_source.items()}
    planned_per_source = {method: counts.copy() for method, counts in state.planned_per_source.items()}
    for index, method in enumerate(planned.methods):
        rows = planned.method_index == index
        for per_source, copies in ((accepted_per_source, accepted), (planned_per_source, planned.copies)):
            counts = per_source.setdefault(method, np.zeros(presence.num_sources, dtype=np.int64))
            np.add.at(counts, planned.source_index[rows], copies[rows])
    class_counts, class_pixels = state.accepted_class_counts.copy(), state.accepted_class_pixels.copy()
    for source, number in zip(planned.source_index, accepted, strict=True):
        class_counts[presence.classes_of(np.array([source]))] += number
        if presence.pixels is not None:
            class_pixels += number * presence.in_pixels.counts_of(np.array([source]))
    targeted = planned.target_channel >= 0
    planned_for_class = state.planned_for_class.copy()
    np.add.at(planned_for_class, planned.target_channel[targeted], planned.copies[targeted])
    return State(
        presence,
        accepted_per_source,
        planned_per_source,
        class_counts,
        class_pixels,
        state.available,
        planned_for_class,
        state.usable,
    )


@settings(max_examples=200)
@given(st.integers(0, 1 << 32))
def test_nothing_is_missing_once_the_planned_rows_are_accepted(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    goals = random_goals(rng, presence)
    start = State.at_start(presence)
    planned = missing_rows(goals, start, seed=case)

    done = after(start, planned, planned.copies)

    again = missing_rows(goals, done, seed=case)
    assert again.num_rows == 0
    assert (done.class_counts - start.class_counts).tolist() == planned.planned_class_counts.tolist()
    for goal, plan in zip(goals, planned.goals, strict=True):
        assert bool(shortfalls_of(goal, done, case)) == bool(plan.unreachable)
    assert [plan.unreachable for plan in again.goals] == [plan.unreachable for plan in planned.goals]


@settings(max_examples=100)
@given(st.integers(0, 1 << 32))
def test_rounds_of_partial_acceptance_end_with_every_goal_met(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    goals = random_goals(rng, presence)
    state = State.at_start(presence)
    for _ in range(80):
        planned = missing_rows(goals, state, seed=0)
        if not planned.num_rows:
            break
        accepted = rng.binomial(planned.copies, 0.5)
        state = after(state, planned, accepted)
    assert planned.num_rows == 0
    for goal, plan in zip(goals, planned.goals, strict=True):
        counts = state.class_pixels if plan.in_pixels else state.class_counts
        missed = (counts < plan.wanted) & presence.counted
        assert {presence.class_names[c] for c in np.flatnonzero(missed)} == set(plan.unreachable)
        assert bool(shortfalls_of(goal, state, 0)) == bool(plan.unreachable)
        if isinstance(goal, Uniform):
            assert (state.accepted_of(goal.method) >= goal.per_source).all()


def test_a_uniform_goal_plans_exactly_the_rest_per_source() -> None:
    presence = Presence.from_lists(list("abc"), ["x"], [[0], [], [0]])
    state = State.at_start(presence)
    goals = [Uniform(method="imgsyn", per_source=10)]
    planned = missing_rows(goals, state, seed=0)
    assert planned.wanted.tolist() == [0], "it wants no number of a class"
    assert planned.copies.tolist() == [10, 10, 10]
    assert planned.target_channel.tolist() == [-1, -1, -1]
    planned = missing_rows(goals, after(state, planned, [10, 3, 0]), seed=0)
    assert planned.source_index.tolist() == [1, 2]
    assert planned.copies.tolist() == [7, 10]


def test_a_balance_goal_plans_exactly_the_rejected_rest_of_each_class() -> None:
    rng = np.random.default_rng(0)
    presence = Presence.from_lists([str(i) for i in range(60)], list("abcd"), [[c] for c in rng.integers(0, 4, 60)])
    goals = [Balance(method="guided", n_balance=100)]
    state = State.at_start(presence)
    planned = missing_rows(goals, state, seed=0)
    accepted = rng.binomial(planned.copies, 0.8)
    rest = missing_rows(goals, after(state, planned, accepted), seed=0)
    rejected = np.bincount(planned.target_channel, weights=planned.copies - accepted)
    assert np.bincount(rest.target_channel, weights=rest.copies).tolist() == rejected.tolist()


def test_the_next_round_goes_on_in_the_cycle_instead_of_trying_the_same_sources_first() -> None:
    presence = Presence.from_lists(list("abcd"), ["x"], [[0]] * 4)
    goals = [Balance(method="guided", n_balance=6)]
    state = State.at_start(presence)
    first = missing_rows(goals, state, seed=0)
    second = missing_rows(goals, after(state, first, np.zeros_like(first.copies)), seed=0)
    assert set(first.source_index.tolist()).isdisjoint(second.source_index.tolist())


def test_a_mask_that_came_out_without_a_class_is_made_up_for() -> None:
    presence = Presence.from_lists(["a", "b"], ["x", "y"], [[0], [0, 1]])
    goals = [Balance(method="masksyn", n_balance=4)]
    state = State.at_start(presence)
    planned = missing_rows(goals, state, seed=0)
    done = after(state, planned, planned.copies)
    without_y = replace(done, accepted_class_counts=done.accepted_class_counts - [0, 2])
    rest = missing_rows(goals, without_y, seed=0)
    assert rest.target_channel.tolist() == [1]
    assert rest.copies.tolist() == [2]


def test_each_goal_sees_what_the_goals_before_it_planned() -> None:
    presence = Presence.from_lists(list("abc"), ["x", "y"], [[0], [0], [1]])
    state = State.at_start(presence)
    uniform, balanced = Uniform(method="imgsyn", per_source=3), Balance(method="guided", n_balance=8)
    planned = missing_rows([uniform, balanced], state, seed=0)
    assert [goal.num_planned for goal in planned.goals] == [9, 4]  # x has 2 + 6, y 1 + 3 when balancing begins
    same_method = missing_rows([Balance(method="imgsyn", n_balance=8), uniform], state, seed=0)
    assert [goal.num_planned for goal in same_method.goals] == [13, 0]  # x 3 + 3, y 7: every source has three


def test_samples_of_other_methods_count_for_classes_but_not_for_uniform() -> None:
    presence = Presence.from_lists(["a"], ["x"], [[0]])
    made = {"other": np.array([9])}
    state = replace(State.at_start(presence), accepted_per_source=made, accepted_class_counts=np.array([9]))
    assert missing_rows([Balance(method="guided", n_balance=10)], state, seed=0).num_rows == 0
    assert missing_rows([Uniform(method="guided", per_source=2)], state, seed=0).num_rows == 2


def test_first_round_is_algorithm_1() -> None:
    rng = np.random.default_rng(3)
    presence = random_presence(rng)
    planned = missing_rows([Balance(method="guided", n_balance=37)], State.at_start(presence), seed=5)
    copies = balance(presence, 37, seed=5)
    order = np.lexsort((copies.target_channel, copies.source_index))
    assert planned.source_index.tolist() == copies.source_index[order].tolist()
    assert planned.target_channel.tolist() == copies.target_channel[order].tolist()
    assert planned.copies.tolist() == copies.copies[order].tolist()


def test_auto_keeps_its_quota_as_samples_are_accepted() -> None:
    rng = np.random.default_rng(4)
    presence = random_presence(rng)
    goal = Balance(method="guided", n_balance="auto", ratio=2.0)
    state = State.at_start(presence)
    planned = missing_rows([goal], state, seed=1)
    half = after(state, planned, planned.copies // 2)
    assert planned.goals[0].wanted.max() == auto_n_balance(presence, 2.0, 1)
    assert missing_rows([goal], half, seed=1).goals[0].wanted.tolist() == planned.goals[0].wanted.tolist()


def test_quotas_apply_to_the_named_classes_only() -> None:
    presence = Presence.from_lists(["a", "b"], ["background", "x", "y"], [[0, 1], [0, 2]], excluded=[0])
    planned = missing_rows([Quotas(method="m", quotas={"y": 4})], State.at_start(presence), seed=0)
    assert planned.source_index.tolist() == [1]
    assert planned.copies.tolist() == [3]
    assert planned.wanted.tolist() == [0, 0, 4]
    assert wanted_per_class(Balance(method="m", n_balance=9), presence, 0).tolist() == [0, 9, 9]


def test_a_quota_of_a_class_that_is_never_counted_is_refused() -> None:
    presence = Presence.from_lists(["a"], ["background", "x"], [[1]], excluded=[0])
    with pytest.raises(UsageError, match="'background' is background"):
        missing_rows([Quotas(method="m", quotas={"background": 4})], State.at_start(presence), seed=0)


def test_a_pixel_goal_sees_the_pixels_that_goals_before_it_planned() -> None:
    presence = replace(Presence.from_lists(["a"], ["x"], [[0]]), pixels=np.array([10]))
    goals = [Uniform(method="one", per_source=3), BalancePixels(method="two", n_pixels=100)]
    planned = missing_rows(goals, State.at_start(presence), seed=0)
    assert [goal.num_planned for goal in planned.goals] == [3, 6]


def test_a_random_goal_counts_the_samples_of_its_method_whatever_goal_asked_for_them() -> None:
    presence = Presence.from_lists(list("abcd"), ["x"], [[0]] * 4)
    goals = [Uniform(method="m", per_source=1), RandomSamples(method="m", num_samples=6)]
    planned = missing_rows(goals, State.at_start(presence), seed=0)
    assert [goal.num_planned for goal in planned.goals] == [4, 2]
    assert missing_rows(goals[::-1], State.at_start(presence), seed=0).num_rows == 6
    other = [Uniform(method="n", per_source=1), RandomSamples(method="m", num_samples=6)]
    assert missing_rows(other, State.at_start(presence), seed=0).num_rows == 10


def test_a_raised_random_goal_gives_the_sources_that_it_would_have_given_at_once() -> None:
    presence = Presence.from_lists([str(i) for i in range(50)], ["x"], [[0]] * 50)
    few, many = [RandomSamples(method="m", num_samples=70)], [RandomSamples(method="m", num_samples=120)]
    start = State.at_start(presence)
    first = missing_rows(few, start, seed=3)
    second = missing_rows(many, after(start, first, first.copies), seed=3)
    at_once = missing_rows(many, start, seed=3)
    per_source = [np.bincount(p.source_index, p.copies, 50) for p in (first, second, at_once)]
    assert (per_source[0] + per_source[1]).tolist() == per_source[2].tolist()


def test_rejected_rows_of_a_random_goal_are_planned_from_the_sources_that_are_next() -> None:
    presence = Presence.from_lists([str(i) for i in range(50)], ["x"], [[0]] * 50)
    goals = [RandomSamples(method="m", num_samples=20)]
    start = State.at_start(presence)
    first = missing_rows(goals, start, seed=3)
    second = missing_rows(goals, after(start, first, np.zeros_like(first.copies)), seed=3)
    assert second.num_rows == 20
    assert set(first.source_index.tolist()).isdisjoint(second.source_index.tolist())


def test_a_later_round_of_a_cover_asks_other_sources_of_the_same_classes() -> None:
    presence = Presence.from_lists(list("abcd"), ["x"], [[0]] * 4)
    goals = [Cover(method="m", n_balance=6)]
    start = State.at_start(presence)
    first = missing_rows(goals, start, seed=0)
    second = missing_rows(goals, after(start, first, np.zeros_like(first.copies)), seed=0)
    assert set(first.source_index.tolist()).isdisjoint(second.source_index.tolist())


@settings(max_examples=200)
@given(st.integers(0, 1 << 32))
def test_no_goal_plans_more_rows_than_its_bound(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    for goal in random_goals(rng, presence):
        assert missing_rows([goal], State.at_start(presence), seed=case).num_rows <= at_most_rows(goal, presence)


def test_no_goals_plan_nothing() -> None:
    presence = Presence.from_lists(["a"], ["x"], [[0]])
    planned = missing_rows([], State.at_start(presence), seed=0)
    assert planned.num_rows == 0
    assert planned.wanted.tolist() == [0]
    assert len(expand(planned, {}).variant) == 0


@settings(max_examples=100)
@given(st.integers(0, 1 << 32))
def test_expanded_rows_are_sorted_and_count_variants_on(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    planned = missing_rows(random_goals(rng, presence), State.at_start(presence), seed=case)
    first = {method: rng.integers(0, 9, presence.num_sources) for method in planned.methods if rng.random() < 0.7}

    rows = expand(planned, first)

    expected = []
    next_variant: dict[tuple[int, int], int] = {}
    entries = zip(planned.source_index, planned.method_index, planned.target_channel, planned.copies, strict=True)
    for source, method, target, copies in entries:
        for _ in range(copies):
            start = first.get(planned.methods[method])
            variant = next_variant.setdefault((source, method), 0 if start is None else int(start[source]))
            expected.append((int(source), int(method), int(target), variant))
            next_variant[source, method] += 1
    got = list(zip(*(column.tolist() for column in vars(rows).values()), strict=True))
    assert got == expected
    assert [(s, m, v) for s, m, _, v in got] == sorted((s, m, v) for s, m, _, v in got)
    columns = (planned.source_index, planned.method_index, planned.target_channel)
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    assert keys == sorted(set(keys))
    assert list(planned.methods) == sorted(planned.methods)


def test_a_million_rows_take_under_a_second() -> None:
    presence = Presence.from_lists([str(i) for i in range(100_000)], ["x"], [[0]] * 100_000)
    planned = missing_rows([Uniform(method="imgsyn", per_source=10)], State.at_start(presence), seed=0)
    begin = time.process_time()
    rows = expand(planned, {"imgsyn": np.full(100_000, 7)})
    assert time.process_time() - begin < 1
    assert len(rows.variant) == 1_000_000
    assert rows.variant.min() == 7
    assert rows.variant.max() == 16


def test_goals_are_read_from_a_job_file() -> None:
    read = TypeAdapter(list[Goal]).validate_python
    goals = read(
        [
            {"method": "mask_ddpm", "strategy": "balance", "n_balance": "auto", "ratio": 1.5},
            {"method": "imgsyn", "strategy": "uniform", "per_source": 50},
            {"method": "guided", "strategy": "quotas", "quotas": {"cat": 10}},
            {"method": "guided", "strategy": "balance", "n_balance": 311},
            {"method": "guided", "strategy": "balance_pixels", "n_pixels": "auto", "ratio": 0.5},
            {"method": "guided", "strategy": "random", "num_samples": 1200},
            {"method": "guided", "strategy": "cover", "n_balance": "auto", "ratio": 2, "max_copies": 9},
            {"method": "guided", "strategy": "cover", "quotas": {"cat": 10}},
        ]
    )
    kinds = [Balance, Uniform, Quotas, Balance, BalancePixels, RandomSamples, Cover, Cover]
    assert [type(goal) for goal in goals] == kinds
    assert read([goal.model_dump() for goal in goals]) == goals


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "m", "strategy": "uniform", "per_source": 0},
        {"method": "m", "strategy": "uniform", "per_source": "3"},
        {"method": "m", "strategy": "uniform", "per_source": 3, "ratio": 1},
        {"method": "m", "strategy": "uniform"},
        {"strategy": "uniform", "per_source": 3},
        {"method": "m", "strategy": "balance", "n_balance": 0},
        {"method": "m", "strategy": "balance", "n_balance": True},
        {"method": "m", "strategy": "balance", "n_balance": "many"},
        {"method": "m", "strategy": "balance", "n_balance": 10, "ratio": 2.0},
        {"method": "m", "strategy": "balance", "n_balance": "auto", "ratio": 0},
        {"method": "m", "strategy": "balance", "n_balance": "auto", "ratio": float("inf")},
        {"method": "m", "strategy": "balance", "n_balance": "auto", "ratio": 1e306},
        {"method": "m", "strategy": "quotas", "quotas": {}},
        {"method": "m", "strategy": "quotas", "quotas": {"cat": -1}},
        {"method": "m", "strategy": "balance_pixels", "n_pixels": 0},
        {"method": "m", "strategy": "balance_pixels", "n_pixels": 5, "ratio": 2.0},
        {"method": "m", "strategy": "balance_pixels", "n_balance": 5},
        {"method": "m", "strategy": "random", "num_samples": -3},
        {"method": "m", "strategy": "random", "num_samples": 1.5},
        {"method": "m", "strategy": "random"},
        {"method": "m", "strategy": "cover"},
        {"method": "m", "strategy": "cover", "n_balance": 5, "quotas": {"cat": 5}},
        {"method": "m", "strategy": "cover", "quotas": {"cat": 5}, "ratio": 2.0},
        {"method": "m", "strategy": "cover", "quotas": {}},
        {"method": "m", "strategy": "cover", "n_balance": 5, "max_copies": 0},
        {"method": "m", "strategy": "everything"},
    ],
)
def test_wrong_goals_are_refused(entry: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Goal).validate_python(entry)
