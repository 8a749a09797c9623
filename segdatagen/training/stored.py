"""The sources of a store at the size of a training, whose pixels are not kept: some are read where they are asked for.

For trainings whose batches come from caches. It does not know what is cached.
"""

import functools
from collections.abc import Sequence

import numpy as np

from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.labels import LabelSet
from segdatagen.sources import DECODED, SourceStore, decoded_rows, first_without, lacking, transformed_counts
from segdatagen.tables import UnreadablePart, read_parts


class StoredSources:
    """See `TrainingData`. Labels, captions and pixels by class are in memory."""

    def __init__(self, store: SourceStore, geometry: Geometry) -> None:
        """Raises UsageError where there is no source, or one without image or mask."""
        if not store.info.num_sources:
            raise UsageError(f"{store.folder.uri}: the source store holds no images: there is nothing to train on")
        for column in ("mask", "image"):
            if (source_id := first_without(store, column)) is not None:
                raise lacking(store, source_id, column)
        self._store, self._geometry = store, geometry

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
        return self._read(rows)[0]

    def channels_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks of some sources, read: int16 `[n, H, W]`."""
        return self._read(rows)[1]

    def fingerprint(self, with_captions: bool = False) -> str:
        """That of the store: of image files, masks, ids, label set and, in any case, captions."""
        return self._store.info.fingerprint

    def _read(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = [part.num_rows for part in self._store.info.parts]
        starts = np.concatenate([[0], np.cumsum(counts)])
        wanted = np.asarray(rows, np.int64)
        parts = np.searchsorted(starts, wanted, side="right") - 1
        width, height = self._geometry.size
        images = np.empty((len(wanted), height, width, 3), np.uint8)
        channels = np.empty((len(wanted), height, width), np.int16)
        for part in np.unique(parts).tolist():
            chosen = parts == part
            places = (wanted[chosen] - starts[part]).tolist()
            table = self._store.read_rows(self._store.info.parts[part].name, places, DECODED)
            images[chosen], channels[chosen] = decoded_rows(self._store, table, self._geometry)
        return images, channels
