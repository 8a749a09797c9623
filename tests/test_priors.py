"""Visual priors that need no weights, their blending, their options, and the stage that draws them for a batch."""

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import child_environment
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segdatagen.colours import encode
from segdatagen.datasets.scenes import Scene, make_scene
from segdatagen.errors import UsageError
from segdatagen.images import Image, Mask, decode_image, encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.outlines import encode_panoptic
from segdatagen.priors import PRIORS, SGA_BLEND, Prior, PriorOptions, blend, check_prior
from segdatagen.priors.sizes import Fit, draw_fitted
from segdatagen.stages.prior import PriorStage, PriorStageOptions
from segdatagen.stages.stage import Batch, objects

LABELS = load_label_set("scenes")
SCENE = make_scene(5, 97, 75)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def pixels_of(*shape: int) -> Image:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


# Blending


@given(st.tuples(SIZES, st.floats(0, 2), st.floats(0, 2)))
def test_blending_is_the_clipped_weighted_sum(given_: tuple[tuple[int, int], float, float]) -> None:
    size, w1, w2 = given_
    first, second = pixels_of(*size, 3), pixels_of(*size, 3)[::-1]
    expected = [
        min(max(round(w1 * int(a) + w2 * int(b)), 0), 255) for a, b in zip(first.flat, second.flat, strict=True)
    ]
    blended = blend(first, second, w1, w2)
    assert blended.dtype == np.uint8
    assert blended.ravel().tolist() == expected


def test_the_default_blend_is_the_best_of_the_paper() -> None:
    options = PriorOptions(name="canny")
    assert (options.w1, options.w2, options.of) == (*SGA_BLEND, "both") == (0.7, 0.9, "both")


def test_priors_of_two_shapes_are_not_blended() -> None:
    for other in (pixels_of(4, 5, 3), pixels_of(5, 4, 3).astype(np.float32)):
        with pytest.raises(ValueError, match="are uint8 of one shape"):
            blend(pixels_of(5, 4, 3), other, 1, 1)


# What is drawn


@pytest.mark.parametrize(("low", "high"), [(100, 200), (20, 60)])
def test_canny_is_that_of_opencv(low: float, high: float) -> None:
    prior = Prior(PriorOptions(name="canny", canny_low=low, canny_high=high), LABELS)
    drawn = prior.of_image(SCENE.image)
    assert drawn.shape == SCENE.image.shape
    edges = cv2.Canny(SCENE.image, low, high)
    assert 0 < edges.mean() < 255
    assert all(np.array_equal(drawn[:, :, channel], edges) for channel in range(3))
    assert np.array_equal(prior.of_mask(SCENE.mask)[:, :, 0], cv2.Canny(encode(SCENE.mask, LABELS), low, high))


def literal_boundaries(mask: Mask) -> np.ndarray:
    height, width = mask.shape
    found = np.zeros(mask.shape, bool)
    for row in range(height):
        for column in range(width):
            around = mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            found[row, column] = (around != mask[row, column]).any()
    return found


@pytest.mark.parametrize("scene", [SCENE, make_scene(8, 33, 64)])
def test_boundaries_are_those_of_classes(scene: Scene) -> None:
    drawn = Prior(PriorOptions(name="boundaries", of="mask"), LABELS).of_mask(scene.mask)
    assert np.array_equal(drawn == 255, np.repeat(literal_boundaries(scene.mask)[:, :, None], 3, axis=2))
    assert set(np.unique(drawn)) == {0, 255}


def test_the_colour_map_is_that_of_the_codec() -> None:
    drawn = Prior(PriorOptions(name="colour_map", of="mask"), LABELS).of_mask(SCENE.mask)
    assert np.array_equal(drawn, encode(SCENE.mask, LABELS))


def test_canny_of_a_mask_marks_boundaries_of_classes_and_nothing_else() -> None:
    scene = make_scene(5, 256, 192)
    edges = Prior(PriorOptions(name="canny"), LABELS).of_mask(scene.mask)[:, :, 0] > 0
    boundary = literal_boundaries(scene.mask)
    near = np.ones((5, 5), np.uint8)
    assert not (edges & ~cv2.dilate(boundary.astype(np.uint8), near).astype(bool)).any()
    assert (boundary & cv2.dilate(edges.astype(np.uint8), near).astype(bool)).sum() > 0.95 * boundary.sum()


# Sizes


@given(SIZES, st.integers(1, 16), st.booleans(), st.sampled_from([None, 32]))
def test_pictures_are_padded_and_never_stretched(
    size: tuple[int, int], multiple: int, square: bool, resolution: int | None
) -> None:
    picture = pixels_of(*size, 3)
    seen: list[Image] = []

    def first_channel(shown: Image) -> np.ndarray:
        seen.append(shown)
        return shown[:, :, 0]

    drawn = draw_fitted(picture, first_channel, Fit(multiple, resolution, square))
    assert drawn.shape == size
    (shown,) = seen
    sides = shown.shape[:2]
    assert all(side % multiple == 0 and side >= 2 * multiple for side in sides)
    assert sides[0] == sides[1] or not square
    if resolution is None:
        assert np.array_equal(drawn, picture[:, :, 0])
        rows, columns = (side - length for side, length in zip(sides, size, strict=True))
        assert np.array_equal(shown, np.pad(picture, [(0, rows), (0, columns), (0, 0)], mode="edge"))
    else:
        inside = [side * resolution / min(size) for side in size]
        assert all(abs(side - inner) < 2 * multiple or square for side, inner in zip(sides, inside, strict=True))
        assert max(sides) >= round(max(inside))


def test_a_shape_keeps_its_proportions_at_another_resolution() -> None:
    """A square is a square to the network, and comes back where it was."""
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[20:40, 30:50] = 255
    seen: list[Image] = []
    drawn = draw_fitted(picture, lambda shown: seen.append(shown) or shown[:, :, 0], Fit(16, 120))  # type: ignore[func-returns-value]
    white = seen[0][:, :, 0] > 127
    assert (white.any(axis=1).sum(), white.any(axis=0).sum()) == (40, 40)
    assert np.array_equal(drawn > 127, picture[:, :, 0] > 127)


# Options


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "lines"}, "there is no prior lines: those are canny, colour_map, boundaries, line_art, hed, sketch"),
        ({"name": "line_art"}, "needs weights: the public annotators' sk_model.pth, or a folder"),
        ({"name": "depth"}, "the prior depth needs weights: the folder of a depth model"),
        ({"name": "hed", "weights": "nothing/there.pth"}, "there are no weights at nothing/there.pth"),
        ({"name": "hed", "weights": "hf://a/b"}, "weights hf://a/b have no revision"),
        ({"name": "canny", "weights": "sk_model.pth"}, "weights does nothing to the prior canny of: both: leave it"),
        ({"name": "colour_map"}, "colour_map is drawn of masks alone: say of: mask, not of: both"),
        ({"name": "boundaries", "of": "image"}, "boundaries is drawn of masks alone: say of: mask, not of: image"),
        ({"name": "canny", "resolution": 512}, "resolution does nothing to the prior canny"),
        ({"name": "canny", "of": "image", "w1": 0.5}, "w1 does nothing to the prior canny of: image"),
        ({"name": "colour_map", "of": "mask", "canny_low": 1}, "canny_low does nothing to the prior colour_map"),
    ],
)
def test_wrong_options_are_refused_in_one_line(fields: dict[str, Any], problem: str) -> None:
    options = PriorOptions.model_validate(fields)
    with pytest.raises(UsageError) as refusal:
        check_prior(options)
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError):
        Prior(options, LABELS)


@pytest.mark.parametrize(
    "fields", [{"canny_low": 300}, {"w1": -1}, {"w2": float("nan")}, {"resolution": 5}, {"of": "photo"}, {"width": 3}]
)
def test_impossible_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PriorOptions.model_validate({"name": "canny", **fields})


def test_every_prior_without_weights_is_drawn_and_survives_json() -> None:
    drawn_without = {name for name, kind in PRIORS.items() if kind.check_weights is None}
    assert drawn_without == {"canny", "colour_map", "boundaries"}
    for name in drawn_without:
        options = PriorOptions(name=name, of="mask")
        check_prior(PriorOptions.model_validate_json(options.model_dump_json()))
        assert Prior(options, LABELS).of_mask(SCENE.mask).shape == SCENE.image.shape


def test_options_import_no_torch() -> None:
    code = "import sys, segdatagen.priors; assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment(), timeout=60)


# The stage


class CountedPrior(Prior):
    """Counts its drawings."""

    drawings = 0

    def of_image(self, image: Image) -> Image:
        self.drawings += 1
        return super().of_image(image)

    def of_mask(self, mask: Mask, segment_map: Mask | None = None) -> Image:
        self.drawings += 1
        return super().of_mask(mask, segment_map)


def stage_of(**options: Any) -> PriorStage:
    given_options = PriorOptions.model_validate({"name": "canny", **options})
    return PriorStage(PriorStageOptions(prior=given_options, label_set=LABELS))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Three sources in variants; the last has no image."""
    scenes = [make_scene(seed, 61, 47) for seed in range(3)]
    places = [0, 0, 1, 0, 2, 1]
    images: list[bytes | None] = [encode_image(scene.image, "png") for scene in scenes]
    images[2] = None
    return {
        "source_id": objects([f"scene-{place}" for place in places]),
        "source_image": objects([images[place] for place in places]),
        "mask": objects([encode_mask(scenes[place].mask) for place in places]),
    }


@pytest.mark.parametrize("of", ["image", "mask", "both"])
def test_rows_hold_the_prior_to_the_bit_whatever_stands_beside_them(of: str, batch: Batch) -> None:
    stage = stage_of(of=of, w1=0.6) if of == "both" else stage_of(of=of)
    found = stage(batch)
    assert set(found) == set(stage.writes)
    for row, source_id in enumerate(batch["source_id"]):
        alone = stage({name: column[row : row + 1] for name, column in batch.items()})
        assert alone["prior"][0] == found["prior"][row]
        assert alone["reason"][0] == found["reason"][row]
        scene = make_scene(int(source_id[-1]), 61, 47)
        if source_id == "scene-2" and of != "mask":
            assert found["prior"][row] is None
            assert found["reason"][row] == "source scene-2 has no image, and the prior canny is drawn of it"
            continue
        drawn = [cv2.Canny(picture, 100, 200) for picture in (scene.image, encode(scene.mask, LABELS))]
        expected = {"image": drawn[0], "mask": drawn[1]}.get(of)
        if expected is None:
            expected = np.clip(np.rint(0.6 * drawn[0] + 0.9 * drawn[1]), 0, 255)
        assert np.array_equal(decode_image(found["prior"][row]), np.repeat(expected[:, :, None], 3, axis=2))
        assert found["reason"][row] is None


def test_each_picture_is_drawn_once_in_a_batch(batch: Batch) -> None:
    stage = stage_of()
    counted = CountedPrior(PriorOptions(name="canny"), LABELS)
    stage._prior = counted
    stage(batch)
    assert counted.drawings == 4  # images and masks of two sources; the third has no image
    variants = {name: column[:2].copy() for name, column in batch.items()}
    variants["mask"][1] = encode_mask(make_scene(9, 61, 47).mask)
    counted.drawings = 0
    found = stage(variants)
    assert counted.drawings == 3  # one image, and the masks that its variants have of their own
    assert found["prior"][0] != found["prior"][1]


def test_segments_are_outlined_in_colour_maps_alone(batch: Batch) -> None:
    """One source with segments, one without: each row has its own picture, and Canny sees classes as it did."""
    rows = {name: column[[0, 2]] for name, column in batch.items()}
    rows["segment_map"] = objects([encode_mask(make_scene(0, 61, 47).segment_map), None])
    scenes = [make_scene(number, 61, 47) for number in range(2)]
    outlined = encode_panoptic(scenes[0].mask, scenes[0].segment_map, LABELS)
    plain = [encode(scene.mask, LABELS) for scene in scenes]
    assert not np.array_equal(outlined, plain[0])
    stage = stage_of(name="colour_map", of="mask")
    assert "segment_map" in stage.reads
    drawn = [decode_image(picture) for picture in stage(rows)["prior"]]
    assert np.array_equal(drawn[0], outlined)
    assert np.array_equal(drawn[1], plain[1])
    edges = stage_of(of="mask")
    assert "segment_map" not in edges.reads
    assert np.array_equal(decode_image(edges(rows)["prior"][0])[..., 0], cv2.Canny(plain[0], 100, 200))


def test_rows_that_cannot_be_drawn_say_why(batch: Batch) -> None:
    rows = {name: column[:2].copy() for name, column in batch.items()}
    rows["mask"][0] = None
    rows["mask"][1] = encode_mask(make_scene(0, 64, 47).mask)
    found = stage_of()(rows)
    assert found["prior"].tolist() == [None, None]
    assert found["reason"].tolist() == [
        "source scene-0 has no mask, and the prior canny is drawn of it",
        "the image has 61 x 47 pixels, its mask 64 x 47",
    ]
    assert stage_of(of="image")(rows)["reason"].tolist() == [None, None]
