"""Cityscapes: the two kinds of ids give the same classes, and neither kind is taken for the other."""

import json
from pathlib import Path

import numpy as np
import pytest
from look_alikes import every_id, problem_of, read_all, read_only, write_mask, write_photograph

from segdatagen.datasets import Item, Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.labels import load_label_set
from segdatagen.sources import source_row

LABEL_IDS, TRAIN_IDS = "cityscapes_label_ids", "cityscapes_train_ids"
ENDINGS = {LABEL_IDS: "labelIds", TRAIN_IDS: "labelTrainIds"}
STEM = "aachen_000000_000019"
FULL_SIZE = (1024, 2048)


def write_cityscapes(root: Path, masks: dict[str, np.ndarray], stem: str = STEM, split: str = "train") -> Path:
    city = stem.split("_")[0]
    for data_format, mask in masks.items():
        write_mask(root / f"gtFine/{split}/{city}/{stem}_gtFine_{ENDINGS[data_format]}.png", mask)
        write_mask(root / f"gtFine/{split}/{city}/{stem}_gtFine_instanceIds.png", mask.astype(np.uint16) * 1000)
        write_photograph(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", mask.shape)
    return root


def both_kinds(shared: Path, shape: tuple[int, int] = FULL_SIZE) -> dict[str, np.ndarray]:
    """One picture in both ids, by the published table."""
    rows = json.loads((shared / "data/labels/cityscapes.json").read_text())["classes"]
    train_id_of = np.zeros(256, np.uint8)
    for row in rows:
        if row["id"] >= 0:
            train_id_of[row["id"]] = row["train_id"]
    label_ids = every_id(range(34), shape)
    return {LABEL_IDS: label_ids, TRAIN_IDS: train_id_of[label_ids]}


def test_every_id_of_either_kind_comes_back(shared: Path, tmp_path: Path) -> None:
    masks = both_kinds(shared)
    write_cityscapes(tmp_path, masks)
    for data_format, mask in masks.items():
        source = read_only(data_format, tmp_path)
        assert source.mask is not None
        assert source.mask.dtype == np.uint8
        assert np.array_equal(source.mask, mask)
    assert set(np.unique(masks[LABEL_IDS]).tolist()) == set(range(34))
    assert set(np.unique(masks[TRAIN_IDS]).tolist()) == {*range(19), 255}


def test_either_kind_gives_the_same_channels_and_the_same_counts(shared: Path, tmp_path: Path) -> None:
    masks = both_kinds(shared, (64, 128))
    write_cityscapes(tmp_path, masks)
    found = {}
    for data_format in masks:
        reader = open_reader(data_format, str(tmp_path), "train", Options())
        (item,) = reader.list_items().items
        assert isinstance(item, Item)
        row = source_row(item, reader.read(item), "train", reader.label_set)
        names = [reader.label_set.names[channel] for channel in reader.label_set.channel_table()[row["class_ids"]]]
        mask = reader.read(item).mask
        found[data_format] = (
            reader.label_set.channel_table()[mask],
            dict(zip(names, row["class_pixels"], strict=True)),
        )
    (channels, counts), (others, other_counts) = found.values()
    assert np.array_equal(channels, others)
    assert counts == other_counts
    assert len(counts) == 19


def test_train_ids_are_not_taken_for_label_ids(shared: Path, tmp_path: Path) -> None:
    masks = both_kinds(shared, (64, 128))
    write_cityscapes(tmp_path, {LABEL_IDS: masks[TRAIN_IDS]})
    found = problem_of(LABEL_IDS, tmp_path)
    assert (found.problem, list(found.counts)) == ("unknown id", ["255"])
    assert "labelTrainIds" in found.detail


def test_label_ids_are_not_taken_for_train_ids(shared: Path, tmp_path: Path) -> None:
    masks = both_kinds(shared, (64, 128))
    write_cityscapes(tmp_path, {TRAIN_IDS: masks[LABEL_IDS]})
    found = problem_of(TRAIN_IDS, tmp_path)
    assert (found.problem, list(found.counts)) == ("unknown id", [str(id_) for id_ in range(19, 34)])
    assert "labelIds" in found.detail


def test_void_ids_are_ignored_and_licence_plates_are_none() -> None:
    table = load_label_set(LABEL_IDS).channel_table()
    assert set(np.flatnonzero(table == -1).tolist()) == {*range(7), 9, 10, 14, 15, 16, 18, 29, 30}
    assert (table[34:] == -2).all()  # -1 of licence plates would be 255 in a file of 8 bits
    assert load_label_set(TRAIN_IDS).channel_table()[255] == -1


def test_sources_are_called_by_their_frame_in_all_cities(tmp_path: Path) -> None:
    mask = every_id([7, 8, 11])
    for stem in ("ulm_000001_000019", STEM, "bremen_000000_000019"):
        write_cityscapes(tmp_path, {LABEL_IDS: mask}, stem)
    assert list(read_all(open_reader(LABEL_IDS, str(tmp_path), "train", Options()))) == [
        STEM,
        "bremen_000000_000019",
        "ulm_000001_000019",
    ]


def test_missing_train_ids_are_answered_with_how_to_make_them(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {LABEL_IDS: every_id([7])})
    with pytest.raises(
        UsageError, match=r"no _gtFine_labelTrainIds\.png files here .*createTrainIdLabelImgs makes them"
    ):
        open_reader(TRAIN_IDS, str(tmp_path), "train", Options()).list_items()


def test_a_frame_without_photograph_is_named(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {LABEL_IDS: every_id([7])})
    write_cityscapes(tmp_path, {LABEL_IDS: every_id([7])}, "ulm_000001_000019")
    (tmp_path / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png").unlink()
    found = problem_of(LABEL_IDS, tmp_path)
    assert found.problem == "mask without image"
    assert found.file_name == "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png"


def test_a_photograph_of_another_size_is_named(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {LABEL_IDS: every_id([7])})
    write_photograph(tmp_path / f"leftImg8bit/train/aachen/{STEM}_leftImg8bit.png", (12, 16))
    assert problem_of(LABEL_IDS, tmp_path).detail == "mask 32 x 24, image 16 x 12"
