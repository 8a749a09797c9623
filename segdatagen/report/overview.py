"""What the first view of a report says of a run: its state, its balance, its rounds, its problems and its time.

Turns what is stored into rows of text and into charts. It does not know samples one by one, nor files.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
from markupsafe import Markup

from segdatagen.balance import cir, entropy
from segdatagen.labels import LabelSet
from segdatagen.report.charts import ClassBalance, columns_of, count_chart, share_chart
from segdatagen.report.outcomes import Outcomes, Reason
from segdatagen.run_folder import Attempt, Run
from segdatagen.status import RunStatus


@dataclass(frozen=True)
class Balance:
    """Class balance of real images, and of real and accepted ones together; charts in columns of classes."""

    classes: tuple[ClassBalance, ...]  # most frequent before first
    entropy: tuple[float, float]
    cir: tuple[float, float]
    counts: tuple[Markup, ...]
    shares: tuple[Markup, ...]
    unreachable: tuple[str, ...]


@dataclass(frozen=True)
class StageTime:
    """Seconds that a stage of a method took in an attempt, over all actors, and its share of all stages.

    `per_sample` is None where no sample of the method counts any more; `peak_bytes`, the most memory that an actor held
    meanwhile, where an older version did not record it.
    """

    method: str
    stage: str
    seconds: float
    share: float
    per_sample: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class AttemptTime:
    """One attempt: how long it took, how many samples it left, and where it ran."""

    attempt: Attempt
    elapsed: float | None  # seconds; None where no end was recorded
    num_samples: int
    stages: tuple[StageTime, ...]

    @property
    def images_per_second(self) -> float | None:
        """Samples with any outcome per second from start to end; None where no end was recorded."""
        return self.num_samples / self.elapsed if self.elapsed else None


def balance_of(status: RunStatus, label_set: LabelSet) -> Balance | None:
    """Balance by what the last round knew of real images and by what is accepted now; None before the first round."""
    if not status.rounds:
        return None
    last = status.rounds[-1]
    colours = dict(zip(label_set.names, label_set.colours.tolist(), strict=True))
    classes = [
        ClassBalance(
            name=one.name,
            colour=css_colour(colours[one.name]),
            before=one.real,
            after=one.real + status.accepted[one.name],
            wanted=one.wanted,
            link=samples_link({"class": one.name}),
        )
        for one in last.classes
    ]
    classes.sort(key=lambda one: (-one.before, -one.after))
    before, after = (np.array([getattr(one, name) for one in classes], np.int64) for name in ("before", "after"))
    largest = max((max(one.after, one.wanted) for one in classes), default=0)
    sums = int(before.sum()), int(after.sum())
    shares = max((max(one.before / max(1, sums[0]), one.after / max(1, sums[1])) for one in classes), default=0.0)
    columns = columns_of(classes)
    return Balance(
        classes=tuple(classes),
        entropy=(entropy(before), entropy(after)),
        cir=(cir(before), cir(after)),
        counts=tuple(count_chart(column, largest) for column in columns),
        shares=tuple(share_chart(column, *sums, shares) for column in columns),
        unreachable=last.unreachable,
    )


def times_of(attempts: Sequence[Attempt], outcomes: Outcomes) -> list[AttemptTime]:
    """Every attempt with its stages, the latest first."""
    found = []
    for one in reversed(attempts):
        made = outcomes.per_method(one.number)
        found.append(AttemptTime(one, _elapsed(one), sum(made.values()), tuple(_stages(one, made))))
    return found


def _stages(attempt: Attempt, made: Mapping[str, int]) -> list[StageTime]:
    total = sum(sum(stages.values()) for stages in attempt.stage_seconds.values())
    return [
        StageTime(
            method=method,
            stage=stage,
            seconds=seconds,
            share=seconds / total if total else 0.0,
            per_sample=seconds / made[method] if made.get(method) else None,
            peak_bytes=attempt.stage_peak_bytes.get(method, {}).get(stage),
        )
        for method, stages in attempt.stage_seconds.items()
        for stage, seconds in stages.items()
    ]


def _elapsed(attempt: Attempt) -> float | None:
    if attempt.ended is None:
        return None
    began, ended = (datetime.datetime.fromisoformat(text) for text in (attempt.started, attempt.ended))
    return (ended - began).total_seconds()


def recipe_rows(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested document as pairs of a dotted name and a value, in its order."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in recipe_rows(inner, f"{prefix}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(str(inner) for inner in value))]
    return [(prefix, str(value))]


def attempt_rows(attempt: Attempt) -> list[tuple[str, str]]:
    """Where an attempt ran and with what, as pairs of a name and a value."""
    return recipe_rows({"hardware": attempt.hardware, "execution": attempt.execution, "packages": attempt.packages})


def reason_link(reason: Reason) -> str:
    """The contact sheet with the samples of a reason alone."""
    return samples_link({"status": reason.status, "reason": reason.text})


def samples_link(filters: Mapping[str, str]) -> str:
    """The contact sheet, filtered."""
    return f"#/samples?{urlencode(filters)}"


def css_colour(colour: Sequence[int]) -> str:
    """RGB as CSS takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def moment(text: str) -> str:
    """A time in ISO 8601 as a person would write it, in UTC, to the minute."""
    return f"{datetime.datetime.fromisoformat(text).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def title_of(run: Run) -> str:
    """Name and version of the run's job; its address where the job names none."""
    name, version = run.info.job.get("name"), run.info.job.get("version")
    return " ".join(str(word) for word in (name, version) if word) or run.folder.uri
