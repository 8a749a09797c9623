"""The sources of a store at the size of a training, whose pixels are not kept: some are read where they are asked for.

For trainings whose batches come from caches. It does not know what is cached.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.labels import LabelSet
from segdatagen.sources import (
    SourceStore,
    decoded_channels,
    decoded_images,
    first_without,
    lacking,
    transformed_counts,
)
from segdatagen.tables import UnreadablePart, read_parts


class StoredSources:
    """See `TrainingData`. Labels, captions and pixels by class are in memory."""

    def __init__(self, store: SourceStore, geometry: Geometry) -> None:
        """Raises UsageError where there is no source."""
        if not store.info.num_sources:
            raise UsageError(f"{store.folder.uri}: the source store holds no images: there is nothing to train on")
        self._store, self._geometry = store, geometry

    def require(self, columns: Sequence[str]) -> None:
        """Raise UsageError where a source has no mask, or no image."""
        for column in columns:
            if (source_id := first_without(self._store, column)) is not None:
                raise lacking(self._store, source_id, column)

    @property
    def label_set(self) -> LabelSet:
        """The classes of the masks."""
        return self._store.label_set

    @property
    def num_sources(self) -> int:
        """N."""
        return self._store.info.num_sources

    @functools.cached_property
    def captions(self) -> tuple[str | None, ...]:
        """N captions."""
        names = [part.name for part in self._store.info.parts]
        tables, unreadable = read_parts(self._store.folder, names, ["caption"])
        for sentence in unreadable.values():
            raise UnreadablePart(sentence)
        return tuple(caption for table in tables.values() for caption in table["caption"].to_pylist())

    @functools.cached_property
    def class_pixels(self) -> np.ndarray:
        """Pixels of every source by class: int64 `[N, C]`."""
        return transformed_counts(self._store, self._geometry)

    def images_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images of some sources, read: uint8 `[n, H, W, 3]`."""
        width, height = self._geometry.size
        return self._read(rows, "image", decoded_images, np.empty((len(rows), height, width, 3), np.uint8))

    def channels_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks of some sources, read: int16 `[n, H, W]`."""
        width, height = self._geometry.size
        return self._read(rows, "mask", decoded_channels, np.empty((len(rows), height, width), np.int16))

    def fingerprint(self, with_captions: bool = False) -> str:
        """That of the store: of image files, masks, ids, label set and, in any case, captions."""
        return self._store.info.fingerprint

    def _read(
        self,
        rows: Sequence[int] | np.ndarray,
        column: str,
        decoded: Callable[[SourceStore, pa.Table, Geometry], np.ndarray],
        found: np.ndarray,
    ) -> np.ndarray:
        """Fill `found` with the rows of one column, read part by part."""
        starts = np.concatenate([[0], np.cumsum([part.num_rows for part in self._store.info.parts])])
        wanted = np.asarray(rows, np.int64)
        parts = np.searchsorted(starts, wanted, side="right") - 1
        for part in np.unique(parts).tolist():
            chosen = parts == part
            places = (wanted[chosen] - starts[part]).tolist()
            table = self._store.read_rows(self._store.info.parts[part].name, places, ["source_id", column])
            found[chosen] = decoded(self._store, table, self._geometry)
        return found
