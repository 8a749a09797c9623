"""Segments of a panoptic picture: their areas and boxes, measured on its map of segment ids.

A segment is a dictionary as the column `segments` of a row holds it. It does not know where a map comes from.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

PANOPTIC = ("segment_map", "segments")
"""Columns of a row whose mask has segments; both null: it is semantic."""
NO_SEGMENT = 0
"""The id of pixels that belong to no segment."""


def measured(segment_map: np.ndarray, segments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The segments that have pixels in a map, in their order, with `area` and `bbox` as they are there.

    `segment_map` is uint8 or uint16 [H, W] of ids. What else a segment holds (id, class, crowd) stays.
    """
    areas = np.bincount(segment_map.ravel(), minlength=1 + max((segment["id"] for segment in segments), default=0))
    return [
        segment | {"area": int(areas[segment["id"]]), "bbox": list(box_of(segment_map == segment["id"]))}
        for segment in segments
        if areas[segment["id"]]
    ]


def box_of(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width and height of the pixels that are set in bool [H, W]."""
    x, y, width, height = cv2.boundingRect(pixels.view(np.uint8))
    return int(x), int(y), int(width), int(height)
