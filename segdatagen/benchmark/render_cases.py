"""What `bench render` draws: sizes of networks, what controls them, how many variants share a picture.

Imports no torch. It does not know how anything is drawn.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Size = Literal["tiny", "sdxl"]
Control = Literal["controlnet", "t2i_adapter"]
NUMERICS = ("channels_last", "compile", "fuse_qkv")
"""Fields of `Numerics` that the engine may be timed with; the plain loop stays as its user would write it."""
OPTIONS = ("step_cache", "float8")
"""Ways to draw other images in another time: a step cache of every third step, and float8 weights."""


@dataclass(frozen=True)
class Case:
    """What is drawn: `variants` images of each of `sources`, each source with a picture of its own to draw after."""

    control: Control
    sources: int
    variants: int


def cases(num_images: int = 16) -> list[Case]:
    """Each control, with as many sources as images, and with a quarter of them."""
    return [Case(control, num_images // n, n) for control in get_args(Control) for n in (1, 4)]
