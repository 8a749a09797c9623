"""How a source of any size becomes a sample of one size: crop, pad or resize.

The same transformation applies to an image (Lanczos or area) and to its mask (nearest neighbour, never anything
else). Classes are counted on the transformed mask. This module does not know models or storage.
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segdatagen.images import Image, Mask

MAX_SIDE = 16384
SIZE_STEP = 8
"""Width and height are multiples of it: every network here halves the resolution three times."""


class Geometry(BaseModel):
    """Size of the samples, and how a source is fitted to it.

    `crop` cuts the largest centre of the size's shape and scales it; `pad` scales to fit inside and fills the rest with
    the ignore id (masks) or black (images); `resize` stretches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = Field(description="width, height in pixels, multiples of 8")
    fit: Literal["crop", "pad", "resize"] = "resize"

    def model_post_init(self, context: object) -> None:
        """Refuse sizes that no network here can make."""
        for pixels in self.size:
            if not SIZE_STEP <= pixels <= MAX_SIDE or pixels % SIZE_STEP:
                raise ValueError(
                    f"size must be multiples of {SIZE_STEP} up to {MAX_SIDE}, not {self.size[0]} x {self.size[1]}"
                )

    def keeps(self, height: int, width: int) -> bool:
        """True where a source of this size is used as it is."""
        return (width, height) == self.size

    def apply_image(self, image: Image) -> Image:
        """Transform uint8 H x W x 3 to the size."""
        if self.keeps(*image.shape[:2]):
            return image
        window = self._window(image)
        scaled_width, scaled_height = self._scaled(*window.shape[:2])
        shrinks = scaled_width < window.shape[1] or scaled_height < window.shape[0]
        kind = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
        scaled = cv2.resize(window, (scaled_width, scaled_height), interpolation=kind)
        return self._place(scaled, np.zeros((self.size[1], self.size[0], 3), np.uint8))

    def apply_mask(self, mask: Mask, ignore_id: int) -> Mask:
        """Transform H x W class ids to the size; `ignore_id` fills what `pad` adds."""
        if self.keeps(*mask.shape):
            return mask
        window = self._window(mask)
        scaled = cv2.resize(window, self._scaled(*window.shape), interpolation=cv2.INTER_NEAREST_EXACT)
        return self._place(scaled, np.full((self.size[1], self.size[0]), ignore_id, mask.dtype))

    def _window(self, pixels: np.ndarray) -> np.ndarray:
        """What is used of a source: for `crop` the largest centre of the size's shape, else all of it.

        Cut before it is scaled, the window is off by less than a pixel of the source, and 1280 x 720 gives the same
        square as the usual centre crop.
        """
        height, width = pixels.shape[:2]
        if self.fit != "crop":
            return pixels
        factor = max(self.size[0] / width, self.size[1] / height)
        kept = [max(1, min(n, round(side / factor))) for n, side in ((width, self.size[0]), (height, self.size[1]))]
        left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
        return np.ascontiguousarray(pixels[top : top + kept[1], left : left + kept[0]])

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Width and height of the window after scaling."""
        if self.fit != "pad":
            return self.size
        factor = min(self.size[0] / width, self.size[1] / height)
        return max(1, round(width * factor)), max(1, round(height * factor))

    def _place(self, scaled: np.ndarray, canvas: np.ndarray) -> np.ndarray:
        """Put `scaled`, which fits, on the middle of `canvas`."""
        (height, width), (rows, columns) = scaled.shape[:2], canvas.shape[:2]
        top, left = (rows - height) // 2, (columns - width) // 2
        canvas[top : top + height, left : left + width] = scaled
        return canvas
