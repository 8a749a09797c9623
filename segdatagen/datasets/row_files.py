"""Files of rows, Parquet or Arrow streams: how many rows each group holds, and the rows of a group one after another.

A group (a row group, a record batch) is never read whole where its file lets it be avoided. Knows nothing of columns.
"""

import io
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segdatagen.errors import UsageError
from segdatagen.storage import Folder

ROWS_AT_A_TIME = 8
BUFFER_BYTES = 1 << 20
"""Of a column that is read at a time: of a row group of 300 MB 20 MB are in memory then, and else all of them."""


@dataclass(frozen=True)
class Group:
    """Rows that lie together: `place` is the row group, or the first byte of the record batch.

    `num_bytes` are those that are read of it: of Parquet the columns that are wanted.
    """

    place: int
    num_rows: int
    num_bytes: int


def list_groups(folder: Folder, name: str, columns: Sequence[str]) -> tuple[list[Group], pa.Schema]:
    """The groups of a file in order, of which `columns` are wanted, and all its columns.

    Raises UsageError where the file is not whole.
    """
    try:
        with folder.open(name) as file:
            if name.endswith(".parquet"):
                footer = pq.ParquetFile(file).metadata
                groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
                listed = [Group(n, group.num_rows, _stored_bytes(group, columns)) for n, group in enumerate(groups)]
                return listed, footer.schema.to_arrow_schema()
            return _list_batches(_stream(file))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{folder.uri_of(name)}: not a whole file of rows ({_first_line(error)})") from error


def rows_of(folder: Folder, name: str, place: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a group, some columns each. Raises pyarrow's errors and OSError."""
    with folder.open(name) as file:
        if name.endswith(".parquet"):
            parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
            batches = parquet.iter_batches(ROWS_AT_A_TIME, [place], list(columns), use_threads=False)
            for batch in batches:
                yield from batch.to_pylist()
            return
        stream = _stream(file)
        schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        stream.seek(place)
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(stream), schema).select(columns)
        for row in range(batch.num_rows):
            yield batch.slice(row, 1).to_pylist()[0]


def _stream(file: BinaryIO) -> Any:
    """A file on a disk as mapped memory, of which only what is looked at is read; any other as it is."""
    if isinstance(file, io.BufferedReader) and os.fstat(file.fileno()).st_size:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    return pa.PythonFile(file, "r")


def _list_batches(stream: Any) -> tuple[list[Group], pa.Schema]:
    schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
    groups: list[Group] = []
    while True:
        place = stream.tell()
        try:
            message = pa.ipc.read_message(stream)
        except EOFError:
            return groups, schema
        batch = pa.ipc.read_record_batch(message, schema)
        groups.append(Group(place, batch.num_rows, stream.tell() - place))


def _stored_bytes(group: Any, columns: Sequence[str]) -> int:
    chunks = map(group.column, range(group.num_columns))
    # The bytes of a struct are a column of their own, `image.bytes`.
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns)
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
