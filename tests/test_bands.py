"""Bands of masks against squares that are looked for one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.bands import dissolve_bands


def in_squares(mask: np.ndarray) -> np.ndarray:
    """Pixels that lie in a square of 3 x 3 pixels of one id, bool [H, W]; what touches the border goes on past it."""
    wider = np.pad(mask, 1, mode="edge")
    found = np.zeros(wider.shape, bool)
    for row, column in np.ndindex(mask.shape):
        square = wider[row : row + 3, column : column + 3]
        found[row : row + 3, column : column + 3] |= (square == square[0, 0]).all()
    return found[1:-1, 1:-1]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(3, 12), st.sampled_from([np.uint8, np.uint16]))
def test_bands_become_what_lies_nearest(seed: int, height: int, width: int, kind: type) -> None:
    chance = np.random.default_rng(seed)
    mask = np.zeros((height, width), kind)
    for id_ in (3, 9, 200 if kind is np.uint8 else 700, 1):
        top, left = chance.integers(0, height), chance.integers(0, width)
        mask[top : top + chance.integers(1, 6), left : left + chance.integers(1, 6)] = id_
    bands = ~in_squares(mask) & (mask != 1)
    found = dissolve_bands(mask, [1])
    assert found.dtype == mask.dtype
    if bands.all():
        np.testing.assert_array_equal(found, mask)
        return
    np.testing.assert_array_equal(found[~bands], mask[~bands])
    known = np.argwhere(~bands)
    for row, column in np.argwhere(bands):
        distances = np.hypot(*(known - (row, column)).T)
        near = {int(mask[tuple(place)]) for place in known[distances <= distances.min() + 0.5]}
        assert int(found[row, column]) in near, "the distance is that of a mask of 5 x 5, a little off"
