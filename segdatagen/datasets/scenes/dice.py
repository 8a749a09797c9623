"""All chance of a scene's layout: uniform numbers from one PCG64 stream, drawn in blocks.

Blocks, because a scalar draw from a numpy Generator costs more than painting a small polygon. Knows nothing of scenes.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from segdatagen.datasets.scenes.layout import Colour

Option = TypeVar("Option")
BLOCK = 512


class Dice:
    """A stream of random choices that is fixed by its seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._values: list[float] = []

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        if not self._values:
            self._values = self._generator.random(BLOCK).tolist()
        return self._values.pop()

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.fraction()

    def chance(self, probability: float) -> bool:
        """Return True with the probability given."""
        return self.fraction() < probability

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + int(self.fraction() * (high - low + 1))

    def pick(self, options: Sequence[Option]) -> Option:
        """Return one of the options, all equally likely."""
        return options[int(self.fraction() * len(options))]

    def jitter(self, colour: Colour, shade: float, hue: float) -> Colour:
        """Return the colour with its brightness moved by up to `shade` and each channel by up to `hue` (0 ... 255)."""
        shift = self.uniform(-shade, shade)
        return (
            min(255.0, max(0.0, colour[0] + shift + self.uniform(-hue, hue))),
            min(255.0, max(0.0, colour[1] + shift + self.uniform(-hue, hue))),
            min(255.0, max(0.0, colour[2] + shift + self.uniform(-hue, hue))),
        )
