"""Priors that need no weights: Canny's edges, and what a colour map shows by itself.

They see a picture, and do not know whether it is a photograph or the colour map of a mask.
"""

import cv2
import numpy as np

from segdatagen.images import Image


def canny(picture: Image, low: float, high: float) -> Image:
    """Canny (1986) by OpenCV: white edges on black, uint8 `[H, W, 3]`, of uint8 `[H, W, 3]`.

    `low` and `high` are sums of the absolute Sobel gradients, of the channel in which they are greatest.
    """
    return np.asarray(cv2.cvtColor(cv2.Canny(picture, low, high), cv2.COLOR_GRAY2RGB))


def boundaries(colour_map: Image) -> Image:
    """White where one of the eight pixels around has another colour, else black: uint8 `[H, W, 3]`.

    The classes of a label set have different colours, so of a colour map these are the boundaries of classes, exactly.
    """
    square = np.ones((3, 3), np.uint8)
    differs = (cv2.dilate(colour_map, square) != cv2.erode(colour_map, square)).any(axis=2)
    return np.repeat(np.where(differs, np.uint8(255), np.uint8(0))[:, :, None], 3, axis=2)
