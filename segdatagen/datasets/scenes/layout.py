"""The words of a street scene: its classes, and the parts that a layout is made of.

Lengths are metres, with x to the right of the road's middle, y up, and z ahead of the camera. Picture coordinates are
in units of the shorter image side. Knows neither pixels nor chance: `street` draws a layout, the painters read it.
"""

import math
from dataclasses import dataclass

SKY, BUILDING, ROAD, SIDEWALK, TREE, GRASS, CAR, TRUCK, PERSON, TRAFFIC_SIGN, TRAFFIC_LIGHT, BICYCLE = range(12)
CLASS_NAMES = (
    "sky",
    "building",
    "road",
    "sidewalk",
    "tree",
    "grass",
    "car",
    "truck",
    "person",
    "traffic sign",
    "traffic light",
    "bicycle",
)
FIRST_THING = CAR
"""Classes below this id are stuff: one segment each. From it on they are things: one segment per instance."""

Colour = tuple[float, float, float]
"""Red, green and blue, 0 ... 255."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera that looks along the z axis over flat ground, on a street that may bend with z squared."""

    focal: float
    height: float
    offset: float
    vanishing_x: float
    horizon: float
    bend: float


@dataclass(frozen=True, slots=True)
class Light:
    """How the scene is lit: time of day, colours of light, air and sky, and the camera's answer to it."""

    time: str
    ambient: Colour
    haze: Colour
    haze_rate: float
    sky_top: Colour
    clouds: float
    cloud_colour: Colour
    slope: tuple[float, float]
    noise: float
    blur: float
    texture: float
    grain: int

    @property
    def is_dark(self) -> bool:
        """Whether lamps are on."""
        return self.time != "day"

    def shade(self, colour: Colour, depth: float, gain: float = 1.0) -> tuple[int, int, int]:
        """Return how a surface of this colour looks at a depth in metres: lit, then hazed."""
        clear = math.exp(-self.haze_rate * depth)
        gain *= clear
        air = 1.0 - clear
        return (
            min(255, int(colour[0] * self.ambient[0] * gain + self.haze[0] * air)),
            min(255, int(colour[1] * self.ambient[1] * gain + self.haze[1] * air)),
            min(255, int(colour[2] * self.ambient[2] * gain + self.haze[2] * air)),
        )


@dataclass(frozen=True, slots=True)
class GroundPatch:
    """A rectangle on the ground, in street coordinates: a strip, a lane marking or a shadow. Later ones lie on top."""

    class_id: int
    colour: Colour
    x: tuple[float, float]
    z: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Building:
    """A facade from `near` to `far` (x, z), and an end wall from `near` to x = `end`."""

    near: tuple[float, float]
    far: tuple[float, float]
    end: float
    height: float
    gable: float
    num_floors: int
    num_columns: int
    window: tuple[float, float]
    wall: Colour
    roof: Colour
    glass: Colour
    lit: float
    shopfront: bool
    grain: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A trunk with a crown: round, or a cone for conifers; without a trunk height it is a bush."""

    x: float
    z: float
    height: float
    radius: float
    trunk: float
    conifer: bool
    bark: Colour
    leaves: Colour
    grain: int


@dataclass(frozen=True, slots=True)
class Thing:
    """One countable object. `facing` is away, toward, left or right; `variant` in [0, 1) selects among shapes."""

    class_id: int
    x: float
    z: float
    facing: str
    size: float
    colour: Colour
    accent: Colour
    variant: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole scene before it has a size."""

    camera: Camera
    light: Light
    ground: tuple[GroundPatch, ...]
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    things: tuple[Thing, ...]
