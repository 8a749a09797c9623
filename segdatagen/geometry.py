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

    `crop` scales to cover the size and cuts the centre; `pad` scales to fit inside and fills the rest with the
    ignore id (masks) or black (images); `resize` stretches.
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
        height, width = image.shape[:2]
        if self.keeps(height, width):
            return image
        scaled_width, scaled_height = self._scaled(height, width)
        shrinks = scaled_width < width or scaled_height < height
        kind = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
        scaled = cv2.resize(image, (scaled_width, scaled_height), interpolation=kind)
        return self._place(scaled, np.zeros((self.size[1], self.size[0], 3), np.uint8))

    def apply_mask(self, mask: Mask, ignore_id: int) -> Mask:
        """Transform H x W class ids to the size; `ignore_id` fills what `pad` adds."""
        height, width = mask.shape
        if self.keeps(height, width):
            return mask
        scaled = cv2.resize(mask, self._scaled(height, width), interpolation=cv2.INTER_NEAREST_EXACT)
        return self._place(scaled, np.full((self.size[1], self.size[0]), ignore_id, mask.dtype))

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Width and height of the whole source after scaling."""
        if self.fit == "resize":
            return self.size
        pick = max if self.fit == "crop" else min
        factor = pick(self.size[0] / width, self.size[1] / height)
        return max(1, round(width * factor)), max(1, round(height * factor))

    def _place(self, scaled: np.ndarray, canvas: np.ndarray) -> np.ndarray:
        """Put the middle of `scaled` on the middle of `canvas`; what overlaps the border is cut."""
        spans = []
        for length, space in zip(scaled.shape[:2], canvas.shape[:2], strict=True):
            kept = min(length, space)
            cut, shift = (length - kept) // 2, (space - kept) // 2
            spans.append((slice(cut, cut + kept), slice(shift, shift + kept)))
        (from_rows, to_rows), (from_columns, to_columns) = spans
        canvas[to_rows, to_columns] = scaled[from_rows, from_columns]
        return canvas
