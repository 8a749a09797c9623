"""What a data set on disk is to segdatagen: a list of items, and a way to read one of them.

A reader says what is wrong with an item by raising BadItem; it never repairs, resizes or guesses. It does not know
how sources are stored or that Ray exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, Protocol

import numpy as np

from segdatagen.images import Mask
from segdatagen.labels import UNKNOWN_CHANNEL, LabelSet

Problem = Literal[
    "unreadable mask",
    "unreadable image",
    "unknown id",
    "unknown colour",
    "size mismatch",
    "image turned by EXIF",
    "palette of other classes",
    "colours where ids are expected",
    "ids where colours are expected",
    "image without mask",
    "mask without image",
    "missing mask",
    "duplicate id",
    "not in the data set",
    "image without annotation",
    "unreadable annotation",
    "unknown segment",
    "segment without pixels",
    "segment of two classes",
    "empty caption",
]


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled picture of a data set: its id, and the names of its files below the root.

    A listing may hold hundreds of thousands, so nothing that has to be read is here. `place` says to its reader where
    the item lies in a file that holds many; `num_bytes` is the size of its files, as far as a listing tells. `caption`
    goes before one that the data set has.
    """

    source_id: str
    mask_name: str
    image_name: str | None = None
    place: tuple[int, ...] = ()
    num_bytes: int = field(default=0, compare=False)
    caption: str | None = None


@dataclass(frozen=True)
class Segment:
    """One panoptic segment: a thing instance, or all of one stuff class."""

    id: int
    class_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: bool = False


@dataclass(frozen=True)
class RawSource:
    """What was read: a mask of class ids at native size, and whatever the data set has beside it.

    Without a mask it is a caption alone: something to make a mask from.
    """

    mask: Mask | None
    image: bytes | None = None
    caption: str | None = None
    segment_map: np.ndarray | None = None
    segments: tuple[Segment, ...] | None = None


class BadItem(Exception):
    """An item that cannot become a source: what is wrong, in which file, and values with their pixel counts.

    Of unknown colours, `distance` is that of the one farthest from every class, in RGB.
    """

    def __init__(
        self,
        problem: Problem,
        file_name: str,
        detail: str = "",
        counts: dict[str, int] | None = None,
        distance: float = 0.0,
    ):
        super().__init__(problem, file_name, detail, counts, distance)
        self.problem: Problem = problem
        self.file_name = file_name
        self.detail = detail
        self.counts = counts or {}
        self.distance = distance


@dataclass(frozen=True)
class Listing:
    """The items of a data set in its own order (files: by name), and the files that belong to no item."""

    items: tuple[Item, ...]
    orphans: tuple[BadItem, ...] = field(default=())


class Reader(Protocol):
    """A data set of one format: see DESIGN.md, "how to add a data set"."""

    @property
    def label_set(self) -> LabelSet:
        """What the ids of its masks mean."""
        ...

    def list_items(self) -> Listing:
        """All items, without opening them. Raises UsageError if there are none."""
        ...

    def read(self, item: Item) -> RawSource:
        """Read and check one item. Raises BadItem."""
        ...


def unknown_ids(mask: Mask, label_set: LabelSet) -> dict[str, int]:
    """Ids that the label set does not have, with the pixels of each."""
    counts = np.bincount(mask.ravel())
    unknown = np.flatnonzero((counts > 0) & (label_set.channel_table()[: len(counts)] == UNKNOWN_CHANNEL))
    return {str(value): int(counts[value]) for value in unknown}


def narrow(mask: np.ndarray) -> Mask:
    """Class ids as uint8 where they fit, else uint16."""
    return mask.astype(np.uint8 if mask.size == 0 or int(mask.max()) <= 255 else np.uint16)


def names_of(item: Item) -> set[str]:
    """Everything that a list may call an item: its id, its files, these without folders or without their suffix."""
    files = [PurePosixPath(name) for name in (item.source_id, item.mask_name, item.image_name) if name]
    return {item.source_id} | {name for file in files for name in spellings(file)}


def spellings(file: PurePosixPath) -> tuple[str, ...]:
    """A file with and without its folders and its suffix."""
    return str(file), str(file.with_suffix("")), file.name, file.stem


def first_names(names: Sequence[str], limit: int = 20) -> str:
    """File names for a message: the first ones, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
