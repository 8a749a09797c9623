"""What a source store holds, in figures, and a picture of one source: its image, and its mask in colours.

It shows what `ingest` read, before anything is generated from it. It writes nothing.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segdatagen.colours import encode
from segdatagen.errors import UsageError
from segdatagen.images import Image, decode_image, decode_mask
from segdatagen.outlines import encode_panoptic
from segdatagen.sources import SourceStore, stored_counts
from segdatagen.tables import read_part


@dataclass(frozen=True)
class ClassFigures:
    """One class: the sources that show it, its segments, and its share of the pixels that are not ignored."""

    name: str
    sources: int
    segments: int
    pixel_share: float


@dataclass(frozen=True)
class StoreFigures:
    """A store: how many sources have what, and its classes in the order of the label set."""

    split: str
    label_set: str
    sources: int
    masks: int
    images: int
    captions: int
    segments: int
    crowds: int
    classes: tuple[ClassFigures, ...]


def figures_of(store: SourceStore) -> StoreFigures:
    """Count without reading a picture. Raises UnreadablePart."""
    labels = store.label_set
    counts = stored_counts(store.index, labels)
    per_class = np.zeros(labels.num_classes, np.int64)
    images = captions = segments = crowds = 0
    for part in store.info.parts:
        rows = read_part(store.folder, part.name, ["caption", "segments"])
        captions += rows.num_rows - rows["caption"].null_count
        listed = pc.list_flatten(rows["segments"])
        channels = labels.channel_table()[pc.struct_field(listed, "class_id").to_numpy()]
        per_class += np.bincount(channels[channels >= 0], minlength=labels.num_classes)
        segments += len(listed)
        crowds += pc.sum(pc.struct_field(listed, "iscrowd")).as_py() or 0
        images += _num_images(store, part.name)
    showing, pixels = (counts > 0).sum(axis=0), counts.sum(axis=0)
    return StoreFigures(
        split=store.info.split,
        label_set=labels.name,
        sources=store.info.num_sources,
        masks=store.index.num_rows - store.index["height"].null_count,
        images=images,
        captions=captions,
        segments=segments,
        crowds=crowds,
        classes=tuple(
            ClassFigures(name, int(showing[channel]), int(per_class[channel]), float(pixels[channel] / pixels.sum()))
            for channel, name in enumerate(labels.names)
            if pixels.sum()
        ),
    )


def picture_of(store: SourceStore, source_id: str) -> Image:
    """A source's image, where it has one, beside its mask in colours, segments outlined: uint8 [H, W or 2 W, 3].

    Raises UsageError where there is no such source, or it has no mask.
    """
    found = np.flatnonzero(store.index["source_id"].to_numpy(zero_copy_only=False) == source_id)
    if not len(found):
        first = ", ".join(store.index["source_id"].slice(0, 3).to_pylist())
        raise UsageError(f"{store.folder.uri}: no source {source_id!r} here; its sources are called {first}, ...")
    place = int(found[0])
    file_name, row = store.index["source_file"][place].as_py(), store.index["source_row"][place].as_py()
    (source,) = store.read_rows(file_name, [row], ["image", "mask", "segment_map"]).to_pylist()
    if source["mask"] is None:
        raise UsageError(
            f"{store.folder.uri}: source {source_id} is a caption without a mask: there is nothing to draw"
        )
    mask = decode_mask(source["mask"])
    if source["segment_map"] is None:
        painted = encode(mask, store.label_set)
    else:
        painted = encode_panoptic(mask, decode_mask(source["segment_map"]), store.label_set)
    return painted if source["image"] is None else np.hstack([decode_image(source["image"]), painted])


def _num_images(store: SourceStore, part_name: str) -> int:
    """Images of a part by its footer, which counts the nulls of each row group."""
    with store.folder.open(part_name) as file:
        footer = pq.ParquetFile(file).metadata
    column = footer.schema.names.index("image")
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return sum(group.num_rows - group.column(column).statistics.null_count for group in groups)
