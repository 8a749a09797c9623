"""The files of a report: data as scripts that a page can load from a disk, and the order in which a report appears.

Names of data files follow from their content; `index.html` names those that count, is put last, and what it does not
name is deleted after. So a report is never a mix of two. It does not know what the data mean.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from segdatagen.errors import UsageError
from segdatagen.lease import LEASE_NAME, Holder, Lease
from segdatagen.storage import Folder

INDEX_NAME = "index.html"
MARKER = b'<meta name="generator" content="segdatagen report">'
"""Stands at the beginning of every index: what tells a report from somebody else's page."""
OWN_NAME = re.compile(r"(report|samples|thumbnails|pages|sources)-[0-9a-f]{16}\.(js|css)")
CHUNK_BYTES = 1_000_000
"""Pictures that are loaded at once: one of a few hundred kilobytes, or all neighbours of one of a few."""

PUT_THREADS = 4
MAX_PENDING = 16
"""Files that are on their way to storage while the next are made."""


class ReportFolder:
    """A folder that is being written, as a context: nobody else writes it meanwhile.

    Raises UsageError, before anything is written, where the folder holds what is no report.
    """

    def __init__(self, folder: Folder, waiting: Callable[[Holder], None]) -> None:
        self.folder = folder
        self.num_bytes = 0
        self._names: set[str] = set()
        self._pool = ThreadPoolExecutor(PUT_THREADS)
        self._pending: deque[Future[None]] = deque()
        self._lease = Lease(folder, waiting)
        _refuse_foreign(folder)
        folder.require_writable()

    def __enter__(self) -> Self:
        self._lease.__enter__()
        self.folder.sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._lease.__exit__(kind, error, trace)

    @property
    def num_files(self) -> int:
        """Files put so far."""
        return len(self._names)

    def put(self, stem: str, suffix: str, data: bytes) -> str:
        """Put a file whose name follows from its content; returns the name.

        It is put meanwhile: raises StorageError, here or in a later call, where that or an earlier one was refused.
        """
        name = f"{stem}-{hashlib.blake2b(data, digest_size=8).hexdigest()}.{suffix}"
        self._count(name, data)
        self._pending.append(self._pool.submit(self.folder.put, name, data))
        self._wait(MAX_PENDING)
        return name

    def put_data(self, stem: str, function: str, value: Any) -> str:
        """Put a script that calls `function` of the page with a JSON value; returns its name.

        JSON of ASCII is JavaScript, and no text in it can end a script: it stands in a file of its own.
        """
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        return self.put(stem, "js", f"segdatagen.{function}({text});\n".encode("ascii"))

    def finish(self, index: str) -> None:
        """Put the page that names all files, then delete those of an earlier report."""
        data = index.encode()
        if MARKER not in data:
            raise ValueError("the index has not the marker that tells it from somebody else's")
        self._wait(0)
        self._lease.check()
        self._count(INDEX_NAME, data)
        self.folder.put(INDEX_NAME, data)
        found = (entry.name for entry in self.folder.entries())
        self.folder.delete(name for name in found if OWN_NAME.fullmatch(name) and name not in self._names)

    def _count(self, name: str, data: bytes) -> None:
        if name not in self._names:
            self._names.add(name)
            self.num_bytes += len(data)

    def _wait(self, most: int) -> None:
        """Until no more than so many files are on their way."""
        while len(self._pending) > most:
            self._pending.popleft().result()


class Chunks:
    """Items in data files of about `CHUNK_BYTES`: `add` returns where an item will stand, `close` puts the last."""

    def __init__(self, out: ReportFolder, stem: str) -> None:
        self.names: list[str] = []
        self._out = out
        self._stem = stem
        self._items: list[Any] = []
        self._num_bytes = 0

    def add(self, item: Any, num_bytes: int) -> tuple[int, int]:
        """Keep an item of about so many bytes; returns its chunk and its place in it."""
        if self._items and self._num_bytes + num_bytes > CHUNK_BYTES:
            self.close()
        self._items.append(item)
        self._num_bytes += num_bytes
        return len(self.names), len(self._items) - 1

    def close(self) -> None:
        """Put what is left."""
        if self._items:
            self.names.append(self._out.put_data(self._stem, "arrive", self._items))
        self._items, self._num_bytes = [], 0


def _refuse_foreign(folder: Folder) -> None:
    for entry in folder.entries():
        own = OWN_NAME.fullmatch(entry.name) or entry.name == LEASE_NAME
        if entry.name == INDEX_NAME:
            own = MARKER in folder.read(INDEX_NAME)
        if not own:
            raise UsageError(
                f"{folder.uri}: holds {entry.name}, which is no part of a report: choose an empty or a new folder"
            )
