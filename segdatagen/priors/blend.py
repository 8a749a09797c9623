"""Visual Prior Blending of SGA: what is seen of the image, and what is known of its classes, in one picture.

It does not know how either was drawn.
"""

from typing import NamedTuple

import numpy as np

from segdatagen.images import Image


class BlendWeights(NamedTuple):
    """Trade-off scales: `w1` of the image's prior, `w2` of the mask's."""

    w1: float
    w2: float


SGA_BLEND = BlendWeights(w1=0.7, w2=0.9)
"""The best of SGA's study, section 4.3.4: 50.27 % mIoU in table 7, against 47.03 % for (1, 1)."""


def blend(prior_of_image: Image, prior_of_mask: Image, w1: float, w2: float) -> Image:
    """`w1 V(image) + w2 V(mask)`, rounded and clipped to 0 to 255: SGA, section 3.2.2, equation 4.

    Both are uint8 of one shape. Raises ValueError where they are not.
    """
    if prior_of_image.shape != prior_of_mask.shape or {prior_of_image.dtype, prior_of_mask.dtype} != {np.dtype("u1")}:
        raise ValueError(
            f"priors that are blended are uint8 of one shape, not {prior_of_image.dtype} of {prior_of_image.shape} "
            f"and {prior_of_mask.dtype} of {prior_of_mask.shape}"
        )
    summed = w1 * prior_of_image.astype(np.float64) + w2 * prior_of_mask.astype(np.float64)
    return np.clip(np.rint(summed), 0, 255).astype(np.uint8)
