"""Paints a layout at a size: sky, ground, then buildings, trees and things from far to near.

Knows in which order to paint, and which segment number each part gets; the shapes are with the other painters.
"""

import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.canvas import OVERSAMPLING, Canvas
from segdatagen.datasets.scenes.finish import finish
from segdatagen.datasets.scenes.layout import (
    BICYCLE,
    FIRST_THING,
    PERSON,
    SKY,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    Building,
    Layout,
    Light,
    Thing,
    Tree,
)
from segdatagen.datasets.scenes.paint_buildings import paint_building
from segdatagen.datasets.scenes.paint_figures import paint_bicycle, paint_light, paint_person, paint_sign
from segdatagen.datasets.scenes.paint_ground import paint_ground, paint_sky
from segdatagen.datasets.scenes.paint_plants import paint_tree
from segdatagen.datasets.scenes.paint_vehicles import paint_vehicle
from segdatagen.datasets.scenes.segments import absorb_slivers

PAINTERS = {PERSON: paint_person, BICYCLE: paint_bicycle, TRAFFIC_SIGN: paint_sign, TRAFFIC_LIGHT: paint_light}
"""How to paint a thing of a class; cars and trucks are the rest."""
EAVES = 0.5
"""Metres that no roof reaches beyond its walls."""
CROWN_REACH = 1.4
"""Multiple of its radius that no tree reaches beyond to either side."""
THING_REACH = 4.5
"""Metres that no thing reaches beyond to either side: a truck in profile has 3.9."""
THING_DEPTH = 9.0
"""Metres that no thing reaches beyond in depth: a truck that drives along the view has 7.8."""

Pixels = npt.NDArray[np.uint8]


def paint_layout(layout: Layout, width: int, height: int) -> tuple[Pixels, Pixels, Pixels]:
    """Return image (H x W x 3), segment numbers (H x W) and the class of each segment number.

    Stuff has the number class + 1; things count on from there.
    """
    canvas = Canvas(layout.camera, width, height)
    paint_sky(canvas, layout.light, SKY + 1)
    paint_ground(canvas, layout.light, layout.ground)
    classes = [SKY, *range(FIRST_THING)]
    for thing in layout.things:
        classes.append(thing.class_id)
    solids: list[tuple[float, int, Building | Tree | Thing]] = []
    solids += [(building.far[1], 0, building) for building in layout.buildings]
    solids += [(tree.z, 0, tree) for tree in layout.trees]
    solids += [(thing.z, FIRST_THING + 1 + number, thing) for number, thing in enumerate(layout.things)]
    solids.sort(key=lambda solid: -solid[0])
    for _, segment, solid in solids:
        _paint_solid(canvas, layout.light, solid, segment)
    image, segments = canvas.develop()
    table = np.array(classes, np.uint8)
    absorb_slivers(segments, len(classes))
    image = finish(image, table[segments], layout.light, canvas.visible_glows(), canvas.horizon / OVERSAMPLING)
    return image, segments, table


def _paint_solid(canvas: Canvas, light: Light, solid: Building | Tree | Thing, segment: int) -> None:
    if isinstance(solid, Building):
        (x0, z0), (x1, z1) = solid.near, solid.far
        left, right = min(x0, x1, solid.end) - EAVES, max(x0, x1, solid.end) + EAVES
        if not canvas.misses(left, right, z0, z1):
            paint_building(canvas, light, solid)
    elif isinstance(solid, Tree):
        reach = CROWN_REACH * solid.radius
        if not canvas.misses(solid.x - reach, solid.x + reach, solid.z, solid.z):
            paint_tree(canvas, light, solid)
    elif not canvas.misses(solid.x - THING_REACH, solid.x + THING_REACH, solid.z - 1.0, solid.z + THING_DEPTH):
        PAINTERS.get(solid.class_id, paint_vehicle)(canvas, light, solid, segment)
