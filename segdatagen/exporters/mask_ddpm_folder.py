"""The layout in which paper 001's own inference leaves its images, and beside it what that lacks.

Theirs: `<stem>.png`, a grid of the images of a mask, and `epoch_<stem>/image_<k>.png`. Ours: `masks/<stem>.png` in the
colours of `colormap.json`, `metadata/<stem>.jsonl` with a line per image, `labels.yaml`, and where there are segments
`segments/<stem>.png` with their ids. `k` is the variant: a number is missing where a sample failed. It does not know
which samples are good.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from segdatagen.colours import encode
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.exporters.selection import Pixels, Selection
from segdatagen.images import PNG_SIGNATURE, DecodeError, Image, decode_image, decode_mask, encode_image
from segdatagen.labels import LabelSet
from segdatagen.storage import Folder

GRID_COLUMNS, GRID_GAP = 8, 2
"""Images in a row of a grid, and the black pixels around each, as torchvision draws them."""
GRID_IMAGES = 64
"""A grid shows the first images only, so that it fits in memory whatever their number."""
THREADS = 8
"""Files are many and small: writing them waits for storage."""


@dataclass(frozen=True)
class Source:
    """The samples of one mask: their rows in the selection, and the files that they become."""

    stem: str
    start: int
    variants: tuple[int, ...]
    is_panoptic: bool = False

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.variants)

    @property
    def images(self) -> list[str]:
        """Files of the images, in order of the variant."""
        return [f"epoch_{self.stem}/image_{variant}.png" for variant in self.variants]

    @property
    def grid(self) -> str:
        """File of all images together."""
        return f"{self.stem}.png"

    @property
    def mask(self) -> str:
        """File of the mask."""
        return f"masks/{self.stem}.png"

    @property
    def segment_map(self) -> str:
        """File of the ids of its segments, where it has some."""
        return f"segments/{self.stem}.png"

    @property
    def metadata(self) -> str:
        """File that is written last: where it is as it should be, the others are there."""
        return f"metadata/{self.stem}.jsonl"

    @property
    def files(self) -> list[str]:
        """All files of the source."""
        return [*self.images, self.grid, self.mask, *[self.segment_map] * self.is_panoptic, self.metadata]


class MaskDDPMFolder:
    """A selection as that layout: the files that it will have, and how they are written."""

    version = "1"

    def __init__(self, selection: Selection) -> None:
        """Raises UsageError for samples that the layout cannot hold: it has one mask for all images of a stem."""
        self._selection = selection
        self._label_set = selection.run.label_set
        self._sources = _sources_of(selection.index)
        self._documents = {
            "labels.yaml": self._label_set.to_yaml().encode(),
            "colormap.json": _colormap(self._label_set),
        }
        names = [*self._documents, *(name for source in self._sources for name in source.files)]
        self.names = frozenset(names)
        if len(self.names) < len(names):
            twice = next(name for name, again in itertools.pairwise(sorted(names)) if name == again)
            raise UsageError(f"two sources would both become {twice}: this layout cannot hold them together")
        self.num_images = selection.index.num_rows
        self.num_sources = len(self._sources)

    def pending(self, out: Folder, present: set[str]) -> list[Source]:
        """The sources that are not there yet, or no longer as they were when they were written."""

        def is_whole(source: Source) -> bool:
            return present.issuperset(source.files) and out.read(source.metadata) == self._metadata(source)

        with ThreadPoolExecutor(THREADS) as pool:
            whole = pool.map(is_whole, self._sources)
            return [source for source, done in zip(self._sources, whole, strict=True) if not done]

    def write(self, out: Folder, pending: Sequence[Source], progress: Callable[[int, int], None]) -> None:
        """Write these sources. Raises SegdatagenError where a sample is damaged or storage refuses."""
        for name, data in self._documents.items():
            out.put(name, data)
        rows = [np.arange(source.start, source.start + source.count) for source in pending]
        pixels = self._selection.pixels(self._selection.index.take(np.concatenate([np.empty(0, np.int64), *rows])))
        done = self.num_images - sum(source.count for source in pending)
        with ThreadPoolExecutor(THREADS) as pool:
            for source in pending:
                self._write_source(out, source, itertools.islice(pixels, source.count), pool)
                done += source.count
                progress(done, self.num_images)

    def _write_source(self, out: Folder, source: Source, pixels: Iterator[Pixels], pool: ThreadPoolExecutor) -> None:
        def put_image(name: str, data: bytes) -> Image:
            try:
                image = decode_image(data)
            except DecodeError as error:
                raise SegdatagenError(f"source {source.stem}, {name}: {error}") from error
            out.put(name, data if data.startswith(PNG_SIGNATURE) else encode_image(image, "png"))
            return image

        shown: list[Image] = []
        names, last = iter(source.images), None
        while piece := list(itertools.islice(pixels, GRID_IMAGES)):
            last = piece[-1]
            made = list(pool.map(put_image, itertools.islice(names, len(piece)), (one.image for one in piece)))
            shown = shown or made
        assert last is not None, "a source has one sample at least"
        out.put(source.grid, encode_image(grid(shown), "png"))
        out.put(source.mask, encode_image(encode(decode_mask(last.mask), self._label_set), "png"))
        if last.segment_map is not None:
            out.put(source.segment_map, last.segment_map)
        out.put(source.metadata, self._metadata(source))

    def _metadata(self, source: Source) -> bytes:
        """A JSON object per image and line: file and mask, identity and seed, classes, segments if any."""
        names = dict(zip(self._label_set.ids.tolist(), self._label_set.names, strict=True))
        rows = self._selection.index.slice(source.start, source.count).drop_columns(["part", "row"]).to_pylist()
        lines = []
        for name, row in zip(source.images, rows, strict=True):
            segments = {"segment_map": source.segment_map, "segments": row.pop("segments")}
            line = {"file_name": name, "mask": source.mask} | row
            line |= {"classes": [names[id_] for id_ in row["class_ids"]]}
            lines.append(line | segments if source.is_panoptic else line)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def grid(images: Sequence[Image]) -> Image:
    """Images of one size in rows of eight, uint8 `[H, W, 3]`, with black lines around each."""
    height, width = images[0].shape[:2]
    columns = min(GRID_COLUMNS, len(images))
    lines = -(-len(images) // columns)
    shape = (lines * (height + GRID_GAP) + GRID_GAP, columns * (width + GRID_GAP) + GRID_GAP, 3)
    canvas = np.zeros(shape, np.uint8)
    for place, image in enumerate(images):
        line, column = divmod(place, columns)
        top, left = GRID_GAP + line * (height + GRID_GAP), GRID_GAP + column * (width + GRID_GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _sources_of(index: pa.Table) -> list[Source]:
    """The sources of a selection, in order. Raises UsageError where one cannot be a stem, or has several masks."""
    stems, first = np.unique(index["source_id"].to_numpy(), return_index=True)
    order = np.argsort(first)
    starts = first[order]
    methods, variants, masks = (index[name].to_numpy() for name in ("method", "variant", "mask_hash"))
    sources = []
    for stem, start, stop in zip(stems[order], starts, [*starts[1:], index.num_rows], strict=True):
        if any(not part or part.startswith(".") for part in stem.split("/")):
            raise UsageError(f"source {stem!r} cannot be the name of a file: this layout names files after sources")
        if len(set(masks[start:stop])) > 1:
            raise UsageError(
                f"the samples of source {stem} have several masks, as of masksyn or after ignore_noisy: "
                "this layout holds one for all of them"
            )
        if len(set(methods[start:stop])) > 1:
            raise UsageError(f"source {stem} has samples of several methods: this layout holds those of one")
        is_panoptic = index["segments"][int(start)].is_valid
        sources.append(Source(str(stem), int(start), tuple(variants[start:stop].tolist()), is_panoptic))
    return sources


def _colormap(label_set: LabelSet) -> bytes:
    """`colormap.json` of paper 001: the colour of each class, in order of the channels."""
    colours: dict[str, Any] = {label.name: list(label.colour) for label in label_set.classes}
    return (json.dumps(colours, ensure_ascii=False, indent=1) + "\n").encode()
