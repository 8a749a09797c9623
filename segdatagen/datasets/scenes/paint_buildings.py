"""Paints buildings: walls, roofs, windows in perspective that are lit after dark.

Where one stands and how high it is, the layout has decided.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.canvas import FIXED, Canvas, Paint
from segdatagen.datasets.scenes.layout import BUILDING, Building, Light
from segdatagen.datasets.scenes.noise import LONGEST_RUN, run_of_chances

FACADE_GAIN = 0.88
SMALLEST_COLUMN = 2.5
"""Canvas pixels below which a column of windows is not painted."""
LAMP = (250.0, 206.0, 128.0)
SEGMENT = BUILDING + 1


class _Wall(NamedTuple):
    """A wall with windows, from the building's near corner to `far` (x, z); `gain` is how much light it has."""

    far: tuple[float, float]
    num_columns: int
    gain: float


def paint_building(canvas: Canvas, light: Light, building: Building) -> None:
    """Paint one building: end wall, roof, facade."""
    (x0, z0), (x1, z1) = building.near, building.far
    height = building.height
    depth = min(z0, z1) + 2.0
    at = canvas.project
    frontal = z0 == z1
    if building.gable and frontal:
        inset = (x1 - x0) * 0.08
        top = height + building.gable
        slope = [at(x0 - 0.3, height, z0), at(x1 + 0.3, height, z0), at(x1 - inset, top, z0), at(x0 + inset, top, z0)]
        canvas.polygon(slope, light.shade(building.roof, depth), SEGMENT)
    elif building.gable:
        ridge, top = (x0 + building.end) / 2, height + building.gable
        slope = [at(x0, height, z0), at(x1, height, z1), at(ridge, top, z1), at(ridge, top, z0)]
        canvas.polygon(slope, light.shade(building.roof, depth), SEGMENT)
    if building.end != x0 and z0 > 2.0:
        paint = light.shade(building.wall, depth)
        wall = [at(x0, 0.0, z0), at(x0, height, z0), at(building.end, height, z0), at(building.end, 0.0, z0)]
        if building.gable:
            wall.insert(2, at((x0 + building.end) / 2, height + building.gable, z0))
        canvas.polygon(wall, paint, SEGMENT)
        _paint_windows(canvas, light, building, _Wall((building.end, z0), max(2, building.num_columns // 2), 1.0))
    gain = 1.0 if frontal else FACADE_GAIN
    wall = [at(x0, 0.0, z0), at(x0, height, z0), at(x1, height, z1), at(x1, 0.0, z1)]
    canvas.polygon(wall, light.shade(building.wall, depth, gain), SEGMENT)
    if not building.gable:
        low = height * 0.965
        cornice = [at(x0, low, z0), at(x0, height, z0), at(x1, height, z1), at(x1, low, z1)]
        canvas.polygon(cornice, light.shade(building.roof, depth), SEGMENT)
    if building.shopfront:
        _paint_shopfront(canvas, light, building, depth)
    _paint_windows(canvas, light, building, _Wall(building.far, building.num_columns, gain))


def _paint_shopfront(canvas: Canvas, light: Light, building: Building, depth: float) -> None:
    """A band of glass at street level under a coloured awning: the awnings look like signs from afar."""
    (x0, z0), (x1, z1) = building.near, building.far
    at = canvas.project
    glass = _bright(LAMP, 0.7) if light.is_dark else light.shade(building.glass, depth)
    canvas.polygon([at(x0, 0.4, z0), at(x0, 2.3, z0), at(x1, 2.3, z1), at(x1, 0.4, z1)], glass, SEGMENT)
    hue = run_of_chances(building.grain, 3) * 200.0 + 30.0
    awning = light.shade((float(hue[0]), float(hue[1]), float(hue[2])), depth)
    canvas.polygon([at(x0, 2.3, z0), at(x0, 2.9, z0), at(x1, 2.9, z1), at(x1, 2.3, z1)], awning, SEGMENT)


def _paint_windows(canvas: Canvas, light: Light, building: Building, wall: _Wall) -> None:
    """The windows of a wall, all columns and floors at once."""
    (x0, z0), (x1, z1) = building.near, wall.far
    num_columns = wall.num_columns
    if abs(canvas.project(x1, 0.0, z1)[0] - canvas.project(x0, 0.0, z0)[0]) < SMALLEST_COLUMN * num_columns:
        return
    camera = canvas.camera
    side, sill = building.window
    along = (np.arange(num_columns)[:, None] + np.array((side, 1.0 - side))) / num_columns
    z = np.maximum(z0 + (z1 - z0) * along, 0.4)
    scale = canvas.focal / z
    across = canvas.centre + (x0 + (x1 - x0) * along + camera.bend * z * z - camera.offset) * scale
    first = 1 if building.shopfront else 0
    floor = building.height / building.num_floors
    floors = np.arange(first, building.num_floors)[:, None] + np.array((sill, 0.86))
    if not floors.size:
        return
    up = canvas.horizon + (camera.height - floors[:, None, :, None] * floor) * scale[None, :, None, :]
    windows = np.empty((len(floors), num_columns, 4, 2), np.int32)
    columns, rows = across * FIXED, up * FIXED
    windows[:, :, 0, 0] = windows[:, :, 3, 0] = columns[:, 0]
    windows[:, :, 1, 0] = windows[:, :, 2, 0] = columns[:, 1]
    windows[:, :, :2, 1] = rows[:, :, 0]
    windows[:, :, :1:-1, 1] = rows[:, :, 1]
    glass = light.shade(building.glass, min(z0, z1) + 2.0, wall.gain)
    _fill_windows(canvas, light, building, windows.reshape(-1, 4, 2), glass)


def _fill_windows(
    canvas: Canvas, light: Light, building: Building, windows: npt.NDArray[np.int32], glass: Paint
) -> None:
    if not light.is_dark:
        canvas.polygons(windows, glass, SEGMENT)
        return
    lit = np.resize(run_of_chances(building.grain, LONGEST_RUN) < building.lit, len(windows))
    canvas.polygons(windows[~lit], glass, SEGMENT)
    canvas.polygons(windows[lit], _bright(LAMP, 0.75 if light.time == "dusk" else 0.85), SEGMENT)


def _bright(colour: tuple[float, float, float], gain: float) -> tuple[int, int, int]:
    """A colour that shines by itself."""
    return int(colour[0] * gain), int(colour[1] * gain), int(colour[2] * gain)
