"""What is still missing: goals over a state of what exists, as copies of sources.

Each goal sees what was accepted and what the goals before it planned; once all are met, nothing is planned. It knows
sources, methods and counts; sample ids, rounds and storage are the planner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from segdatagen.balance import BoolArray, ClassOrders, Copies, IntArray, Presence, Progress, balance, class_orders
from segdatagen.balance_auto import reachable_classes
from segdatagen.cover import Turns, cover
from segdatagen.errors import UsageError
from segdatagen.goals import (
    AnyGoal,
    Balance,
    BalancePixels,
    Cover,
    Quotas,
    RandomSamples,
    Uniform,
    at_most_rows,
    wanted_per_class,
)
from segdatagen.random_turns import random_copies

MAX_PLANNED_ROWS = 20_000_000
"""Rows of one run. A million takes about 0.5 GiB while it is planned (`segdatagen bench plan`)."""
NO_TARGET = -1  # target_channel of a copy that was not made on behalf of one class

Unit = Literal["images", "pixels", "samples"]


@dataclass(frozen=True, eq=False)
class State:
    """What exists when a round is planned.

    `accepted_per_source`: method -> int64 [num_sources], accepted samples; a method that is missing has none.
    `planned_per_source`: the same of rows planned in earlier rounds, whatever became of them.
    `accepted_class_counts` and `accepted_class_pixels` int64 [num_classes]: accepted samples of all methods that show
    each class, and their pixels of it, by the masks that came out.
    `available` bool [num_sources]: sources that may be copied, for instance those that have not failed.
    `usable`: method -> bool [num_sources], the sources that it can start from; a method that is missing can from all.
    `planned_for_class` int64 [num_classes]: rows planned on behalf of each class in earlier rounds, whatever became of
    them: the cycle through a class's sources goes on there, so that a source that never yields is not always first.
    """

    presence: Presence
    accepted_per_source: Mapping[str, IntArray]
    planned_per_source: Mapping[str, IntArray]
    accepted_class_counts: IntArray
    accepted_class_pixels: IntArray
    available: BoolArray
    planned_for_class: IntArray
    usable: Mapping[str, BoolArray] = field(default_factory=dict)

    @classmethod
    def at_start(cls, presence: Presence, usable: Mapping[str, BoolArray] | None = None) -> State:
        """Nothing accepted, every source available."""
        zeros = np.zeros(presence.num_classes, dtype=np.int64)
        return cls(presence, {}, {}, zeros, zeros, np.ones(presence.num_sources, dtype=np.bool_), zeros, usable or {})

    def accepted_of(self, method: str) -> IntArray:
        """Accepted samples of `method` per source, int64 [num_sources]."""
        none = np.zeros(self.presence.num_sources, dtype=np.int64)
        return self.accepted_per_source.get(method, none)

    def planned_of(self, method: str) -> IntArray:
        """Rows of `method` planned in earlier rounds per source, int64 [num_sources]."""
        none = np.zeros(self.presence.num_sources, dtype=np.int64)
        return self.planned_per_source.get(method, none)

    def usable_by(self, method: str) -> BoolArray:
        """Sources that `method` can start from, whatever became of them, bool [num_sources]."""
        return self.usable.get(method, np.ones(self.presence.num_sources, dtype=np.bool_))

    def available_to(self, method: str) -> BoolArray:
        """Sources that `method` may copy, bool [num_sources]."""
        available: BoolArray = self.available & self.usable_by(method)
        return available

    @property
    def class_counts(self) -> IntArray:
        """Images per class, real and accepted, int64 [num_classes]."""
        counts: IntArray = self.presence.counts + self.accepted_class_counts
        return counts

    @property
    def class_pixels(self) -> IntArray:
        """Pixels per class, real and accepted, int64 [num_classes]. Raises ValueError where none were counted."""
        pixels: IntArray = self.presence.in_pixels.counts + self.accepted_class_pixels
        return pixels


@dataclass(frozen=True, eq=False)
class GoalPlan:
    """What one goal contributed: `num_planned` copies towards `wanted` (int64 [num_classes]) images per class.

    `wanted` counts pixels where `in_pixels`, and is 0 in a goal that wants no number per class. `unreachable` names the
    classes that stay below their quota because no available source holds them. A cover also has the number of images
    that its quotas need `at_least`, and that `algorithm_1` makes.
    """

    num_planned: int
    wanted: IntArray
    unreachable: tuple[str, ...] = ()
    in_pixels: bool = False
    at_least: int | None = None
    algorithm_1: int | None = None


@dataclass(frozen=True, eq=False)
class PlannedCopies:
    """The missing copies, one entry per (source, method, target class), sorted by these three.

    `method_index` points into `methods`, which is sorted by name; `target_channel` is -1 for copies that no class asked
    for. `goals` has one `GoalPlan` per goal, in the order of the goals. int64 [num_classes]: `wanted`, images per class
    of the most demanding goal; `wanted_pixels`, pixels; `planned_class_counts`, images per class of the copies.
    """

    methods: tuple[str, ...]
    source_index: IntArray
    method_index: IntArray
    target_channel: IntArray
    copies: IntArray
    goals: tuple[GoalPlan, ...]
    wanted: IntArray
    wanted_pixels: IntArray
    planned_class_counts: IntArray

    @property
    def num_rows(self) -> int:
        """Number of plan rows that the copies expand to."""
        return int(self.copies.sum())


@dataclass(frozen=True, eq=False)
class PlanRows:
    """One entry per sample to make, sorted by source, method and variant; all int64 [num_rows]."""

    source_index: IntArray
    method_index: IntArray
    target_channel: IntArray
    variant: IntArray


@dataclass(eq=False)
class _Round:
    """What the goals of one round have planned so far; `orders` is sorted once, by the first goal that needs it."""

    state: State
    seed: int
    class_counts: IntArray
    planned_for_class: IntArray
    planned_per_source: dict[str, IntArray] = field(default_factory=dict)
    orders: ClassOrders | None = None

    def of_source(self, method: str) -> IntArray:
        zeros = np.zeros(self.state.presence.num_sources, dtype=np.int64)
        return self.planned_per_source.setdefault(method, zeros)

    def cycle_orders(self) -> ClassOrders:
        if self.orders is None:
            self.orders = class_orders(self.state.presence, self.seed)
        return self.orders

    def wanted(self, goal: Balance | BalancePixels | Quotas | Cover) -> IntArray:
        state, orders = self.state, self.cycle_orders()
        return wanted_per_class(goal, state.presence, self.seed, orders=orders, usable=state.usable.get(goal.method))

    def progress(self, method: str, counts: IntArray) -> Progress:
        return Progress(counts, self.state.available_to(method), self.planned_for_class)

    def class_pixels(self) -> IntArray:
        planned = sum(self.planned_per_source.values(), np.zeros(self.state.presence.num_sources, dtype=np.int64))
        pixels: IntArray = self.state.class_pixels + self.state.presence.in_pixels.counts_of_copies(planned)
        return pixels

    def add(self, method: str, copies: Copies) -> None:
        presence = self.state.presence
        per_source = copies.per_source(presence.num_sources)
        self.of_source(method)[:] += per_source
        self.class_counts = self.class_counts + presence.counts_of_copies(per_source)
        on_behalf = copies.target_channel != NO_TARGET
        targets, weights = copies.target_channel[on_behalf], copies.copies[on_behalf]
        self.planned_for_class += np.bincount(targets, weights, presence.num_classes).astype(np.int64)


def missing_rows(goals: Sequence[AnyGoal], state: State, seed: int) -> PlannedCopies:
    """The copies that are still missing; each goal sees what was accepted and what the goals before it planned.

    Accept every copy with the classes of its source, and nothing is missing any more. What was rejected, or came out
    without a class that still lacks images, is planned again.
    Raises UsageError for a quota of an unknown or excluded class, and for `auto` where no class has a source.
    """
    methods = tuple(sorted({goal.method for goal in goals}))
    so_far = _Round(state, seed, state.class_counts, state.planned_for_class.astype(np.int64, copy=True))
    planned = [_plan_goal(goal, so_far) for goal in goals]
    method_of_part = [methods.index(goal.method) for goal in goals]
    source_index, method_index, target, copies = _sort_and_merge([part for part, _ in planned], method_of_part)
    plans = tuple(plan for _, plan in planned)
    none = np.zeros_like(state.class_counts)
    return PlannedCopies(
        methods,
        source_index,
        method_index,
        target,
        copies,
        plans,
        wanted=np.max([none, *(plan.wanted for plan in plans if not plan.in_pixels)], axis=0),
        wanted_pixels=np.max([none, *(plan.wanted for plan in plans if plan.in_pixels)], axis=0),
        planned_class_counts=so_far.class_counts - state.class_counts,
    )


@dataclass(frozen=True)
class Shortfall:
    """What a goal wants and does not have: images or pixels of a class, or samples of a method."""

    name: str
    has: int
    wanted: int
    unit: Unit

    def __str__(self) -> str:
        return f"{self.name} {self.has:,} of {self.wanted:,}{'' if self.unit == 'images' else f' {self.unit}'}"


def shortfalls_of(goal: AnyGoal, state: State, seed: int, *, wanted: IntArray | None = None) -> tuple[Shortfall, ...]:
    """What the goal still misses of what was accepted; nothing where it is met.

    A goal with an unreachable class or a lost source is never met. `wanted` saves working out `wanted_per_class` again
    where the caller has it: `GoalPlan.wanted` of this goal.
    """
    if isinstance(goal, Uniform | RandomSamples):
        accepted, usable = state.accepted_of(goal.method), state.usable_by(goal.method)
        if isinstance(goal, Uniform):
            has = int(np.minimum(accepted, goal.per_source)[usable].sum())
            num = goal.per_source * int(usable.sum())
        else:
            has, num = int(accepted.sum()), goal.num_samples
        return (Shortfall(goal.method, has, num, "samples"),) if has < num else ()
    if wanted is None:
        wanted = wanted_per_class(goal, state.presence, seed, usable=state.usable.get(goal.method))
    in_pixels = isinstance(goal, BalancePixels)
    counts = state.class_pixels if in_pixels else state.class_counts
    names = state.presence.class_names
    unit: Unit = "pixels" if in_pixels else "images"
    return tuple(Shortfall(names[c], int(counts[c]), int(wanted[c]), unit) for c in np.flatnonzero(counts < wanted))


def check_goals(
    goals: Sequence[AnyGoal], presence: Presence, seed: int, usable: Mapping[str, BoolArray] | None = None
) -> None:
    """Raise UsageError where `missing_rows` would, or where memory could not hold its rows: before anything is written.

    The plan itself is only made where a bound from the goals alone does not rule too many rows out. `usable` is that of
    `State`.
    """
    for goal in goals:
        match goal:
            case Quotas() | Cover(n_balance=None):
                wanted_per_class(goal, presence, seed)
            case Balance(n_balance="auto") | Cover(n_balance="auto") | BalancePixels(n_pixels="auto"):
                of_method = (usable or {}).get(goal.method)
                counted = presence.indices if of_method is None else presence.classes_of(np.flatnonzero(of_method))
                reachable_classes(presence, np.bincount(counted, minlength=presence.num_classes))
                require_plannable(round(goal.ratio * presence.num_sources))
    # The bounds are those of methods that can start from every source.
    if usable or sum(at_most_rows(goal, presence) for goal in goals) > MAX_PLANNED_ROWS:
        require_plannable(missing_rows(goals, State.at_start(presence, usable), seed).num_rows)


def is_plannable(num_rows: int) -> bool:
    """Whether memory holds so many rows."""
    return num_rows <= MAX_PLANNED_ROWS


def require_plannable(num_rows: int) -> None:
    """Raise UsageError where memory could not hold so many rows."""
    if not is_plannable(num_rows):
        raise UsageError(
            f"the plan asks for {num_rows:,} samples, more than one run can plan ({MAX_PLANNED_ROWS:,}): "
            "lower its numbers, or share the sources among several jobs"
        )


def expand(planned: PlannedCopies, first_variant: Mapping[str, IntArray]) -> PlanRows:
    """One row per copy; the variants of a (source, method) pair count on from `first_variant[method][source]`.

    `first_variant` maps a method to int64 [num_sources]; a method that is missing begins at 0.
    """
    entries = np.repeat(np.arange(len(planned.copies)), planned.copies)
    source_index, method_index = planned.source_index[entries], planned.method_index[entries]
    begins = np.ones(len(entries), dtype=np.bool_)
    begins[1:] = (np.diff(source_index) != 0) | (np.diff(method_index) != 0)
    begin_of_row = np.maximum.accumulate(np.where(begins, np.arange(len(entries)), 0))
    variant = np.arange(len(entries)) - begin_of_row
    for index, method in enumerate(planned.methods):
        if method in first_variant:
            rows = np.flatnonzero(method_index == index)
            variant[rows] += first_variant[method][source_index[rows]]
    return PlanRows(source_index, method_index, planned.target_channel[entries], variant)


def _plan_goal(goal: AnyGoal, so_far: _Round) -> tuple[Copies, GoalPlan]:
    """The copies that `goal` misses, entered into `so_far`."""
    match goal:
        case Uniform() | RandomSamples():
            copies, plan = _plan_counts(goal, so_far)
        case Cover():
            copies, plan = _plan_cover(goal, so_far)
        case Balance() | BalancePixels() | Quotas():
            copies, plan = _plan_balance(goal, so_far)
    so_far.add(goal.method, copies)
    return copies, plan


def _plan_counts(goal: Uniform | RandomSamples, so_far: _Round) -> tuple[Copies, GoalPlan]:
    """What is lacking of a number of samples, of every source that may be copied or in all."""
    state = so_far.state
    existing = state.accepted_of(goal.method) + so_far.of_source(goal.method)
    if isinstance(goal, Uniform):
        lacking = np.maximum(goal.per_source - existing, 0) * state.available_to(goal.method)
    else:
        planned = state.planned_of(goal.method) + so_far.of_source(goal.method)
        count = goal.num_samples - int(existing.sum())
        lacking = random_copies(state.presence, count, so_far.seed, state.available_to(goal.method), planned)
    sources = np.flatnonzero(lacking)
    counts = so_far.class_counts + state.presence.counts_of_copies(lacking)
    copies = Copies(sources, np.full(len(sources), NO_TARGET), lacking[sources], counts, ())
    return copies, GoalPlan(copies.num_generated, np.zeros_like(counts))


def _plan_balance(goal: Balance | BalancePixels | Quotas, so_far: _Round) -> tuple[Copies, GoalPlan]:
    """What Algorithm 1 adds, counted in images or in pixels."""
    presence, orders = so_far.state.presence, so_far.cycle_orders()
    wanted = so_far.wanted(goal)
    in_pixels = isinstance(goal, BalancePixels)
    progress = so_far.progress(goal.method, so_far.class_pixels() if in_pixels else so_far.class_counts)
    counted = presence.in_pixels if in_pixels else presence
    copies = balance(counted, wanted, so_far.seed, progress=progress, orders=orders)
    return copies, GoalPlan(copies.num_generated, wanted, _names(presence, copies), in_pixels)


def _plan_cover(goal: Cover, so_far: _Round) -> tuple[Copies, GoalPlan]:
    """What a cover adds, and how it compares."""
    state, orders = so_far.state, so_far.cycle_orders()
    wanted = so_far.wanted(goal)
    turns = Turns(state.planned_of(goal.method) + so_far.of_source(goal.method), goal.max_copies or 0)
    plan = cover(state.presence, wanted, orders, so_far.progress(goal.method, so_far.class_counts), turns)
    unreachable = _names(state.presence, plan.copies)
    numbers = (plan.at_least, plan.algorithm_1)
    return plan.copies, GoalPlan(plan.copies.num_generated, wanted, unreachable, False, *numbers)


def _names(presence: Presence, copies: Copies) -> tuple[str, ...]:
    return tuple(presence.class_names[channel] for channel in copies.unreachable)


def _sort_and_merge(
    parts: Sequence[Copies], method_of_part: Sequence[int]
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Source, method, target and copies of all parts, sorted by the first three; equal ones are added up."""
    empty = [np.empty(0, dtype=np.int64)]
    source = np.concatenate([part.source_index for part in parts] + empty)
    method = np.repeat(np.array(method_of_part, dtype=np.int64), [len(part.copies) for part in parts])
    target = np.concatenate([part.target_channel for part in parts] + empty)
    copies = np.concatenate([part.copies for part in parts] + empty)
    order = np.lexsort((target, method, source))
    source, method, target, copies = source[order], method[order], target[order], copies[order]
    if not len(order):
        return source, method, target, copies
    changes = (np.diff(source) != 0) | (np.diff(method) != 0) | (np.diff(target) != 0)
    first = np.flatnonzero(np.concatenate(([True], changes)))
    return source[first], method[first], target[first], np.add.reduceat(copies, first)
