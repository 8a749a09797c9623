"""Pictures as SVG text: boxes, lines and words in named kinds, which a style gives colours for light and dark.

It escapes what it is given, and keeps many boxes of one kind in one path, so that a picture stays small. It does not
know what a picture shows.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal
from xml.sax.saxutils import escape

Anchor = Literal["start", "middle"]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels; y grows downwards."""

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Svg:
    """A picture of `width` x `height` pixels. `style` is CSS; the class of an element is its kind."""

    def __init__(self, width: float, height: float, title: str, style: str) -> None:
        self._size = f"{_number(width)} {_number(height)}"
        self._width, self._height = width, height
        self._title = title
        self._style = style
        self._elements: list[str] = []

    def boxes(self, kind: str, boxes: Iterable[Box]) -> None:
        """Filled rectangles; those without an area are left out."""
        path = "".join(
            f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h-{_number(width)}z"
            for x, y, width, height in boxes
            if width > 0 and height > 0
        )
        if path:
            self._elements.append(f'<path class="{kind}" d="{path}"/>')

    def words(self, kind: str, x: float, y: float, text: str, anchor: Anchor = "start") -> None:
        """One line of text whose base line starts or has its middle at (x, y)."""
        where = f'x="{_number(x)}" y="{_number(y)}"'
        aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._elements.append(f'<text class="{kind}" {where}{aligned}>{escaped(text)}</text>')

    def render(self) -> str:
        """The whole document, on a background of the kind `ground`."""
        size = f'width="{_number(self._width)}" height="{_number(self._height)}" viewBox="0 0 {self._size}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        ground = '<rect class="ground" width="100%" height="100%"/>'
        title = f"<title>{escaped(self._title)}</title>"
        return "\n".join([head, title, f"<style>{self._style}</style>", ground, *self._elements, "</svg>\n"])


def escaped(text: str) -> str:
    """Text as it may stand in XML; what may not is shown as U+FFFD."""
    return escape(_NO_XML.sub("\ufffd", text))


def shortened(text: str, columns: int) -> str:
    """Text of so many columns at most, with an ellipsis where it was cut; wide characters take two."""
    used = 0
    for place, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return text[: max(0, place - 1)].rstrip() + "\u2026"
    return text


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
