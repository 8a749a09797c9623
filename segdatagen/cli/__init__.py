"""The command line: parses, calls the library, prints. All that a command does is one call.

Each module holds the commands of one subject. What takes time to import is imported by the command that needs it, so
that `segdatagen --help` answers at once.
"""

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from segdatagen import __version__
from segdatagen.cli import data, decisions, experiments, models, runs
from segdatagen.errors import SegdatagenError

SILENT_RAY = ("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
"""Read when Ray is imported. Otherwise it prints a paragraph to standard output, JSON or not, for every worker that
dies; what a dead worker costs is ours to say."""

STOPPED = "stopped; what was committed is kept, the same command goes on from there"
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses, as shells have them, of a command that was told to stop."""
CLEANUP_SECONDS = 10.0
"""So long a command that was told to stop is not disturbed by a further signal: `timeout` sends two at once."""

app = typer.Typer(
    name="segdatagen",
    help="Turn a labelled segmentation data set into a larger, better balanced one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"segdatagen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version, and do nothing.")
    ] = False,
) -> None:
    """Take what stands before a command."""


data.register(app)
runs.register(app)
decisions.register(app)
models.register(app)
experiments.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143 terminated."""
    os.environ.setdefault(*SILENT_RAY)
    command = typer.main.get_command(app)
    with _told_to_stop() as signals:
        try:
            result = command.main(args=arguments, prog_name="segdatagen", standalone_mode=False)
        except SegdatagenError as error:
            return _refuse(str(error), error.exit_status)
        except OSError as error:
            if error.filename is None and not isinstance(error, PermissionError):
                raise  # it names no file that a user could look at
            return _refuse(f"{error.filename or error}: {(error.strerror or 'permission denied').lower()}", 1)
        except (typer.Abort, KeyboardInterrupt):
            result = INTERRUPTED
        except SystemExit:  # Ray's answer to a signal that comes while it starts or stops
            if not signals:
                raise
            result = INTERRUPTED
        except TyperException as error:
            sentence = error.format_message()
            if number := re.fullmatch(r"No such option: (-\d+)", sentence.rstrip(".")):
                sentence = f"{number[0]}; what begins with - and is no option stands behind --, as in `-- {number[1]}`"
            return _refuse(sentence, 2) if sentence else 2  # without a command the help says it all
        if result == INTERRUPTED:  # what typer, too, makes of a KeyboardInterrupt
            return _refuse(STOPPED, TERMINATED if signals[:1] == [signal.SIGTERM] else INTERRUPTED)
        return result if isinstance(result, int) else 0


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Make SIGTERM end a command as Ctrl-C does, with everything given back; the list holds the signals that came.

    KeyboardInterrupt is the one exception of a signal handler that Ray lets through from its native code. It is raised
    once, so that a second signal does not interrupt what the first one has made the command give back.
    """
    received: list[int] = []
    raised = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        received.append(number)
        if time.monotonic() - raised > CLEANUP_SECONDS:
            raised = time.monotonic()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # Python has handlers in the main thread alone
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background commands ignore it
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(sentence: str, status: int) -> int:
    print(f"segdatagen: {' '.join(sentence.split())}", file=sys.stderr)
    return status
