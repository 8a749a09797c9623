"""Tables of noise, made once per process from fixed seeds and cropped ever after.

Knows nothing of scenes: a crop is chosen by an offset, and wraps around at the edges of its table.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

SIDE = 512
NUM_CHANCES = 8192
LONGEST_RUN = 512
OVERLAP = 256
"""Rows and columns of a table that stand once more at its end, so that most crops are a view."""

Field = npt.NDArray[np.float32]


@cache
def chances() -> npt.NDArray[np.float64]:
    """Return a line of uniform numbers in [0, 1); its first `LONGEST_RUN` stand once more at the end."""
    line = np.random.Generator(np.random.PCG64(1)).random(NUM_CHANCES)
    return np.concatenate([line, line[:LONGEST_RUN]])


def run_of_chances(offset: int, length: int) -> npt.NDArray[np.float64]:
    """Return `length` uniform numbers (at most `LONGEST_RUN`) that an offset selects."""
    start = offset % NUM_CHANCES
    return chances()[start : start + length]


def _spectral(seed: int, slope: float, stretch: float) -> Field:
    """Noise with amplitude ~ frequency ** -slope, periodic, of mean 0 and deviation 1."""
    white = np.random.Generator(np.random.PCG64(seed)).standard_normal((SIDE, SIDE))
    rows = np.fft.fftfreq(SIDE)[:, None]
    columns = np.fft.rfftfreq(SIDE)[None, :] * stretch
    frequency = np.maximum(np.hypot(rows, columns), 2.0 / SIDE)
    field = np.fft.irfft2(np.fft.rfft2(white) * frequency**-slope, (SIDE, SIDE))
    field -= field.mean()
    return _overlapping((field / field.std()).astype(np.float32))


def _overlapping(field: Field) -> Field:
    """Append the first `OVERLAP` rows and columns to a table of side `SIDE`."""
    rows = np.concatenate([field, field[:OVERLAP]], axis=0)
    return np.concatenate([rows, rows[:, :OVERLAP]], axis=1)


@cache
def texture_field() -> Field:
    """Return surface texture: rough at every scale."""
    return _spectral(2, 0.75, 1.0)


@cache
def cloud_field() -> Field:
    """Return cloud shapes: smooth, and wider than high."""
    return _spectral(3, 1.7, 2.5)


@cache
def grain_field() -> Field:
    """Return sensor noise of three channels, half of it shared among them."""
    generator = np.random.Generator(np.random.PCG64(4))
    shared = generator.standard_normal((SIDE, SIDE, 1))
    return _overlapping(((shared + generator.standard_normal((SIDE, SIDE, 3))) / np.sqrt(2.0)).astype(np.float32))


def crop(field: Field, offset: int, height: int, width: int) -> Field:
    """Return height x width of a field from the place that an offset selects, wrapping around."""
    top, left = (offset // SIDE) % SIDE, offset % SIDE
    if top + height <= SIDE + OVERLAP and left + width <= SIDE + OVERLAP:
        return field[top : top + height, left : left + width]
    rows = np.arange(top, top + height) % SIDE
    columns = np.arange(left, left + width) % SIDE
    return field[rows[:, None], columns[None, :]]
