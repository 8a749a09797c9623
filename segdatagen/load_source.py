"""The first stage of every method: what a source holds, at the size of the samples.

Knows the source store and the geometry; it does not know what is made of a source.
"""

from typing import Any, Literal

from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError, class_pixels, decode_image, decode_mask, encode_image, encode_mask
from segdatagen.labels import UNKNOWN_CHANNEL
from segdatagen.prompts import ClassFinder
from segdatagen.segments import NO_SEGMENT, PANOPTIC, measured
from segdatagen.sources import SourceStore, ignore_id_of
from segdatagen.stages.stage import Batch, objects
from segdatagen.tables import UnreadablePart


class LoadSource:
    """The source's mask and its segments at the size of the samples, and `with_image` its image too, as PNG or None.

    Segments are measured anew, and those that have no pixel left are gone. A source that cannot be read, or that holds
    ids which the label set does not have, gives its rows a reason; one without a mask (it is a caption alone) too,
    unless `caption_is_enough`: then its classes are those that the caption names, with 0 pixels each, and no segments
    are read, for the mask of the sample will be another.
    """

    name = "load"
    reads = ("source_file", "source_row")
    verdict: Literal["failed"] = "failed"

    def __init__(
        self, store: SourceStore, geometry: Geometry, *, with_image: bool = False, caption_is_enough: bool = False
    ) -> None:
        written = ("mask", "caption", "class_ids", "class_pixels", "height", "width", "reason")
        panoptic = () if caption_is_enough else PANOPTIC
        self.writes: tuple[str, ...] = (*written, *panoptic, *["source_image"] * with_image)
        self._columns = ["mask", "caption", *panoptic, *["image"] * with_image]
        self._store = store
        self._geometry = geometry
        self._channels = store.label_set.channel_table()
        self._finder = ClassFinder(store.label_set) if caption_is_enough else None

    def __call__(self, batch: Batch) -> Batch:
        """Read each source once, whatever number of its variants the batch holds."""
        keys = list(zip(batch["source_file"].tolist(), batch["source_row"].tolist(), strict=True))
        loaded: dict[tuple[str, int], dict[str, Any]] = {}
        for file_name in dict.fromkeys(file for file, _ in keys):
            rows = sorted({row for file, row in keys if file == file_name})
            loaded |= {(file_name, row): found for row, found in zip(rows, self._read(file_name, rows), strict=True)}
        return {name: objects([loaded[key].get(name) for key in keys]) for name in self.writes}

    def _read(self, file_name: str, rows: list[int]) -> list[dict[str, Any]]:
        try:
            table = self._store.read_rows(file_name, rows, self._columns)
        except UnreadablePart as error:
            return [{"reason": str(error)} for _ in rows]
        return [self._transform(row) for row in table.to_pylist()]

    def _transform(self, row: dict[str, Any]) -> dict[str, Any]:
        mask, image, caption = row["mask"], row.get("image"), row["caption"]
        if mask is None:
            if self._finder is None:
                return {"reason": "the source is a caption without a mask"}
            named = self._finder.find(caption or "")
            return {"caption": caption, "class_ids": named, "class_pixels": [0] * len(named)}
        try:
            stored = decode_mask(mask)
            picture = None if image is None else self._geometry.apply_image(decode_image(image))
            panoptic = self._panoptic(row, stored.shape)
        except DecodeError as error:
            return {"reason": f"unreadable source: {error}"}
        fitted = self._geometry.apply_mask(stored, ignore_id_of(self._store.label_set))
        ids, pixels = class_pixels(fitted)
        channels = self._channels[ids]
        if (channels == UNKNOWN_CHANNEL).any():
            unknown = ", ".join(map(str, ids[channels == UNKNOWN_CHANNEL]))
            return {"reason": f"the source holds ids that the label set does not have: {unknown}"}
        return {
            "mask": encode_mask(fitted),
            "caption": caption,
            "class_ids": ids[channels >= 0].tolist(),
            "class_pixels": pixels[channels >= 0].tolist(),
            "height": fitted.shape[0],
            "width": fitted.shape[1],
            "source_image": None if picture is None else encode_image(picture, "png"),
            **panoptic,
        }

    def _panoptic(self, row: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
        """The columns PANOPTIC of a source whose mask has this shape. Raises DecodeError where they do not fit it."""
        if row.get("segment_map") is None:
            return {}
        stored = decode_mask(row["segment_map"])
        if stored.shape != shape:
            raise DecodeError("its segment map and its mask have two sizes")
        fitted = self._geometry.apply_mask(stored, NO_SEGMENT)
        return {"segment_map": encode_mask(fitted), "segments": measured(fitted, row["segments"])}
