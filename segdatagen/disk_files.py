"""Files of a disk that are there whole or not at all, and those that last as long as a block.

It does not know what files hold.
"""

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

HALF_FILE = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""Temporary files of `replace_file`, with the name of the one that they were to become."""


@contextlib.contextmanager
def scratch_file() -> Iterator[Path]:
    """A place for one file that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "object")


def replace_file(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` writes at a path, whole and on the disk, in place of what is there. Raises OSError."""
    parent, name = os.path.split(path)
    make_folder(parent)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=parent)
    with contextlib.ExitStack() as unless_replaced:
        unless_replaced.callback(os.unlink, temporary)
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.replace(temporary, path)
        unless_replaced.pop_all()
    sync_to_disk(parent)


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it where there are none, with their names on the disk. Raises OSError."""
    made = list(itertools.takewhile(lambda folder: not folder.exists(), (Path(path), *Path(path).parents)))
    os.makedirs(path, exist_ok=True)
    for folder in made:
        sync_to_disk(folder.parent)


def sync_to_disk(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
