"""Class balance as inline SVG: how many images show each class, and what share of all that is, before and after.

Places are in per cent of the width and letters in pixels, so that a chart is as readable on a telephone. Colours are
classes of the style sheet. It knows counts and names, and does not know runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

ROW_HEIGHT = 36
"""Pixels: a line of text above a bar."""
TEXT_BASE, BAR_TOP, BAR_HEIGHT = 14, 20, 8
MAX_ROWS = 40
"""Classes above each other; more make another column."""


@dataclass(frozen=True)
class ClassBalance:
    """One class: images that show it before (real ones) and after (accepted samples too), and the goal, 0 for none."""

    name: str
    colour: str  # as CSS takes it
    before: int
    after: int
    wanted: int
    link: str


def columns_of(classes: Sequence[ClassBalance]) -> list[Sequence[ClassBalance]]:
    """Classes in columns of nearly equal length, none longer than MAX_ROWS."""
    count = -(-len(classes) // MAX_ROWS)
    bounds = [round(len(classes) * number / count) for number in range(count + 1)] if count else []
    return [classes[start:end] for start, end in pairwise(bounds)]


def count_chart(classes: Sequence[ClassBalance], largest: int) -> Markup:
    """Bars of images per class: real ones, accepted samples after them, and a tick for the goal.

    `largest` is the count that fills the width, the same in all columns.
    """
    rows = []
    for number, one in enumerate(classes):
        before, after = _percent(one.before, largest), _percent(one.after, largest)
        goal = f", {one.wanted} wanted" if one.wanted else ""
        spoken = f"{one.name}: {one.before} real images, {one.after - one.before} accepted samples{goal}"
        bar = _TRACK + _rect("before", 0, before) + _rect("added", before, after - before)
        if one.wanted:
            bar += _GOAL.format(x=_percent(one.wanted, largest), top=BAR_TOP - 2, bottom=BAR_TOP + BAR_HEIGHT + 2)
        rows.append(_row(number, one, spoken, f"{one.before} → {one.after}", bar))
    return _chart(rows, "Images that show each class")


def share_chart(classes: Sequence[ClassBalance], before: int, after: int, largest: float) -> Markup:
    """Dots of each class's share of all class counts, hollow before and full after; `largest` fills the width.

    `before` and `after` are the sums over all classes.
    """
    rows = []
    middle = BAR_TOP + BAR_HEIGHT // 2
    for number, one in enumerate(classes):
        shares = one.before / max(1, before), one.after / max(1, after)
        places = [_percent(share, largest) for share in shares]
        spoken = f"{one.name}: {shares[0]:.1%} before, {shares[1]:.1%} after"
        bar = _AXIS.format(y=middle) + _MOVE.format(x1=places[0], x2=places[1], y=middle)
        bar += _DOT.format(kind="before", x=places[0], y=middle) + _DOT.format(kind="after", x=places[1], y=middle)
        rows.append(_row(number, one, spoken, f"{shares[0]:.1%} → {shares[1]:.1%}", bar))
    return _chart(rows, "Share of each class")


_TRACK = Markup(f'<rect class="track" x="0" y="{BAR_TOP}" width="100%" height="{BAR_HEIGHT}" rx="2"/>')
_GOAL = Markup('<line class="goal" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{bottom}"/>')
_AXIS = Markup('<line class="axis" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
_MOVE = Markup('<line class="move" x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y}" y2="{y}"/>')
_DOT = Markup('<circle class="{kind}" cx="{x:.2f}%" cy="{y}" r="4.5"/>')


def _percent(value: float, largest: float) -> float:
    return 100 * value / largest if largest else 0.0


def _rect(kind: str, x: float, width: float) -> Markup:
    shape = Markup('<rect class="{kind}" x="{x:.2f}%" y="{y}" width="{width:.2f}%" height="{height}"/>')
    return shape.format(kind=kind, x=x, y=BAR_TOP, width=width, height=BAR_HEIGHT)


def _row(number: int, one: ClassBalance, spoken: str, figures: str, bar: Markup) -> Markup:
    row = Markup(
        '<svg y="{y}" height="{height}" overflow="visible"><a href="{link}" aria-label="{spoken}">'
        '<title>{spoken}</title><rect class="hit" width="100%" height="{height}"/>'
        '<rect class="swatch" x="0" y="3" width="12" height="12" rx="3" fill="{colour}"/>'
        '<svg width="64%" height="{height}"><text x="19" y="{base}">{name}</text></svg>'
        '<text class="figures" x="100%" y="{base}">{figures}</text>{bar}</a></svg>'
    )
    place = {"y": number * ROW_HEIGHT, "height": ROW_HEIGHT, "base": TEXT_BASE}
    words = {"link": one.link, "spoken": spoken, "colour": one.colour, "name": one.name, "figures": figures}
    return row.format(**place, **words, bar=bar)


def _chart(rows: Sequence[Markup], title: str) -> Markup:
    chart = Markup('<svg class="chart" role="group" aria-label="{title}" width="100%" height="{height}">{rows}</svg>')
    return chart.format(title=title, height=len(rows) * ROW_HEIGHT, rows=Markup("").join(rows))
