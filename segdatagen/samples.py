"""The samples of a run are its ledger: what lies in the parts has happened, and nothing else has.

Reads ids and outcomes of all parts, resolves ids that stand twice, applies what was decided afterwards, and puts new
parts whole. There is no second progress file. It does not know how samples are made.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segdatagen.decisions import no_decisions, read_decisions
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.storage import Entry, Folder
from segdatagen.tables import UnreadablePart, put_table, read_parts

SAMPLES = "samples"
STATUSES: tuple[str, ...] = ("failed", "rejected", "ok")
"""In order of precedence: where an id stands twice the later one counts, then the higher attempt."""
DAMAGED = ".damaged"
"""Suffix of a part that was set aside."""
NO_REASON = "no reason was recorded"
LEDGER_COLUMNS = ["sample_id", "status", "attempt"]


@dataclass(frozen=True)
class Ledger:
    """Outcome of every sample that was ever committed, each id once."""

    sample_ids: np.ndarray  # int64 [N], ascending
    status: np.ndarray  # uint8 [N], index into STATUSES
    own_status: np.ndarray  # uint8 [N], what the row itself says, whatever was decided afterwards
    attempt: np.ndarray  # int32 [N]
    part: np.ndarray  # int32 [N], index into `parts`: where the row that counts lies
    row: np.ndarray  # int32 [N], row in that part
    parts: tuple[Entry, ...]
    num_rows: int  # rows in all parts, ids that stand twice included
    unreadable: dict[str, str] = field(default_factory=dict)  # what is wrong with a part, by its name
    decisions: pa.Table = field(default_factory=no_decisions)  # as `read_decisions` returns them

    @cached_property
    def counts(self) -> dict[str, int]:
        """Samples per status."""
        found = np.bincount(self.status, minlength=len(STATUSES))
        return {status: int(found[code]) for code, status in enumerate(STATUSES)}

    def ids_with(self, *statuses: str) -> np.ndarray:
        """Ids whose status is one of these, ascending."""
        return self.sample_ids[np.isin(self.status, [STATUSES.index(status) for status in statuses])]

    def place_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Where each id stands in the ledger, -1 where nothing was committed: int64, shaped as `sample_ids`."""
        if not len(self.sample_ids):
            return np.full(len(sample_ids), -1, np.int64)
        place = np.minimum(np.searchsorted(self.sample_ids, sample_ids), len(self.sample_ids) - 1)
        return np.where(self.sample_ids[place] == sample_ids, place, -1)

    def status_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Status code of each id, -1 where nothing was committed: int16, shaped as `sample_ids`."""
        return self._codes(self.status, sample_ids)

    def own_status_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """As `status_of`, but what the rows themselves say, whatever was decided afterwards."""
        return self._codes(self.own_status, sample_ids)

    def _codes(self, status: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        place = self.place_of(sample_ids)
        codes = np.full(len(sample_ids), -1, np.int16)
        codes[place >= 0] = status[place[place >= 0]]
        return codes

    def finished(self, *, retry_failed: bool) -> np.ndarray:
        """Ids that are not to be made again."""
        return self.ids_with("ok", "rejected") if retry_failed else self.sample_ids


def read_ledger(run: Folder) -> Ledger:
    """Read ids and outcomes of all parts of a run. An unreadable part counts as absent and is reported.

    What `decisions/` says goes before the status of a row. Raises SegdatagenError where decisions are damaged: to leave
    them out would publish what somebody refused.
    """
    return decided(_read_parts(run), read_decisions(run))


def _read_parts(run: Folder) -> Ledger:
    parts = tuple(Entry(f"{SAMPLES}/{e.name}", e.size) for e in run.child(SAMPLES).entries(".parquet"))
    tables, unreadable = read_parts(run, [part.name for part in parts], LEDGER_COLUMNS)
    readable = [number for number, part in enumerate(parts) if part.name in tables]
    if not tables:
        empty, no_status = np.empty(0, np.int32), np.empty(0, np.uint8)
        return Ledger(np.empty(0, np.int64), no_status, no_status, empty, empty, empty, parts, 0, unreadable)
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
    ids, status, attempt, part, row = (column[chosen] for column in (ids, status, attempt, part, row))
    return Ledger(ids, status, status, attempt, part, row, parts, table.num_rows, unreadable)


def decided(ledger: Ledger, decisions: pa.Table) -> Ledger:
    """The ledger with these decisions and no others. What failed stays failed: there is nothing to decide on."""
    place = ledger.place_of(decisions["sample_id"].to_numpy())
    codes = pc.index_in(decisions["status"], pa.array(STATUSES)).to_numpy().astype(np.uint8)
    made = place >= 0
    made[made] = ledger.own_status[place[made]] != STATUSES.index("failed")
    status = ledger.own_status.copy()
    status[place[made]] = codes[made]
    return replace(ledger, status=status, decisions=decisions)


def read_columns(run: Folder, ledger: Ledger, columns: Sequence[str]) -> pa.Table:
    """Columns of the rows that count, as their parts hold them, in the order of the ledger.

    A column that a part does not have yet is null there. Raises UnreadablePart.
    """
    names = [part.name for part in ledger.parts if part.name not in ledger.unreadable]
    tables, unreadable = read_parts(run, names, columns, SAMPLE_SCHEMA)
    for sentence in unreadable.values():
        raise UnreadablePart(sentence)
    lengths = [tables[part.name].num_rows if part.name in tables else 0 for part in ledger.parts]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    empty = pa.schema([SAMPLE_SCHEMA.field(name) for name in columns]).empty_table()
    whole = pa.concat_tables([empty, *(table.cast(empty.schema) for table in tables.values())]).combine_chunks()
    return whole.take(starts[ledger.part] + ledger.row)


def reasons_at(ledger: Ledger, place: np.ndarray, own: pa.ChunkedArray) -> pa.ChunkedArray:
    """Why the samples at these places of the ledger, int64 [N], are what they are: null for `ok`, text for the others.

    What was decided goes before `own`, the reasons in their rows, whatever those say of another status.
    """
    decision = pc.index_in(pa.array(ledger.sample_ids[place]), ledger.decisions["sample_id"].combine_chunks())
    made = pa.array(ledger.own_status[place] != STATUSES.index("failed"))
    said = ledger.decisions["reason"].combine_chunks().take(decision)
    reasons = pc.fill_null(pc.if_else(pc.and_(pc.is_valid(decision), made), said, own), NO_REASON)
    return pc.if_else(pa.array(ledger.status[place] == STATUSES.index("ok")), pa.scalar(None, pa.string()), reasons)


def reasons_of(run: Folder, ledger: Ledger, *statuses: str) -> dict[str, int]:
    """Why samples have one of these statuses: samples per reason, most frequent first. Raises UnreadablePart."""
    place = np.flatnonzero(np.isin(ledger.status, [STATUSES.index(status) for status in statuses]))
    place = place[np.argsort(ledger.part[place], kind="stable")]
    numbers, starts = np.unique(ledger.part[place], return_index=True)
    names = [ledger.parts[number].name for number in numbers]
    tables, unreadable = read_parts(run, names, ["reason"])
    for sentence in unreadable.values():
        raise UnreadablePart(sentence)
    rows = np.split(ledger.row[place], starts)[1:]
    found = [tables[name]["reason"].combine_chunks().take(of_part) for name, of_part in zip(names, rows, strict=True)]
    counts = Counter(reasons_at(ledger, place, pa.chunked_array(found, pa.string())).to_pylist())
    return dict(counts.most_common())


def set_aside(run: Folder, name: str, columns: Sequence[str] | None = LEDGER_COLUMNS) -> bool:
    """Rename a part that is damaged in some columns (None: in any), so that nobody meets it; its bytes are kept.

    Returns False, and leaves it where it is, if it can be read after all or its bytes cannot: a store that did not
    answer once has not damaged anything.
    """
    try:
        data = run.read(name)
    except OSError:
        return False
    try:
        pq.ParquetFile(pa.BufferReader(data)).read(columns=columns).select(columns or [])
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
    name = part_name(SAMPLES, table, table["attempt"][0].as_py())
    put_table(run, name, table)
    return name


def part_name(above: str, table: pa.Table, attempt: int) -> str:
    """Where a part of one method and round goes below the folder `above`: it follows from its ids and the attempt."""
    digest = hashlib.blake2b(table["sample_id"].to_numpy().tobytes(), digest_size=8).hexdigest()
    method, number = (table[name][0].as_py() for name in ("method", "round"))
    return f"{above}/method={method}/round={number:02d}/{attempt:04d}-{digest}.parquet"


def method_of(part: str) -> str:
    """The method whose samples a part holds, by its name as `part_name` gives it."""
    return part.partition("/method=")[2].partition("/")[0]


def split_parts(table: pa.Table) -> list[pa.Table]:
    """A table's rows by (method, round), which is how parts are laid out."""
    keys = table.group_by(["method", "round"]).aggregate([]).to_pylist()
    return [table.filter((pc.field("method") == key["method"]) & (pc.field("round") == key["round"])) for key in keys]
