"""Turns painted segment numbers into the segments of a scene: absorbs slivers, counts areas, finds boxes.

Knows nothing of how they were painted.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.layout import FIRST_THING

SMALLEST_THING = 8
"""Pixels below which an instance is not kept: nobody could name it, and no caption counts it."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its number in the map, its class, its area in pixels and its box (x, y, width, height)."""

    id: int
    class_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: bool = False


def absorb_slivers(segments: Pixels, num_segments: int) -> None:
    """Give the pixels of things below `SMALLEST_THING` to what lies beside them, in place."""
    areas = np.bincount(segments.ravel(), minlength=num_segments)
    slivers = areas < SMALLEST_THING
    slivers[: FIRST_THING + 1] = False
    slivers &= areas > 0
    if not slivers.any():
        return
    rows, columns = np.nonzero(slivers[segments])
    width = segments.shape[1]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        line = segments[row]
        left, right = column, column
        while left >= 0 and slivers[line[left]]:
            left -= 1
        while right < width and slivers[line[right]]:
            right += 1
        line[column] = line[left] if left >= 0 else line[right] if right < width else segments[row - 1, column]


def list_segments(segments: Pixels, classes: Pixels) -> tuple[Segment, ...]:
    """Return the segments of a map (H x W), by number; `classes` holds the class of each number."""
    areas = np.bincount(segments.ravel(), minlength=len(classes)).tolist()
    found = []
    for number, area in enumerate(areas):
        if area:
            x, y, width, height = cv2.boundingRect((segments == number).view(np.uint8))
            found.append(Segment(number, int(classes[number]), area, (x, y, width, height)))
    return tuple(found)
