"""Crop, pad and resize: which source pixel each mask pixel is, and that image and mask stay on top of each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from segdatagen.geometry import Geometry

IGNORE = 255
FITS = ("crop", "pad", "resize")
SIDES = st.sampled_from([8, 16, 24, 40, 64])


@given(st.sampled_from(FITS), SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), st.booleans())
@settings(max_examples=200)
def test_each_mask_pixel_is_the_source_pixel_under_its_centre(
    fit: str, width: int, height: int, source_width: int, source_height: int, wide: bool
) -> None:
    geometry = Geometry(size=(width, height), fit=fit)
    rows, columns = np.mgrid[:source_height, :source_width].astype(np.uint16 if wide else np.uint8)
    from_rows, from_columns = geometry.apply_mask(rows, IGNORE), geometry.apply_mask(columns, IGNORE)
    ratios = width / source_width, height / source_height
    for source, target, found in ((source_height, height, from_rows.T), (source_width, width, from_columns)):
        window = max(1, min(source, round(target / max(ratios)))) if fit == "crop" else source
        scaled = max(1, round(source * min(ratios))) if fit == "pad" else target
        centres = (np.arange(target) + 0.5 - (target - scaled) // 2) / scaled * window + (source - window) // 2
        inside = (centres >= 0) & (centres <= source)
        line = found[(found != IGNORE).any(axis=1)][0]
        assert np.array_equal(line != IGNORE, inside)
        assert np.abs(line[inside] + 0.5 - centres[inside]).max() <= 0.51  # A hundredth for ties between two pixels.
    mask = np.random.default_rng(source_width).integers(0, 250, (source_height, source_width)).astype(rows.dtype)
    transformed = geometry.apply_mask(mask, IGNORE)
    inside = from_rows != IGNORE
    assert transformed.dtype == rows.dtype
    assert np.array_equal(transformed[inside], mask[from_rows[inside], from_columns[inside]])
    assert (transformed[~inside] == IGNORE).all()
    assert fit == "pad" or inside.all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(40, 64), (120, 90), (16, 100)])
def test_no_id_appears_that_was_not_there(fit: str, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(2).choice([3, 200], shape).astype(np.uint8)
    transformed = Geometry(size=(48, 32), fit=fit).apply_mask(mask, IGNORE)
    assert set(np.unique(transformed).tolist()) <= ({3, 200, IGNORE} if fit == "pad" else {3, 200})


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(40, 64), (120, 90), (16, 100), (200, 31)])
def test_image_and_mask_stay_on_top_of_each_other(fit: str, shape: tuple[int, int]) -> None:
    """A picture of a coarse chequerboard keeps its colours over the mask, but for the pixels along the edges."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = ((rows * 4 // shape[0] + columns * 4 // shape[1]) % 2).astype(np.uint8)
    image = np.repeat(mask[..., None] * 200, 3, axis=2).astype(np.uint8)
    geometry = Geometry(size=(96, 64), fit=fit)
    transformed = geometry.apply_mask(mask, IGNORE)
    picture = geometry.apply_image(image)
    assert (picture.shape, picture.dtype) == ((64, 96, 3), np.uint8)
    inside = transformed != IGNORE
    agreement = (picture[inside][:, 0] > 100) == (transformed[inside] == 1)
    assert agreement.mean() > 0.9
    assert not picture[~inside].any()


@pytest.mark.parametrize("fit", FITS)
def test_a_source_of_the_size_is_untouched(fit: str) -> None:
    mask = np.random.default_rng(3).integers(0, 12, (64, 48), dtype=np.uint8)
    image = np.random.default_rng(3).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    geometry = Geometry(size=(48, 64), fit=fit)
    assert geometry.keeps(64, 48)
    assert not geometry.keeps(48, 64)
    assert np.array_equal(geometry.apply_mask(mask, IGNORE), mask)
    assert np.array_equal(geometry.apply_image(image), image)


def test_a_smaller_image_is_the_mean_of_what_it_covers() -> None:
    image = np.random.default_rng(4).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    means = image.reshape(16, 4, 24, 4, 3).mean(axis=(1, 3))
    shrunk = Geometry(size=(24, 16), fit="resize").apply_image(image)
    assert np.abs(shrunk - means).max() <= 0.51


def test_pad_fills_both_ends_alike() -> None:
    padded = Geometry(size=(64, 64), fit="pad").apply_mask(np.ones((32, 64), np.uint8), 255)
    assert (padded[:16] == 255).all()
    assert (padded[16:48] == 1).all()
    assert (padded[48:] == 255).all()


def test_crop_cuts_both_ends_alike() -> None:
    mask = np.repeat(np.arange(128, dtype=np.uint8)[None], 64, axis=0)
    assert Geometry(size=(64, 64), fit="crop").apply_mask(mask, 255)[0].tolist() == list(range(32, 96))


@pytest.mark.parametrize("size", [(0, 8), (-8, 8), (12, 8), (8, 100), (8.5, 8), (8,)])
def test_sizes_that_no_network_can_make_are_refused(size: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError):
        Geometry(size=size)


def test_an_unknown_fit_or_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        Geometry(size=(8, 8), fit="stretch")
    with pytest.raises(ValidationError):
        Geometry(size=(8, 8), mode="pad")
