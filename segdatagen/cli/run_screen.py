"""A run as its user sees it: rounds as tables, a line that counts, sentences for what is out of the ordinary.

Listens to the events of a run. It does not decide anything.
"""

import time
from collections.abc import Mapping

from segdatagen.cli import screen
from segdatagen.costs import Estimate
from segdatagen.dataflow import PartDone
from segdatagen.lease import Holder
from segdatagen.planner import RoundSummary
from segdatagen.samples import STATUSES
from segdatagen.status import RunStatus

IN_WHAT = " (in the currency of `prices`)"
"""Behind a cost, where the job does not say in which currency its prices are."""


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
            print_round(summary)

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
        if self._first_part is None and part.stage is None:
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
    """What every class has now against what the last round wants: real images and accepted samples that show it."""
    for summary in status.rounds[-1:]:
        rows = [
            [c.name, c.real, status.accepted[c.name], c.real + status.accepted[c.name], c.wanted or screen.NO_NUMBER]
            for c in summary.classes
        ]
        screen.table(["class", "real", "accepted", "both", "wanted"], rows, f"round {summary.round}")


def print_round(summary: RoundSummary) -> None:
    """The table of a round: per class real, accepted, planned, wanted (if any), total and shares; then the sums."""
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
        for c in summary.classes
    ]
    columns = ["class", "real", "accepted", "planned", "wanted", "total", "share before", "share after"]
    images = screen.as_count(summary.num_rows, "image")
    screen.table(columns, rows, f"round {summary.round}: {images}")
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
        print_estimate(summary.estimate)
    for reason, count in summary.rejected.items():
        screen.say(f"rejected so far: {count} x {reason}")
    if summary.unreachable:
        screen.say(f"no usable source shows {', '.join(summary.unreachable)}")


def print_pixels(summary: RoundSummary) -> None:
    """The pixels per class of a round with a goal that counts them."""
    rows = [
        [c.name, c.pixels.real, c.pixels.accepted, c.pixels.planned, c.pixels.wanted]
        for c in summary.classes
        if c.pixels is not None
    ]
    if rows:
        screen.table(["class", "real", "accepted", "planned", "wanted"], rows, "pixels")


def print_estimate(estimate: Estimate) -> None:
    """What a round will take: hours, requests, bytes and money, as far as they are known."""
    actors = screen.as_count(estimate.actors, "actor")
    if estimate.actor_hours is None or estimate.wall_hours is None:
        screen.say(f"time on {actors}: not measured yet, `segdatagen run JOB.yaml --limit 32` measures it")
    else:
        hours = f"{estimate.actor_hours:.3g} actor-hours"
        if estimate.gpu_hours:
            hours += f", {estimate.gpu_hours:.3g} GPU-hours"
        screen.say(f"about {screen.as_duration(estimate.wall_hours * 3600)} on {actors} and its start: {hours}")
    stored = screen.as_bytes(estimate.stored_bytes)
    screen.say(f"about {stored} with data/ once published, {screen.as_count(estimate.put_requests, 'PUT request')}")
    for charges, what in ((estimate.cost, "cost"), (estimate.cost_per_million, "cost of a million samples")):
        named = {
            "for actors": charges.actors,
            "for requests": charges.requests,
            "a month for storage": charges.storage_per_month,
        }
        known = [f"{screen.as_money(value, estimate.currency)} {w}" for w, value in named.items() if value is not None]
        if known:
            screen.say(f"{what}{'' if estimate.currency else IN_WHAT}: {', '.join(known)}")
