"""What is measured of a generated layout, against brute force, and what its limits refuse."""

from collections import deque
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.colours import encode, ignore_colour_of
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.errors import UsageError
from segdatagen.image_hash import perceptual_hash
from segdatagen.labels import LabelClass, LabelSet, load_label_set
from segdatagen.layouts import (
    LAYOUT_LIMITS,
    NO_CLASS,
    NOT_FINITE,
    LayoutJudge,
    LayoutOptions,
    asked_classes,
    refusal,
    require_colours,
)

SCENES = load_label_set("scenes")
NO_REAL = np.empty(0, np.uint64)
LOOSE = {"max_off_palette": 1, "max_speckle": 1, "min_classes_found": 0, "min_distance": 0, "dissolve_bands": False}


def judge_of(real: np.ndarray = NO_REAL, label_set: LabelSet = SCENES, **options: Any) -> LayoutJudge:
    return LayoutJudge(label_set, LayoutOptions(**options), real)


def colour_maps(seed: int) -> np.ndarray:
    """A scene's colour map of which a part is noise, and a part shifted a little."""
    chance = np.random.default_rng(seed)
    picture = encode(make_scene(scene_seed("train", seed % 7), 32, 32).mask, SCENES).astype(np.int16)
    rows, columns = chance.integers(1, 33, 2)
    picture[:rows, :columns] += chance.integers(-60, 61, (rows, columns, 3), dtype=np.int16)
    return np.clip(picture, 0, 255).astype(np.uint8)


def small_regions(mask: np.ndarray, below: int) -> int:
    """Pixels in 4-connected regions of one id with fewer than `below` pixels: a search from every pixel."""
    seen, found = np.zeros(mask.shape, bool), 0
    for start in np.ndindex(mask.shape):
        if seen[start]:
            continue
        region, ahead = 0, deque([start])
        seen[start] = True
        while ahead:
            row, column = ahead.popleft()
            region += 1
            for place in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]
                if inside and not seen[place] and mask[place] == mask[start]:
                    seen[place] = True
                    ahead.append(place)
        found += region * (region < below)
    return found


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(1, 120), st.integers(1, 40))
def test_figures_are_those_of_brute_force(seed: int, distance: float, speckle: int) -> None:
    """Every pixel against every colour, every region by a search, every class by counting."""
    picture, chance = colour_maps(seed), np.random.default_rng(seed)
    asked = chance.choice(SCENES.ids, 5, replace=False).tolist()
    real = np.array([perceptual_hash(colour_maps(n)) for n in range(3)], np.uint64)
    options = {**LOOSE, "palette_distance": distance, "speckle_pixels": speckle, "min_distance": 1}
    layout = judge_of(real, **options).judge(picture, asked)
    ids = [*SCENES.ids.tolist(), SCENES.ignore_ids[0]]
    colours = np.vstack([SCENES.colours, ignore_colour_of(SCENES)]).astype(np.float64)
    apart = np.sqrt(((picture[:, :, None] - colours) ** 2).sum(axis=-1))
    mask = np.array(ids)[apart.argmin(axis=-1)]
    np.testing.assert_array_equal(layout.mask, mask)
    counts = {id_: int((mask == id_).sum()) for id_ in SCENES.ids.tolist() if (mask == id_).any()}
    assert dict(zip(layout.class_ids, layout.class_pixels, strict=True)) == counts
    hashed = perceptual_hash(encode(layout.mask, SCENES))
    assert layout.figures == {
        "off_palette": np.float32((apart.min(axis=-1) > distance).mean()),
        "speckle": np.float32(small_regions(mask, speckle) / mask.size),
        "classes_found": np.float32(sum(counts.get(id_, 0) >= speckle for id_ in asked) / 5),
        "layout_distance": min((hashed ^ int(other)).bit_count() for other in real),
    }


def test_soft_edges_leave_no_class_that_nobody_asked_for() -> None:
    labels = load_label_set("ade20k")
    chance = np.random.default_rng(0)
    centres, ids = chance.uniform(0, 128, (12, 2)), chance.choice(labels.ids, 12, replace=False)
    places = np.stack(np.mgrid[:128, :128], axis=-1)[:, :, None]
    mask = ids[((places - centres) ** 2).sum(axis=-1).argmin(axis=-1)].astype(np.uint8)
    soft = cv2.GaussianBlur(encode(mask, labels), (0, 0), 0.7)
    asked = ids[:8].tolist()
    drawn = judge_of(label_set=labels, **LOOSE).judge(soft, asked)
    assert len(set(drawn.class_ids) - set(ids.tolist())) > 30
    found = judge_of(label_set=labels, **LOOSE | {"dissolve_bands": True}).judge(soft, asked)
    assert set(found.class_ids) == set(ids.tolist()), "what is wide is there, asked for or not"
    assert dict(zip(found.class_ids, found.class_pixels, strict=True)) == {
        id_: int((found.mask == id_).sum()) for id_ in ids.tolist()
    }
    assert (found.mask != mask).mean() < (drawn.mask != mask).mean() / 4
    assert (found.figures["speckle"], found.figures["off_palette"]) == (
        drawn.figures["speckle"],
        drawn.figures["off_palette"],
    ), "these are of what was drawn"


def test_what_was_asked_for_and_what_nobody_asks_for_may_be_thin() -> None:
    voc = load_label_set("voc")
    mask = np.zeros((24, 28), np.uint8)
    mask[:12], mask[12:] = 15, 7
    mask[:, 5], mask[:, 11], mask[:, 17] = 2, voc.background_ids[0], voc.ignore_ids[0]
    mask[:, 21:23] = 3
    found = judge_of(label_set=voc, **LOOSE | {"dissolve_bands": True}).judge(encode(mask, voc), [2, 7])
    np.testing.assert_array_equal(found.mask[:, :21], mask[:, :21])
    assert np.isin(found.mask[:, 21:23], [7, 15]).all()


def test_a_real_mask_keeps_every_limit_but_that_it_is_real() -> None:
    masks = [make_scene(scene_seed("train", n), 64, 64).mask for n in range(12)]
    pictures = [encode(mask, SCENES) for mask in masks]
    real = np.array([perceptual_hash(picture) for picture in pictures], np.uint64)
    for number, (mask, picture) in enumerate(zip(masks, pictures, strict=True)):
        ids, counts = np.unique(mask, return_counts=True)
        asked = asked_classes(ids.tolist(), counts.tolist(), SCENES, LayoutOptions())
        alone = judge_of(np.delete(real, number)).judge(picture, asked)
        assert (alone.refused, alone.figures["off_palette"]) == (None, 0.0)
        copy = judge_of(real).judge(picture, asked)
        assert (copy.refused, copy.refused_by) == ("layout distance below 6", "layout_distance")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_off_palette": 0.01}, "off palette above 0.01"),
        ({"max_speckle": 0.01}, "speckle above 0.01"),
        ({"min_classes_found": 0.9}, "classes found below 0.9"),
    ],
)
def test_a_reason_names_figure_and_limit(change: dict[str, float], reason: str) -> None:
    picture = encode(make_scene(scene_seed("train", 0), 32, 32).mask, SCENES).copy()
    picture[::4, ::4] = 128 - picture[::4, ::4] // 2
    asked = SCENES.ids.tolist()
    layout = judge_of(**{**LOOSE, **change}).judge(picture, asked)
    assert layout.refused == reason
    assert judge_of(**LOOSE).judge(picture, asked).refused is None
    assert f"{layout.refused_by} ".replace("_", " ") in f"{reason} "


@given(
    st.fixed_dictionaries({name: st.one_of(st.none(), st.floats(0, 1, width=32)) for name in LAYOUT_LIMITS}),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_limit_is_kept_where_the_figure_is_equal(
    figures: dict[str, float | None], upper: float, lower: float
) -> None:
    options = LayoutOptions(max_off_palette=upper, max_speckle=upper, min_classes_found=lower, min_distance=lower)
    limits = {"off_palette": upper, "speckle": upper, "classes_found": lower, "layout_distance": lower}
    above, below = ("off_palette", "speckle"), ("classes_found", "layout_distance")
    broken = [n for n in above if (value := figures[n]) is not None and value > np.float32(upper)]
    broken += [n for n in below if (value := figures[n]) is not None and value < np.float32(lower)]
    assert refusal(figures, options) == (broken[0] if broken else None)
    equal: dict[str, float | None] = {name: float(np.float32(limit)) for name, limit in limits.items()}
    assert refusal(equal, options) is None


def test_what_is_no_picture_or_shows_nothing_is_refused_by_no_limit() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    nothing = judge_of(**LOOSE).judge(np.full_like(black, ignore_colour_of(SCENES)), [])
    assert (nothing.refused, nothing.refused_by, nothing.class_ids) == (NO_CLASS, None, ())
    broken = judge_of(**LOOSE).judge(black, [1], finite=False)
    assert (broken.refused, broken.refused_by) == (NOT_FINITE, None)
    assert set(broken.figures.values()) == {None}


def test_classes_are_asked_for_by_their_size() -> None:
    labels = SCENES.model_copy(update={"background_ids": (int(SCENES.ids[1]),)})
    ids = SCENES.ids.tolist()[:4]
    assert asked_classes(ids, [16, 99, 15, 0], labels, LayoutOptions()) == (ids[0], ids[3])


@pytest.mark.parametrize("name", ["ade20k", "bdd100k", "camvid", "coco_panoptic", "scenes", "voc"])
def test_shipped_label_sets_have_colours_that_can_be_told_apart(name: str) -> None:
    require_colours(load_label_set(name), LayoutOptions())


def test_colours_that_are_too_near_are_named() -> None:
    def label(id_: int, name: str, colour: tuple[int, int, int]) -> LabelClass:
        return LabelClass(id=id_, name=name, prompt=name, colour=colour, kind="stuff")

    classes = (label(0, "sea", (0, 0, 200)), label(1, "sky", (0, 3, 204)), label(2, "sand", (200, 200, 0)))
    labels = LabelSet(name="beach", version="1", classes=classes, ignore_ids=(255,))
    with pytest.raises(UsageError, match=r"the colours of sea and sky in beach are 5\.0 apart, less than"):
        require_colours(labels, LayoutOptions())
    require_colours(labels, LayoutOptions(min_colour_distance=5))
    dark = labels.model_copy(update={"classes": (label(0, "sea", (0, 0, 2)), classes[2])})
    with pytest.raises(UsageError, match="the colours of sea and what is ignored in beach are 2"):
        require_colours(dark, LayoutOptions())
