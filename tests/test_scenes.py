"""The procedural scenes: what a seed fixes, that masks, segments and captions are true, and how rare the rare are."""

import hashlib
import random
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
import yaml

from segdatagen.datasets.scenes import SPLITS, Scene, make_scene, scene_seed
from segdatagen.datasets.scenes.canvas import Canvas
from segdatagen.datasets.scenes.layout import CLASS_NAMES, FIRST_THING
from segdatagen.datasets.scenes.seeds import SPLIT_SIZE
from segdatagen.datasets.scenes.segments import SMALLEST_THING, absorb_slivers
from segdatagen.errors import UsageError

GOLDEN_MAPS = {
    ("train", (128, 128)): "3fd3e145040643b1d5d234673e47caa2",
    ("val", (128, 128)): "994af03d6ba9c3447ca4bd8e05f2800f",
    ("test", (128, 128)): "bce14978bc7e6c91b2858e63fa56dae4",
    ("pretrain", (128, 128)): "ce19bb619e3c9c1bbb999280e254d898",
    ("train", (64, 64)): "5176c9dc74ea15dc9e0fa6142b526403",
    ("train", (200, 72)): "3b5012294763450327a6ba6a49cae40f",
    ("train", (300, 520)): "440dbca70ed510847dd72969ebc21513",
}
"""Masks, segment maps and captions of the first 20 scenes of a split at a size: a change here is another data set."""
GOLDEN_MEAN_COLOURS = (
    (45.07, 46.43, 48.49),
    (110.64, 82.62, 77.99),
    (137.74, 139.27, 139.02),
    (110.3, 125.11, 138.07),
    (99.78, 71.69, 67.52),
    (115.76, 117.47, 114.67),
    (105.45, 107.16, 102.56),
    (77.24, 82.16, 65.0),
)
SIZES = ((128, 128), (64, 64), (96, 160), (200, 72))
COUNT_WORDS = {"a": 1, "two": 2, "three": 3, "four": 4, "several": 5}


@cache
def scenes(split: str, number: int, width: int = 128, height: int = 128) -> tuple[Scene, ...]:
    return tuple(make_scene(scene_seed(split, index), width, height) for index in range(number))


def test_a_seed_fixes_the_scene_to_the_bit() -> None:
    for width, height in SIZES:
        first, second = (make_scene(scene_seed("train", 17), width, height) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.segment_map, second.segment_map)
        assert (first.segments, first.caption) == (second.segments, second.caption)


def test_other_seeds_make_other_scenes() -> None:
    assert len({scene.image.tobytes() for scene in scenes("train", 60)}) == 60
    assert len({scene.mask.tobytes() for scene in scenes("train", 60)}) == 60


@pytest.mark.parametrize(("split", "size"), GOLDEN_MAPS)
def test_masks_and_segments_are_frozen(split: str, size: tuple[int, int]) -> None:
    digest = hashlib.sha256()
    for scene in scenes(split, 20, *size):
        digest.update(scene.mask.tobytes())
        digest.update(scene.segment_map.tobytes())
        digest.update(scene.caption.encode())
    assert digest.hexdigest()[:32] == GOLDEN_MAPS[split, size]


def test_images_are_frozen_but_for_rounding() -> None:
    """Filters of other builds of OpenCV and numpy round differently, so it is the mean colours that are compared."""
    means = [scene.image.mean(axis=(0, 1)) for scene in scenes("test", len(GOLDEN_MEAN_COLOURS))]
    assert np.abs(np.array(means) - GOLDEN_MEAN_COLOURS).max() < 0.1


def test_what_is_not_painted_could_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in SIZES:
        expected = scenes("val", 24, width, height)
        with monkeypatch.context() as patch:
            patch.setattr(Canvas, "misses", lambda *_: False)
            everything = [make_scene(scene_seed("val", index), width, height) for index in range(24)]
        for scene, painted in zip(expected, everything, strict=True):
            assert np.array_equal(scene.image, painted.image)
            assert np.array_equal(scene.segment_map, painted.segment_map)


def test_no_global_state_is_touched() -> None:
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    make_scene(3, 64, 64)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    expected = make_scene(11, 64, 64)
    make_scene(12, 200, 40)
    assert np.array_equal(make_scene(11, 64, 64).image, expected.image)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (640, 520), (1, 1), (7, 5)])
def test_any_size_has_the_types_and_shapes_promised(width: int, height: int) -> None:
    for seed in (0, 1, 2):
        scene = make_scene(seed, width, height)
        assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
        assert (scene.mask.shape, scene.mask.dtype) == ((height, width), np.uint8)
        assert (scene.segment_map.shape, scene.segment_map.dtype) == ((height, width), np.uint16)
        assert int(scene.mask.max()) < len(CLASS_NAMES)


def test_the_same_seed_is_the_same_scene_at_two_sizes() -> None:
    agreement, class_agreement = [], []
    for small, large in zip(scenes("val", 40, 64, 64), scenes("val", 40, 256, 256), strict=True):
        agreement.append((small.mask == large.mask[2::4, 2::4]).mean())
        present = [{segment.class_id for segment in scene.segments} for scene in (small, large)]
        class_agreement.append(len(present[0] & present[1]) / len(present[0] | present[1]))
    assert np.mean(agreement) > 0.95
    assert min(agreement) > 0.85
    assert np.mean(class_agreement) > 0.9


def test_segments_agree_with_the_map_pixel_by_pixel() -> None:
    for width, height in SIZES:
        for scene in scenes("test", 12, width, height):
            numbers = {segment.id for segment in scene.segments}
            assert numbers == set(np.unique(scene.segment_map).tolist())
            assert 0 not in numbers
            for segment in scene.segments:
                rows, columns = np.nonzero(scene.segment_map == segment.id)
                assert segment.area == len(rows)
                assert set(scene.mask[rows, columns].tolist()) == {segment.class_id}
                x, y = columns.min(), rows.min()
                assert segment.bbox == (x, y, columns.max() - x + 1, rows.max() - y + 1)
                assert segment.iscrowd is False
            stuff = [segment.class_id for segment in scene.segments if segment.class_id < FIRST_THING]
            assert len(stuff) == len(set(stuff))


def test_no_instance_is_smaller_than_what_a_caption_counts() -> None:
    for width, height in SIZES:
        for scene in scenes("test", 12, width, height):
            for segment in scene.segments:
                assert segment.class_id < FIRST_THING or segment.area >= SMALLEST_THING


def test_slivers_go_to_what_lies_beside_them() -> None:
    segments = np.full((6, 6), 3, np.uint8)
    segments[:, 3:] = 2
    segments[2, 2:4] = 9
    segments[0] = 8
    segments[1, 0] = 10
    segments[1, 1:4] = 8
    absorb_slivers(segments, 11)
    assert segments[2].tolist() == [3, 3, 3, 3, 2, 2]
    assert segments[1].tolist() == [8, 8, 8, 8, 2, 2]
    assert (segments[0] == 8).all()


def _claims(caption: str) -> dict[str, int]:
    """What a caption says: class name to count; stuff counts 0."""
    singular = caption.replace("people", "person").replace("trees", "tree").replace("buildings", "building")
    found = {name: 0 for name in ("tree", "grass", "building", "sky") if re.search(rf"\b{name}\b", singular)}
    for name in CLASS_NAMES[FIRST_THING:]:
        match = re.search(rf"\b({'|'.join(COUNT_WORDS)}) {name}s?\b", singular)
        if match:
            found[name] = COUNT_WORDS[match[1]]
    return found


def test_captions_are_true() -> None:
    for scene in scenes("train", 150):
        claims = _claims(scene.caption)
        counts = {
            CLASS_NAMES[class_id]: len(np.unique(scene.segment_map[scene.mask == class_id]))
            for class_id in range(FIRST_THING, len(CLASS_NAMES))
        }
        for name, count in counts.items():
            assert claims.get(name, 0) == min(count, 5), scene.caption
        for name in ("tree", "grass", "building", "sky"):
            share = (scene.mask == CLASS_NAMES.index(name)).mean()
            if name in claims:
                assert share >= 0.02, scene.caption
            elif name != "sky":
                assert share < 0.02, scene.caption


def test_captions_name_the_time_of_day_that_the_image_shows() -> None:
    brightness: dict[str, list[float]] = {"by day": [], "at dusk": [], "at night": []}
    for scene in scenes("train", 150):
        (time,) = [phrase for phrase in brightness if phrase in scene.caption]
        brightness[time].append(float(scene.image.mean()))
    day, dusk, night = (float(np.mean(values)) for values in brightness.values())
    assert day > dusk + 20 > night + 40


def test_classes_have_their_long_tail() -> None:
    present = Counter(
        class_id for scene in scenes("pretrain", 300) for class_id in {s.class_id for s in scene.segments}
    )
    shares = {CLASS_NAMES[class_id]: count / 300 for class_id, count in present.items()}
    bounds = {
        "sky": (0.85, 1.0),
        "building": (0.9, 1.0),
        "road": (1.0, 1.0),
        "sidewalk": (0.9, 1.0),
        "tree": (0.6, 0.95),
        "grass": (0.6, 0.98),
        "car": (0.78, 0.95),
        "truck": (0.18, 0.35),
        "person": (0.45, 0.68),
        "traffic sign": (0.07, 0.17),
        "traffic light": (0.04, 0.12),
        "bicycle": (0.03, 0.1),
    }
    for name, (low, high) in bounds.items():
        assert low <= shares[name] <= high, (name, shares[name])


def test_rare_things_are_large_enough_to_learn() -> None:
    for name in ("traffic sign", "traffic light", "bicycle"):
        class_id = CLASS_NAMES.index(name)
        areas = [s.area for scene in scenes("pretrain", 300) for s in scene.segments if s.class_id == class_id]
        assert np.quantile(areas, 0.2) > 20, name


def test_splits_share_no_seed() -> None:
    firsts = sorted(SPLITS.values())
    assert set(SPLITS) == {"train", "val", "test", "pretrain"}
    assert SPLIT_SIZE >= 10_000_000
    assert all(after - before >= SPLIT_SIZE for before, after in pairwise(firsts))
    for split, first in SPLITS.items():
        assert scene_seed(split, 0) == first
        assert scene_seed(split, SPLIT_SIZE - 1) == first + SPLIT_SIZE - 1


@pytest.mark.parametrize(("split", "index"), [("holdout", 0), ("train", -1), ("train", SPLIT_SIZE)])
def test_wrong_splits_and_indices_are_refused(split: str, index: int) -> None:
    with pytest.raises(UsageError):
        scene_seed(split, index)


def test_the_shipped_label_set_names_the_same_classes_in_colours_far_apart() -> None:
    text = (files("segdatagen") / "label_sets" / "scenes.yaml").read_text(encoding="utf-8")
    classes = yaml.safe_load(text)["classes"]
    assert [entry["id"] for entry in classes] == list(range(len(CLASS_NAMES)))
    assert tuple(entry["name"] for entry in classes) == CLASS_NAMES
    assert [entry["kind"] for entry in classes] == ["stuff"] * FIRST_THING + ["thing"] * (
        len(CLASS_NAMES) - FIRST_THING
    )
    colours = np.array([entry["colour"] for entry in classes], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[np.triu_indices(len(colours), 1)].min() >= 48
