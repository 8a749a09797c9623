"""Perceptual hashes: 64 bits per image that stay nearly the same when it is compressed, scaled or made brighter.

The hash is the usual DCT one (Zauner, 2010, section 3.2). It does not know sources, samples or limits.
"""

import cv2
import numpy as np

from segdatagen.images import Image

SIDE = 32
KEPT = 8


def perceptual_hash(image: Image) -> int:
    """64 bits of an image uint8 H x W x 3: which of its 8 x 8 lowest frequencies are above their median."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(grey.astype(np.float32))[:KEPT, :KEPT].ravel()
    bits = frequencies > np.median(frequencies[1:])  # without the first, which is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distances(hashed: int, index: np.ndarray) -> np.ndarray:
    """Bits that differ between a hash and each of `index` uint64 [S]: uint8 [S]."""
    found: np.ndarray = np.bitwise_count(index ^ np.uint64(hashed))
    return found
