"""Pictures of any size through networks that take only some: padded at the right and bottom, never stretched.

It does not know what is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from segdatagen.images import Image


@dataclass(frozen=True)
class Fit:
    """What a network can see: sides that are a multiple of `multiple` and twice that at least, `square` or not.

    `resolution`: length of the shorter side that it is shown, in pixels; None shows the picture as it is.
    """

    multiple: int
    resolution: int | None = None
    square: bool = False


def draw_fitted(picture: Image, draw: Callable[[Image], np.ndarray], fit: Fit) -> np.ndarray:
    """What `draw` makes of uint8 `[H, W, 3]`, `[H, W]` again, whatever H and W.

    `draw` returns uint8 or float32 `[h, w]` for a picture of h x w. The padding repeats the last pixels, so that it
    adds no edge. With a resolution the proportions of the picture stay, and the drawing is brought back bilinearly, as
    the public annotators do it.
    """
    height, width = picture.shape[:2]
    shown = picture if fit.resolution is None else _scaled(picture, fit.resolution)
    drawn = draw(_padded(shown, fit))[: shown.shape[0], : shown.shape[1]]
    if shown.shape != picture.shape:
        drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(drawn)


def _scaled(picture: Image, resolution: int) -> Image:
    height, width = picture.shape[:2]
    factor = resolution / min(height, width)
    size = (round(width * factor), round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4 if factor > 1 else cv2.INTER_AREA))


def _padded(picture: Image, fit: Fit) -> Image:
    height, width = picture.shape[:2]
    rows, columns = (max(-(-side // fit.multiple), 2) * fit.multiple for side in (height, width))
    if fit.square:
        rows = columns = max(rows, columns)
    if (rows, columns) == (height, width):
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, rows - height, 0, columns - width, cv2.BORDER_REPLICATE))
