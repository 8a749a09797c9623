"""Arrow tables to Parquet bytes and back, a whole part at a time.

A part is built in memory and stored by one `put`, so that half a table never exists. This module does not know
which columns a table has.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder

READ_THREADS = 16
"""Parts are small and many: reading them waits for storage, not for the processor."""
COMPRESSION = "snappy"
"""Of columns without pixels. Parts have many small row groups, and zstd takes three times as long to read them."""


class UnreadablePart(SegdatagenError):
    """A file that should be a Parquet part is not one."""


def to_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """The bytes of one Parquet file. Encoded images do not compress, so their columns are stored as they are."""
    binary = {field.name for field in table.schema if pa.types.is_large_binary(field.type)}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_size or max(1, table.num_rows),
        compression={name: "none" if name in binary else COMPRESSION for name in table.column_names},
        use_dictionary=[name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)],
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def put_table(folder: Folder, name: str, table: pa.Table, row_group_size: int | None = None) -> int:
    """Store a table as one Parquet object; returns its size in bytes."""
    data = to_parquet(table, row_group_size)
    folder.put(name, data)
    return len(data)


def read_part(
    folder: Folder, name: str, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Read a part, or some columns of it. Raises UnreadablePart.

    A nullable column of `schema` that a part of an earlier version does not have is null there.
    """
    try:
        with folder.open(name) as file:
            table = pq.ParquetFile(file).read(columns=list(columns) if columns else None, use_threads=False)
            for field in schema or ():
                if columns and field.name in columns and field.name not in table.column_names and field.nullable:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            return table.select(columns) if columns else table
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UnreadablePart(f"{folder.uri_of(name)}: not a readable Parquet file ({_first_line(error)})") from error


def read_parts(
    folder: Folder, names: Sequence[str], columns: Sequence[str], schema: pa.Schema | None = None
) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Read the same columns of many parts at once; `schema` as for `read_part`.

    Returns the tables of the readable parts by name, in the order of `names`, and a sentence for each unreadable one.
    """

    def attempt(name: str) -> pa.Table | str:
        try:
            return read_part(folder, name, columns, schema)
        except UnreadablePart as error:
            return str(error)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        results = dict(zip(names, pool.map(attempt, names), strict=True))
    tables = {name: found for name, found in results.items() if not isinstance(found, str)}
    return tables, {name: found for name, found in results.items() if isinstance(found, str)}


def _first_line(error: Any) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
