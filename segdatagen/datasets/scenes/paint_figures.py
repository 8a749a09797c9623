"""Paints persons, bicycles, traffic signs and traffic lights.

A post belongs to the sign or light that it carries. Knows nothing of where figures stand.
"""

from segdatagen.datasets.scenes.canvas import Canvas, Paint, Rectangle, Sprite
from segdatagen.datasets.scenes.layout import Colour, Light, Thing

SKINS: tuple[Colour, ...] = ((232.0, 190.0, 160.0), (198.0, 146.0, 110.0), (140.0, 94.0, 66.0), (92.0, 60.0, 44.0))
HAIRS: tuple[Colour, ...] = ((36.0, 28.0, 26.0), (92.0, 62.0, 40.0), (176.0, 142.0, 86.0), (150.0, 148.0, 146.0))
RED: Colour = (206.0, 38.0, 36.0)
BLUE: Colour = (34.0, 84.0, 180.0)
WHITE: Colour = (240.0, 240.0, 238.0)
YELLOW: Colour = (244.0, 196.0, 40.0)
BLACK: Colour = (30.0, 30.0, 32.0)


def paint_person(canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
    """Paint a person of 1.7 m: walking, or, with a variant of 1 and more, sitting on a bicycle."""
    riding = thing.variant >= 1.0
    turn = thing.variant % 1.0
    sprite = Sprite(canvas, thing.x, thing.z, thing.size, thing.facing == "left")
    depth = thing.z
    shirt, trousers = light.shade(thing.colour, depth), light.shade(thing.accent, depth)
    skin = light.shade(SKINS[int(turn * 97) % 4], depth)
    hair = light.shade(HAIRS[int(turn * 89) % 4], depth)
    if riding:
        sprite.polygon(
            ((-0.28, 0.95), (-0.02, 0.9), (0.2, 0.55), (0.1, 0.2), (-0.02, 0.2), (0.02, 0.5)), trousers, segment
        )
        sprite.polygon(((-0.3, 0.88), (-0.02, 0.86), (0.28, 1.38), (0.02, 1.5)), shirt, segment)
        sprite.polygon(((0.1, 1.36), (0.24, 1.36), (0.5, 1.04), (0.44, 0.98)), shirt, segment)
        sprite.ellipse((0.22, 1.6), (0.13, 0.15), skin, segment)
        sprite.ellipse((0.2, 1.66), (0.14, 0.11), hair, segment)
        return
    stride = 0.08 + 0.22 * turn
    back = light.shade(thing.accent, depth, 0.72)
    sprite.polygon(((-0.14, 0.86), (0.06, 0.86), (-stride + 0.1, 0.0), (-stride - 0.08, 0.0)), back, segment)
    sprite.polygon(((-0.06, 0.86), (0.16, 0.86), (stride + 0.1, 0.0), (stride - 0.08, 0.0)), trousers, segment)
    sprite.polygon(((-0.2, 1.42), (-0.1, 1.42), (-0.2 - stride * 0.5, 0.8), (-0.32 - stride * 0.4, 0.8)), back, segment)
    sprite.polygon(((-0.18, 0.82), (0.18, 0.82), (0.24, 1.4), (0.1, 1.48), (-0.1, 1.48), (-0.24, 1.4)), shirt, segment)
    sleeve = light.shade(thing.colour, depth, 0.72)
    sprite.polygon(
        ((0.12, 1.42), (0.24, 1.4), (0.32 + stride * 0.4, 0.84), (0.2 + stride * 0.4, 0.82)), sleeve, segment
    )
    sprite.ellipse((0.0, 1.61), (0.13, 0.16), skin, segment)
    sprite.ellipse((-0.02, 1.68), (0.14, 0.1), hair, segment)


def paint_bicycle(canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
    """Paint a bicycle in profile. The discs of its wheels count as bicycle."""
    sprite = Sprite(canvas, thing.x, thing.z, thing.size, thing.facing == "left")
    depth = thing.z
    tyre, frame = light.shade(thing.accent, depth), light.shade(thing.colour, depth)
    spokes = light.shade((132.0, 132.0, 130.0), depth)
    for u in (-0.56, 0.56):
        sprite.ellipse((u, 0.36), (0.37, 0.37), tyre, segment)
        sprite.ellipse((u, 0.36), (0.26, 0.26), spokes, segment)
    for bar in (
        ((-0.58, 0.32), (-0.56, 0.42), (-0.2, 0.86), (-0.12, 0.8)),
        ((-0.58, 0.32), (-0.56, 0.41), (0.02, 0.36), (0.02, 0.27)),
        ((-0.24, 0.92), (-0.14, 0.92), (0.06, 0.3), (-0.04, 0.3)),
        ((-0.2, 0.86), (-0.18, 0.76), (0.4, 0.8), (0.4, 0.9)),
        ((-0.02, 0.3), (0.06, 0.28), (0.44, 0.84), (0.36, 0.88)),
        ((0.32, 1.04), (0.42, 1.04), (0.6, 0.36), (0.52, 0.34)),
    ):
        sprite.polygon(bar, frame, segment)
    sprite.box(Rectangle(-0.34, 0.92, -0.06, 1.0), tyre, segment)
    sprite.box(Rectangle(0.28, 1.0, 0.56, 1.08), tyre, segment)


def paint_sign(canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
    """Paint a traffic sign on its post: one of six kinds."""
    sprite = Sprite(canvas, thing.x, thing.z, thing.size)
    depth = thing.z

    def shade(colour: Colour) -> Paint:
        return light.shade(colour, depth, 1.45 if light.is_dark else 1.0)

    sprite.box(Rectangle(-0.08, 0.0, 0.08, 2.2), light.shade(thing.colour, depth), segment)
    kind, v = int(thing.variant * 6), 2.35
    if kind == 0:
        sprite.ellipse((0.0, v), (0.48, 0.48), shade(RED), segment)
        sprite.ellipse((0.0, v), (0.33, 0.33), shade(WHITE), segment)
        sprite.box(Rectangle(-0.1, v - 0.14, 0.1, v + 0.14), shade(BLACK), segment)
    elif kind == 1:
        sprite.ellipse((0.0, v), (0.48, 0.48), shade(BLUE), segment)
        sprite.polygon(
            ((-0.09, v - 0.3), (0.09, v - 0.3), (0.09, v), (0.24, v), (0.0, v + 0.34), (-0.24, v), (-0.09, v)),
            shade(WHITE),
            segment,
        )
    elif kind == 2:
        sprite.polygon(((-0.58, v - 0.42), (0.58, v - 0.42), (0.0, v + 0.56)), shade(RED), segment)
        sprite.polygon(((-0.34, v - 0.29), (0.34, v - 0.29), (0.0, v + 0.3)), shade(WHITE), segment)
    elif kind == 3:
        sprite.polygon(((0.0, v - 0.58), (0.58, v), (0.0, v + 0.58), (-0.58, v)), shade(WHITE), segment)
        sprite.polygon(((0.0, v - 0.44), (0.44, v), (0.0, v + 0.44), (-0.44, v)), shade(YELLOW), segment)
    elif kind == 4:
        a, b = 0.2, 0.48
        octagon = ((-a, v - b), (a, v - b), (b, v - a), (b, v + a), (a, v + b), (-a, v + b), (-b, v + a), (-b, v - a))
        sprite.polygon(octagon, shade(RED), segment)
        sprite.box(Rectangle(-0.32, v - 0.1, 0.32, v + 0.1), shade(WHITE), segment)
    else:
        sprite.box(Rectangle(-0.45, v - 0.5, 0.45, v + 0.5), shade(BLUE), segment)
        sprite.polygon(((-0.28, v - 0.3), (0.28, v - 0.3), (0.0, v + 0.32)), shade(WHITE), segment)


def paint_light(canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
    """Paint a traffic light on its post, with one lamp lit."""
    sprite = Sprite(canvas, thing.x, thing.z, thing.size)
    depth = thing.z
    sprite.box(Rectangle(-0.09, 0.0, 0.09, 2.0), light.shade(thing.colour, depth), segment)
    sprite.box(Rectangle(-0.34, 1.85, 0.34, 3.25), light.shade((34.0, 38.0, 36.0), depth), segment)
    lit = int(thing.variant * 3)
    lamps: tuple[tuple[float, Paint], ...] = ((3.0, (244, 48, 40)), (2.55, (250, 186, 48)), (2.1, (60, 226, 120)))
    for place, (v, paint) in enumerate(lamps):
        if place == lit:
            sprite.ellipse((0.0, v), (0.2, 0.2), paint, segment)
            if light.is_dark:
                canvas.glow(sprite.at(0.0, v), 0.7 * sprite.up, paint, segment)
        else:
            dull: Colour = (paint[0] * 0.35, paint[1] * 0.35, paint[2] * 0.35)
            sprite.ellipse((0.0, v), (0.18, 0.18), light.shade(dull, depth), segment)
