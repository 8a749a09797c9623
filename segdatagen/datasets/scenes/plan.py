"""Draws a whole layout from a seed.

The order of the draws is part of the data set: a change here makes other scenes of the same seeds.
"""

from segdatagen.datasets.scenes.dice import Dice
from segdatagen.datasets.scenes.layout import Layout
from segdatagen.datasets.scenes.lighting import draw_light
from segdatagen.datasets.scenes.street import (
    ACROSS_SHARE,
    draw_backdrop,
    draw_buildings,
    draw_camera,
    draw_shadows,
    draw_street,
    draw_trees,
)
from segdatagen.datasets.scenes.traffic import draw_things


def draw_layout(seed: int) -> Layout:
    """Return the layout of a seed; it has no size yet."""
    dice = Dice(seed)
    light = draw_light(dice)
    across = dice.chance(ACROSS_SHARE)
    camera = draw_camera(dice, across)
    street, ground = draw_street(dice, across)
    far_buildings, far_trees = draw_backdrop(dice, street)
    return Layout(
        camera=camera,
        light=light,
        ground=(*ground, *draw_shadows(dice, light, street, ground)),
        buildings=(*far_buildings, *draw_buildings(dice, street)),
        trees=(*far_trees, *draw_trees(dice, street)),
        things=tuple(draw_things(dice, camera, street)),
    )
