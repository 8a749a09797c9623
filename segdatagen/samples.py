"""The samples of a run are its ledger: what lies in the parts has happened, and nothing else has.

Reads ids and outcomes of all parts, resolves ids that stand twice, and puts new parts whole. There is no second
progress file. It does not know how samples are made.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.storage import Entry, Folder
from segdatagen.tables import put_table, read_parts

SAMPLES = "samples"
STATUSES: tuple[str, ...] = ("failed", "rejected", "ok")
"""In order of precedence: where an id stands twice the later one counts, then the higher attempt."""
DAMAGED = ".damaged"
"""Suffix of a part that was set aside."""
LEDGER_COLUMNS = ["sample_id", "status", "attempt"]


@dataclass(frozen=True)
class Ledger:
    """Outcome of every sample that was ever committed, each id once."""

    sample_ids: np.ndarray  # int64 [N], ascending
    status: np.ndarray  # uint8 [N], index into STATUSES
    attempt: np.ndarray  # int32 [N]
    part: np.ndarray  # int32 [N], index into `parts`: where the row that counts lies
    row: np.ndarray  # int32 [N], row in that part
    parts: tuple[Entry, ...]
    num_rows: int  # rows in all parts, ids that stand twice included
    unreadable: dict[str, str] = field(default_factory=dict)  # what is wrong with a part, by its name

    @cached_property
    def counts(self) -> dict[str, int]:
        """Samples per status."""
        found = np.bincount(self.status, minlength=len(STATUSES))
        return {status: int(found[code]) for code, status in enumerate(STATUSES)}

    def ids_with(self, *statuses: str) -> np.ndarray:
        """Ids whose status is one of these, ascending."""
        return self.sample_ids[np.isin(self.status, [STATUSES.index(status) for status in statuses])]

    def status_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Status code of each id, -1 where nothing was committed: int16, shaped as `sample_ids`."""
        codes = np.full(len(sample_ids), -1, np.int16)
        if len(self.sample_ids):
            place = np.minimum(np.searchsorted(self.sample_ids, sample_ids), len(self.sample_ids) - 1)
            known = self.sample_ids[place] == sample_ids
            codes[known] = self.status[place[known]]
        return codes

    def finished(self, *, retry_failed: bool) -> np.ndarray:
        """Ids that are not to be made again."""
        return self.ids_with("ok", "rejected") if retry_failed else self.sample_ids


def read_ledger(run: Folder) -> Ledger:
    """Read ids and outcomes of all parts of a run. An unreadable part counts as absent and is reported."""
    parts = tuple(Entry(f"{SAMPLES}/{e.name}", e.size) for e in run.child(SAMPLES).entries(".parquet"))
    tables, unreadable = read_parts(run, [part.name for part in parts], LEDGER_COLUMNS)
    readable = [number for number, part in enumerate(parts) if part.name in tables]
    if not tables:
        empty = np.empty(0, np.int32)
        return Ledger(np.empty(0, np.int64), empty.astype(np.uint8), empty, empty, empty, parts, 0, unreadable)
    lengths = [table.num_rows for table in tables.values()]
    table = pa.concat_tables([table.select(LEDGER_COLUMNS) for table in tables.values()]).combine_chunks()
    ids = table["sample_id"].to_numpy()
    status = pc.index_in(table["status"], pa.array(STATUSES)).to_numpy().astype(np.uint8)
    attempt = table["attempt"].to_numpy()
    part = np.repeat(np.array(readable, np.int32), lengths)
    row = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    order = np.lexsort((row, part, attempt, status, ids))
    last = np.append(ids[order][1:] != ids[order][:-1], True)
    chosen = order[last]
    return Ledger(ids[chosen], status[chosen], attempt[chosen], part[chosen], row[chosen], parts, len(ids), unreadable)


def set_aside(run: Folder, name: str) -> bool:
    """Rename a part that is damaged, so that nobody meets it among the samples; its bytes are kept.

    Returns False, and leaves it where it is, if it can be read after all or its bytes cannot: a store that did not
    answer once has not damaged anything.
    """
    try:
        data = run.read(name)
    except OSError:
        return False
    try:
        pq.ParquetFile(pa.BufferReader(data)).read(columns=LEDGER_COLUMNS).select(LEDGER_COLUMNS)
    except (pa.ArrowException, OSError, KeyError):  # OSError: pages that do not decompress
        run.put(f"{name}{DAMAGED}", data)
        run.delete([name])
        return True
    return False


def put_samples(run: Folder, table: pa.Table) -> str:
    """Commit samples of one method and round as one part; returns its name.

    The name follows from the ids and the attempt, so a task that is replayed replaces its own part.
    """
    table = table.select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    first = table.slice(0, 1).to_pylist()[0]
    digest = hashlib.blake2b(table["sample_id"].to_numpy().tobytes(), digest_size=8).hexdigest()
    folder = f"{SAMPLES}/method={first['method']}/round={first['round']:02d}"
    name = f"{folder}/{first['attempt']:04d}-{digest}.parquet"
    put_table(run, name, table)
    return name


def split_parts(table: pa.Table) -> list[pa.Table]:
    """A table's rows by (method, round), which is how parts are laid out."""
    keys = table.group_by(["method", "round"]).aggregate([]).to_pylist()
    return [table.filter((pc.field("method") == key["method"]) & (pc.field("round") == key["round"])) for key in keys]
