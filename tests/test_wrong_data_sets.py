"""Wrong data sets of the published formats cost one line of the real command, and leave no store behind.

What each reader finds is in the tests of its format; here it is what the user sees.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Refused
from look_alikes import every_id, segment, write, write_mask, write_panoptic, write_photograph, write_voc

from segdatagen.cli import main
from segdatagen.images import encode_mask
from segdatagen.sources import open_store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

MASK = every_id([0, 1, 20, 255])
CODES = np.where(np.indices((24, 32))[1] < 16, 7, 70_000)
SEGMENTS = [segment(7, 1), segment(70_000, 200)]


def ingest_words(data_format: str, root: Path, out: Path, *more: object, split: str = "train") -> list[str]:
    return ["ingest", data_format, str(root), "--split", split, "--out", str(out), *map(str, more)]


@pytest.mark.parametrize(
    ("data_format", "named"),
    [
        ("ade20k", "annotations/train: no .png files here (missing or empty folder)"),
        ("bdd100k", "labels/sem_seg/masks/train: no .png files here (missing or empty folder)"),
        ("bdd100k_panoptic", "labels/pan_seg/bitmasks/train: no .png files here (missing or empty folder)"),
        ("bdd100k_instances", "labels/ins_seg/bitmasks/train: no .png files here (missing or empty folder)"),
        ("cityscapes_label_ids", "gtFine/train: no _gtFine_labelIds.png files here (missing or empty folder)"),
        ("cityscapes_train_ids", "gtFine/train: no _gtFine_labelTrainIds.png files here (missing or empty folder)"),
        ("coco_panoptic", "no annotations/panoptic_train.json here (missing or empty folder)"),
        ("voc", "ImageSets/Segmentation/train.txt: no such file"),
        ("voc_aug", "ImageSets/Segmentation/train.txt: no such file"),
    ],
)
def test_missing_folder(refused_here: Refused, tmp_path: Path, data_format: str, named: str) -> None:
    line = refused_here(*ingest_words(data_format, tmp_path / "nowhere", tmp_path / "store"))
    assert f"{tmp_path}/nowhere" in line
    assert named in line


def test_unknown_ids_with_counts_and_the_first_twenty_names(refused_on_ray: Refused, tmp_path: Path) -> None:
    for number in range(23):
        write_mask(tmp_path / f"ade/annotations/training/{number:02d}.png", np.full((4, 6), 151, np.uint8))
        write_photograph(tmp_path / f"ade/images/training/{number:02d}.jpg", (4, 6))
    line = refused_on_ray(*ingest_words("ade20k", tmp_path / "ade", tmp_path / "store", split="training"))
    assert "23 of 23 files are bad: unknown id in 23 (annotations/training/00.png, " in line
    assert "annotations/training/19.png and 3 more) [151: 552 pixels]" in line


def test_segments_that_picture_and_json_do_not_share(refused_on_ray: Refused, tmp_path: Path) -> None:
    pictures = {"a": (CODES, SEGMENTS), "b": (CODES, SEGMENTS[:1]), "c": (CODES, [*SEGMENTS, segment(9, 1)])}
    root = write_panoptic(tmp_path / "coco", pictures)
    line = refused_on_ray(*ingest_words("coco_panoptic", root, tmp_path / "store", split="val2017"))
    assert "unknown segment in 1 (annotations/panoptic_val2017/b.png) [70000: 384 pixels] [in the picture, and" in line
    assert "segment without pixels in 1 (annotations/panoptic_val2017/c.png) [9: 0 pixels] [listed, and" in line


def test_json_without_the_annotation_of_an_image(refused: Refused, tmp_path: Path) -> None:
    root = write_panoptic(tmp_path / "coco", {"a": (CODES, SEGMENTS), "b": (CODES, SEGMENTS)})
    path = root / "annotations/panoptic_val2017.json"
    document = json.loads(path.read_text())
    document["annotations"].pop()
    path.write_text(json.dumps(document))
    line = refused(*ingest_words("coco_panoptic", root, tmp_path / "store", split="val2017"))
    assert "image without annotation in 1 (b.jpg)" in line


def test_broken_json(refused_here: Refused, tmp_path: Path) -> None:
    root = write_panoptic(tmp_path / "coco", {"a": (CODES, SEGMENTS)})
    path = root / "annotations/panoptic_val2017.json"
    write(path, path.read_bytes()[:-20])
    line = refused_here(*ingest_words("coco_panoptic", root, tmp_path / "store", split="val2017"))
    assert f"{path}: broken JSON at byte" in line


def test_ids_that_stand_twice(refused_here: Refused, tmp_path: Path) -> None:
    table = pa.table({"mask": [encode_mask(MASK)] * 3, "name": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "town.parquet")
    words = ingest_words("parquet", tmp_path / "town.parquet", tmp_path / "store", "--labels", "voc")
    line = refused_here(*words, "--columns", "image=none,id=name")
    assert "1 of 3 files are bad: duplicate id in 1 (town.parquet) [a]" in line


def test_ids_that_stand_twice_are_left_out_on_demand(ray_session: None, tmp_path: Path) -> None:
    table = pa.table({"mask": [encode_mask(MASK), encode_mask(MASK[::-1]), encode_mask(MASK)], "name": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "town.parquet")
    words = ingest_words("parquet", tmp_path / "town.parquet", tmp_path / "store", "--labels", "voc", "--skip-bad")
    assert main([*words, "--columns", "image=none,id=name"]) == 0
    store = open_store(str(tmp_path / "store"))
    assert store.index["source_id"].to_pylist() == ["a", "b"]
    assert store.info.skipped == ("town.parquet: duplicate id",)


def test_rows_of_a_table_that_are_bad(refused_on_ray: Refused, tmp_path: Path) -> None:
    pq.write_table(pa.table({"mask": [encode_mask(MASK), b"no picture", None]}), tmp_path / "town.parquet")
    words = ingest_words("parquet", tmp_path / "town.parquet", tmp_path / "store", "--labels", "voc")
    line = refused_on_ray(*words, "--columns", "image=none")
    assert "2 of 3 files are bad: unreadable mask in 2 (town.parquet (town-0000001), town.parquet (town-00" in line
    assert "of no known kind" in line


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--partition", "first:4"), "--partition first:4: there are only 3 items"),
        (("--partition", "2/1"), "--partition 2/1: a fraction lies between 0 and 1"),
        (("--partition", "nowhere.txt"), "nowhere.txt: no such file"),
        (("--captions", "nowhere.tsv"), "nowhere.tsv: no such file"),
        (("--columns", "mask=label"), "format voc takes no --columns"),
        (("--images", "photographs"), "photographs: no .jpg or .jpeg or .png files here"),
        (("--labels", "ade20k", "--snap-colours", "3"), "format voc takes no --snap-colours"),
    ],
)
def test_options_that_do_not_fit(refused_here: Refused, tmp_path: Path, more: tuple[str, ...], named: str) -> None:
    root = write_voc(tmp_path / "voc", dict.fromkeys(("2007_000001", "2007_000002", "2007_000003"), MASK))
    assert named in refused_here(*ingest_words("voc", root, tmp_path / "store", *more))


def test_another_part_at_the_same_address(
    refused_on_ray: Refused, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", dict.fromkeys(("2007_000001", "2007_000002", "2007_000003"), MASK))
    words = ingest_words("voc", root, tmp_path / "store")
    assert main([*words, "--partition", "first:2"]) == 0
    assert main([*words, "--partition", "first:2"]) == 0
    assert "already there, unchanged" in capfd.readouterr().out
    store = open_store(str(tmp_path / "store"))
    assert (store.info.partition, store.info.num_sources) == ("first:2", 2)
    assert "another source store is here (partition first:2 -> all)" in refused_on_ray(*words)
    assert "(partition first:2 -> 1/3)" in refused_on_ray(*words, "--partition", "1/3")
