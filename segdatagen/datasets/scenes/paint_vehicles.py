"""Paints cars and trucks: as boxes in perspective when they drive along the view, in profile when they cross it.

Where one drives, and which, the layout has decided.
"""

from typing import NamedTuple

from segdatagen.datasets.scenes.canvas import Canvas, Paint, Rectangle, Sprite
from segdatagen.datasets.scenes.layout import TRUCK, Colour, Light, Thing

GLASS: Colour = (58.0, 70.0, 84.0)
RUBBER: Colour = (26.0, 26.0, 28.0)
HEADLIGHT: Paint = (255, 248, 216)
TAIL_LIGHT: Paint = (232, 36, 32)
SIDE_GAIN = 0.8
GLOW_RADIUS = 0.8


def paint_vehicle(canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
    """Paint a car or a truck."""
    if thing.facing in ("left", "right"):
        paint = _truck_profile if thing.class_id == TRUCK else _car_profile
        paint(Sprite(canvas, thing.x, thing.z, thing.size, thing.facing == "left"), light, thing, segment)
    elif thing.class_id == TRUCK:
        _truck(Hull(canvas, light, thing, segment), light, thing)
    else:
        _car(Hull(canvas, light, thing, segment), light, thing)


class _Lamps(NamedTuple):
    """Where the lamps of a profile are, in metres: u of the front and of the rear ones, and their height."""

    front: float
    rear: float
    v: float


class _Wheels(NamedTuple):
    """The wheels of a profile, in metres: u of their axles, and their radius."""

    places: tuple[float, ...]
    radius: float


class Block(NamedTuple):
    """A box of a vehicle in its own metres: half its width, from `low` to `high`, from `start` to `stop` along w."""

    half: float
    low: float
    high: float
    start: float
    stop: float


class Hull:
    """The box of a vehicle on the ground, in its own metres: u to the right, v up, w away from the camera."""

    def __init__(self, canvas: Canvas, light: Light, thing: Thing, segment: int) -> None:
        self.canvas, self.light, self.thing, self.segment = canvas, light, thing, segment
        camera = canvas.camera
        eye = (camera.offset - thing.x - camera.bend * thing.z * thing.z) / thing.size
        self.side = 0 if abs(eye) < 0.9 else 1 if eye > 0 else -1
        self.sees_over = camera.height

    def face(self, rectangle: Rectangle, w: float, paint: Paint) -> None:
        """Fill an upright rectangle across the view."""
        left, low, right, high = rectangle
        self.plane(((left, low, w), (right, low, w), (right, high, w), (left, high, w)), paint)

    def plane(self, points: tuple[tuple[float, float, float], ...], paint: Paint) -> None:
        """Fill a polygon of (u, v, w)."""
        thing, size = self.thing, self.thing.size
        at = self.canvas.project
        corners = [at(thing.x + u * size, v * size, thing.z + w * size) for u, v, w in points]
        self.canvas.polygon(corners, paint, self.segment)

    def box(self, block: Block, colour: Colour) -> None:
        """Fill the visible sides of a box: its flank, its top and its near face."""
        half, low, high, start, stop = block
        shade, depth = self.light.shade, self.thing.z
        if self.side:
            u = self.side * half
            flank = ((u, low, start), (u, low, stop), (u, high, stop), (u, high, start))
            self.plane(flank, shade(colour, depth, SIDE_GAIN))
        if self.sees_over > high:
            top = ((-half, high, start), (half, high, start), (half, high, stop), (-half, high, stop))
            self.plane(top, shade(colour, depth, 1.1))
        self.face(Rectangle(-half, low, half, high), start, shade(colour, depth))

    def wheels(self, half: float, radius: float, places: tuple[float, ...]) -> None:
        """Fill the two near wheels and those of the visible flank."""
        black = self.light.shade(RUBBER, self.thing.z)
        for w in places[1:] if self.side else ():
            u = self.side * half
            low, high = (u, 0.0), (u, 2 * radius)
            wheel = (
                (*low, w - radius * 0.5),
                (*low, w + radius * 0.5),
                (u, radius, w + radius),
                (*high, w + radius * 0.5),
                (*high, w - radius * 0.5),
                (u, radius, w - radius),
            )
            self.plane(wheel, black)
        for side in (-1, 1):
            self.face(Rectangle(side * half, 0.0, side * (half - 0.24), radius * 1.4), places[0], black)

    def lamps(self, half: float, low: float, high: float, facing: str) -> None:
        """Fill the two lamps of the near face; after dark they glow."""
        toward = facing == "toward"
        dark = self.light.is_dark
        paint = HEADLIGHT if toward else TAIL_LIGHT
        if not dark:
            paint = self.light.shade((236.0, 236.0, 226.0) if toward else (176.0, 30.0, 30.0), self.thing.z)
        thing, size = self.thing, self.thing.size
        for side in (-1, 1):
            self.face(Rectangle(side * half, low, side * (half - 0.34), high), -0.01, paint)
            if dark:
                centre = self.canvas.project(thing.x + side * (half - 0.17) * size, (low + high) / 2, thing.z)
                reach = GLOW_RADIUS * self.canvas.scale(thing.z) * (1.5 if toward else 0.7)
                self.canvas.glow(centre, reach, paint, self.segment)


def _car(hull: Hull, light: Light, thing: Thing) -> None:
    depth, paint = thing.z, thing.colour
    tall = 0.2 * thing.variant
    glass = light.shade(GLASS, depth)
    body = light.shade(paint, depth)
    shadow = light.shade(RUBBER, depth, 0.9)
    hull.face(Rectangle(-0.9, 0.0, 0.9, 0.3), 4.0, shadow)
    hull.plane(((-0.88, 0.06, 0.1), (0.88, 0.06, 0.1), (0.88, 0.06, 4.0), (-0.88, 0.06, 4.0)), shadow)
    hull.box(Block(0.9, 0.25, 0.86 + tall * 0.3, 0.0, 4.2), paint)
    hull.wheels(0.9, 0.31, (0.02, 0.75, 3.4))
    start, stop = (0.5, 3.1) if thing.facing == "away" else (1.3, 3.9)
    if thing.variant > 0.75:
        start = 0.1
    low, high = 0.86 + tall * 0.3, 1.42 + tall
    if hull.side:
        u, top = hull.side * 0.86, hull.side * 0.68
        hull.plane(((u, low, start), (u, low, stop), (top, high, stop - 0.5), (top, high, start + 0.35)), glass)
        post = (start + stop) / 2
        hull.plane(((u, low, post - 0.1), (u, low, post + 0.1), (top, high, post + 0.1), (top, high, post - 0.1)), body)
    roof = (
        (-0.68, high, start + 0.35),
        (0.68, high, start + 0.35),
        (0.68, high, stop - 0.5),
        (-0.68, high, stop - 0.5),
    )
    hull.plane(((-0.86, low, start), (0.86, low, start), (0.68, high, start + 0.35), (-0.68, high, start + 0.35)), body)
    pane = ((-0.74, low + 0.05, start), (0.74, low + 0.05, start), (0.6, high - 0.07, start + 0.3))
    hull.plane((*pane, (-0.6, high - 0.07, start + 0.3)), glass)
    hull.plane(roof, light.shade(paint, depth, 1.12))
    hull.face(Rectangle(-0.9, 0.24, 0.9, 0.4), -0.01, light.shade(paint, depth, 0.6))
    hull.lamps(0.86, 0.6, 0.78, thing.facing)
    hull.face(Rectangle(-0.24, 0.42, 0.24, 0.55), -0.01, light.shade((214.0, 214.0, 204.0), depth))


def _truck(hull: Hull, light: Light, thing: Thing) -> None:
    depth = thing.z
    height = 2.8 + 0.7 * thing.variant
    shadow = light.shade(RUBBER, depth, 0.9)
    hull.plane(((-1.15, 0.06, 0.1), (1.15, 0.06, 0.1), (1.15, 0.06, 7.0), (-1.15, 0.06, 7.0)), shadow)
    if thing.facing == "away":
        hull.wheels(1.15, 0.5, (0.3, 1.4, 2.6, 6.0))
        hull.box(Block(1.2, 0.75, height, 0.0, 7.2), thing.colour)
        seam = light.shade(thing.colour, depth, 0.66)
        hull.face(Rectangle(-0.03, 0.8, 0.03, height - 0.1), -0.01, seam)
        hull.face(Rectangle(-1.1, height - 0.2, 1.1, height - 0.12), -0.01, seam)
        hull.face(Rectangle(-1.2, 0.6, 1.2, 0.78), -0.01, light.shade((70.0, 70.0, 72.0), depth))
        hull.lamps(1.15, 0.62, 0.8, thing.facing)
        return
    hull.wheels(1.1, 0.48, (0.1, 1.2, 5.2, 6.4))
    hull.box(Block(1.2, 0.7, height, 2.0, 7.4), thing.colour)
    hull.box(Block(1.1, 0.4, 2.3, 0.0, 1.9), thing.accent)
    glass = light.shade(GLASS, depth)
    hull.face(Rectangle(-0.98, 1.35, 0.98, 2.1), -0.01, glass)
    if hull.side:
        u = hull.side * 1.1
        hull.plane(((u, 1.4, 0.3), (u, 1.4, 1.4), (u, 2.1, 1.4), (u, 2.1, 0.3)), glass)
    hull.face(Rectangle(-0.6, 0.7, 0.6, 1.1), -0.01, light.shade((64.0, 64.0, 68.0), depth))
    hull.face(Rectangle(-1.1, 0.38, 1.1, 0.56), -0.01, light.shade((90.0, 90.0, 92.0), depth))
    hull.lamps(1.04, 0.66, 0.9, thing.facing)


def _paint_wheels(sprite: Sprite, light: Light, thing: Thing, wheels: _Wheels, segment: int) -> None:
    tyre, rim = light.shade(RUBBER, thing.z), light.shade((150.0, 150.0, 152.0), thing.z)
    radius = wheels.radius
    for u in wheels.places:
        sprite.ellipse((u, radius), (radius, radius), tyre, segment)
        sprite.ellipse((u, radius), (radius * 0.5, radius * 0.5), rim, segment)


def _end_lamps(sprite: Sprite, light: Light, thing: Thing, lamps: _Lamps, segment: int) -> None:
    front, rear, v = lamps
    dark = light.is_dark
    white = HEADLIGHT if dark else light.shade((232.0, 232.0, 220.0), thing.z)
    red = TAIL_LIGHT if dark else light.shade((176.0, 30.0, 30.0), thing.z)
    sprite.box(Rectangle(front - 0.16, v, front, v + 0.17), white, segment)
    sprite.box(Rectangle(rear, v, rear + 0.13, v + 0.2), red, segment)
    if dark:
        reach = GLOW_RADIUS * sprite.up
        sprite.canvas.glow(sprite.at(front - 0.08, v + 0.08), reach * 1.6, HEADLIGHT, segment)
        sprite.canvas.glow(sprite.at(rear + 0.06, v + 0.08), reach * 0.7, TAIL_LIGHT, segment)


def _car_profile(sprite: Sprite, light: Light, thing: Thing, segment: int) -> None:
    depth = thing.z
    body, glass = light.shade(thing.colour, depth), light.shade(GLASS, depth)
    estate = thing.variant > 0.6
    rear = -1.95 if estate else -1.4
    sprite.box(Rectangle(-1.9, 0.04, 1.9, 0.35), light.shade(RUBBER, depth, 0.9), segment)
    shell = (
        (-2.1, 0.28),
        (2.12, 0.28),
        (2.12, 0.66),
        (1.95, 0.8),
        (1.05, 0.92),
        (0.35, 1.45),
        (-1.15, 1.47),
        (rear - 0.1, 0.95),
        (-2.1, 0.9),
    )
    sprite.polygon(shell, body, segment)
    sprite.polygon(((-0.18, 0.93), (0.86, 0.93), (0.28, 1.36), (-0.18, 1.38)), glass, segment)
    sprite.polygon(((rear + 0.2, 0.95), (-0.3, 0.93), (-0.3, 1.38), (-1.08, 1.38)), glass, segment)
    sprite.box(Rectangle(-2.1, 0.28, 2.1, 0.4), light.shade(thing.colour, depth, 0.6), segment)
    _paint_wheels(sprite, light, thing, _Wheels((-1.3, 1.3), 0.33), segment)
    _end_lamps(sprite, light, thing, _Lamps(2.12, -2.1, 0.62), segment)


def _truck_profile(sprite: Sprite, light: Light, thing: Thing, segment: int) -> None:
    depth = thing.z
    height = 2.8 + 0.7 * thing.variant
    sprite.box(Rectangle(-3.4, 0.06, 3.2, 0.8), light.shade((44.0, 44.0, 46.0), depth), segment)
    sprite.box(Rectangle(-3.7, 0.75, 1.7, height), light.shade(thing.colour, depth), segment)
    sprite.box(Rectangle(-3.7, height - 0.16, 1.7, height), light.shade(thing.colour, depth, 0.72), segment)
    cab = ((1.8, 0.42), (3.7, 0.42), (3.7, 1.25), (3.3, 2.3), (1.8, 2.35))
    sprite.polygon(cab, light.shade(thing.accent, depth), segment)
    sprite.polygon(((2.3, 1.3), (3.55, 1.3), (3.2, 2.1), (2.3, 2.1)), light.shade(GLASS, depth), segment)
    _paint_wheels(sprite, light, thing, _Wheels((-2.9, -1.9, 2.7), 0.48), segment)
    _end_lamps(sprite, light, thing, _Lamps(3.7, -3.7, 0.66), segment)
