"""The errors that a user is meant to read.

One sentence each: what is wrong, where, and what to do. The command line prints the sentence and exits with
`exit_status`; anything else that reaches it is a defect and keeps its traceback.
"""

import contextlib
from collections.abc import Iterator


class SegdatagenError(Exception):
    """The work could not be done: what was committed stays valid."""

    exit_status = 1


class UsageError(SegdatagenError):
    """Wrong use or wrong input, found before anything was written or any actor started, or by an actor at its start."""

    exit_status = 2


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """A UsageError that is raised within says first which field of a job it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def one_line(error: Exception) -> str:
    """The first 200 characters of what a library says of an error, on one line."""
    return " ".join(str(error).split())[:200]
