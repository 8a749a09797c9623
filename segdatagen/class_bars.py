"""A picture of class counts: for every class a bar of real, accepted and planned images, before and after.

Rounds and reports draw it from numbers; it knows neither plans nor runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segdatagen.svg import Svg, shortened

ROW, BAR = 18, 12
"""Height of a line and of its bar, pixels."""
LEFT, MIDDLE, RIGHT = 190, 480, 150
"""Width of names, bars and numbers, pixels."""
TOP, BOTTOM = 76, 28
NAME_COLUMNS = 27
MIN_BAR = 0.7
"""Pixels of a part that is not 0, so that a rare class can be seen beside a frequent one."""
STYLE = """text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}\
.name{text-anchor:end}.small{font-size:11px;fill:#59636e}.ground{fill:#fff}.grid{fill:#d8dee4}.real{fill:#8c959f}.accepted{fill:#0072b2}.planned{fill:#e69f00}\
.wanted{fill:#1f2328}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.ground{fill:#0d1117}\
.grid{fill:#30363d}.real{fill:#7d8590}.accepted{fill:#56b4e9}.wanted{fill:#e6edf3}}"""
"""Blue, orange and grey are told apart without red and green (Okabe and Ito)."""


@dataclass(frozen=True)
class ClassBar:
    """Images that show one class, by where they come from; `wanted` is 0 where no number was asked for."""

    name: str
    real: int
    accepted: int
    planned: int
    wanted: int = 0

    @property
    def parts(self) -> tuple[int, int, int]:
        """Real, accepted, planned."""
        return self.real, self.accepted, self.planned


def class_bars(bars: Sequence[ClassBar], title: str, subtitle: str) -> str:
    """The picture as SVG text, most frequent classes first; 150 classes take less than 50 kB."""
    ordered = sorted(bars, key=lambda bar: -bar.real)
    height = TOP + ROW * len(ordered) + BOTTOM
    picture = Svg(LEFT + MIDDLE + RIGHT, height, title, STYLE)
    picture.words("title", 12, 24, title)
    picture.words("small", 12, 42, subtitle)
    _draw_legend(picture)
    step = tick_step(max([sum(bar.parts) for bar in ordered] + [bar.wanted for bar in ordered] + [1]))
    most = step * math.ceil(max([max(sum(bar.parts), bar.wanted) for bar in ordered] + [1]) / step)
    scale = MIDDLE / most
    for tick in range(0, most + 1, step):
        x = LEFT + tick * scale
        picture.boxes("grid", [(x, TOP - 6, 1, height - TOP - BOTTOM + 6)])
        picture.words("small", x, height - 10, f"{tick:,}", "middle")
    for kind, place in (("real", 0), ("accepted", 1), ("planned", 2)):
        picture.boxes(kind, [box for row, bar in enumerate(ordered) if (box := _box(bar, place, row, scale))])
    wanted = [(LEFT + bar.wanted * scale - 1, _y(row) - 2, 2, BAR + 4) for row, bar in enumerate(ordered) if bar.wanted]
    picture.boxes("wanted", wanted)
    for row, bar in enumerate(ordered):
        picture.words("name", LEFT - 8, _y(row) + BAR - 2, shortened(bar.name, NAME_COLUMNS))
        before, after = bar.real + bar.accepted, sum(bar.parts)
        numbers = f"{before:,}" if before == after else f"{before:,} \u2192 {after:,}"
        picture.words("small", LEFT + MIDDLE + 10, _y(row) + BAR - 2, numbers)
    return picture.render()


def _draw_legend(picture: Svg) -> None:
    x = LEFT
    for kind, word in (("real", "real"), ("accepted", "accepted"), ("planned", "planned"), ("wanted", "wanted")):
        width = 2 if kind == "wanted" else BAR
        picture.boxes(kind, [(x, 52, width, BAR)])
        picture.words("small", x + width + 5, 62, word)
        x += 90
    picture.words("small", LEFT + MIDDLE + 10, 62, "before \u2192 after")


def _y(row: int) -> int:
    return TOP + ROW * row + (ROW - BAR) // 2


def _box(bar: ClassBar, place: int, row: int, scale: float) -> tuple[float, float, float, float] | None:
    if not bar.parts[place]:
        return None
    start = LEFT + sum(bar.parts[:place]) * scale
    return start, _y(row), max(MIN_BAR, bar.parts[place] * scale), BAR


def tick_step(most: int) -> int:
    """The least round number (1, 2 or 5 times a power of ten) of which 6 reach this far."""
    power = 10 ** max(0, math.floor(math.log10(max(1, most))) - 1)
    return int(next(step * power for step in (1, 2, 5, 10, 20) if most <= 6 * step * power))
