"""Publish: the samples that are good, each once, in large shards that open as they lie.

New shards are put, then the index that names what counts, then the shards go that it does not name: once `publish` has
ended, all of `data/` holds each sample once. In between, or after a kill, `data/` is never smaller than it was, but may
hold samples twice; the shards of its newest index never do. It does not know how samples are made.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.errors import SegdatagenError
from segdatagen.lease import Holder, Lease
from segdatagen.records import FORMAT_VERSION, SAMPLE_SCHEMA, FormatVersion
from segdatagen.run_folder import Run, now
from segdatagen.samples import SAMPLES, STATUSES, Ledger, read_ledger
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part, read_parts
from segdatagen.verify import verify_ledger

DATA = "data"
INDEX = "published"
"""The folder of indexes: `datasets` takes the files of `data/` for what most of them are, JSON among them."""
INDEX_NAME = re.compile(r"index-(\d+)\.json")
TARGET_BYTES = 384 * 2**20
MIN_BYTES = 256 * 2**20
"""Shards of 256 to 512 MB; only the last one may be smaller, and is written again when samples are added."""
ROW_GROUP_ROWS = 256


class Shard(BaseModel):
    """One published file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    num_rows: int
    size: int


class Index(BaseModel):
    """`published/index-<n>.json`: the shards of `data/` that count. The newest is the truth.

    `ids` is the digest of the ids in them, ascending: whether `data/` is what the ledger says can be seen without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    number: int
    written: str
    num_rows: int
    shards: tuple[Shard, ...]
    ids: str = ""

    def holds(self, sample_ids: np.ndarray) -> bool:
        """Whether the shards hold these samples, int64 [N] ascending, and no others."""
        return self.ids == _digest(sample_ids, 16)


@dataclass(frozen=True)
class Slice:
    """Rows of one part that go into a shard."""

    part: str
    rows: np.ndarray
    num_bytes: int


@dataclass(frozen=True)
class Published:
    """What was published, and a sentence for each thing that the run still lacks."""

    index: Index
    missing: tuple[str, ...]


def publish(run: Run, waiting: Callable[[Holder], None], progress: Callable[[int, int], None]) -> Published:
    """Bring `data/` up to date with the ledger. Safe to run again, and to kill at any instant.

    Holds the lease of the run meanwhile; `waiting` is called if another process held it. Raises SegdatagenError where
    that process is alive, and where parts are unreadable or gone: what was published is not taken back for that.
    """
    with Lease(run.folder, waiting) as lease:
        ledger = read_ledger(run.folder)
        for sentence in ledger.unreadable.values():
            raise SegdatagenError(f"{sentence}: make its samples again with `segdatagen run`, then publish")
        index = _publish(run, ledger, lease, progress)
        return Published(index, verify_ledger(run, ledger).problems)


def _publish(run: Run, ledger: Ledger, lease: Lease, progress: Callable[[int, int], None]) -> Index:
    wanted = ledger.ids_with("ok")
    data = run.folder.child(DATA)
    newest = read_index(run.folder)
    shards_with_ids = _read_shards(data, newest.shards if newest else ())
    gone = np.setdiff1d(np.union1d(_ids(shards_with_ids), _ids_of_strays(data, newest)), ledger.sample_ids)
    if len(gone):
        raise SegdatagenError(
            f"{run.folder.uri}: {len(gone)} published samples are no longer in {SAMPLES}/, the first is {gone[0]}: "
            "make them again with `segdatagen run`, then publish"
        )
    kept = [(shard, ids) for shard, ids in shards_with_ids if np.isin(ids, wanted).all()]
    missing = np.setdiff1d(wanted, _ids(kept))
    if len(missing):
        kept = [(shard, ids) for shard, ids in kept if shard.size >= MIN_BYTES]
        missing = np.setdiff1d(wanted, _ids(kept))
    shards = [shard for shard, _ in kept]
    for plan in pack(slices_of(ledger, missing), TARGET_BYTES):
        shards.append(_put_shard(run.folder, data, plan))
        progress(sum(shard.num_rows for shard in shards), len(wanted))
        lease.check()
    if newest is None or newest.shards != tuple(shards) or not newest.holds(wanted):
        lease.check()
        newest = _put_index(run.folder.child(INDEX), newest.number + 1 if newest else 0, shards, wanted)
    lease.check()
    data.delete({entry.name for entry in data.entries(".parquet")} - {shard.name for shard in shards})
    return newest


def read_index(run: Folder) -> Index | None:
    """The newest index of a run; None before the first publish."""
    folder = run.child(INDEX)
    matches = [match for entry in folder.entries(".json") if (match := INDEX_NAME.fullmatch(entry.name))]
    if not matches:
        return None
    return read_stored(folder, max(matches, key=lambda match: int(match[1]))[0], Index)


def slices_of(ledger: Ledger, ids: np.ndarray) -> list[Slice]:
    """Where the rows of these ids lie, part by part, with their share of the part's bytes."""
    chosen = np.flatnonzero(np.isin(ledger.sample_ids, ids) & (ledger.status == STATUSES.index("ok")))
    chosen = chosen[np.lexsort((ledger.row[chosen], ledger.part[chosen]))]
    parts, starts = np.unique(ledger.part[chosen], return_index=True)
    rows_in_part = np.bincount(ledger.part, minlength=len(ledger.parts))
    slices = []
    for number, rows in zip(parts, np.split(ledger.row[chosen], starts)[1:], strict=True):
        part = ledger.parts[number]
        slices.append(Slice(part.name, rows, part.size * len(rows) // max(len(rows), int(rows_in_part[number]))))
    return slices


def pack(slices: Sequence[Slice], target_bytes: int) -> list[list[Slice]]:
    """Slices in order, in groups that reach `target_bytes` as soon as they can."""
    groups: list[list[Slice]] = []
    filled = target_bytes
    for piece in slices:
        if filled >= target_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += piece.num_bytes
    return groups


def _read_shards(data: Folder, shards: Sequence[Shard]) -> list[tuple[Shard, np.ndarray]]:
    """Shards with their ids. One that is gone, of another size or unreadable is left out: it is written again."""
    present = {entry.name: entry.size for entry in data.entries(".parquet")}
    whole = [shard for shard in shards if present.get(shard.name) == shard.size]
    tables, _ = read_parts(data, [shard.name for shard in whole], ["sample_id"])
    return [(shard, tables[shard.name]["sample_id"].to_numpy()) for shard in whole if shard.name in tables]


def _ids_of_strays(data: Folder, newest: Index | None) -> np.ndarray:
    """Ids in shards that no index names, as a publish leaves them that was killed: int64 [N]."""
    named = {shard.name for shard in newest.shards} if newest else set()
    strays = [entry.name for entry in data.entries(".parquet") if entry.name not in named]
    tables, _ = read_parts(data, strays, ["sample_id"])
    return np.concatenate([np.empty(0, np.int64), *(table["sample_id"].to_numpy() for table in tables.values())])


def _ids(kept: Sequence[tuple[Shard, np.ndarray]]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(ids for _, ids in kept)])


def _put_shard(run: Folder, data: Folder, slices: Sequence[Slice]) -> Shard:
    columns = SAMPLE_SCHEMA.names
    table = pa.concat_tables(
        read_part(run, piece.part, columns, SAMPLE_SCHEMA).take(piece.rows).cast(SAMPLE_SCHEMA) for piece in slices
    )
    without = table.filter(pc.is_null(table["image"]))["sample_id"]
    if len(without):
        raise without_image(run, without[0].as_py())
    # What was rejected when it was made and accepted since then has the status of today.
    for name, value in (("status", "ok"), ("reason", None)):
        column = pa.array([value] * table.num_rows, pa.string())
        table = table.set_column(columns.index(name), SAMPLE_SCHEMA.field(name), column)
    name = f"{_digest(table['sample_id'].to_numpy(), 8)}.parquet"
    size = put_table(data, name, table, ROW_GROUP_ROWS)
    return Shard(name=name, num_rows=table.num_rows, size=size)


def without_image(run: Folder, sample_id: int) -> SegdatagenError:
    """What is said where a decision accepts a sample that has no image."""
    return SegdatagenError(
        f"{run.uri}: a decision accepts sample {sample_id}, which was rejected before it had an image: "
        "take it out of decisions/"
    )


def _put_index(folder: Folder, number: int, shards: Sequence[Shard], sample_ids: np.ndarray) -> Index:
    rows, ids = sum(shard.num_rows for shard in shards), _digest(sample_ids, 16)
    index = Index(number=number, written=now(), num_rows=rows, ids=ids, shards=tuple(shards))
    folder.put(f"index-{number}.json", json.dumps(index.model_dump(mode="json"), indent=1).encode())
    return index


def _digest(sample_ids: np.ndarray, num_bytes: int) -> str:
    return hashlib.blake2b(sample_ids.tobytes(), digest_size=num_bytes).hexdigest()
