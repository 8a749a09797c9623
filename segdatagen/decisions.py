"""Decisions: what became of samples after they were made, one Parquet file per person or program that decided.

`refilter.parquet` holds what moved limits changed; every other file is somebody's own, and goes before it. This module
does not know samples, nor why anything was decided.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.errors import SegdatagenError
from segdatagen.records import DECISION_SCHEMA
from segdatagen.run_folder import SUCCESS_NAME
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part

DECISIONS = "decisions"
REFILTER, EXCLUDE = "refilter", "exclude"
DECIDED = ("ok", "rejected")
"""What a decision may be. What failed was never made, and stays failed whatever is decided."""
_NOTE = b"segdatagen"


def read_decisions(run: Folder, refilter: pa.Table | None = None) -> pa.Table:
    """Every decision on the samples of a run, columns of DECISION_SCHEMA and `file`, each id once.

    `refilter.parquet` comes first, or the table `refilter` in its place; then the other files in order of their names;
    the last decision on an id counts. Raises SegdatagenError where a file is damaged or says anything else.
    """
    names = [entry.name for entry in run.child(DECISIONS).entries(".parquet")]
    own = f"{REFILTER}.parquet"
    ordered = [own] * (own in names) + [name for name in names if name != own]
    tables = [_read(run, name) for name in ordered if refilter is None or name != own]
    if refilter is not None:
        tables.insert(0, _of_file(refilter, own))
    if not tables:
        return no_decisions()
    found = pa.concat_tables(tables)
    numbered = found.append_column("place", pa.array(range(found.num_rows), pa.int64()))
    last = numbered.group_by("sample_id").aggregate([("place", "max")])["place_max"]
    return found.take(last.sort())


def no_decisions() -> pa.Table:
    """What `read_decisions` returns where nothing was decided."""
    return _of_file(DECISION_SCHEMA.empty_table(), "")


def read_own(run: Folder, name: str) -> tuple[pa.Table, dict[str, Any] | None]:
    """The decisions of one file with what their writer noted beside them; no rows and None where there is none."""
    file = f"{name}.parquet"
    if not run.exists(f"{DECISIONS}/{file}"):
        return DECISION_SCHEMA.empty_table(), None
    table = _checked(run, file)
    note = (table.schema.metadata or {}).get(_NOTE)
    return table.cast(DECISION_SCHEMA), None if note is None else json.loads(note)


def put_decisions(run: Folder, name: str, table: pa.Table, note: Mapping[str, Any]) -> bool:
    """Replace the decisions of one file, for who holds the lease; returns whether that changed anything.

    The run is no longer complete: its goals may miss samples now.
    """
    table = table.select(DECISION_SCHEMA.names).cast(DECISION_SCHEMA).sort_by("sample_id")
    before, noted = read_own(run, name)
    if noted == dict(note) and before.equals(table):
        return False
    run.delete([SUCCESS_NAME])
    kept = {**(DECISION_SCHEMA.metadata or {}), _NOTE: json.dumps(dict(note), sort_keys=True).encode()}
    put_table(run, f"{DECISIONS}/{name}.parquet", table.replace_schema_metadata(kept))
    return True


def _read(run: Folder, name: str) -> pa.Table:
    return _of_file(_checked(run, name), name)


def _checked(run: Folder, name: str) -> pa.Table:
    """The rows of a file with its metadata. Raises SegdatagenError where they are no decisions."""
    file = f"{DECISIONS}/{name}"
    table = read_part(run, file)
    try:
        found = table.select(DECISION_SCHEMA.names).cast(DECISION_SCHEMA)
    except (KeyError, pa.ArrowException, ValueError) as error:
        columns = ", ".join(DECISION_SCHEMA.names)
        raise SegdatagenError(
            f"{run.uri_of(file)}: decisions have the columns {columns} ({error}): write it again, or delete it"
        ) from error
    wrong = found.filter(pc.invert(pc.is_in(found["status"], pa.array(DECIDED))))
    if wrong.num_rows:
        first = wrong.slice(0, 1).to_pylist()[0]
        raise SegdatagenError(
            f"{run.uri_of(file)}: decides {first['status']!r} on sample {first['sample_id']}: a decision is one of "
            f"{', '.join(DECIDED)}"
        )
    return found.replace_schema_metadata(table.schema.metadata)


def _of_file(table: pa.Table, name: str) -> pa.Table:
    plain = table.replace_schema_metadata(None)
    return plain.append_column("file", pa.array([name] * table.num_rows, pa.string()))
