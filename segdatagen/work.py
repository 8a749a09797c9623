"""Rows between two stages: as Arrow tables, and where staged placement keeps them until their samples are stored.

What is kept is subtracted from the plan as samples are: a stage makes only what it has not committed. It does not know
which stages there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.records import PLAN_SCHEMA, SAMPLE_SCHEMA
from segdatagen.samples import part_name
from segdatagen.stages.stage import Batch, objects
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part, read_parts

WORK, STAGE = "work", "stage="
KEPT = ("work_part", "work_row")
"""Columns that say where a row lies: which of the names of `Kept` its part has, and its place there; int32 each."""
_TYPES = {field.name: field.type for schema in (SAMPLE_SCHEMA, PLAN_SCHEMA) for field in schema}
_TYPES["layout_seed"] = pa.int64()
_PICTURES = ("source_image", "prior")


def type_of(column: str) -> pa.DataType:
    """What a column of a batch holds: as it is stored, or an encoded picture that no sample keeps.

    Raises KeyError for a column that no stage is known to write.
    """
    if column.split("_")[0] == "prior" or column in _PICTURES:
        return pa.large_binary()
    return _TYPES[column]


def to_table(batch: Batch) -> pa.Table:
    """A batch as an Arrow table: pictures and masks stay encoded. Raises KeyError as `type_of` does."""
    return pa.table({name: pa.array(values.tolist(), type_of(name)) for name, values in batch.items()})


def to_batch(table: pa.Table) -> Batch:
    """The batch that `to_table` made a table of."""
    batch: Batch = {name: objects(table[name].to_pylist()) for name in table.column_names}
    batch["seconds"] = table["seconds"].to_numpy()
    return batch


@dataclass(frozen=True)
class Kept:
    """Rows that a stage has committed: ids sorted, the part of each among `names`, and its row there."""

    names: tuple[str, ...]
    sample_ids: np.ndarray  # int64 [N]
    parts: np.ndarray  # int32 [N]
    rows: np.ndarray  # int32 [N]

    def with_places(self, plan_rows: pa.Table) -> pa.Table:
        """The plan rows that are kept, in their order, with the columns KEPT."""
        ids = plan_rows["sample_id"].to_numpy()
        there = np.isin(ids, self.sample_ids)
        place = np.searchsorted(self.sample_ids, ids[there])
        found = plan_rows.filter(pa.array(there))
        for name, values in zip(KEPT, (self.parts, self.rows), strict=True):
            found = found.append_column(name, pa.array(values[place]))
        return found


def put_work(run: Folder, stage: str, attempt: int, table: pa.Table) -> str:
    """Commit rows of one method and round as one part; returns its name, which follows from ids and attempt."""
    name = part_name(folder_of(stage), table, attempt)
    put_table(run, name, table)
    return name


def read_kept(run: Folder, stage: str, method: str, attempt: int) -> Kept:
    """What a stage has committed for a method. A part that cannot be read counts as absent.

    Rows that failed in an earlier attempt count as absent too: whoever wants them made again gets them made again.
    """
    names = [
        f"{_folder(stage, method)}/{entry.name}" for entry in run.child(_folder(stage, method)).entries(".parquet")
    ]
    tables, _ = read_parts(run, names, ["sample_id", "status"])
    ids, parts, rows = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for number, (name, table) in enumerate(tables.items()):
        is_old = int(name.rsplit("/", 1)[1].split("-")[0]) < attempt
        usable = pc.not_equal(table["status"], "failed").to_numpy() | (not is_old)
        ids.append(table["sample_id"].to_numpy()[usable])
        parts.append(np.full(usable.sum(), number, np.int32))
        rows.append(np.flatnonzero(usable).astype(np.int32))
    unique, first = np.unique(np.concatenate(ids), return_index=True)
    return Kept(tuple(tables), unique, np.concatenate(parts)[first], np.concatenate(rows)[first])


def read_rows(run: Folder, names: Sequence[str], places: pa.Table) -> Batch:
    """The batch of rows that `Kept.with_places` found, in their order, `names` as there. Raises UnreadablePart."""
    columns = [places[name].to_pylist() for name in KEPT]
    keys = list(zip(*columns, strict=True))
    tables = {part: read_part(run, names[part]) for part in dict.fromkeys(columns[0])}
    starts = dict(zip(tables, np.cumsum([0, *(table.num_rows for table in tables.values())]).tolist(), strict=False))
    whole = pa.concat_tables(tables.values(), promote_options="default")
    return to_batch(whole.take([starts[part] + row for part, row in keys]))


def delete_work(run: Folder) -> None:
    """Remove all that stages have kept, and nothing else that lies there."""
    run.delete([f"{WORK}/{entry.name}" for entry in run.child(WORK).entries() if entry.name.startswith(STAGE)])


def folder_of(stage: str) -> str:
    """Where in a run a stage keeps its rows."""
    return f"{WORK}/{STAGE}{stage}"


def _folder(stage: str, method: str) -> str:
    return f"{folder_of(stage)}/method={method}"
