"""Draws the things of a street: cars, trucks, persons, bicycles, signs and lights, with the long tail of the rare ones.

Rare classes are drawn first, so that a rare thing is never left out for want of room. Knows no pixels.
"""

from segdatagen.datasets.scenes.dice import Dice
from segdatagen.datasets.scenes.layout import (
    BICYCLE,
    CAR,
    PERSON,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    TRUCK,
    Camera,
    Colour,
    Thing,
)
from segdatagen.datasets.scenes.street import Street

BICYCLE_SHARE = 0.1
SIGN_SHARE = 0.145
LIGHT_SHARE = 0.1
TRUCK_SHARE = 0.3
PERSON_SHARE = 0.68
CAR_SHARE = 0.9
"""How many scenes draw a thing of the class at all; occlusion takes some of them away again."""

NUM_TRIES = 20
HALF_VIEW = 0.42
FARTHEST_VEHICLE = 26.0
PAINTS: tuple[Colour, ...] = (
    (232.0, 232.0, 230.0),
    (178.0, 180.0, 184.0),
    (112.0, 114.0, 120.0),
    (42.0, 42.0, 48.0),
    (172.0, 34.0, 36.0),
    (40.0, 72.0, 150.0),
    (44.0, 100.0, 76.0),
    (222.0, 178.0, 52.0),
    (118.0, 82.0, 60.0),
)
CLOTHES: tuple[Colour, ...] = (
    (38.0, 40.0, 52.0),
    (60.0, 78.0, 120.0),
    (176.0, 46.0, 46.0),
    (216.0, 210.0, 198.0),
    (64.0, 104.0, 70.0),
    (206.0, 160.0, 62.0),
    (120.0, 112.0, 106.0),
    (128.0, 74.0, 120.0),
)


def draw_things(dice: Dice, camera: Camera, street: Street) -> list[Thing]:
    """Return the things of a scene, unsorted."""
    things: list[Thing] = []
    if dice.chance(BICYCLE_SHARE):
        things += _bicycles(dice, camera, street)
    if dice.chance(SIGN_SHARE):
        things += [_post(dice, camera, street, TRAFFIC_SIGN) for _ in range(1 + dice.chance(0.25))]
    if dice.chance(LIGHT_SHARE):
        things += [_post(dice, camera, street, TRAFFIC_LIGHT) for _ in range(1 + dice.chance(0.35))]
    num_trucks = dice.whole(1, 2) if dice.chance(TRUCK_SHARE) else 0
    num_cars = dice.whole(1, 5) if dice.chance(CAR_SHARE) else 0
    things += _vehicles(dice, street, camera, num_trucks, num_cars)
    if dice.chance(PERSON_SHARE):
        things += [_person(dice, camera, street) for _ in range(dice.pick((1, 1, 1, 2, 2, 3, 4, 5)))]
    return things


def _in_view(camera: Camera, x: float, z: float) -> bool:
    sideways = camera.vanishing_x + (x + camera.bend * z * z - camera.offset) * camera.focal / z
    return abs(sideways) < HALF_VIEW


def _position(
    dice: Dice, camera: Camera, street: Street, lateral: tuple[float, float], along: tuple[float, float]
) -> tuple[float, float]:
    """Return (x, z) on either side of the street, in view if a few tries find such a place."""
    x, z = 0.0, 0.0
    for _ in range(NUM_TRIES):
        side = dice.pick((-1, 1))
        if street.across:
            middle = camera.offset + dice.uniform(-0.4, 0.4) * street.centre / camera.focal
            x, z = street.place(side * dice.uniform(*lateral), middle)
            z = max(z, 4.5)
        else:
            x, z = street.place(side * dice.uniform(*lateral), dice.uniform(*along))
        if _in_view(camera, x, z):
            break
    return x, z


def _bicycles(dice: Dice, camera: Camera, street: Street) -> list[Thing]:
    """A bicycle, in a third of the cases with its rider."""
    things: list[Thing] = []
    for _ in range(1 + dice.chance(0.3)):
        lateral = (street.half_road - 1.2, street.walks[1][1])
        x, z = _position(dice, camera, street, lateral, (4.5, 8.0))
        facing = dice.pick(("left", "right"))
        frame = dice.jitter(dice.pick(PAINTS), 10, 10)
        size = dice.uniform(0.95, 1.1)
        things.append(Thing(BICYCLE, x, z, facing, size, frame, dice.jitter((30.0, 30.0, 32.0), 8, 3), dice.fraction()))
        if dice.chance(0.35):
            shirt = dice.jitter(dice.pick(CLOTHES), 16, 10)
            trousers = dice.jitter(dice.pick(CLOTHES), 16, 10)
            things.append(Thing(PERSON, x, z - 0.01, facing, size, shirt, trousers, 1.0 + dice.fraction()))
    return things


def _post(dice: Dice, camera: Camera, street: Street, class_id: int) -> Thing:
    """A sign or a light at the kerb."""
    edge = street.half_road
    x, z = _position(dice, camera, street, (edge + 0.2, edge + 0.8), (5.0, 9.5))
    post = dice.jitter((118.0, 120.0, 124.0), 26, 4)
    return Thing(class_id, x, z, "toward", dice.uniform(0.95, 1.25), post, post, dice.fraction())


def _person(dice: Dice, camera: Camera, street: Street) -> Thing:
    crossing = dice.chance(0.15)
    lateral = (0.0, street.half_road) if crossing else street.walks[dice.pick((-1, 1))]
    x, z = _position(dice, camera, street, lateral, (4.5, 11.5))
    shirt = dice.jitter(dice.pick(CLOTHES), 20, 14)
    trousers = dice.jitter(dice.pick(CLOTHES), 20, 10)
    facing = dice.pick(("left", "right"))
    return Thing(PERSON, x, z, facing, dice.uniform(0.85, 1.1), shirt, trousers, dice.fraction())


def _vehicles(dice: Dice, street: Street, camera: Camera, num_trucks: int, num_cars: int) -> list[Thing]:
    """Vehicles in two lanes and, on wide roads, along the kerbs; never one inside another."""
    half = street.half_road
    lanes = [-0.5 * half, 0.5 * half]
    if not street.across and half > 4.8 and dice.chance(0.6):
        lanes = [-0.34 * half, 0.34 * half, 1.05 - half, half - 1.05]
    if street.across:
        first = camera.offset - dice.uniform(1.0, 7.0)
        front = {lane: first + dice.uniform(-1.0, 5.0) for lane in lanes}
    else:
        front = {lane: dice.uniform(5.5, 12.0) for lane in lanes}
    kinds = [TRUCK] * num_trucks + [CAR] * num_cars
    things: list[Thing] = []
    while kinds:
        class_id = kinds.pop(int(dice.fraction() * len(kinds)))
        lane = dice.pick(lanes)
        if front[lane] > FARTHEST_VEHICLE:
            continue
        length = 7.5 if class_id == TRUCK else 4.4
        if class_id == TRUCK and not street.across:
            front[lane] = max(front[lane], 9.0)
        along = front[lane]
        front[lane] += length + dice.uniform(1.5, 6.0)
        x, z = street.place(lane, along + (length / 2 if street.across else 0.0))
        forward = lane > 0
        facing = ("right" if forward else "left") if street.across else ("away" if forward else "toward")
        paint = dice.jitter(dice.pick(PAINTS), 18, 8)
        if dice.chance(0.12):
            paint = (dice.uniform(20.0, 240.0), dice.uniform(20.0, 240.0), dice.uniform(20.0, 240.0))
        cab = dice.jitter(dice.pick(PAINTS), 18, 8)
        things.append(Thing(class_id, x, z, facing, dice.uniform(0.94, 1.06), paint, cab, dice.fraction()))
    return things
