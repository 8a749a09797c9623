"""Pictures of what models with texts make: images beside their captions, and a table of scores.

Drawn with Pillow. Arrays in, uint8 H x W x 3 out; knows neither models nor label sets.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 128
TEXT_WIDTH = 520
LETTERS = 72
"""In a line of a caption."""
LINE = 16
CELL_WIDTH, CELL_HEIGHT = 76, 64
GAP = 4
INK, FAINT = (30, 30, 30), (110, 110, 110)


def captioned(images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """A row per image, uint8 H x W x 3 of any size: the image, and its texts one under the other, the first dark."""
    font = ImageFont.load_default(13)
    canvas = Image.new("RGB", (SIDE + TEXT_WIDTH + 3 * GAP, len(images) * (SIDE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (image, lines) in enumerate(zip(images, texts, strict=True)):
        top = GAP + row * (SIDE + GAP)
        canvas.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST), (GAP, top))
        down = top
        for place, text in enumerate(lines):
            for line in textwrap.wrap(text, LETTERS) or ["(nothing)"]:
                draw.text((SIDE + 2 * GAP, down), line, fill=FAINT if place else INK, font=font)
                down += LINE
            down += LINE // 2
    return np.asarray(canvas)


def score_table(
    images: Sequence[np.ndarray], names: Sequence[str], scores: np.ndarray, own: Sequence[int]
) -> np.ndarray:
    """A row per image and a column per name: scores `[N, C]` from 0 (white) to 1 (dark), that of the `own` framed."""
    font = ImageFont.load_default(11)
    size = (2 * GAP + CELL_HEIGHT + len(names) * CELL_WIDTH, 2 * LINE + len(images) * (CELL_HEIGHT + GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        left = 2 * GAP + CELL_HEIGHT + column * CELL_WIDTH
        draw.text((left + CELL_WIDTH / 2, LINE), name[:12], fill=INK, font=font, anchor="mm")
    for row, image in enumerate(images):
        top = 2 * LINE + row * (CELL_HEIGHT + GAP)
        canvas.paste(Image.fromarray(image).resize((CELL_HEIGHT, CELL_HEIGHT), Image.Resampling.NEAREST), (GAP, top))
        for column, score in enumerate(scores[row].tolist()):
            left = 2 * GAP + CELL_HEIGHT + column * CELL_WIDTH
            shade = int(255 - 160 * min(max(score, 0.0), 1.0))
            box = (left + 1, top, left + CELL_WIDTH - 2, top + CELL_HEIGHT - 1)
            draw.rectangle(box, fill=(shade, shade, 255), outline=INK if column == own[row] else None, width=2)
            middle = (left + CELL_WIDTH / 2, top + CELL_HEIGHT / 2)
            draw.text(middle, f"{score:.2f}", fill=INK, font=font, anchor="mm")
    return np.asarray(canvas)
