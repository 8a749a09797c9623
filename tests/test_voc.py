"""PASCAL VOC: the list of a split decides, 255 is void in palette and grey masks alike, and what is wrong is named."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from look_alikes import (
    all_ids,
    every_id,
    problem_of,
    read_all,
    read_only,
    write,
    write_mask,
    write_photograph,
    write_voc,
)

from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.labels import load_label_set

LABELS = load_label_set("voc")
MASK = every_id(all_ids(LABELS), (375, 500))


def test_palette_and_grey_masks_hold_the_same_ids_and_void(tmp_path: Path) -> None:
    write_voc(tmp_path, {"2007_000032": MASK})
    write_mask(tmp_path / "SegmentationClassAug/2007_000032.png", MASK)
    write(tmp_path / "ImageSets/Segmentation/train_aug.txt", b"2007_000032\n")
    palette, grey = read_only("voc", tmp_path), read_only("voc_aug", tmp_path, "train_aug")
    for source in (palette, grey):
        assert source.mask is not None
        assert source.mask.dtype == np.uint8
        assert np.array_equal(source.mask, MASK)
        assert set(np.unique(source.mask).tolist()) == {*range(21), 255}
        assert source.image == (tmp_path / "JPEGImages/2007_000032.jpg").read_bytes()


def test_the_list_of_the_split_decides(tmp_path: Path) -> None:
    write_voc(tmp_path, dict.fromkeys(("2007_000001", "2007_000002", "2007_000003"), MASK))
    write(tmp_path / "ImageSets/Segmentation/val.txt", b"2007_000002\n")
    names = [set(read_all(open_reader("voc", str(tmp_path), split, Options()))) for split in ("train", "val")]
    assert names == [{"2007_000001", "2007_000002", "2007_000003"}, {"2007_000002"}]


@pytest.mark.parametrize(
    ("gone", "problem", "file_name"),
    [
        ("SegmentationClass/2007_000001.png", "image without mask", "JPEGImages/2007_000001.jpg"),
        ("JPEGImages/2007_000001.jpg", "mask without image", "SegmentationClass/2007_000001.png"),
    ],
)
def test_a_listed_file_that_is_not_there_is_named(tmp_path: Path, gone: str, problem: str, file_name: str) -> None:
    write_voc(tmp_path, dict.fromkeys(("2007_000001", "2007_000002"), MASK))
    (tmp_path / gone).unlink()
    found = problem_of("voc", tmp_path)
    assert (found.problem, found.file_name) == (problem, file_name)


def test_without_the_list_a_list_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    write_voc(tmp_path, dict.fromkeys(("2007_000001", "2007_000002"), MASK))
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(UsageError, match=r"Segmentation/train\.txt: no such file; .*--partition FILE"):
        open_reader("voc", str(tmp_path), "train", Options())
    write(tmp_path / "mine.txt", b"2007_000002\n")
    reader = open_reader("voc", str(tmp_path), "train", Options(partition=str(tmp_path / "mine.txt")))
    assert set(read_all(reader)) == {"2007_000002"}


def test_a_list_of_ones_own_cannot_leave_the_split(tmp_path: Path) -> None:
    write_voc(tmp_path, {"2007_000001": MASK})
    write_voc(tmp_path, {"2007_000002": MASK}, "val")
    write(tmp_path / "mine.txt", b"2007_000001\n2007_000002\n")
    found = open_reader("voc", str(tmp_path), "train", Options(partition=str(tmp_path / "mine.txt"))).list_items()
    assert [item.source_id for item in found.items] == ["2007_000001"]
    assert [(orphan.problem, orphan.file_name) for orphan in found.orphans] == [("not in the data set", "2007_000002")]


def test_masks_in_colours_are_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, {"2007_000001": MASK})
    path = tmp_path / "SegmentationClass/2007_000001.png"
    with PIL.Image.open(path) as picture:
        painted = picture.convert("RGB")
    painted.save(path)
    assert problem_of("voc", tmp_path).problem == "colours where ids are expected"


def test_id_21_is_no_class(tmp_path: Path) -> None:
    write_voc(tmp_path, {"2007_000001": np.where(MASK == 20, np.uint8(21), MASK)})
    found = problem_of("voc", tmp_path)
    assert (found.problem, found.counts) == ("unknown id", {"21": int((MASK == 20).sum())})


def test_the_published_masks_are_read_without_photographs(shared: Path, tmp_path: Path) -> None:
    names = ["2010_005317", "2008_002885", "2011_000551"]
    listed = write(tmp_path / "three.txt", "\n".join(names).encode())
    reader = open_reader("voc", str(shared / "data/voc"), "train", Options(partition=str(listed), images="none"))
    sources = read_all(reader)
    assert list(sources) == sorted(names)
    for name, source in sources.items():
        with PIL.Image.open(shared / f"data/voc/SegmentationClass/{name}.png") as picture:
            assert np.array_equal(source.mask, np.asarray(picture))
        assert source.image is None


def test_photographs_may_lie_elsewhere(tmp_path: Path) -> None:
    write_voc(tmp_path, {"2007_000001": MASK})
    (tmp_path / "JPEGImages/2007_000001.jpg").unlink()
    path = write_photograph(tmp_path / "photographs/2007_000001.png", MASK.shape)
    assert read_only("voc", tmp_path, images="photographs").image == path.read_bytes()
