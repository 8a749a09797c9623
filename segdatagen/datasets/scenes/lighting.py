"""Draws how a scene is lit: by day, at dusk or at night, under a clear or an overcast sky.

Knows neither geometry nor pixels; `finish` turns what it draws into sensor noise, blur and glow.
"""

from segdatagen.datasets.scenes.dice import Dice
from segdatagen.datasets.scenes.layout import Colour, Light

DAY_SHARE = 0.6
DUSK_SHARE = 0.2
NUM_GRAINS = 1 << 20


def draw_light(dice: Dice) -> Light:
    """Return the light of one scene."""
    share = dice.fraction()
    if share < DAY_SHARE:
        return _day(dice)
    if share < DAY_SHARE + DUSK_SHARE:
        return _dusk(dice)
    return _night(dice)


def _day(dice: Dice) -> Light:
    overcast = dice.chance(0.3)
    level = dice.uniform(0.72, 0.92) if overcast else dice.uniform(0.88, 1.12)
    warmth = dice.uniform(-0.06, 0.08)
    top: Colour = (182.0, 190.0, 202.0) if overcast else (92.0, 148.0, 222.0)
    haze: Colour = (206.0, 210.0, 214.0) if overcast else (196.0, 216.0, 236.0)
    return Light(
        time="day",
        ambient=(level * (1 + warmth), level, level * (1 - warmth)),
        haze=dice.jitter(haze, 14, 6),
        haze_rate=dice.uniform(0.002, 0.02 if overcast else 0.011),
        sky_top=dice.jitter(top, 26, 10),
        clouds=dice.uniform(0.0, 0.9),
        cloud_colour=(244.0, 245.0, 248.0),
        slope=(dice.uniform(-0.3, 0.3), dice.uniform(-0.15, 0.15)),
        noise=dice.uniform(2.0, 6.0),
        blur=dice.uniform(0.0, 0.6),
        texture=dice.uniform(0.6, 1.4),
        grain=dice.whole(0, NUM_GRAINS),
    )


def _dusk(dice: Dice) -> Light:
    level = dice.uniform(0.52, 0.78)
    glow: Colour = dice.pick(((244.0, 168.0, 116.0), (232.0, 142.0, 128.0), (240.0, 190.0, 140.0)))
    return Light(
        time="dusk",
        ambient=(level * 1.08, level * 0.88, level * 0.86),
        haze=dice.jitter(glow, 14, 8),
        haze_rate=dice.uniform(0.003, 0.014),
        sky_top=dice.jitter((84.0, 82.0, 132.0), 22, 10),
        clouds=dice.uniform(0.0, 0.8),
        cloud_colour=(226.0, 150.0, 140.0),
        slope=(dice.uniform(-0.4, 0.4), dice.uniform(-0.2, 0.2)),
        noise=dice.uniform(4.0, 8.0),
        blur=dice.uniform(0.0, 0.7),
        texture=dice.uniform(0.6, 1.4),
        grain=dice.whole(0, NUM_GRAINS),
    )


def _night(dice: Dice) -> Light:
    level = dice.uniform(0.33, 0.5)
    return Light(
        time="night",
        ambient=(level * 0.96, level * 0.96, level * 1.12),
        haze=dice.jitter((58.0, 56.0, 80.0), 18, 6),
        haze_rate=dice.uniform(0.003, 0.014),
        sky_top=dice.jitter((16.0, 20.0, 46.0), 10, 4),
        clouds=dice.uniform(0.0, 0.4),
        cloud_colour=(66.0, 62.0, 82.0),
        slope=(dice.uniform(-0.4, 0.4), dice.uniform(-0.3, 0.3)),
        noise=dice.uniform(4.0, 9.0),
        blur=dice.uniform(0.0, 0.7),
        texture=dice.uniform(0.6, 1.4),
        grain=dice.whole(0, NUM_GRAINS),
    )
