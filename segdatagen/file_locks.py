"""Locks of files on a disk, which processes and hosts hold one after the other.

A lock is a file of its own beside the one that it protects. It does not know what that file holds.
"""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from segdatagen.disk_files import make_folder

MOST_ATTEMPTS = 1000
"""To make a folder that others delete meanwhile. One that can never be made is given up after a few milliseconds."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file. A lock that was deleted while we waited for it protects nothing: the next is taken.

    Raises OSError where there can be no folder for it, as below a link that leads nowhere.
    """
    for attempt in itertools.count():
        try:
            make_folder(path.parent)
            descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError):
            if attempt == MOST_ATTEMPTS or (path.parent.exists() and not path.parent.is_dir()):
                raise
            continue  # whoever deleted the last file here took the folder along
        with open(descriptor, "wb") as lock:
            if _take(lock, path):
                yield
                return


def delete_lock(path: Path) -> None:
    """Delete the lock of a file that is gone, once nobody holds it."""
    try:
        descriptor = os.open(_lock_path(path), os.O_RDONLY)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as lock:
        if _take(lock, path):
            _lock_path(path).unlink()


def _take(lock: BinaryIO, path: Path) -> bool:
    """Wait for an opened lock; False if it is no longer that of the file."""
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(lock.fileno()), _lock_path(path).stat())
    except FileNotFoundError:
        return False


def _lock_path(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"
