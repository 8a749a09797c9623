"""Outlined colour maps: colours of their own far from every class, and masks that come back from under the outlines."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.colours import FAR_DISTANCE, ColourDecoder, encode, ignore_colour_of
from segdatagen.datasets import Options, open_reader
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.errors import UsageError
from segdatagen.images import decode_image, encode_image
from segdatagen.labels import LabelClass, LabelSet, load_label_set, shipped_label_sets
from segdatagen.outlines import MAX_EDGE_COLOURS, decode_panoptic, edge_colours, encode_panoptic

VOC = load_label_set("voc")


@pytest.mark.parametrize("name", shipped_label_sets())
def test_a_hundred_edge_colours_are_far_from_every_class_and_from_each_other(name: str) -> None:
    labels = load_label_set(name)
    edges = edge_colours(labels, 100).astype(int)
    others = np.vstack([labels.colours, [ignore_colour_of(labels)]]).astype(int)
    assert np.linalg.norm(edges[:, None] - others, axis=-1).min() > 38 > FAR_DISTANCE
    between = np.linalg.norm(edges[:, None] - edges, axis=-1)
    assert between[~np.eye(100, dtype=bool)].min() > 38


def test_edge_colours_are_the_same_whatever_number_is_asked_for() -> None:
    many = edge_colours(VOC, 2500)
    assert np.array_equal(edge_colours(VOC, 7), many[:7])
    assert len(np.unique(many[:MAX_EDGE_COLOURS], axis=0)) == MAX_EDGE_COLOURS
    assert np.array_equal(many[MAX_EDGE_COLOURS : 2 * MAX_EDGE_COLOURS], many[:MAX_EDGE_COLOURS])


def neighbours_differ(segment_map: np.ndarray) -> np.ndarray:
    """By a loop over pixels: is one of the eight around of another segment?"""
    height, width = segment_map.shape
    edge = np.zeros(segment_map.shape, bool)
    for row in range(height):
        for column in range(width):
            around = segment_map[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            edge[row, column] = (around != segment_map[row, column]).any()
    return edge


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50)
def test_each_segment_is_outlined_in_its_own_colour(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    segment_map = rng.integers(0, 4, (height, width)).astype(np.uint16)
    mask = rng.choice(VOC.ids, 4).astype(np.uint8)[segment_map]
    edge = neighbours_differ(segment_map)
    expected = encode(mask, VOC)
    expected[edge] = edge_colours(VOC, 4)[segment_map[edge]]
    assert np.array_equal(encode_panoptic(mask, segment_map, VOC), expected)


def test_ignored_pixels_are_not_outlined_but_what_lies_beside_them_is() -> None:
    segment_map = np.array([[0, 0, 1, 1, 1]], np.uint8)
    mask = np.array([[255, 255, 7, 7, 7]], np.uint8)
    painted = encode_panoptic(mask, segment_map, VOC)
    ignored, car, edge = ignore_colour_of(VOC), VOC.classes[7].colour, tuple(edge_colours(VOC, 2)[1].tolist())
    assert [tuple(colour) for colour in painted[0].tolist()] == [ignored, ignored, edge, car, car]


def blocks(seed: int, labels: LabelSet, thinnest: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A patchwork of segments at least `thinnest` pixels wide; some fields are ignored or belong to no segment."""
    rng = np.random.default_rng(seed)
    heights, widths = rng.integers(thinnest, 9, 5), rng.integers(thinnest, 9, 6)
    numbers = rng.permutation(30).reshape(5, 6) % 25
    class_of = rng.choice(labels.ids, 25)
    fields = class_of[numbers]
    if labels.ignore_ids:
        ignored = rng.random(fields.shape) < 0.2
        fields[ignored], numbers[ignored] = labels.ignore_ids[0], 0
    fields[(numbers == 0) & ~np.isin(fields, labels.ignore_ids)] = labels.ids[0]
    spread = np.ix_(np.repeat(np.arange(5), heights), np.repeat(np.arange(6), widths))
    dtype = np.uint8 if labels.ids.max() < 256 else np.uint16
    return fields[spread].astype(dtype), numbers[spread].astype(np.uint16)


@pytest.mark.parametrize("name", shipped_label_sets())
def test_masks_come_back_from_under_the_outlines(name: str) -> None:
    labels = load_label_set(name)
    for seed in range(20):
        mask, segment_map = blocks(seed, labels)
        painted = encode_panoptic(mask, segment_map, labels)
        found = decode_panoptic(painted, labels, 25)
        assert found.dtype == mask.dtype
        assert np.array_equal(found, mask)


def test_noise_costs_no_more_than_without_outlines() -> None:
    labels = load_label_set("coco_panoptic")
    rng = np.random.default_rng(0)
    wrong = {"plain": 0, "outlined": 0}
    for seed in range(10):
        mask, segment_map = blocks(seed, labels, 5)
        noise = rng.normal(0, 8, (*mask.shape, 3))
        for kind, painted in (
            ("plain", encode(mask, labels)),
            ("outlined", encode_panoptic(mask, segment_map, labels)),
        ):
            noisy = np.clip(painted + noise, 0, 255).round().astype(np.uint8)
            if kind == "plain":
                found = ColourDecoder(labels, with_ignore=True).decode(noisy)
            else:
                found = decode_panoptic(noisy, labels, 25)
            wrong[kind] += int((found != mask).sum())
    assert wrong["plain"] > 0
    assert wrong["outlined"] < 2 * wrong["plain"]


def test_a_jpeg_of_an_outlined_map_keeps_the_mask() -> None:
    labels = load_label_set("scenes")
    scene = make_scene(scene_seed("train", 3), 256, 256)
    painted = encode_panoptic(scene.mask, scene.segment_map, labels)
    large = cv2.resize(painted, (1024, 1024), interpolation=cv2.INTER_NEAREST_EXACT)
    again = decode_image(encode_image(large, "jpeg95"))[2::4, 2::4]
    found = decode_panoptic(np.ascontiguousarray(again), labels, len(scene.segments))
    assert (found == decode_panoptic(painted, labels, len(scene.segments))).mean() > 0.999
    assert (found == scene.mask).mean() > 0.97


def test_the_samples_of_coco_come_back_but_for_slivers(shared: Path) -> None:
    root = shared / "data/samples/coco_panoptic"
    reader = open_reader("coco_panoptic", str(root), "examples", Options(images="none"))
    for item in reader.list_items().items:
        source = reader.read(item)
        assert source.mask is not None
        assert source.segment_map is not None
        assert source.segments is not None
        painted = encode_panoptic(source.mask, source.segment_map, reader.label_set)
        found = decode_panoptic(painted, reader.label_set, len(source.segments))
        thick = np.zeros(source.mask.shape, bool)
        for segment in source.segments:
            own = (source.segment_map == segment.id).astype(np.uint8)
            thick |= cv2.morphologyEx(own, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        assert np.array_equal(found[thick], source.mask[thick])
        assert (found == source.mask).mean() > 0.99
        colours = {tuple(colour) for colour in painted.reshape(-1, 3).tolist()}
        assert {tuple(c) for c in edge_colours(reader.label_set, len(source.segments) + 1)[1:].tolist()} <= colours


def test_a_map_of_outlines_alone_is_refused() -> None:
    painted = np.broadcast_to(edge_colours(VOC, 2)[1], (4, 4, 3)).copy()
    with pytest.raises(UsageError, match="no class of label set voc"):
        decode_panoptic(painted, VOC, 3)


def test_ids_past_255_come_back() -> None:
    classes = tuple(
        LabelClass(id=id_, name=f"{id_}", prompt=f"{id_}", colour=(200, 40 * n, 0), kind="thing")
        for n, id_ in enumerate((3, 300, 70))
    )
    labels = LabelSet(name="wide", version="1", ignore_ids=(65535,), classes=classes)
    mask, segment_map = blocks(1, labels)
    assert np.array_equal(decode_panoptic(encode_panoptic(mask, segment_map, labels), labels, 25), mask)
