"""The source store: real masks, with their images where there are any, or captions alone, as Parquet parts.

`source.json` is written last: without it the store does not exist. Reading by (file, row) touches only the row
groups that hold the rows. This module does not know formats of data sets, plans or models.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.datasets.reader import Item, RawSource, narrow
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError, class_pixels, decode_image, decode_mask, encode_mask, pixel_hash
from segdatagen.labels import LabelSet
from segdatagen.records import FORMAT_VERSION, SOURCE_SCHEMA, FormatVersion
from segdatagen.storage import Folder
from segdatagen.tables import READ_THREADS, UnreadablePart, read_part, read_parts

SHARD_SIZE = 256
"""Sources per part, at most."""
SHARD_BYTES = 128 * 2**20
"""Bytes of files per part, at most, unless one source alone has more: a task holds them all, and their part twice."""
ROW_GROUP_SIZE = 8
"""A sample needs one row: reading it costs a group."""
INFO_NAME = "source.json"
LABELS_NAME = "labels.yaml"
DECODED = ("source_id", "image", "mask")
"""The columns that `decoded_rows` needs."""


class PartInfo(BaseModel):
    """One part of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    num_rows: int
    size: int
    digest: str


class SourceInfo(BaseModel):
    """`source.json`: where a store came from, what it holds and what was left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    fingerprint: str
    num_sources: int
    data_format: str
    root: str
    split: str
    label_set: str
    parts: tuple[PartInfo, ...]
    skipped: tuple[str, ...] = ()
    partition: str | None = None
    captions: str | None = None


Arrays = tuple[np.ndarray, np.ndarray, LabelSet, tuple[str | None, ...]]
"""Images, channels, label set and captions: see `read_arrays`."""


@dataclass(frozen=True)
class SourceStore:
    """An ingested data set."""

    folder: Folder
    info: SourceInfo
    label_set: LabelSet

    @cached_property
    def index(self) -> pa.Table:
        """Every column but the pixels, in the order of the data set, with `source_file` and `source_row`."""
        columns = ["source_id", "split", "height", "width", "class_ids", "class_pixels"]
        tables, unreadable = read_parts(self.folder, [part.name for part in self.info.parts], columns)
        for sentence in unreadable.values():
            raise UnreadablePart(sentence)
        placed = [
            table.append_column("source_file", pa.array([name] * table.num_rows)).append_column(
                "source_row", pa.array(np.arange(table.num_rows, dtype=np.int32))
            )
            for name, table in tables.items()
        ]
        return pa.concat_tables(placed)

    def read_rows(self, file_name: str, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some rows of one part, in the order asked for. Raises UnreadablePart."""
        groups = sorted({row // ROW_GROUP_SIZE for row in rows})
        position = {group: place for place, group in enumerate(groups)}
        try:
            with self.folder.open(file_name) as file:
                table = pq.ParquetFile(file).read_row_groups(groups, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise UnreadablePart(f"{self.folder.uri_of(file_name)}: not readable ({error})") from error
        return table.take([position[row // ROW_GROUP_SIZE] * ROW_GROUP_SIZE + row % ROW_GROUP_SIZE for row in rows])


def open_store(uri: str) -> SourceStore:
    """Open a store. Raises UsageError where there is none, or where it is damaged or of another format version."""
    folder = Folder(uri)
    try:
        info = read_stored(folder, INFO_NAME, SourceInfo, UsageError)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{uri}: no source store here ({INFO_NAME} is missing): run `segdatagen ingest` first"
        ) from None
    try:
        labels = LabelSet.from_yaml(folder.read(LABELS_NAME).decode(), folder.uri_of(LABELS_NAME))
    except (FileNotFoundError, UnicodeDecodeError) as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"no text ({error})"
        raise UsageError(
            f"{folder.uri_of(LABELS_NAME)}: {problem}: delete {INFO_NAME} there and ingest again"
        ) from error
    return SourceStore(folder, info, labels)


def has_any(store: SourceStore, column: str) -> bool:
    """Whether any of the first sources has a value in this column. Raises UnreadablePart."""
    for part in store.info.parts[:1]:
        rows = list(range(min(part.num_rows, ROW_GROUP_SIZE)))
        return bool(store.read_rows(part.name, rows, [column])[column].null_count < len(rows))
    return False


def first_without(store: SourceStore, column: str) -> str | None:
    """The id of the first source without a value in this plain column, None where all have one. Raises UnreadablePart.

    By the statistics of the parts, so that no pixels are read where nothing is missing.
    """

    def count(name: str) -> int:
        try:
            with store.folder.open(name) as file:
                metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise UnreadablePart(f"{store.folder.uri_of(name)}: not readable ({error})") from error
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        chunks = [group.column(leaf) for group in groups for leaf in range(group.num_columns)]
        found = [chunk for chunk in chunks if chunk.path_in_schema == column]
        return sum(chunk.statistics.null_count if chunk.is_stats_set else chunk.num_values for chunk in found)

    names = [part.name for part in store.info.parts]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        suspects = [name for name, nulls in zip(names, pool.map(count, names), strict=True) if nulls]
    for name in suspects:
        rows = read_part(store.folder, name, ["source_id", column])
        for source_id, value in zip(rows["source_id"].to_pylist(), rows[column], strict=True):
            if not value.is_valid:
                return str(source_id)
    return None


def lacking(store: SourceStore, source_id: str, column: str) -> UsageError:
    """What is said of a source that cannot be trained on."""
    return UsageError(f"{store.folder.uri}: source {source_id} has no {column}: images and masks are needed")


def is_part(folder: Folder, name: str) -> bool:
    """Whether a Parquet file is a part of a source store, by its columns."""
    try:
        with folder.open(name) as file:
            found = pq.read_schema(file)
    except (pa.ArrowException, OSError):
        return False
    return bool(found.equals(SOURCE_SCHEMA, check_metadata=False))


def source_row(item: Item, raw: RawSource, split: str, label_set: LabelSet) -> dict[str, object]:
    """One row of the store from what a reader returned; a caption of the item goes before one that was read."""
    if item.caption is not None:
        raw = replace(raw, caption=item.caption)
    height, width = (None, None) if raw.mask is None else raw.mask.shape
    ids, pixels = class_pixels(np.empty((0, 0), np.uint8) if raw.mask is None else raw.mask)
    counted = ~np.isin(ids, label_set.ignore_ids)
    segments = None
    if raw.segments is not None:
        segments = [{**vars(s), "bbox": list(s.bbox)} for s in raw.segments]
    return {
        "source_id": item.source_id,
        "split": split,
        "image": raw.image,
        "mask": None if raw.mask is None else encode_mask(raw.mask),
        "segment_map": None if raw.segment_map is None else encode_mask(narrow(raw.segment_map)),
        "segments": segments,
        "height": height,
        "width": width,
        "class_ids": ids[counted].tolist(),
        "class_pixels": pixels[counted].tolist(),
        "caption": raw.caption,
        "digest": _row_digest(item.source_id, raw),
    }


def part_table(rows: Iterable[dict[str, object]]) -> tuple[pa.Table, str]:
    """The Arrow table of a part, and the digest of its content whatever it is encoded with."""
    listed = list(rows)
    digest = hashlib.blake2b("".join(str(row["digest"]) for row in listed).encode(), digest_size=16).hexdigest()
    columns = {name: [row[name] for row in listed] for name in SOURCE_SCHEMA.names}
    return pa.table(columns, schema=SOURCE_SCHEMA), digest


def fingerprint_of(parts: Iterable[PartInfo], label_set: LabelSet) -> str:
    """What tells two stores apart: label set, ids, mask pixels, image files and captions, in order."""
    text = label_set.fingerprint() + "".join(part.digest for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stored_counts(index: pa.Table, label_set: LabelSet) -> np.ndarray:
    """Pixels per class of every source at its native size: int64 [S, C], in the order of the index and of channels."""
    lists = index["class_ids"].combine_chunks()
    counts = np.zeros((index.num_rows, label_set.num_classes), np.int64)
    channels = label_set.channel_table()[pc.list_flatten(lists).to_numpy()]
    counts[pc.list_parent_indices(lists).to_numpy(), channels] = pc.list_flatten(index["class_pixels"]).to_numpy()
    return counts


def transformed_counts(store: SourceStore, geometry: Geometry, num_threads: int = 4) -> np.ndarray:
    """Pixels per class of every source after `geometry`: int64 [S, C], in the order of the data set and of channels.

    Stored counts serve where the geometry keeps the size; other masks are decoded and transformed. A mask that no
    longer decodes keeps its stored counts: it is planned, and then fails where everybody sees it.
    """
    labels = store.label_set
    counts = stored_counts(store.index, labels)
    sizes = zip(store.index["height"].to_pylist(), store.index["width"].to_pylist(), strict=True)
    kept = np.fromiter((h is None or geometry.keeps(h, w) for h, w in sizes), np.bool_, len(counts))
    starts = np.concatenate([[0], np.cumsum([part.num_rows for part in store.info.parts])])

    def count_part(number: int) -> None:
        masks = read_part(store.folder, store.info.parts[number].name, ["mask"])["mask"].to_pylist()
        for row, data in enumerate(masks, int(starts[number])):
            if data is None:
                continue
            with contextlib.suppress(DecodeError):
                counts[row] = _mask_counts(geometry.apply_mask(decode_mask(data), ignore_id_of(labels)), labels)

    changed = [number for number in range(len(starts) - 1) if not kept[starts[number] : starts[number + 1]].all()]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(count_part, changed))
    return counts


def read_arrays(uri: str, geometry: Geometry) -> Arrays:
    """A whole store in memory, for training: images uint8 [N, H, W, 3], channels int16 [N, H, W], label set, captions.

    Ignored pixels have channel -1. Raises UsageError where a source has no image or no mask.
    """
    return arrays_of(open_store(uri), geometry)


def arrays_of(store: SourceStore, geometry: Geometry) -> Arrays:
    """What `read_arrays` returns, of a store that is open."""
    width, height = geometry.size
    images = np.empty((store.info.num_sources, height, width, 3), np.uint8)
    channels = np.empty((store.info.num_sources, height, width), np.int16)
    captions: list[str | None] = []
    for part in store.info.parts:
        place = len(captions)
        rows = read_part(store.folder, part.name, [*DECODED, "caption"])
        captions += rows["caption"].to_pylist()
        images[place : len(captions)], channels[place : len(captions)] = decoded_rows(store, rows, geometry)
    return images, channels, store.label_set, tuple(captions)


def decoded_rows(store: SourceStore, rows: pa.Table, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a store with the columns DECODED as `read_arrays` has them: images [n, H, W, 3], channels [n, H, W].

    Raises UsageError where one has no image or no mask, and DecodeError where one is damaged.
    """
    channels = decoded_channels(store, rows, geometry)
    return decoded_images(store, rows, geometry), channels


def decoded_images(store: SourceStore, rows: pa.Table, geometry: Geometry) -> np.ndarray:
    """Images alone of rows with the columns `source_id` and `image`. See `decoded_rows`."""
    width, height = geometry.size
    images = np.empty((rows.num_rows, height, width, 3), np.uint8)
    for place, image in enumerate(_decoded(store, rows, "image", decode_image)):
        images[place] = geometry.apply_image(image)
    return images


def decoded_channels(store: SourceStore, rows: pa.Table, geometry: Geometry) -> np.ndarray:
    """Channels alone of rows with the columns `source_id` and `mask`. See `decoded_rows`."""
    table, ignored, (width, height) = store.label_set.channel_table(), ignore_id_of(store.label_set), geometry.size
    channels = np.empty((rows.num_rows, height, width), np.int16)
    for place, mask in enumerate(_decoded(store, rows, "mask", decode_mask)):
        channels[place] = table[geometry.apply_mask(mask, ignored)]
    return channels


def _decoded(
    store: SourceStore, rows: pa.Table, column: str, decode: Callable[[bytes], np.ndarray]
) -> Iterator[np.ndarray]:
    for source_id, data in zip(rows["source_id"].to_pylist(), rows[column].to_pylist(), strict=True):
        if data is None:
            raise lacking(store, source_id, column)
        try:
            yield decode(data)
        except DecodeError as error:
            raise DecodeError(f"{store.folder.uri}: source {source_id}: its {column} is damaged: {error}") from error


def ignore_id_of(label_set: LabelSet) -> int:
    """The id that fills what a geometry adds: the first ignore id, or 0 where nothing is ever filled."""
    return label_set.ignore_ids[0] if label_set.ignore_ids else 0


def _mask_counts(mask: np.ndarray, label_set: LabelSet) -> np.ndarray:
    ids, pixels = class_pixels(mask)
    channels = label_set.channel_table()[ids]
    counts = np.zeros(label_set.num_classes, np.int64)
    counts[channels[channels >= 0]] = pixels[channels >= 0]
    return counts


def _row_digest(source_id: str, raw: RawSource) -> str:
    digest = hashlib.blake2b(source_id.encode(), digest_size=16)
    if raw.mask is not None:
        digest.update(pixel_hash(raw.mask.astype(np.uint16)).encode())
    digest.update(raw.image or b"")
    digest.update((raw.caption or "").encode())
    if raw.segment_map is not None:
        digest.update(pixel_hash(raw.segment_map.astype(np.uint16)).encode())
    crowds = [segment.id for segment in raw.segments or () if segment.iscrowd]
    digest.update(f"crowds {crowds}".encode() if crowds else b"")
    return digest.hexdigest()
