"""What a command shows while it works: progress on standard error, results on standard output.

On a terminal a line that changes, elsewhere a sentence from time to time, with --json nothing. It does not know what
the work is.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_SENTENCES = 10.0

LOG_WIDTH = 120
"""Columns of a table where nobody says how wide the screen is."""

NO_NUMBER = "-"
"""Stands in a column of numbers where there is none."""

out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=1))


def say(text: str) -> None:
    """A sentence of a result on standard output."""
    out.print(text, markup=False)


def note(text: str) -> None:
    """A sentence for the reader, on standard error."""
    err.print(text, markup=False, style="dim")


def waiting(holder: object) -> None:
    """Another process holds the lease of a run."""
    note(f"{holder} was at work here; waiting up to 30 s to see whether it is alive")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table on standard output; numbers stand to the right."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        number = all(isinstance(row[place], int | float) or row[place] == NO_NUMBER for row in rows)
        grid.add_column(name, justify="right" if number else "left")
    for row in rows:
        grid.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    out.print(grid)


class Meter:
    """Progress of one task. `describe` adds what a bar cannot say; it is called when something is shown.

    Outside a terminal it is a sentence now and then, the first one `at_once` or after a while.
    """

    def __init__(
        self, title: str, silent: bool, describe: Callable[[], str] = lambda: "", *, at_once: bool = False
    ) -> None:
        self._title = title
        self._silent = silent
        self._describe = describe
        self._last = float("-inf") if at_once else time.monotonic()
        self._bar: Progress | None = None
        if err.is_terminal and not silent:
            title_and_bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TextColumn("{task.fields[more]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*title_and_bar, *times, console=err, transient=True)
            self._task = self._bar.add_task(title, total=None, more="")
            self._bar.start()

    def update(self, done: int, total: int) -> None:
        """So many of so many are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, more=self._describe())
        elif not self._silent and time.monotonic() - self._last >= SECONDS_BETWEEN_SENTENCES:
            self._last = time.monotonic()
            err.print(f"{self._title}: {done} of {total} {self._describe()}".rstrip(), markup=False)

    def close(self) -> None:
        """Take the bar from the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def meter(title: str, silent: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A meter as a function of done and total, for calls that take one."""
    shown = Meter(title, silent)
    try:
        yield shown.update
    finally:
        shown.close()


def as_duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def as_money(amount: float, currency: str | None) -> str:
    """An amount as a person would write it, with its currency if that is known."""
    unit = f" {currency}" if currency else ""
    if 0 < amount < 0.01:
        return f"less than 0.01{unit}"
    return (f"{amount:,.2f}" if amount < 100 else f"{amount:,.0f}") + unit


def as_count(count: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def as_bytes(count: float) -> str:
    """Bytes as a person would say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
