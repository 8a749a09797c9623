"""Pictures of a training: the loss curve, and grids of masks beside what was made of them.

Drawn with Pillow, since a plotting library would be a dependency for one chart. Arrays in, uint8 H x W x 3 out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdatagen.colours import ignore_colour_of
from segdatagen.labels import LabelSet

WIDTH, HEIGHT = 900, 480
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 20, 60
SMOOTHING = 0.98
FAINT, STRONG, GRID, INK = (190, 205, 230), (30, 80, 170), (228, 228, 228), (40, 40, 40)
OTHER = (200, 90, 20)
GAP = 4
ENLARGED_SIDE = 128
"""Pixels that a small picture is enlarged to, by whole factors, so that a grid can be looked at."""


def spread_rows(available: int, most: int) -> np.ndarray:
    """Places int64 of at most `most` of the available rows, evenly from the first to the last."""
    return np.linspace(0, available - 1, min(most, available)).round().astype(np.int64)


def loss_curve(
    steps: Sequence[int], losses: Sequence[float], validation: Mapping[int, float] | None = None
) -> np.ndarray:
    """Loss over steps on a logarithmic axis: the values faint, their exponential average (0.98) strong.

    `validation`: losses on other sources by step, dots.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    values = np.maximum(np.asarray(losses, dtype=np.float64), 1e-12)
    smooth = smoothed(values)
    low, high = _range(values)
    last = max(int(steps[-1]), 1)

    def place(step: float, loss: float) -> tuple[float, float]:
        across = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        up = (np.log(loss) - np.log(low)) / (np.log(high) - np.log(low))
        return across, HEIGHT - BOTTOM - float(np.clip(up, 0, 1)) * (HEIGHT - TOP - BOTTOM)

    for step in np.linspace(0, last, 6):
        across, _ = place(step, low)
        draw.line([(across, TOP), (across, HEIGHT - BOTTOM)], fill=GRID)
        draw.text((across, HEIGHT - BOTTOM + 8), f"{step:,.0f}", fill=INK, font=font, anchor="ma")
    for loss in np.geomspace(low, high, 6):
        _, down = place(0, loss)
        draw.line([(LEFT, down), (WIDTH - RIGHT, down)], fill=GRID)
        draw.text((LEFT - 8, down), f"{loss:.3g}", fill=INK, font=font, anchor="rm")
    thinned = range(0, len(values), max(1, len(values) // (2 * WIDTH)))
    draw.line([place(steps[i], values[i]) for i in thinned], fill=FAINT)
    draw.line([place(steps[i], smooth[i]) for i in thinned], fill=STRONG, width=2)
    for step, loss in (validation or {}).items():
        across, up = place(step, max(loss, 1e-12))
        draw.ellipse((across - 4, up - 4, across + 4, up + 4), fill=OTHER)
    if validation:
        draw.text((LEFT + 6, TOP + 22), "validation loss", fill=OTHER, font=font)
    draw.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 14), "step", fill=INK, font=font, anchor="mm")
    draw.text((LEFT + 6, TOP + 4), "training loss (log scale)", fill=INK, font=font)
    return np.asarray(picture)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential average of a series, without the bias of its start."""
    total, weight = 0.0, 0.0
    result = np.empty(len(values))
    for i, value in enumerate(values):
        total = SMOOTHING * total + (1 - SMOOTHING) * float(value)
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result[i] = total / weight
    return result


def colour_masks(channels: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Channels `[..., H, W]` as RGB uint8 `[..., H, W, 3]`; below 0 in the colour of ignored pixels."""
    return palette_of(label_set)[np.where(channels < 0, label_set.num_classes, channels)]


def palette_of(label_set: LabelSet) -> np.ndarray:
    """Colours uint8 `[C + 1, 3]` of the channels, and last that of ignored pixels."""
    return np.vstack([label_set.colours, [ignore_colour_of(label_set)]]).astype(np.uint8)


def grid(cells: Sequence[Sequence[np.ndarray]], magnify: int = 1) -> np.ndarray:
    """Images of one size in rows and columns, with white gaps, enlarged by whole pixels."""
    height, width = (side * magnify for side in cells[0][0].shape[:2])
    columns = max(len(row) for row in cells)
    canvas = np.full((len(cells) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, dtype=np.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            canvas[top : top + height, left : left + width] = cell.repeat(magnify, axis=0).repeat(magnify, axis=1)
    return canvas


def _range(values: np.ndarray) -> tuple[float, float]:
    """Limits of the axis: all but the highest 1 % of the values, and never an empty span."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    return low * 0.95, max(high, low * 1.01) * 1.05
