"""Pixels of a mask that go to the class beside them: what a blend of two colours leaves along a border, for one.

It knows class ids, and neither colours nor where a mask comes from.
"""

from collections.abc import Iterable

import cv2
import numpy as np

from segdatagen.images import Mask

SQUARE = np.ones((3, 3), np.uint8)


def dissolve_bands(mask: Mask, kept: Iterable[int]) -> Mask:
    """The mask without bands: pixels of no square of 3 x 3 of their class become that of the nearest other pixel.

    Between two colours a soft edge goes through those of other classes, one or two pixels wide. Classes of `kept` may
    be as thin as they like, and what touches the border goes on past it. A mask of nothing but bands stays as it is.
    """
    solid = cv2.dilate((~edges(mask)).astype(np.uint8), SQUARE).astype(bool)
    bands = ~solid & ~np.isin(mask, list(kept))
    return mask if bands.all() else fill_from_nearest(mask, bands, ~bands)


def edges(ids: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of another id among the eight around them, bool `[H, W]`."""
    numbers = ids.astype(np.uint16, copy=False)
    return np.asarray(cv2.dilate(numbers, SQUARE) != cv2.erode(numbers, SQUARE))


def fill_from_nearest(mask: Mask, filled: np.ndarray, known: np.ndarray) -> Mask:
    """A mask whose `filled` pixels have the id of the nearest of `known`, bool `[H, W]` both; one must be known."""
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    id_of_label = np.zeros(int(nearest.max()) + 1, mask.dtype)
    id_of_label[nearest[known]] = mask[known]
    return np.where(filled, id_of_label[nearest], mask)
