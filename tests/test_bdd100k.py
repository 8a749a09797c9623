"""BDD100K: train ids and 255, the four channels of bitmasks, and the centre crop to a square."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from look_alikes import all_ids, every_id, problem_of, read_only, write, write_mask, write_photograph

from segdatagen.datasets import Options, RawSource, open_reader
from segdatagen.geometry import Geometry
from segdatagen.labels import load_label_set

SEM, PAN, INS = "sem_seg/masks", "pan_seg/bitmasks", "ins_seg/bitmasks"
NAME = "0a0a0b1a-7c39d841"


def place(root: Path, folder: str, mask: Path | np.ndarray, with_photograph: bool = True) -> Path:
    """BDD's layout around one mask: a file, ids, or the four channels of a bitmask."""
    path = root / f"labels/{folder}/train/{NAME}.png"
    if isinstance(mask, Path):
        write(path, mask.read_bytes())
    elif mask.ndim == 2:
        write_mask(path, mask)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(mask, "RGBA").save(path)
    if with_photograph:
        with PIL.Image.open(path) as picture:
            write_photograph(root / f"images/10k/train/{NAME}.jpg", (picture.height, picture.width))
    return root


def bitmask(*segments: tuple[tuple[slice, slice], tuple[int, int, int, int]]) -> np.ndarray:
    pixels = np.zeros((24, 32, 4), np.uint8)
    for region, values in segments:
        pixels[region] = values
    return pixels


LEFT, RIGHT = (slice(None), slice(0, 16)), (slice(None), slice(16, 32))


def test_every_train_id_and_255_come_back(tmp_path: Path) -> None:
    mask = every_id(all_ids(load_label_set("bdd100k")), (720, 1280))
    assert set(np.unique(mask).tolist()) == {*range(19), 255}
    assert np.array_equal(read_only("bdd100k", place(tmp_path, SEM, mask)).mask, mask)


def test_id_19_is_no_class(tmp_path: Path) -> None:
    found = problem_of("bdd100k", place(tmp_path, SEM, every_id([18, 19, 255])))
    assert list(found.counts) == ["19"]


def test_the_semantic_sample_shows_a_car(shared: Path, tmp_path: Path) -> None:
    sample = shared / "data/samples/bdd100k/semseg_mask.png"
    source = read_only("bdd100k", place(tmp_path, SEM, sample))
    with PIL.Image.open(sample) as picture:
        assert np.array_equal(source.mask, np.asarray(picture))
    labels = load_label_set("bdd100k")
    assert [labels.names[labels.channel_table()[id_]] for id_ in (13,)] == ["car"]
    assert set(np.unique(source.mask).tolist()) == {13, 255}


def test_the_panoptic_sample_is_what_its_coco_form_says(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data/samples/bdd100k"
    source = read_only("bdd100k_panoptic", place(tmp_path, PAN, samples / "panseg_bdd100k/panseg_mask.png"))
    coco = json.loads((samples / "panseg_coco/panseg_coco.json").read_text())
    with PIL.Image.open(samples / "panseg_coco/panseg_mask.png") as picture:
        ids = np.asarray(picture).astype(int) @ [1, 256, 65536]
    check_against_coco(source, ids, coco["segments_info"])


def check_against_coco(source: RawSource, ids: np.ndarray, rows: list[dict[str, Any]]) -> None:
    assert source.segments is not None
    assert source.segment_map is not None
    assert source.mask is not None
    assert [(s.class_id, s.area, s.iscrowd) for s in source.segments] == [
        (row["category_id"], row["area"], row["iscrowd"]) for row in rows
    ]
    for segment, row in zip(source.segments, rows, strict=True):
        pixels = ids == row["id"]
        assert np.array_equal(source.segment_map == segment.id, pixels)
        assert (source.mask[pixels] == row["category_id"]).all()
    assert (source.mask[ids == 0] == 0).all()


def test_the_coco_form_of_the_sample_is_read_as_coco_panoptic(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data/samples/bdd100k"
    annotation = json.loads((samples / "panseg_coco/panseg_coco.json").read_text())
    document = {"images": [{"id": 255, "file_name": "panseg_mask.jpg"}], "annotations": [annotation]}
    write(tmp_path / "panoptic_train.json", json.dumps(document).encode())
    write(tmp_path / "panoptic_train/panseg_mask.png", (samples / "panseg_coco/panseg_mask.png").read_bytes())
    from_coco = read_only("coco_panoptic", tmp_path, labels="bdd100k_panoptic", images="none")
    bitmasks = place(tmp_path / "bdd", PAN, samples / "panseg_bdd100k/panseg_mask.png", with_photograph=False)
    source = read_only("bdd100k_panoptic", bitmasks, images="none")
    assert np.array_equal(from_coco.mask, source.mask)
    assert np.array_equal(from_coco.segment_map, source.segment_map)
    assert from_coco.segments == source.segments


def test_the_instance_samples_are_cars_on_background(shared: Path, tmp_path: Path) -> None:
    for number, (name, areas) in enumerate(
        [
            ("insseg_bitmask.png", [107995, 9683, 1134, 2442]),
            ("segtrack_bitmask.png", [109129, 9683, 2442]),
        ]
    ):
        sample = shared / "data/samples/bdd100k/bitmasks/quasi-video" / name
        source = read_only("bdd100k_instances", place(tmp_path / str(number), INS, sample))
        assert source.segments is not None
        assert [(s.id, s.class_id, s.area) for s in source.segments] == [(n, 3, a) for n, a in enumerate(areas, 1)]
        assert set(np.unique(source.mask).tolist()) == {0, 3}
        assert load_label_set("bdd100k_instances").names[3] == "car"


def test_instances_past_255_stand_in_two_channels_and_flags_make_crowds(tmp_path: Path) -> None:
    pixels = bitmask((LEFT, (35, 0, 1, 44)), (RIGHT, (35, 2, 0, 44)))
    pixels[:4, :4] = (30, 1, 2, 0)
    pixels[20:, :] = (7, 12, 0, 9)
    source = read_only("bdd100k_panoptic", place(tmp_path, PAN, pixels))
    assert source.segments is not None
    found = [(s.class_id, s.area, s.bbox, s.iscrowd) for s in source.segments]
    assert found == [  # in the order of instances 9, 44, 300, 512; truncated and occluded make no crowd
        (7, 128, (0, 20, 32, 4), False),
        (35, 320, (16, 0, 16, 20), True),
        (35, 304, (0, 0, 16, 20), False),
        (30, 16, (0, 0, 4, 4), True),
    ]


@pytest.mark.parametrize(
    ("pixels", "problem", "counts"),
    [
        (bitmask((LEFT, (35, 0, 0, 1)), (RIGHT, (31, 0, 0, 1))), "segment of two classes", {"instance 1": 768}),
        (bitmask((LEFT, (35, 0, 0, 1)), (RIGHT, (31, 0, 0, 0))), "unknown segment", {"instance 0": 384}),
        (bitmask((LEFT, (41, 0, 0, 1))), "unknown id", {"41": 384}),
    ],
)
def test_bitmasks_that_contradict_themselves_are_refused(
    tmp_path: Path, pixels: np.ndarray, problem: str, counts: dict[str, int]
) -> None:
    found = problem_of("bdd100k_panoptic", place(tmp_path, PAN, pixels))
    assert (found.problem, found.counts) == (problem, counts)


def test_a_mask_of_train_ids_is_no_bitmask(tmp_path: Path) -> None:
    found = problem_of("bdd100k_panoptic", place(tmp_path, PAN, every_id([0, 1])))
    assert found.problem == "unreadable mask"
    assert "four channels are expected (RGBA), this file has mode L" in found.detail


@pytest.mark.parametrize("side", [720, 360, 256, 128])
def test_crop_is_the_centre_crop_to_a_square(shared: Path, tmp_path: Path, side: int) -> None:
    """Paper 001 cuts the middle 720 x 720 of 1280 x 720 and shrinks it to 128 x 128."""
    sample = shared / "data/samples/bdd100k/panseg_bdd100k/panseg_mask.png"
    mask = read_only("bdd100k_panoptic", place(tmp_path, PAN, sample)).mask
    assert mask is not None
    square = np.ascontiguousarray(mask[:, 280:1000])
    expected = cv2.resize(square, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.array_equal(Geometry(size=(side, side), fit="crop").apply_mask(mask, 0), expected)


def test_readers_of_bitmasks_list_pairs_as_others_do(tmp_path: Path) -> None:
    place(tmp_path, PAN, bitmask((LEFT, (35, 0, 0, 1))))
    write_photograph(tmp_path / "images/10k/train/other.jpg")
    (orphan,) = open_reader("bdd100k_panoptic", str(tmp_path), "train", Options()).list_items().orphans
    assert (orphan.problem, orphan.file_name) == ("image without mask", "images/10k/train/other.jpg")
