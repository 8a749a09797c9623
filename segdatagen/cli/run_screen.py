"""A run as its user sees it: rounds as tables, a line that counts, sentences for what is out of the ordinary.

Listens to the events of a run. It does not decide anything.
"""

import time

from segdatagen.cli import screen
from segdatagen.dataflow import PartDone
from segdatagen.lease import Holder
from segdatagen.planner import RoundSummary
from segdatagen.status import RunStatus


class RunScreen:
    """The events of a run on a terminal, in a log, or nowhere (`silent`)."""

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._meter: screen.Meter | None = None
        self._done = self._after = self._made = self._rejected = self._failed = 0
        self._began: float | None = None
        self._first_part: float | None = None

    def waiting(self, holder: Holder) -> None:
        """Another process holds the lease."""
        self.note(f"{holder} was at work here; waiting up to 30 s to see whether it is alive")

    def planned(self, summary: RoundSummary) -> None:
        """A round was planned: show it."""
        if not self._silent:
            self.close()
            print_round(summary)

    def working(self, num_done: int, num_after: int) -> None:
        """A flow begins."""
        self.close()
        self._done, self._after, self._made = num_done, num_after, 0
        self._began, self._first_part = time.monotonic(), None
        self._meter = screen.Meter("run", self._silent, self._describe)
        self._meter.update(num_done, num_after)

    def part(self, part: PartDone) -> None:
        """A part was committed."""
        rows = part.ok + part.rejected + part.failed
        self._done += rows
        self._rejected += part.rejected
        self._failed += part.failed
        if self._first_part is None:
            self._first_part = time.monotonic()
        else:
            self._made += rows
        if self._meter is not None:
            self._meter.update(self._done, self._after)

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
        """Images per second since the first part, time left, rejected, failed."""
        if self._first_part is None:
            return "starting"
        outcome = f"{self._rejected} rejected, {self._failed} failed"
        seconds = time.monotonic() - self._first_part
        if not self._made or not seconds:
            return outcome
        rate = self._made / seconds
        return f"{rate:.2f} images/s, {screen.as_duration((self._after - self._done) / rate)} left, {outcome}"


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
    screen.table(columns, rows, f"round {summary.round}: {summary.num_rows} images")
    screen.say(
        f"entropy {summary.entropy_before:.3f} -> {summary.entropy_after:.3f}, "
        f"CIR {summary.cir_before:.3f} -> {summary.cir_after:.3f}"
    )
    cost = f"about {screen.as_bytes(summary.estimated_bytes)}"
    if summary.estimated_seconds is not None:
        cost = f"about {screen.as_duration(summary.estimated_seconds)} of one actor, {cost}"
    screen.say(f"{summary.num_rows} images, {cost}")
    if summary.unreachable:
        screen.say(f"no usable source shows {', '.join(summary.unreachable)}")
