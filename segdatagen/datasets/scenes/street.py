"""Draws where things lie: the camera, the strips of a street, its buildings and its trees.

A street runs either away from the camera or across its view. Positions are drawn as (lateral, along): metres from the
road's middle, and metres along it; `Street.place` turns them into the camera's x and z. Knows no pixels.
"""

from dataclasses import dataclass, replace

from segdatagen.datasets.scenes.dice import Dice
from segdatagen.datasets.scenes.layout import (
    GRASS,
    ROAD,
    SIDEWALK,
    Building,
    Camera,
    Colour,
    GroundPatch,
    Light,
    Tree,
)
from segdatagen.datasets.scenes.lighting import NUM_GRAINS

ACROSS_SHARE = 0.3
FAR = 140.0
WALLS: tuple[Colour, ...] = (
    (168.0, 96.0, 78.0),
    (150.0, 84.0, 66.0),
    (206.0, 188.0, 156.0),
    (222.0, 214.0, 200.0),
    (150.0, 150.0, 150.0),
    (128.0, 126.0, 122.0),
    (176.0, 168.0, 158.0),
    (198.0, 158.0, 96.0),
    (134.0, 148.0, 160.0),
    (146.0, 158.0, 132.0),
    (186.0, 148.0, 138.0),
    (104.0, 98.0, 96.0),
)
ROOFS: tuple[Colour, ...] = ((126.0, 66.0, 54.0), (92.0, 88.0, 90.0), (110.0, 82.0, 66.0), (74.0, 80.0, 92.0))
LEAVES: tuple[Colour, ...] = (
    (66.0, 108.0, 48.0),
    (84.0, 126.0, 58.0),
    (52.0, 88.0, 50.0),
    (104.0, 132.0, 60.0),
    (98.0, 116.0, 70.0),
    (176.0, 118.0, 50.0),
    (150.0, 84.0, 52.0),
)
GRASSES: tuple[Colour, ...] = (
    (104.0, 142.0, 66.0),
    (88.0, 122.0, 58.0),
    (128.0, 146.0, 80.0),
    (156.0, 150.0, 96.0),
    (76.0, 106.0, 54.0),
)
ASPHALTS: tuple[Colour, ...] = ((96.0, 96.0, 100.0), (116.0, 114.0, 112.0), (134.0, 132.0, 130.0), (78.0, 80.0, 86.0))
PAVINGS: tuple[Colour, ...] = (
    (168.0, 164.0, 156.0),
    (148.0, 146.0, 142.0),
    (184.0, 172.0, 150.0),
    (170.0, 142.0, 126.0),
    (126.0, 124.0, 122.0),
)


@dataclass(frozen=True, slots=True)
class Street:
    """The strips of a street. `sides` maps -1 (left, or nearer) and 1 (right, or farther) to its kerb side."""

    across: bool
    centre: float
    half_road: float
    walks: dict[int, tuple[float, float]]
    lines: dict[int, float]
    reach: tuple[float, float]

    def place(self, lateral: float, along: float) -> tuple[float, float]:
        """Return (x, z) of a position in the street."""
        return (along, self.centre + lateral) if self.across else (lateral, along)


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where a building stands: on which side of the street, from where along it, and how long its facade is."""

    side: int
    along: float
    length: float


def draw_camera(dice: Dice, across: bool) -> Camera:
    """Return where the camera stands and how it looks."""
    if across:
        return Camera(
            focal=dice.uniform(1.05, 1.45),
            height=dice.uniform(1.6, 3.0),
            offset=dice.uniform(-6.0, 6.0),
            vanishing_x=0.0,
            horizon=dice.uniform(0.36, 0.5),
            bend=0.0,
        )
    return Camera(
        focal=dice.uniform(0.95, 1.35),
        height=dice.uniform(1.6, 3.6),
        offset=dice.uniform(-3.5, 5.0),
        vanishing_x=dice.uniform(-0.22, 0.22),
        horizon=dice.uniform(0.34, 0.54),
        bend=dice.uniform(-0.012, 0.012) if dice.chance(0.4) else 0.0,
    )


def draw_street(dice: Dice, across: bool) -> tuple[Street, list[GroundPatch]]:
    """Return a street and its strips of ground, from the outermost layer to the topmost."""
    half_road = dice.uniform(2.5, 3.5) if across else dice.uniform(3.0, 6.2)
    centre = half_road + dice.uniform(4.5, 7.0)
    asphalt = dice.jitter(dice.pick(ASPHALTS), 14, 5)
    paving = dice.jitter(dice.pick(PAVINGS), 16, 6)
    grass = dice.jitter(dice.pick(GRASSES), 14, 8)
    strips: list[tuple[int, Colour, float, float]] = [(ROAD, asphalt, -half_road, half_road)]
    walks: dict[int, tuple[float, float]] = {}
    lines: dict[int, float] = {}
    for side in (-1, 1):
        edge = half_road
        widths = (
            (GRASS, dice.uniform(0.7, 2.2) if dice.chance(0.35) else 0.0),
            (SIDEWALK, dice.uniform(1.5, 3.4) if dice.chance(0.92) else 0.0),
            (GRASS, dice.uniform(1.0, 4.5) if dice.chance(0.4) else 0.0),
        )
        walks[side] = (half_road + 0.3, half_road + 1.5)
        for class_id, width in widths:
            if width:
                colour = paving if class_id == SIDEWALK else grass
                strips.append((class_id, colour, side * edge, side * (edge + width)))
                if class_id == SIDEWALK:
                    walks[side] = (edge + 0.3, edge + width - 0.3)
            edge += width
        lines[side] = edge
        yard = (GRASS, grass) if dice.chance(0.6) else (SIDEWALK, paving)
        strips.append((*yard, side * edge, side * FAR))
    street = Street(across, centre, half_road, walks, lines, (-9.0, 9.0) if across else (4.5, 19.0))
    patches = [_strip(street, *strip) for strip in reversed(strips)]
    patches += _markings(dice, street, asphalt)
    return street, patches


def _strip(street: Street, class_id: int, colour: Colour, start: float, stop: float) -> GroundPatch:
    low, high = min(start, stop), max(start, stop)
    if street.across:
        return GroundPatch(class_id, colour, (-FAR, FAR), (max(0.4, street.centre + low), street.centre + high))
    return GroundPatch(class_id, colour, (low, high), (0.4, FAR))


def _markings(dice: Dice, street: Street, asphalt: Colour) -> list[GroundPatch]:
    """Lane lines, a zebra crossing and patches of newer asphalt, all of them road."""
    marks: list[tuple[Colour, float, float, float, float]] = []
    paint = dice.jitter(dice.pick(((222.0, 222.0, 216.0), (214.0, 210.0, 200.0), (222.0, 184.0, 84.0))), 16, 4)
    half = street.half_road
    start, stop = (-24.0, 24.0) if street.across else (1.0, 44.0)
    for _ in range(dice.whole(0, 2)):
        middle, place = dice.uniform(-half, half) * 0.6, dice.uniform(*street.reach)
        colour = dice.jitter(asphalt, 22, 4)
        marks.append((colour, middle - half * 0.35, middle + half * 0.35, place, place + dice.uniform(2.0, 6.0)))
    style = dice.fraction()
    if style < 0.5:
        period = dice.uniform(3.0, 6.0)
        for step in range(int((stop - start) / period)):
            marks.append((paint, -0.09, 0.09, start + step * period, start + step * period + period * 0.5))
    elif style < 0.75:
        marks.append((paint, -0.09, 0.09, start, FAR))
    if dice.chance(0.4):
        marks.append((paint, -half + 0.15, -half + 0.32, start, FAR))
        marks.append((paint, half - 0.32, half - 0.15, start, FAR))
    if dice.chance(0.22):
        place = dice.uniform(-6.0, 3.0) if street.across else dice.uniform(6.0, 12.0)
        for step in range(int(half)):
            middle = -half + 1.0 + step * 2.0
            marks.append((paint, middle - 0.45, middle + 0.45, place, place + 3.0))
    patches = []
    for colour, low, high, begin, end in marks:
        x0, z0 = street.place(low, begin)
        x1, z1 = street.place(high, end)
        patches.append(GroundPatch(ROAD, colour, (x0, x1), (z0, z1)))
    return patches


def draw_buildings(dice: Dice, street: Street) -> list[Building]:
    """Return the buildings along the street, unsorted."""
    tall = dice.chance(0.55)
    gap_share = dice.uniform(0.05, 0.5)
    buildings: list[Building] = []
    for side in (1,) if street.across else (-1, 1):
        if dice.chance(0.08):
            continue
        along, stop = (-34.0, 34.0) if street.across else (1.0, 58.0)
        along += dice.uniform(-4.0, 0.0) if street.across else dice.uniform(0.0, 6.0)
        while along < stop:
            length = dice.uniform(6.0, 15.0)
            buildings.append(_building(dice, street, _Plot(side, along, length), tall))
            along += length + (dice.uniform(1.5, 7.0) if dice.chance(gap_share) else 0.05)
    return buildings


def _building(dice: Dice, street: Street, plot: _Plot, tall: bool) -> Building:
    side, along, length = plot.side, plot.along, plot.length
    height = dice.uniform(6.0, 22.0) if tall else dice.uniform(3.6, 8.0)
    setback = side * (street.lines[side] + dice.uniform(0.0, 0.8))
    near, far = street.place(setback, along), street.place(setback, along + length)
    wall = dice.jitter(dice.pick(WALLS), 22, 10)
    if dice.chance(0.08):
        wall = (dice.uniform(60.0, 230.0), dice.uniform(60.0, 230.0), dice.uniform(60.0, 230.0))
    return Building(
        near=near,
        far=far,
        end=near[0] if street.across else near[0] + side * dice.uniform(7.0, 13.0),
        height=height,
        gable=dice.uniform(1.5, 3.2) if not tall and dice.chance(0.75) else 0.0,
        num_floors=max(1, int(height / dice.uniform(2.7, 3.4))),
        num_columns=max(2, int(length / dice.uniform(1.9, 3.4))),
        window=(dice.uniform(0.15, 0.32), dice.uniform(0.2, 0.36)),
        wall=wall,
        roof=dice.jitter(dice.pick(ROOFS), 16, 8),
        glass=dice.jitter(dice.pick(((72.0, 84.0, 100.0), (54.0, 60.0, 70.0), (132.0, 154.0, 176.0))), 20, 8),
        lit=dice.uniform(0.15, 0.6),
        shopfront=tall and dice.chance(0.4),
        grain=dice.whole(0, NUM_GRAINS),
    )


def draw_trees(dice: Dice, street: Street) -> list[Tree]:
    """Return street trees, bushes before the houses and trees in the yards, unsorted."""
    trees: list[Tree] = []
    palette = [dice.jitter(dice.pick(LEAVES), 16, 10) for _ in range(2)]
    planted = dice.chance(0.55)
    for side in (-1, 1):
        if planted and not (street.across and side < 0) and dice.chance(0.75):
            along, stop = (-14.0, 14.0) if street.across else (7.0, 40.0)
            along += dice.uniform(0.0, 4.0)
            spacing = dice.uniform(5.0, 11.0)
            while along < stop:
                lateral = side * (street.walks[side][1] + dice.uniform(-0.2, 0.8))
                trees.append(_tree(dice, street, (lateral, along), dice.pick(palette), bush=False))
                along += spacing * dice.uniform(0.7, 1.4)
        for _ in range(dice.whole(0, 3)):
            bush = dice.chance(0.4)
            near_side = street.across and side < 0
            lateral = side * (street.lines[side] + (dice.uniform(-0.6, 0.0) if bush else dice.uniform(4.0, 16.0)))
            along = dice.uniform(-12.0, 12.0) if street.across else dice.uniform(8.0, 40.0)
            if not near_side:
                trees.append(_tree(dice, street, (lateral, along), dice.pick(palette), bush))
    return trees


def _tree(dice: Dice, street: Street, position: tuple[float, float], leaves: Colour, bush: bool) -> Tree:
    x, z = street.place(*position)
    height = dice.uniform(0.9, 1.8) if bush else dice.uniform(4.0, 9.0)
    conifer = not bush and dice.chance(0.2)
    return Tree(
        x=x,
        z=z,
        height=height,
        radius=height * (dice.uniform(0.5, 0.8) if bush else dice.uniform(0.22, 0.38)),
        trunk=0.0 if bush else dice.uniform(0.16, 0.3),
        conifer=conifer,
        bark=dice.jitter((96.0, 76.0, 58.0), 18, 8),
        leaves=dice.jitter(leaves, 14, 8),
        grain=dice.whole(0, NUM_GRAINS),
    )


def draw_backdrop(dice: Dice, street: Street) -> tuple[list[Building], list[Tree]]:
    """Return what closes the view at the end of the street: far blocks, far trees, or nothing."""
    buildings: list[Building] = []
    trees: list[Tree] = []
    if street.across:
        return buildings, trees
    if dice.chance(0.7):
        x = -60.0
        while x < 60.0:
            width = dice.uniform(8.0, 20.0)
            block = _building(dice, street, _Plot(1, 90.0, width), tall=True)
            height = dice.uniform(4.0, 20.0)
            buildings.append(
                replace(block, near=(x, 92.0), far=(x + width, 92.0), end=x, height=height, gable=0.0, shopfront=False)
            )
            x += width + (dice.uniform(2.0, 12.0) if dice.chance(0.4) else 0.0)
    if dice.chance(0.6):
        for _ in range(dice.whole(4, 10)):
            trees.append(
                _tree(dice, street, (dice.uniform(-40.0, 40.0), dice.uniform(70.0, 88.0)), LEAVES[2], bush=False)
            )
    return buildings, trees


def draw_shadows(dice: Dice, light: Light, street: Street, strips: list[GroundPatch]) -> list[GroundPatch]:
    """Return bands of shade that the buildings throw over the strips; none without sun."""
    bands: list[GroundPatch] = []
    if light.time != "day" or street.across or not dice.chance(0.5):
        return bands
    for _ in range(dice.whole(1, 3)):
        start = dice.uniform(4.0, 24.0)
        stop = start + dice.uniform(2.0, 9.0)
        gain = dice.uniform(0.55, 0.8)
        for strip in strips:
            red, green, blue = strip.colour
            if strip.z[1] >= FAR:
                bands.append(
                    GroundPatch(strip.class_id, (red * gain, green * gain, blue * gain), strip.x, (start, stop))
                )
    return bands
