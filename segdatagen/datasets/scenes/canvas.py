"""A picture and its segment map, painted together: what is drawn in one is drawn in the other by the same call.

The canvas has four channels, red, green, blue and segment number, at twice the size of the scene in each direction, so
that the image comes out smooth by averaging and the map exact by sampling. Knows the camera, not what is painted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.layout import Camera

OVERSAMPLING = 2
SHIFT = 4
FIXED = 1 << SHIFT
NEAREST = 0.4
"""Depth in metres before which nothing is painted."""
MARGIN = 4.0
"""Canvas pixels around the canvas that count as seen: rounding may bring what lies there into it."""

Point = tuple[float, float]
Paint = tuple[int, int, int]
Glow = tuple[float, float, float, Paint]
"""A lamp that shines: x, y and radius in pixels of the scene, and its colour."""


class Rectangle(NamedTuple):
    """An upright rectangle in metres: from `left` to `right` to the side, from `low` to `high` above the ground."""

    left: float
    low: float
    right: float
    high: float


class Canvas:
    """The pixels (height x width x 4, uint8) that painters fill from far to near."""

    def __init__(self, camera: Camera, width: int, height: int) -> None:
        self.camera = camera
        self.unit = float(min(width, height) * OVERSAMPLING)
        self.width = width * OVERSAMPLING
        self.height = height * OVERSAMPLING
        self.pixels: npt.NDArray[np.uint8] = np.zeros((self.height, self.width, 4), np.uint8)
        self.focal = camera.focal * self.unit
        self.centre = self.width / 2 + camera.vanishing_x * self.unit
        self.horizon = self.height / 2 + (camera.horizon - 0.5) * self.unit
        self._glows: list[tuple[Point, float, Paint, int]] = []

    def scale(self, z: float) -> float:
        """Return how many canvas pixels a metre has at depth z."""
        return self.focal / max(z, NEAREST)

    def project(self, x: float, y: float, z: float) -> Point:
        """Return where a point in street coordinates lies on the canvas."""
        z = max(z, NEAREST)
        scale = self.focal / z
        camera = self.camera
        return (
            self.centre + (x + camera.bend * z * z - camera.offset) * scale,
            self.horizon + (camera.height - y) * scale,
        )

    def misses(self, left: float, right: float, near: float, far: float) -> bool:
        """Return True if nothing with x in [left, right] and z in [near, far] can be on the canvas.

        The screen position of (x, z) is (x - offset) / z + bend * z: each term has its extremes at the corners.
        """
        near, far = max(near, NEAREST), max(far, NEAREST)
        bend, left, right = self.camera.bend, left - self.camera.offset, right - self.camera.offset
        lowest = min(left / near, left / far) + min(bend * near, bend * far)
        highest = max(right / near, right / far) + max(bend * near, bend * far)
        return self.centre + self.focal * highest < -MARGIN or self.centre + self.focal * lowest > self.width + MARGIN

    def polygon(self, points: Sequence[Point], paint: Paint, segment: int) -> None:
        """Fill a polygon of canvas points."""
        corners = np.array([(int(x * FIXED), int(y * FIXED)) for x, y in points], np.int32)
        cv2.fillPoly(self.pixels, [corners], (*paint, segment), cv2.LINE_8, SHIFT)

    def polygons(self, corners: npt.NDArray[np.int32], paint: Paint, segment: int) -> None:
        """Fill many polygons of one colour; corners: polygons x points x 2, in pixels times `FIXED`."""
        if len(corners):
            cv2.fillPoly(self.pixels, list(corners), (*paint, segment), cv2.LINE_8, SHIFT)

    def ellipse(self, centre: Point, radii: Point, paint: Paint, segment: int) -> None:
        """Fill an upright ellipse; centre and radii in canvas pixels."""
        cv2.ellipse(
            self.pixels,
            (int(centre[0] * FIXED), int(centre[1] * FIXED)),
            (max(1, int(radii[0] * FIXED)), max(1, int(radii[1] * FIXED))),
            0.0,
            0.0,
            360.0,
            (*paint, segment),
            -1,
            cv2.LINE_8,
            SHIFT,
        )

    def glow(self, centre: Point, radius: float, paint: Paint, segment: int) -> None:
        """Remember a lamp of a segment: if nothing hides it, its light is added once all is painted."""
        self._glows.append((centre, radius, paint, segment))

    def visible_glows(self) -> list[Glow]:
        """Return the lamps that can be seen, in pixels of the scene."""
        glows = []
        for (x, y), radius, paint, segment in self._glows:
            inside = 0 <= x < self.width and 0 <= y < self.height
            if inside and self.pixels[int(y), int(x), 3] == segment:
                glows.append((x / OVERSAMPLING, y / OVERSAMPLING, radius / OVERSAMPLING, paint))
        return glows

    def develop(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return image (H x W x 3) and segment numbers (H x W) at the size of the scene."""
        size = (self.width // OVERSAMPLING, self.height // OVERSAMPLING)
        image = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)[..., :3]
        return image, self.pixels[1::OVERSAMPLING, 1::OVERSAMPLING, 3].copy()


class Sprite:
    """A flat figure that faces the camera: its points are metres beside and above a foot point on the ground."""

    def __init__(self, canvas: Canvas, x: float, z: float, size: float = 1.0, mirrored: bool = False) -> None:
        self.canvas = canvas
        self.foot_x, self.foot_y = canvas.project(x, 0.0, z)
        self.up = canvas.scale(z) * size
        self.side = -self.up if mirrored else self.up

    def at(self, u: float, v: float) -> Point:
        """Return the canvas point u metres to the side and v metres up."""
        return self.foot_x + u * self.side, self.foot_y - v * self.up

    def polygon(self, points: Sequence[Point], paint: Paint, segment: int) -> None:
        """Fill a polygon."""
        x, y, side, up = self.foot_x, self.foot_y, self.side, self.up
        self.canvas.polygon([(x + u * side, y - v * up) for u, v in points], paint, segment)

    def box(self, rectangle: Rectangle, paint: Paint, segment: int) -> None:
        """Fill an upright rectangle."""
        left, low, right, high = rectangle
        self.polygon(((left, low), (right, low), (right, high), (left, high)), paint, segment)

    def ellipse(self, centre: Point, radii: Point, paint: Paint, segment: int) -> None:
        """Fill an upright ellipse; centre and radii in metres."""
        self.canvas.ellipse(self.at(*centre), (radii[0] * self.up, radii[1] * self.up), paint, segment)
