"""Plan entries as goals over a state: what was asked for, minus what was accepted, is what is still missing.

A goal says what should exist at the end, not what to do next; `missing_rows` plans the difference, and plans nothing
once the goals are met. It knows sources, methods and counts; sample ids, rounds and storage are the planner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.balance import (
    MAX_QUOTA,
    BoolArray,
    ClassOrders,
    Copies,
    IntArray,
    Presence,
    Progress,
    balance,
    class_orders,
)
from segdatagen.balance_auto import auto_n_balance, reachable_classes
from segdatagen.errors import UsageError

NO_TARGET = -1  # target_channel of a copy that was not made on behalf of one class

Count = Annotated[int, Field(ge=0, le=MAX_QUOTA, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_QUOTA, strict=True)]


class Uniform(BaseModel):
    """`per_source` accepted samples of every source (SegGen makes 10 or 50)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    strategy: Literal["uniform"] = "uniform"
    per_source: PositiveCount


class Balance(BaseModel):
    """Every class stands in `n_balance` images, real ones included (SGA, Algorithm 1).

    `auto` takes the quota that generates about `ratio` images for each real one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    strategy: Literal["balance"] = "balance"
    n_balance: PositiveCount | Literal["auto"]
    ratio: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ratio_needs_auto(self) -> Balance:
        if self.n_balance != "auto" and self.ratio != 1.0:
            raise ValueError("ratio has a meaning only with n_balance: auto; leave one of the two out")
        return self


class Quotas(BaseModel):
    """Class by class the number of images that should show it, real ones included; other classes have no quota.

    A job file may name a class by an alias; `missing_rows` and what it calls take the names of the presence alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    strategy: Literal["quotas"] = "quotas"
    quotas: dict[str, Count] = Field(min_length=1)


Goal = Annotated[Uniform | Balance | Quotas, Field(discriminator="strategy")]


@dataclass(frozen=True, eq=False)
class State:
    """What exists when a round is planned.

    `accepted_per_source`: method -> int64 [num_sources], accepted samples; a method that is missing has none.
    `accepted_class_counts` int64 [num_classes]: accepted samples of all methods per class, by the masks that came out.
    `available` bool [num_sources]: sources that may be copied, for instance those that have not failed.
    `planned_for_class` int64 [num_classes]: rows planned on behalf of each class in earlier rounds, whatever became of
    them: the cycle through a class's sources goes on there, so that a source that never yields is not always first.
    """

    presence: Presence
    accepted_per_source: Mapping[str, IntArray]
    accepted_class_counts: IntArray
    available: BoolArray
    planned_for_class: IntArray

    @classmethod
    def at_start(cls, presence: Presence) -> State:
        """Nothing accepted, every source available."""
        zeros = np.zeros(presence.num_classes, dtype=np.int64)
        return cls(presence, {}, zeros, np.ones(presence.num_sources, dtype=np.bool_), zeros)

    def accepted_of(self, method: str) -> IntArray:
        """Accepted samples of `method` per source, int64 [num_sources]."""
        none = np.zeros(self.presence.num_sources, dtype=np.int64)
        return self.accepted_per_source.get(method, none)

    @property
    def class_counts(self) -> IntArray:
        """Images per class, real and accepted, int64 [num_classes]."""
        counts: IntArray = self.presence.counts + self.accepted_class_counts
        return counts


@dataclass(frozen=True, eq=False)
class GoalPlan:
    """What one goal contributed: `num_planned` copies towards `wanted` (int64 [num_classes]) images per class.

    A uniform goal wants no number per class; its `wanted` is what the classes will count once its copies are accepted.
    `unreachable` names the classes that stay below their quota because no available source holds them.
    """

    num_planned: int
    wanted: IntArray
    unreachable: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PlannedCopies:
    """The missing copies, one entry per (source, method, target class), sorted by these three.

    `method_index` points into `methods`, which is sorted by name; `target_channel` is -1 for uniform copies.
    `goals` has one `GoalPlan` per goal, in the order of the goals. int64 [num_classes]: `wanted`, images per class of
    the most demanding goal; `planned_class_counts`, images per class of the copies themselves.
    """

    methods: tuple[str, ...]
    source_index: IntArray
    method_index: IntArray
    target_channel: IntArray
    copies: IntArray
    goals: tuple[GoalPlan, ...]
    wanted: IntArray
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


def missing_rows(goals: Sequence[Uniform | Balance | Quotas], state: State, seed: int) -> PlannedCopies:
    """The copies that are still missing; each goal sees what was accepted and what the goals before it planned.

    Accept every copy with the classes of its source, and nothing is missing any more. What was rejected, or came out
    without a class that still lacks images, is planned again.
    Raises UsageError for a quota of an excluded class, and for `auto` where no class has a source.
    """
    methods = tuple(sorted({goal.method for goal in goals}))
    so_far = _Round(state, seed, state.class_counts, state.planned_for_class.astype(np.int64, copy=True))
    planned = [_plan_goal(goal, so_far) for goal in goals]
    method_of_part = [methods.index(goal.method) for goal in goals]
    source_index, method_index, target, copies = _sort_and_merge([part for part, _ in planned], method_of_part)
    plans = tuple(plan for _, plan in planned)
    return PlannedCopies(
        methods,
        source_index,
        method_index,
        target,
        copies,
        plans,
        wanted=np.max([np.zeros_like(state.class_counts), *(plan.wanted for plan in plans)], axis=0),
        planned_class_counts=so_far.class_counts - state.class_counts,
    )


def is_met(goal: Uniform | Balance | Quotas, state: State, seed: int, *, wanted: IntArray | None = None) -> bool:
    """Whether what was accepted fulfils the goal. A goal with an unreachable class or a lost source is never met.

    `wanted` saves working out `wanted_per_class` again where the caller has it: `GoalPlan.wanted` of this goal.
    """
    if isinstance(goal, Uniform):
        return bool((state.accepted_of(goal.method) >= goal.per_source).all())
    if wanted is None:
        wanted = wanted_per_class(goal, state.presence, seed)
    return bool((state.class_counts >= wanted).all())


def check_goals(goals: Sequence[Uniform | Balance | Quotas], presence: Presence) -> None:
    """Raise UsageError where `missing_rows` would, in no time: before anything is written or started."""
    for goal in goals:
        if isinstance(goal, Quotas):
            wanted_per_class(goal, presence, seed=0)
        elif isinstance(goal, Balance) and goal.n_balance == "auto":
            reachable_classes(presence)


def wanted_per_class(
    goal: Balance | Quotas, presence: Presence, seed: int, *, orders: ClassOrders | None = None
) -> IntArray:
    """Images per class that the goal asks for, int64 [num_classes], 0 where it asks for none.

    It depends on the real sources and the seed alone, so that it is the same in every round. Raises UsageError for a
    quota of an excluded class.
    """
    if isinstance(goal, Balance):
        n_balance = goal.n_balance
        if n_balance == "auto":
            n_balance = auto_n_balance(presence, goal.ratio, seed, orders=orders)
        return np.where(presence.counted, n_balance, 0)
    wanted = np.zeros(presence.num_classes, dtype=np.int64)
    for name, quota in goal.quotas.items():
        channel = presence.class_names.index(name)
        if not presence.counted[channel]:
            raise UsageError(f"quotas: class {name!r} is background and never counted; remove it from the quotas.")
        wanted[channel] = quota
    return wanted


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


def _plan_goal(goal: Uniform | Balance | Quotas, so_far: _Round) -> tuple[Copies, GoalPlan]:
    """The copies that `goal` misses, entered into `so_far`."""
    state, presence = so_far.state, so_far.state.presence
    if isinstance(goal, Uniform):
        copies = _uniform_copies(goal, so_far)
        wanted = copies.counts
    else:
        orders = so_far.cycle_orders()
        wanted = wanted_per_class(goal, presence, so_far.seed, orders=orders)
        progress = Progress(so_far.class_counts, state.available, so_far.planned_for_class)
        copies = balance(presence, wanted, so_far.seed, progress=progress, orders=orders)
        on_behalf = np.bincount(copies.target_channel, weights=copies.copies, minlength=presence.num_classes)
        so_far.planned_for_class += on_behalf.astype(np.int64)
    so_far.class_counts = copies.counts
    so_far.of_source(goal.method)[:] += copies.per_source(presence.num_sources)
    unreachable = tuple(presence.class_names[channel] for channel in copies.unreachable)
    return copies, GoalPlan(copies.num_generated, wanted, unreachable)


def _uniform_copies(goal: Uniform, so_far: _Round) -> Copies:
    """What every available source lacks of `per_source` samples of the goal's method."""
    state = so_far.state
    existing = state.accepted_of(goal.method) + so_far.of_source(goal.method)
    lacking = np.maximum(goal.per_source - existing, 0) * state.available
    sources = np.flatnonzero(lacking)
    counts = so_far.class_counts + state.presence.counts_of_copies(lacking)
    return Copies(sources, np.full(len(sources), NO_TARGET), lacking[sources], counts, ())


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
