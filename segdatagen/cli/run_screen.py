"""A run as its user sees it: rounds as tables, a line that counts, sentences for what is out of the ordinary.

Listens to the events of a run. It does not decide anything.
"""

import time
from collections.abc import Mapping

from segdatagen.cli import screen
from segdatagen.costs import Estimate
from segdatagen.dataflow import PartDone
from segdatagen.lease import Holder
from segdatagen.planner import ClassSummary, RoundSummary
from segdatagen.samples import STATUSES
from segdatagen.status import RunStatus

IN_WHAT = " (in the currency of `prices`)"
"""Behind a cost, where the job does not say in which currency its prices are."""


ROUND_COLUMNS = ("class", "real", "accepted", "planned", "wanted", "total", "share before", "share after")


class RunScreen:
    """The events of a run on a terminal, in a log, or nowhere (`silent`)."""

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._meter: screen.Meter | None = None
        self._counts = dict.fromkeys(STATUSES, 0)
        self._after = 0
        self._began = (0.0, 0)
        self._first_part: tuple[float, int] | None = None
        self._stage: str | None = None
        self._waiting: dict[str, int] = {}

    def waiting(self, holder: Holder) -> None:
        """Another process holds the lease."""
        if not self._silent:
            screen.waiting(holder)

    def planned(self, summary: RoundSummary) -> None:
        """A round was planned: show it."""
        if not self._silent:
            self.close()
            print_round(summary, is_running=True)

    def hashing(self, num_done: int, num_after: int) -> None:
        """Parts of the sources are hashed."""
        if self._meter is None:
            self._meter = screen.Meter("sources", self._silent)
        self._meter.update(num_done, num_after)

    def working(self, counts: Mapping[str, int], num_after: int) -> None:
        """Rows are about to be made."""
        self.close()
        self._counts, self._after = dict(counts), num_after
        is_first = self._began == (0.0, 0)
        self._began, self._first_part = (time.monotonic(), sum(counts.values())), None
        self._meter = screen.Meter("run", self._silent, self._describe, at_once=is_first)
        self._meter.update(sum(counts.values()), num_after)

    def part(self, part: PartDone) -> None:
        """A part was committed: of samples, or in staged placement of rows that wait for the next stage."""
        self._stage = part.stage
        if part.stage is not None:
            self._waiting[part.stage] = self._waiting.get(part.stage, 0) + part.kept
        for status in STATUSES:
            self._counts[status] += getattr(part, status)
        done = sum(self._counts.values())
        if self._first_part is None and part.stage is None and part.num_rows:
            self._first_part = time.monotonic(), done
        if self._meter is not None:
            self._meter.update(done, self._after)

    def note(self, text: str) -> None:
        """Anything else that should be read."""
        if not self._silent:
            screen.note(text)

    def close(self) -> None:
        """Take the line from the screen."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    def _describe(self) -> str:
        """Images per second, time left, rejected, failed.

        The rate is that since the first part; the first part alone has one with the start of the actors in it.
        """
        outcome = f"{self._counts['rejected']} rejected, {self._counts['failed']} failed"
        if self._stage is not None:
            return f"{self._stage}: {screen.as_count(self._waiting[self._stage], 'row')} ready for the next stage"
        if self._first_part is None:
            return f"starting actors, which load their weights: {outcome}"
        now, done = time.monotonic(), sum(self._counts.values())
        since, before = self._first_part
        if done == before:
            since, before = self._began
        rate = (done - before) / max(now - since, 1e-9)
        return f"{rate:.2f} images/s, {screen.as_duration((self._after - done) / rate)} left, {outcome}"


def print_standing(status: RunStatus) -> None:
    """What every class has now against what the last round wants: real images and accepted samples that show it.

    The same of pixels, where a goal counts them.
    """
    for summary in status.rounds[-1:]:
        rows = [
            [c.name, c.real, status.accepted[c.name], c.real + status.accepted[c.name], c.wanted or screen.NO_NUMBER]
            for c in summary.classes
        ]
        columns = ["class", "real", "accepted", "both", "wanted"]
        screen.table(columns, rows, f"round {summary.round}")
        accepted = status.accepted_pixels
        in_pixels = [
            [c.name, c.pixels.real, accepted[c.name], c.pixels.real + accepted[c.name], c.pixels.wanted]
            for c in summary.classes
            if c.pixels is not None
        ]
        if in_pixels:
            screen.table(columns, in_pixels, "pixels")


def print_round(summary: RoundSummary, is_running: bool = False) -> None:
    """The table of a round: per class real, accepted, planned, wanted (if any), total and shares; then the sums.

    Of classes that no image shows and no goal wants, as label sets of data sets at large have many, their number.
    """
    classes = [c for c in summary.classes if _matters(c)]
    rows = [
        [
            c.name,
            c.real,
            c.accepted,
            c.planned,
            c.wanted or screen.NO_NUMBER,
            c.total,
            f"{c.share_before:.1%}",
            f"{c.share_after:.1%}",
        ]
        for c in classes
    ]
    images = screen.as_count(summary.num_rows, "image")
    screen.table(ROUND_COLUMNS, rows, f"round {summary.round}: {images}")
    if left_out := len(summary.classes) - len(classes):
        screen.say(
            f"{left_out} of {len(summary.classes)} classes are left out: no image shows them, no goal wants them"
        )
    screen.say(
        f"entropy {summary.entropy_before:.3f} -> {summary.entropy_after:.3f}, "
        f"CIR {summary.cir_before:.3f} -> {summary.cir_after:.3f}"
    )
    for goal in summary.goals:
        if goal.planned and goal.at_least is not None:
            screen.say(
                f"{goal.strategy}: {screen.as_count(goal.planned, 'image')}; no choice of sources takes fewer than "
                f"{goal.at_least}, balance would take {goal.algorithm_1}"
            )
    print_pixels(summary)
    screen.say(f"{images}, about {screen.as_bytes(summary.estimated_bytes)}")
    if summary.estimate is not None and summary.num_rows:
        print_estimate(summary.estimate, is_running)
    for reason, count in summary.rejected.items():
        screen.say(f"rejected so far: {count} x {reason}")
    if summary.unreachable:
        screen.say(f"no usable source shows {', '.join(summary.unreachable)}")


def _matters(found: ClassSummary) -> bool:
    """Whether any number of a class is other than 0."""
    in_pixels = found.pixels is not None and bool(found.pixels.total or found.pixels.wanted)
    return in_pixels or bool(found.total or found.wanted)


def print_pixels(summary: RoundSummary) -> None:
    """The pixels per class of a round with a goal that counts them, as `print_round` shows images."""
    counted = [(c.name, c.pixels) for c in summary.classes if c.pixels is not None and _matters(c)]
    before = max(1, sum(pixels.real + pixels.accepted for _, pixels in counted))
    after = max(1, sum(pixels.total for _, pixels in counted))
    rows = [
        [
            name,
            pixels.real,
            pixels.accepted,
            pixels.planned,
            pixels.wanted,
            pixels.total,
            f"{(pixels.real + pixels.accepted) / before:.1%}",
            f"{pixels.total / after:.1%}",
        ]
        for name, pixels in counted
    ]
    if rows:
        screen.table(ROUND_COLUMNS, rows, "pixels")


def print_estimate(estimate: Estimate, is_running: bool) -> None:
    """What a round will take: hours, requests, bytes and money, as far as they are known.

    How hours come to be known is said where no run is about to measure them.
    """
    actors = screen.as_count(estimate.actors, "actor")
    if estimate.actor_hours is None or estimate.wall_hours is None:
        how = "" if is_running else ", `segdatagen run JOB.yaml --limit 32` measures it"
        screen.say(f"time on {actors}: not measured yet{how}")
    else:
        hours = f"{estimate.actor_hours:.3g} actor-hours"
        if estimate.gpu_hours:
            hours += f", {estimate.gpu_hours:.3g} GPU-hours"
        screen.say(f"about {screen.as_duration(estimate.wall_hours * 3600)} on {actors}, without the start: {hours}")
    stored, puts = screen.as_bytes(estimate.stored_bytes), screen.as_count(estimate.put_requests, "PUT request")
    without = " without lease renewals" if estimate.wall_hours is None else ""
    screen.say(f"about {stored} with data/ once published, {puts}{without}")
    for charges, what in ((estimate.cost, "cost"), (estimate.cost_per_million, "cost of a million samples")):
        named = {
            "for actors": charges.actors,
            "for requests": charges.requests,
            "a month for storage": charges.storage_per_month,
        }
        known = [
            f"{screen.as_money(value, estimate.currency)} {of}" for of, value in named.items() if value is not None
        ]
        if known:
            screen.say(f"{what}{'' if estimate.currency else IN_WHAT}: {', '.join(known)}")
