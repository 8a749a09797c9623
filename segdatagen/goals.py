"""Plan entries as goals: each says what should exist at the end, not what to do next.

It knows the options of every strategy, and what quotas they mean for a set of sources. What is still missing is
worked out by `missing`; sample ids, rounds and storage are the planner's.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from segdatagen.balance import MAX_QUOTA, BoolArray, ClassOrders, IntArray, Presence
from segdatagen.balance_auto import auto_n_balance
from segdatagen.errors import UsageError

MAX_PIXELS = 10**13
"""Of one class: sums over all classes then stay inside the 2**53 that float64 counts exactly."""

Count = Annotated[int, Field(ge=0, le=MAX_QUOTA, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_QUOTA, strict=True)]
PixelCount = Annotated[int, Field(ge=1, le=MAX_PIXELS, strict=True)]
MAX_RATIO = 1e15
"""Of which rows can still be counted, to be refused."""
Ratio = Annotated[float, Field(gt=0, le=MAX_RATIO)]


class _Goal(BaseModel):
    """What every entry of a plan has: the method that makes its samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    _place: str = PrivateAttr(default="plan")

    def at(self, place: str) -> Self:
        """The same goal, which says that it stands there in the job file: `plan.2`."""
        placed = self.model_copy()
        placed._place = place
        return placed

    @property
    def place(self) -> str:
        """Where the goal stands in its job file: `plan` where no number is known."""
        return self._place


class Uniform(_Goal):
    """`per_source` accepted samples of every source (SegGen makes 10 or 50)."""

    strategy: Literal["uniform"] = "uniform"
    per_source: PositiveCount


class RandomSamples(_Goal):
    """`num_samples` accepted samples in all, of random sources, none again before all had one (paper 001: 1,200)."""

    strategy: Literal["random"] = "random"
    num_samples: PositiveCount


class Balance(_Goal):
    """Every class stands in `n_balance` images, real ones included (SGA, Algorithm 1).

    `auto` takes the quota that generates about `ratio` images for each real one.
    """

    strategy: Literal["balance"] = "balance"
    n_balance: PositiveCount | Literal["auto"]
    ratio: Ratio = 1.0

    @model_validator(mode="after")
    def _ratio_needs_auto(self) -> Balance:
        _check_ratio("n_balance", self.n_balance, self.ratio)
        return self


class BalancePixels(_Goal):
    """Every class covers `n_pixels` pixels of all images together, real ones included.

    It is Algorithm 1 with pixels in the place of images. `auto` takes the number that generates about `ratio` images
    for each real one.
    """

    strategy: Literal["balance_pixels"] = "balance_pixels"
    n_pixels: PixelCount | Literal["auto"]
    ratio: Ratio = 1.0

    @model_validator(mode="after")
    def _ratio_needs_auto(self) -> BalancePixels:
        _check_ratio("n_pixels", self.n_pixels, self.ratio)
        return self


class Quotas(_Goal):
    """Class by class the number of images that should show it, real ones included; other classes have no quota."""

    strategy: Literal["quotas"] = "quotas"
    quotas: dict[str, Count] = Field(min_length=1)


class Cover(_Goal):
    """The quotas of `balance` or of `quotas`, reached with few images, never more than Algorithm 1 makes.

    No source is copied more often in a round than Algorithm 1 copies one, or than `max_copies`.
    """

    strategy: Literal["cover"] = "cover"
    n_balance: PositiveCount | Literal["auto"] | None = None
    ratio: Ratio = 1.0
    quotas: dict[str, Count] | None = Field(default=None, min_length=1)
    max_copies: PositiveCount | None = None

    @model_validator(mode="after")
    def _one_kind_of_quota(self) -> Cover:
        if (self.n_balance is None) == (self.quotas is None):
            raise ValueError("cover needs n_balance or quotas, one of the two")
        _check_ratio("n_balance", self.n_balance, self.ratio)
        return self


AnyGoal = Uniform | RandomSamples | Balance | BalancePixels | Quotas | Cover
Goal = Annotated[AnyGoal, Field(discriminator="strategy")]


def _check_ratio(field: str, value: int | str | None, ratio: float) -> None:
    if value != "auto" and ratio != 1.0:
        raise ValueError(f"ratio has a meaning only with {field}: auto; leave one of the two out")


def wanted_per_class(
    goal: Balance | BalancePixels | Quotas | Cover,
    presence: Presence,
    seed: int,
    *,
    orders: ClassOrders | None = None,
    usable: BoolArray | None = None,
) -> IntArray:
    """Images (`BalancePixels`: pixels) per class that the goal asks for, int64 [num_classes], 0 for none.

    It depends on the real sources, on those that the goal's method can start from (`usable`) and on the seed alone, so
    that it is the same in every round. Raises UsageError for a quota of an unknown or excluded class, and for `auto`
    where no class has a source.
    """
    if isinstance(goal, BalancePixels):
        n_pixels = goal.n_pixels
        if n_pixels == "auto":
            n_pixels = auto_n_balance(presence.in_pixels, goal.ratio, seed, orders=orders, usable=usable)
        return np.where(presence.counted, n_pixels, 0)
    if isinstance(goal, Quotas) or goal.n_balance is None:
        return _wanted_of_quotas(goal.quotas or {}, presence)
    n_balance = goal.n_balance
    if n_balance == "auto":
        n_balance = auto_n_balance(presence, goal.ratio, seed, orders=orders, usable=usable)
    return np.where(presence.counted, n_balance, 0)


def _wanted_of_quotas(quotas: dict[str, int], presence: Presence) -> IntArray:
    wanted = np.zeros(presence.num_classes, dtype=np.int64)
    for name, quota in quotas.items():
        if name not in presence.class_names:
            raise UsageError(f"quotas: the label set has no class {name!r}; it has {', '.join(presence.class_names)}.")
        channel = presence.class_names.index(name)
        if not presence.counted[channel]:
            raise UsageError(f"quotas: class {name!r} is background and never counted; remove it from the quotas.")
        wanted[channel] = quota
    return wanted


def at_most_rows(goal: AnyGoal, presence: Presence) -> int:
    """A number of rows that the first round of the goal cannot exceed. Found in no time, and seldom reached."""
    match goal:
        case Uniform():
            return goal.per_source * presence.num_sources
        case RandomSamples():
            return goal.num_samples
        case BalancePixels(n_pixels=int(n_pixels)):
            holders, pixels = presence.num_holders, np.maximum(presence.in_pixels.counts, 1)
            return sum(((n_pixels // pixels + 1) * holders)[presence.counted].tolist())
        case Balance(n_balance=int(n_balance)) | Cover(n_balance=int(n_balance)):
            return n_balance * presence.num_classes
        case Quotas(quotas=dict(quotas)) | Cover(quotas=dict(quotas)):
            return sum(quotas.values())
    # `auto` comes as near to the ratio as it can, and the quota of 1 makes no image at all.
    return int(np.ceil(2 * goal.ratio * presence.num_sources))
