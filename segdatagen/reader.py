"""Published samples as a training reads them: those of the newest index of a run, decoded, in memory.

Their order is that of their ids, so that it does not depend on how they were packed into shards. It does not know what
is trained on them, nor how real images come in between.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.errors import SegdatagenError, UsageError, placed
from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError, decode_image, decode_mask
from segdatagen.labels import LabelSet
from segdatagen.publish import DATA, Index, read_index
from segdatagen.run_folder import Run, open_run
from segdatagen.sources import SourceStore, arrays_of, ignore_id_of, open_store
from segdatagen.tables import read_part, read_parts


def read_published(uri: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, LabelSet]:
    """The published samples of a run: images uint8 [N, H, W, 3], channels int16 [N, H, W], label set.

    Ignored pixels have channel -1. Raises UsageError where there is no run, where nothing is published, and where
    samples do not fit the size of `geometry`; SegdatagenError where a shard cannot be read.
    """
    run, index = _open_published(uri)
    ids = _checked_ids(run, index, geometry)
    place_of = np.empty(len(ids), np.int64)
    place_of[np.argsort(ids)] = np.arange(len(ids))
    width, height = geometry.size
    images = np.empty((len(ids), height, width, 3), np.uint8)
    channels = np.empty((len(ids), height, width), np.int16)
    start = 0
    for shard in index.shards:
        places = place_of[start : start + shard.num_rows]
        images[places], channels[places] = _decoded(run, shard.name, geometry)
        start += shard.num_rows
    return images, channels, run.label_set


def read_sources_of(uri: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, LabelSet]:
    """The real image and mask of the source of each published sample, in the same order and form as `read_published`.

    Raises UsageError as that does, and where the run's sources are out of reach or others now.
    """
    run, index = _open_published(uri)
    rows = _columns(run, index, ["sample_id", "source_id"]).sort_by("sample_id")
    store = open_sources_of(run)
    images, channels, *_ = arrays_of(store, geometry)
    places = pc.index_in(rows["source_id"], store.index["source_id"].combine_chunks()).to_numpy()
    return images[places], channels[places], run.label_set


def open_sources_of(run: Run) -> SourceStore:
    """The store that a run was made from. Raises UsageError where it is out of reach, or holds other sources now."""
    uri, store_uri = run.folder.uri, run.info.job.get("sources")
    if not store_uri:
        raise UsageError(f"{uri}: the job of the run names no sources")
    with placed(f"{uri}: its sources are out of reach"):
        store = open_store(str(store_uri))
    if not run.is_made_from(store.info.fingerprint):
        raise UsageError(f"{uri}: {store_uri} holds other sources than those of this run now")
    return store


def _open_published(uri: str) -> tuple[Run, Index]:
    run = open_run(uri)
    index = read_index(run.folder)
    if index is None:
        raise UsageError(f"{uri}: nothing is published here: publish it first, with `segdatagen publish {uri}`")
    if not index.num_rows:
        raise UsageError(f"{uri}: no good sample is published here: run its job again, then publish")
    return run, index


def _columns(run: Run, index: Index, columns: list[str]) -> pa.Table:
    """Columns of all samples in the order of the shards."""
    tables, unreadable = read_parts(run.folder.child(DATA), [shard.name for shard in index.shards], columns)
    for sentence in unreadable.values():
        raise SegdatagenError(f"{sentence}: publish the run again")
    return pa.concat_tables(tables.values())


def _checked_ids(run: Run, index: Index, geometry: Geometry) -> np.ndarray:
    """Ids of all samples, int64 [N], in the order of the shards, once their sizes are known to fit."""
    rows = _columns(run, index, ["sample_id", "height", "width"])
    sizes = np.unique(np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1), axis=0)
    wanted_width, wanted_height = geometry.size
    for width, height in sizes.tolist():
        if width * wanted_height != height * wanted_width or width < wanted_width:
            raise UsageError(
                f"{run.folder.uri}: its samples have {width} x {height} pixels, and the training "
                f"{wanted_width} x {wanted_height}: give it their size, or a smaller one of the same proportions"
            )
    ids: np.ndarray = rows["sample_id"].to_numpy()
    return ids


def _decoded(run: Run, shard: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The images and the channels of one shard, in its order."""
    data = run.folder.child(DATA)
    table, ignored = run.label_set.channel_table(), ignore_id_of(run.label_set)
    images, channels = [], []
    for row in read_part(data, shard, ["sample_id", "image", "mask"]).to_pylist():
        try:
            images.append(geometry.apply_image(decode_image(row["image"])))
            channels.append(table[geometry.apply_mask(decode_mask(row["mask"]), ignored)])
        except DecodeError as error:
            raise SegdatagenError(
                f"{data.uri_of(shard)}: sample {row['sample_id']}: {error}: delete that file and publish the run again"
            ) from error
    return np.stack(images), np.stack(channels)
