"""Paints trees and bushes: a trunk, and a crown of lit and shaded blobs.

Where one stands, the layout has decided.
"""

from segdatagen.datasets.scenes.canvas import Canvas, Sprite
from segdatagen.datasets.scenes.layout import TREE, Light, Tree
from segdatagen.datasets.scenes.noise import run_of_chances

SEGMENT = TREE + 1
NUM_BLOBS = 7


def paint_tree(canvas: Canvas, light: Light, tree: Tree) -> None:
    """Paint one tree."""
    sprite = Sprite(canvas, tree.x, tree.z)
    height, radius = tree.height, tree.radius
    base = tree.trunk * height
    if base:
        thick = 0.035 * height
        trunk = ((-thick, 0.0), (thick, 0.0), (thick * 0.7, base * 1.5), (-thick * 0.7, base * 1.5))
        sprite.polygon(trunk, light.shade(tree.bark, tree.z), SEGMENT)
    dark = light.shade(tree.leaves, tree.z, 0.72)
    middle = light.shade(tree.leaves, tree.z)
    bright = light.shade(tree.leaves, tree.z, 1.18)
    if tree.conifer:
        for low, high, width in ((0.0, 0.55, 1.0), (0.25, 0.8, 0.78), (0.5, 1.0, 0.55)):
            bottom, top = base + low * (height - base), base + high * (height - base)
            reach = width * radius * 0.8
            sprite.polygon(((-reach, bottom), (reach, bottom), (0.0, top)), dark, SEGMENT)
            sprite.polygon(((-reach * 0.7, bottom), (reach * 0.2, bottom), (0.0, top)), middle, SEGMENT)
        return
    centre = (base + height) / 2 if base else height * 0.42
    tallness = (height - base) / 2 if base else height * 0.5
    sprite.ellipse((0.0, centre), (radius * 0.86, tallness * 0.9), dark, SEGMENT)
    numbers = run_of_chances(tree.grain, 3 * NUM_BLOBS).tolist()
    for blob in range(NUM_BLOBS):
        u = (numbers[3 * blob] - 0.5) * 1.5 * radius
        v = centre + (numbers[3 * blob + 1] - 0.42) * 1.5 * tallness
        size = (0.3 + 0.25 * numbers[3 * blob + 2]) * radius
        paint = bright if v > centre + 0.3 * tallness else middle if blob % 2 else dark
        sprite.ellipse((u, v), (size, size * 0.85), paint, SEGMENT)
