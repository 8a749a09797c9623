"""Turns the painted canvas into a photograph: clouds, texture, glow, light from one side, blur and sensor noise.

Changes the image only; the segment map is final before. Works at the size of the scene.
"""

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.canvas import Glow
from segdatagen.datasets.scenes.layout import BUILDING, CLASS_NAMES, GRASS, ROAD, SIDEWALK, SKY, TREE, Light
from segdatagen.datasets.scenes.noise import cloud_field, crop, grain_field, texture_field

Image = npt.NDArray[np.uint8]

GLOW_SIDE = 48
GLOW_GAIN = 0.5
MAX_GLOWS = 12


@cache
def roughness() -> npt.NDArray[np.float32]:
    """Return by how much texture moves the brightness of each class; a fraction."""
    rough = np.full(len(CLASS_NAMES), 0.03, np.float32)
    rough[[SKY, BUILDING, ROAD, SIDEWALK, TREE, GRASS]] = (0.0, 0.04, 0.045, 0.045, 0.16, 0.11)
    return rough


@cache
def _glow_tile() -> npt.NDArray[np.float32]:
    line = np.linspace(-1.0, 1.0, GLOW_SIDE)
    distance = line[:, None] ** 2 + line[None, :] ** 2
    tile = np.maximum(np.exp(-4.5 * distance) - np.exp(-4.5), 0.0)
    return np.repeat(tile[..., None], 3, axis=2).astype(np.float32)


def finish(image: Image, mask: npt.NDArray[np.uint8], light: Light, glows: list[Glow], horizon: float) -> Image:
    """Return the photograph (H x W x 3, uint8) of a painted image and its class mask (H x W)."""
    height, width = mask.shape
    photo = image.astype(np.float32)
    _add_clouds(photo, mask, light, horizon)
    gain = crop(texture_field(), light.grain, height, width) * (roughness() * np.float32(light.texture))[mask]
    gain += 1.0
    gain += np.linspace(-light.slope[0], light.slope[0], width, dtype=np.float32)
    gain += np.linspace(-light.slope[1], light.slope[1], height, dtype=np.float32)[:, None]
    photo *= gain[..., None]
    for glow in glows[:MAX_GLOWS]:
        _add_glow(photo, glow)
    if light.blur > 0.25:
        photo = cv2.GaussianBlur(photo, (3, 3), light.blur)
    photo += crop(grain_field(), light.grain * 7, height, width) * np.float32(light.noise)
    return np.clip(photo, 0.0, 255.0, out=photo).astype(np.uint8)


def _add_clouds(photo: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], light: Light, horizon: float) -> None:
    """Blend clouds into the sky pixels above the horizon."""
    height, width = mask.shape
    rows = min(height, max(0, int(horizon) + 1))
    if rows == 0 or light.clouds < 0.1:
        return
    field = crop(cloud_field(), light.grain * 3, rows, width)
    share = np.clip((field + np.float32(light.clouds * 2.0 - 1.2)) * 0.6, 0.0, 0.85) * (mask[:rows] == SKY)
    photo[:rows] += (np.array(light.cloud_colour, np.float32) - photo[:rows]) * share[..., None]


def _add_glow(photo: npt.NDArray[np.float32], glow: Glow) -> None:
    """Add the light of a lamp around its centre."""
    x, y, radius, paint = glow
    height, width = photo.shape[:2]
    side = 2 * int(min(radius, 1.5 * max(height, width))) + 1
    left, top = int(x) - side // 2, int(y) - side // 2
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    if side < 3 or x0 >= x1 or y0 >= y1:
        return
    tile = cv2.resize(_glow_tile(), (side, side), interpolation=cv2.INTER_LINEAR)
    colour = np.array(paint, np.float32) * np.float32(GLOW_GAIN)
    photo[y0:y1, x0:x1] += tile[y0 - top : y1 - top, x0 - left : x1 - left] * colour
