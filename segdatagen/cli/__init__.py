"""The command line: parses, calls the library, prints. All that a command does is one call.

Each module holds the commands of one subject. What takes time to import is imported by the command that needs it, so
that `segdatagen --help` answers at once.
"""

import contextlib
import os
import signal
import sys
import threading
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
        except PermissionError as error:
            return _refuse(f"{error.filename or error}: permission denied", 1)
        except (typer.Abort, KeyboardInterrupt):
            result = INTERRUPTED
        except TyperException as error:
            sentence = error.format_message()
            return _refuse(sentence, 2) if sentence else 2  # without a command the help says it all
        if result == INTERRUPTED:  # what typer, too, makes of a KeyboardInterrupt
            return _refuse(STOPPED, TERMINATED if signals else INTERRUPTED)
        return result if isinstance(result, int) else 0


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Make SIGTERM end a command as Ctrl-C does, with everything given back; the list holds it once it came.

    KeyboardInterrupt is the one exception of a signal handler that Ray lets through from its native code.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # Python has handlers in the main thread alone
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(sentence: str, status: int) -> int:
    print(f"segdatagen: {' '.join(sentence.split())}", file=sys.stderr)
    return status
