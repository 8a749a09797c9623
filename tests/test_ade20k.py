"""ADE20K: 0 is ignored and 1..150 are classes, not one off in either direction."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from look_alikes import all_ids, every_id, problem_of, read_only, write, write_mask, write_photograph

from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.labels import load_label_set
from segdatagen.sources import source_row

LABELS = load_label_set("ade20k")
NAME = "ADE_train_00000001"


def write_ade20k(root: Path, mask: np.ndarray, split: str = "training") -> Path:
    write_mask(root / f"annotations/{split}/{NAME}.png", mask)
    write_photograph(root / f"images/{split}/{NAME}.jpg", mask.shape)
    return root


def test_every_id_from_0_to_150_comes_back(tmp_path: Path) -> None:
    mask = every_id(all_ids(LABELS), (512, 683))
    assert set(np.unique(mask).tolist()) == set(range(151))
    source = read_only("ade20k", write_ade20k(tmp_path, mask), "training")
    assert source.mask is not None
    assert source.mask.dtype == np.uint8
    assert np.array_equal(source.mask, mask)


def test_id_1_is_wall_150_is_flag_and_0_counts_nowhere(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[0], mask[1, :3] = 1, 150
    reader = open_reader("ade20k", str(write_ade20k(tmp_path, mask)), "training", Options())
    (item,) = reader.list_items().items
    row = source_row(item, reader.read(item), "training", reader.label_set)
    assert (row["class_ids"], row["class_pixels"]) == ([1, 150], [10, 3])
    assert [LABELS.names[channel] for channel in LABELS.channel_table()[[1, 150]]] == ["wall", "flag"]
    assert LABELS.channel_table()[0] == -1


def test_masks_with_the_zero_label_reduced_are_recognised(tmp_path: Path) -> None:
    mask = every_id([*range(150), 255])
    found = problem_of("ade20k", write_ade20k(tmp_path, mask), "training")
    assert (found.problem, found.counts) == ("unknown id", {"255": int((mask == 255).sum())})
    assert "reduce_zero_label" in found.detail


def test_id_151_is_no_class(tmp_path: Path) -> None:
    found = problem_of("ade20k", write_ade20k(tmp_path, every_id([150, 151])), "training")
    assert list(found.counts) == ["151"]
    assert found.detail == ""


def test_splits_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    write_ade20k(tmp_path, every_id([1]), "validation")
    with pytest.raises(UsageError, match=r"annotations/training: no \.png files here"):
        open_reader("ade20k", str(tmp_path), "training", Options()).list_items()


def test_masks_one_level_up_are_named(tmp_path: Path) -> None:
    write_mask(tmp_path / f"annotations/{NAME}.png", every_id([1]))
    with pytest.raises(UsageError, match="such files lie in annotations: choose another --split, or move them"):
        open_reader("ade20k", str(tmp_path), "validation", Options()).list_items()


def test_the_samples_are_read(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data/samples/ade20k"
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "validation").symlink_to(samples / folder)
    reader = open_reader("ade20k", str(tmp_path), "validation", Options())
    listing = reader.list_items()
    assert [item.source_id for item in listing.items] == [f"ADE_val_0000000{number}" for number in (1, 2, 3)]
    for item in listing.items:
        with PIL.Image.open(samples / "annotations" / f"{item.source_id}.png") as picture:
            assert np.array_equal(reader.read(item).mask, np.asarray(picture))
    names = {LABELS.names[LABELS.channel_table()[id_]] for id_ in np.unique(reader.read(listing.items[2]).mask)[1:]}
    assert {"car", "signboard", "bus", "streetlight", "sidewalk", "van"} <= names


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, every_id([1, 2]))
    path = root / f"images/training/{NAME}.jpg"
    write(path, path.read_bytes()[:-40])
    found = problem_of("ade20k", root, "training")
    assert (found.problem, found.file_name) == ("unreadable image", f"images/training/{NAME}.jpg")
