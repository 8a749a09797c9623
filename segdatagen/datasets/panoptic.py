"""Segments of a panoptic picture: from numbers per pixel and what is known of each to mask, segment map and list.

Numbers of data sets have gaps and up to 24 bits; here segments are numbered from 1, in the order in which the data set
lists them, and 0 is no segment. Area and box are measured, never believed. Knows no file format.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segdatagen.datasets.reader import BadItem, RawSource, Segment, narrow
from segdatagen.labels import LabelSet
from segdatagen.segments import box_of

CODES = 1 << 24


@dataclass(frozen=True)
class ListedSegment:
    """What a data set says of a segment: its number in the picture, its class, and whether it is a crowd."""

    code: int
    class_id: int
    iscrowd: bool = False


def read_segments(codes: np.ndarray, listed: Sequence[ListedSegment], label_set: LabelSet, name: str) -> RawSource:
    """Mask, segment map and segments of a picture of codes (H x W, 0 = none, below 2^24).

    The mask holds the class of each pixel's segment, and the first ignore id where there is none (0 if the label set
    ignores nothing). Raises BadItem, with the file `name`, for pixels of a segment that is not listed, for one that is
    listed and has no pixels, and for classes that the label set does not have.
    """
    number_of = np.zeros(CODES, np.uint32)  # Zero pages until touched: pictures have tens of codes.
    number_of[[segment.code for segment in listed]] = np.arange(1, len(listed) + 1)
    numbers = number_of[codes]
    stray = codes[(numbers == 0) & (codes != 0)]
    if stray.size:
        found, pixels = np.unique(stray, return_counts=True)
        counts = {str(code): int(count) for code, count in zip(found.tolist(), pixels.tolist(), strict=True)}
        raise BadItem("unknown segment", name, "in the picture, and not listed", counts)
    areas = np.bincount(numbers.ravel(), minlength=len(listed) + 1)
    _require_known(listed, areas, label_set, name)
    none = label_set.ignore_ids[0] if label_set.ignore_ids else 0
    class_of = np.array([none, *(segment.class_id for segment in listed)], np.uint16)
    if areas[0] and not label_set.ignore_ids and 0 not in label_set.ids:
        raise BadItem("unknown id", name, "the label set ignores no id", {"no segment": int(areas[0])})
    segments = tuple(
        Segment(number, segment.class_id, int(areas[number]), box_of(numbers == number), segment.iscrowd)
        for number, segment in enumerate(listed, 1)
    )
    return RawSource(narrow(class_of[numbers]), segment_map=narrow(numbers), segments=segments)


def _require_known(listed: Sequence[ListedSegment], areas: np.ndarray, label_set: LabelSet, name: str) -> None:
    empty = {str(s.code): 0 for number, s in enumerate(listed, 1) if not areas[number]}
    if empty:
        raise BadItem("segment without pixels", name, "listed, and not in the picture", empty)
    known = {*label_set.ids.tolist(), *label_set.ignore_ids}
    unknown: dict[str, int] = {}
    for number, segment in enumerate(listed, 1):
        if segment.class_id not in known:
            unknown[str(segment.class_id)] = unknown.get(str(segment.class_id), 0) + int(areas[number])
    if unknown:
        raise BadItem("unknown id", name, counts=unknown)
