"""Paints sky and ground, the two that everything else stands before.

Which strips there are, and in which order, the layout has decided.
"""

import numpy as np

from segdatagen.datasets.scenes.canvas import Canvas, Point
from segdatagen.datasets.scenes.layout import GroundPatch, Light

BEND_STEPS = (0.4, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 25.0, 32.0, 42.0, 60.0, 90.0, 140.0)
"""Depths at which the edge of a bent strip gets a corner."""


def paint_sky(canvas: Canvas, light: Light, segment: int) -> None:
    """Fill everything with sky, from its top colour down to the haze above the horizon."""
    rows = np.arange(canvas.height, dtype=np.float64)
    share = np.clip(rows / max(1.0, canvas.horizon), 0.0, 1.0)[:, None] ** 1.3
    colours = np.array(light.sky_top) * (1.0 - share) + np.array(light.haze) * share
    line = np.empty((canvas.height, 4), np.uint8)
    line[:, :3] = colours
    line[:, 3] = segment
    # Four channels at once, as one number: twenty times faster than a copy of strides of one byte.
    canvas.pixels.view(np.uint32)[:] = line.view(np.uint32)[:, None]


def paint_ground(canvas: Canvas, light: Light, patches: tuple[GroundPatch, ...]) -> None:
    """Paint strips, markings and shadows in their order."""
    for patch in patches:
        far = patch.z[1]
        middle = patch.z[0] + (far - patch.z[0]) * 0.3
        paint = light.shade(patch.colour, min(middle, 16.0))
        canvas.polygon(_outline(canvas, patch), paint, patch.class_id + 1)


def _outline(canvas: Canvas, patch: GroundPatch) -> list[Point]:
    (left, right), (near, far) = patch.x, patch.z
    project = canvas.project
    if canvas.camera.bend == 0.0:
        return [project(left, 0.0, near), project(right, 0.0, near), project(right, 0.0, far), project(left, 0.0, far)]
    depths = [near, *(z for z in BEND_STEPS if near < z < far), far]
    return [project(left, 0.0, z) for z in depths] + [project(right, 0.0, z) for z in reversed(depths)]
