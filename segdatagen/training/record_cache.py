"""Records of one shape and type in files beside a source store: made once, read by row in any order.

A file holds the records of one shard, without a header. `cache.json` is put last: without it there is no cache, and a
killed filling goes on with the files that came whole. It does not know what the records mean.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder

INFO_NAME = "cache.json"
READERS = 16
"""Requests at once to an object store."""
MOST_MAPS = 128
"""Shards of a disk that are mapped at a time: each holds an open file, of which a process often has 1024."""

Spread = Callable[[Sequence[int], Callable[[int], int]], Iterable[int]]
"""Calls a function for each number, somewhere, and hands on what it returns."""


class CacheInfo(BaseModel):
    """`cache.json`: what decides the records, how many each shard has, and their shape and type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: dict[str, str]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "uint8"]

    @property
    def key(self) -> str:
        """32 hex digits of all of it: a cache of anything else has another name."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class RecordCache:
    """A cache below `root`, there or not yet."""

    root: Folder
    info: CacheInfo

    @cached_property
    def folder(self) -> Folder:
        """Where its files lie."""
        return self.root.child(self.info.key)

    @property
    def is_whole(self) -> bool:
        """Whether it can be read. Raises SegdatagenError where it is damaged."""
        if not self.folder.exists(INFO_NAME):
            return False
        if read_stored(self.folder, INFO_NAME, CacheInfo, SegdatagenError) != self.info:
            raise SegdatagenError(f"{self.folder.uri}: {INFO_NAME} is not that of this cache: delete the folder")
        return True

    def fill(self, make: Callable[[int], np.ndarray], spread: Spread) -> None:
        """Make the shards that are missing, `make(number)` of shape `[count, *shape]`, and then the cache whole."""
        if self.is_whole:
            return
        self.root.require_writable()
        there = {entry.name: entry.size for entry in self.folder.entries(".bin")}
        sizes = {number: count * self._record_bytes for number, count in enumerate(self.info.counts)}
        missing = [number for number, size in sizes.items() if there.get(_name(number)) != size]
        for _ in spread(missing, _Filler(self, make)):
            pass
        self.folder.put(INFO_NAME, self.info.model_dump_json().encode())

    def put_shard(self, number: int, records: np.ndarray) -> None:
        """Put one shard. Raises ValueError for records of another shape or type."""
        wanted = (self.info.counts[number], *self.info.shape)
        if records.shape != wanted or records.dtype != np.dtype(self.info.dtype):
            raise ValueError(f"shard {number} is {records.dtype} {records.shape}, not {self.info.dtype} {wanted}")
        self.folder.put(_name(number), np.ascontiguousarray(records).tobytes())

    def read(self, rows: Sequence[int], place: Sequence[int] | None = None) -> np.ndarray:
        """Records `[n, *shape]` of some rows; `place`: only this entry of the first axis of each, `[n, *shape[1:]]`."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        wanted = [(int(s), int(row - self._starts[s])) for s, row in zip(shards, rows, strict=True)]
        if self.root.is_local:
            found = [self._mapped(shard)[row] for shard, row in wanted]
        else:
            with ThreadPoolExecutor(READERS) as readers:
                found = list(readers.map(self._fetch, wanted))
        return np.stack(found if place is None else [record[p] for record, p in zip(found, place, strict=True)])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.info.counts)])[:-1]

    @cached_property
    def _maps(self) -> OrderedDict[int, np.ndarray]:
        return OrderedDict()

    @property
    def _record_bytes(self) -> int:
        return int(np.prod(self.info.shape)) * np.dtype(self.info.dtype).itemsize

    def _mapped(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = f"{self.folder.absolute_uri}/{_name(shard)}"
            shape = (self.info.counts[shard], *self.info.shape)
            self._maps[shard] = np.memmap(path, np.dtype(self.info.dtype), "r", shape=shape)
            if len(self._maps) > MOST_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        return self._maps[shard]

    def _fetch(self, place: tuple[int, int]) -> np.ndarray:
        shard, row = place
        data = self.folder.read_range(_name(shard), row * self._record_bytes, self._record_bytes)
        return np.frombuffer(data, np.dtype(self.info.dtype)).reshape(self.info.shape)


@dataclass(frozen=True)
class _Filler:
    """What a task does: it travels to workers, the cache as its folder and facts."""

    cache: RecordCache
    make: Callable[[int], np.ndarray]

    def __call__(self, number: int) -> int:
        self.cache.put_shard(number, self.make(number))
        return number


def _name(number: int) -> str:
    return f"shard-{number:05d}.bin"
