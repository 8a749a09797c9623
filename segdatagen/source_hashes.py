"""Perceptual hashes of the sources of a run, at the size of its samples: an index that is made once and kept with it.

Knows the source store and where the index lies; who computes it, and what it is compared with, is no business of it.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from segdatagen.errors import SegdatagenError
from segdatagen.geometry import Geometry
from segdatagen.image_hash import perceptual_hash
from segdatagen.images import DecodeError, decode_image
from segdatagen.records import SOURCE_HASH_SCHEMA
from segdatagen.sources import SourceStore
from segdatagen.storage import Folder
from segdatagen.tables import UnreadablePart, put_table, read_part

INDEX_NAME = "work/source_hashes.parquet"


def hash_part(store: Folder, geometry: Geometry, name: str) -> pa.Table:
    """SOURCE_HASH_SCHEMA for one part of a store; null without an image that can be read. Raises UnreadablePart."""
    rows = read_part(store, name, ["source_id", "image"])
    hashes = [_hash(data, geometry) for data in rows["image"].to_pylist()]
    return pa.table({"source_id": rows["source_id"], "hash": hashes}, schema=SOURCE_HASH_SCHEMA)


def put_index(run: Folder, parts: Sequence[pa.Table]) -> None:
    """Keep the hashes of all sources."""
    put_table(run, INDEX_NAME, pa.concat_tables(parts))


def has_index(run: Folder, store: SourceStore) -> bool:
    """Whether the hashes of every source of the store are kept."""
    try:
        return bool(run.exists(INDEX_NAME) and read_part(run, INDEX_NAME).num_rows == store.info.num_sources)
    except UnreadablePart:
        return False


def read_index(run: Folder) -> tuple[list[str], np.ndarray]:
    """Ids of the sources that have a hash, and their hashes uint64 [S]. Raises SegdatagenError where there is none."""
    if not run.exists(INDEX_NAME):
        raise SegdatagenError(f"{run.uri_of(INDEX_NAME)}: the hashes of the sources are gone: run the job again")
    table = read_part(run, INDEX_NAME, SOURCE_HASH_SCHEMA.names).drop_null()
    return table["source_id"].to_pylist(), table["hash"].to_numpy()


def _hash(data: bytes | None, geometry: Geometry) -> int | None:
    if data is None:
        return None
    try:
        return perceptual_hash(geometry.apply_image(decode_image(data)))
    except DecodeError:
        return None
