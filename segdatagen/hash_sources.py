"""The hashes of a run's sources on Ray, part by part, once: actors would otherwise each read every image.

Knows how parts are spread over a cluster; what a hash is, and where the index lies, is the business of
`source_hashes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from segdatagen.errors import SegdatagenError
from segdatagen.geometry import Geometry
from segdatagen.source_hashes import has_index, hash_part, put_index
from segdatagen.sources import SourceStore
from segdatagen.storage import Folder

HASH_CPUS = 0.5


@dataclass(frozen=True)
class HashedPart:
    """One part of the store: wrapped, since Ray Data would take a bare table in a row apart."""

    table: pa.Table


def hash_sources(run: Folder, store: SourceStore, geometry: Geometry, note: Callable[[str], None]) -> None:
    """Make the index of a run unless it has one; `note` hears of sources that cannot be compared with.

    For who holds the lease, with Ray connected. Raises SegdatagenError where a part of the store cannot be read.
    """
    if has_index(run, store):
        return
    names = [part.name for part in store.info.parts]

    def work(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["item"], "result": HashedPart(hash_part(store, geometry, names[row["item"]]))}

    numbers = ray.data.from_items(list(range(len(names))), override_num_blocks=len(names))
    try:
        found = {int(row["number"]): row["result"].table for row in numbers.map(work, num_cpus=HASH_CPUS).iter_rows()}
    except ray.exceptions.RayTaskError as error:
        raise SegdatagenError(
            f"{store.folder.uri}: the images of the sources cannot be hashed ({error.cause})"
        ) from error
    parts: list[pa.Table] = [found[number] for number in range(len(names))]
    without = sum(part["hash"].null_count for part in parts)
    if without:
        note(f"{without} of {store.info.num_sources} sources have no readable image: their duplicates are not found")
    put_index(run, parts)
