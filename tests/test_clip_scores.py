"""CLIP scores: regions against brute force, scores against transformers' own arithmetic, and what they tell apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import COLOURS, colour_labels, make_clip, teach_clip
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from segdatagen.clip_scores import ClipOptions, ClipScorer
from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.regions import MARGIN, regions_of
from segdatagen.stages.clip_rank import ClipRankStage
from segdatagen.stages.stage import Batch, objects

LABELS = colour_labels()
RED, GREEN, BLUE, GROUND = 5, 4, 3, 9


def regions_by_hand(channels: np.ndarray, channel: int) -> list[set[tuple[int, int]]]:
    """Connected pixels, corners included, found pixel by pixel in reading order."""
    left = {(int(y), int(x)) for y, x in np.argwhere(channels == channel)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        reached, todo = {start}, [start]
        while todo:
            y, x = todo.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            todo += near - reached
            reached |= near
        left -= reached
        found.append(reached)
    return found


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 4))
def test_regions_are_the_largest_connected_pixels_of_a_class(seed: int, min_pixels: int, most: int) -> None:
    channels = np.random.default_rng(seed).integers(-1, 2, (9, 13)).astype(np.int16)
    by_hand = sorted((r for r in regions_by_hand(channels, 1) if len(r) >= min_pixels), key=lambda r: -len(r))
    found = regions_of(channels, 1, min_pixels, most)
    assert [region.area for region in found] == [len(pixels) for pixels in by_hand[:most]]
    boxes = [
        {(min(y for y, _ in r), min(x for _, x in r), max(y for y, _ in r), max(x for _, x in r))} for r in by_hand
    ]
    for region in found:
        inside = [
            box
            for (box,) in boxes
            if region.rows.start <= box[0] and box[2] < region.rows.stop
            if region.columns.start <= box[1] and box[3] < region.columns.stop
        ]
        assert inside, "the window shows the whole region"


def test_a_window_is_a_square_with_a_margin_within_the_image() -> None:
    channels = np.zeros((60, 100), np.int16)
    channels[20:40, 30:35] = 1
    channels[0:10, 90:100] = 2
    channels[50:60, :] = 3
    (tall,), (corner,), (wide,) = (regions_of(channels, channel, 1, 9) for channel in (1, 2, 3))
    side = 20 + 2 * round(MARGIN * 20)
    assert (tall.rows, tall.columns) == (slice(18, 42), slice(21, 45))
    assert tall.rows.stop - tall.rows.start == side
    assert (corner.rows, corner.columns) == (slice(0, 12), slice(88, 100)), "moved to lie within the image"
    assert (wide.rows, wide.columns) == (slice(0, 60), slice(0, 100)), "all of it where it is too large"
    image = np.arange(60 * 100 * 3).reshape(60, 100, 3)
    assert np.array_equal(tall.crop(image), image[18:42, 21:45]), "with the pixels of other classes"


def square(colour: tuple[int, int, int], side: int, chance: np.random.Generator) -> np.ndarray:
    """A noisy square of a colour on grey."""
    edge = side // 8
    picture = np.full((side, side, 3), 128.0)
    picture[edge : side - edge, edge : side - edge] = colour
    return np.clip(picture + chance.normal(0, 25, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that knows the three squares."""
    chance = np.random.default_rng(0)
    ids = [(RED, GREEN, BLUE)[number % 3] for number in range(96)]
    colours = [list(COLOURS.values())[number % 3] for number in range(96)]
    crops = [square(colour, int(chance.integers(16, 48)), chance) for colour in colours]
    return teach_clip(tmp_path_factory.mktemp("clip") / "taught", LABELS, crops, ids)


def scene(shown: list[tuple[int, tuple[int, int, int]]], size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask of up to four squares: the class that the mask says, and the colour that was painted."""
    chance = np.random.default_rng(1)
    image, mask = np.full((size, size, 3), 128, np.uint8), np.full((size, size), GROUND, np.uint8)
    for number, (class_id, colour) in enumerate(shown):
        top, left = 4 + 32 * (number // 2), 4 + 32 * (number % 2)
        image[top : top + 24, left : left + 24] = square(colour, 24, chance)
        mask[top + 3 : top + 21, left + 3 : left + 21] = class_id
    return image, mask


def options(folder: Path, **more: Any) -> ClipOptions:
    return ClipOptions(weights=str(folder), **more)


def test_what_looks_like_its_class_scores_higher(taught: Path) -> None:
    red, blue = COLOURS["red"], COLOURS["blue"]
    for measure in ("similarity", "probability"):
        scorer = ClipScorer(options(taught, measure=measure), LABELS)
        good = scorer.scores(*scene([(RED, red), (BLUE, blue)]))
        swapped = scorer.scores(*scene([(RED, blue), (BLUE, red)]))
        assert set(good) == {RED, BLUE}, "the ground is background"
        assert all(good[class_id] > swapped[class_id] + 0.3 for class_id in good)
        half = scorer.scores(*scene([(RED, red), (RED, blue)]))
        assert swapped[RED] < half[RED] < good[RED], "the mean of its regions"


@pytest.mark.parametrize("measure", ["similarity", "probability"])
def test_scores_are_those_of_transformers(taught: Path, measure: str) -> None:
    image, mask = scene([(RED, COLOURS["red"]), (GREEN, COLOURS["blue"]), (GREEN, COLOURS["green"])])
    model = CLIPModel.from_pretrained(taught).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(taught), CLIPTokenizer.from_pretrained(taught)
    texts = ["a picture of red square", "a picture of green square", "a picture of blue square"]
    expected: dict[int, list[float]] = {}
    for channel, id_ in ((1, RED), (2, GREEN)):
        for region in regions_of(LABELS.channel_table()[mask], channel, 100, 3):
            pixels = processor(images=region.crop(image), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                logits = model(**tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels)
                per_image = logits.logits_per_image[0]
                found = per_image / model.logit_scale.exp() if measure == "similarity" else per_image.softmax(0)
            expected.setdefault(id_, []).append(float(found[channel - 1]))
    scorer = ClipScorer(options(taught, measure=measure, template="a picture of {name}"), LABELS)
    made = scorer.scores(image, mask)
    assert made == pytest.approx({id_: np.mean(values) for id_, values in expected.items()}, abs=1e-5)
    assert len(expected[GREEN]) == 2


def test_small_regions_and_surplus_ones_are_not_scored(taught: Path) -> None:
    red, blue = COLOURS["red"], COLOURS["blue"]
    shown = scene([(RED, red), (RED, blue)])
    shown[1][5:8, 5:8] = BLUE
    whole = ClipScorer(options(taught), LABELS).scores(*shown)
    assert set(whole) == {RED}, "nine pixels are too few"
    assert ClipScorer(options(taught, min_pixels=400), LABELS).scores(*shown) == {}
    both = ClipScorer(options(taught, min_pixels=9), LABELS).scores(*shown)
    assert set(both) == {RED, BLUE}
    largest = ClipScorer(options(taught, max_regions=1), LABELS).scores(*shown)
    assert largest[RED] < whole[RED], "the blue one is larger"


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_a_tiny_crop_is_seen_as_pillow_would_show_it(taught: Path, side: int) -> None:
    crop = np.random.default_rng(side).integers(0, 256, (side, 40, 3), np.uint8)
    pixels = CLIPImageProcessorPil.from_pretrained(taught)(images=Image.fromarray(crop), return_tensors="pt")
    with torch.inference_mode():
        features = CLIPModel.from_pretrained(taught).eval().get_image_features(**pixels).pooler_output
    found = ClipScorer(options(taught), LABELS).image_vectors([crop])
    torch.testing.assert_close(found, torch.nn.functional.normalize(features, dim=-1), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    colours = list(COLOURS.values())
    scenes = [scene([(RED + (number % 2) - 1, colours[number % 3])] * (number % 4)) for number in range(5)]
    before = [None, [], [{"class_id": 1, "score": "adherence", "value": 0.5}], None, None]
    return {
        "image": objects([encode_image(image) for image, _ in scenes]),
        "mask": objects([encode_mask(mask) for _, mask in scenes]),
        "scores_per_class": objects(before),
    }


def test_a_row_is_the_same_whatever_stands_beside_it(taught: Path, batch: Batch) -> None:
    stage = ClipRankStage(ClipScorer(options(taught), LABELS))
    together = stage(batch)
    assert tuple(together) == stage.writes
    order = np.array([3, 1, 4, 0, 2])
    mixed = stage({name: batch[name][order] for name in stage.reads})
    for name in stage.writes:
        assert [mixed[name][place] for place in np.argsort(order)] == list(together[name])
        for row in range(5):
            assert (
                stage({column: batch[column][row : row + 1] for column in stage.reads})[name][0] == together[name][row]
            )
    assert together["score_clip"][0] is None, "a mask of background alone"
    for row, entries in enumerate(together["scores_per_class"]):
        values = [entry["value"] for entry in entries if entry["score"] == "clip"]
        assert together["score_clip"][row] == (pytest.approx(np.mean(values)) if values else None)
    assert together["scores_per_class"][2][0]["score"] == "adherence", "what others said stays"


def test_labels_of_scenes_have_texts(tmp_path: Path) -> None:
    labels = load_label_set("scenes")
    mask = np.repeat(labels.ids[1:5].astype(np.uint8), 16 * 16).reshape(32, 32)
    scores = ClipScorer(options(make_clip(tmp_path / "clip")), labels).scores(np.zeros((32, 32, 3), np.uint8), mask)
    assert set(scores) <= set(labels.ids.tolist())
    assert scores
