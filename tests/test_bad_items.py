"""What readers refuse: every problem of an item with its file, values and pixel counts, and data sets that are none."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdatagen.datasets import BadItem, Options, Reader, open_reader
from segdatagen.datasets.reader import first_names, narrow, unknown_ids
from segdatagen.errors import UsageError
from segdatagen.images import encode_image, encode_mask
from segdatagen.ingest import describe_bad
from segdatagen.labels import load_label_set

RNG = np.random.default_rng(12)
SHAPE = (24, 32)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def photograph(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def problem_of(reader: Reader) -> BadItem:
    """The one item of a data set is bad: how?"""
    (item,) = reader.list_items().items
    with pytest.raises(BadItem) as caught:
        reader.read(item)
    return caught.value


@pytest.mark.parametrize("root", ["", "92", "92@128", "0@128x128", "4@16x128", "-1@64x64", "4@64x64 ", "4@64.5x64"])
def test_scenes_of_no_number_or_size_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match="scenes"):
        open_reader("scenes", root, "train", Options())


def test_scenes_of_an_unknown_split_are_refused() -> None:
    with pytest.raises(UsageError, match="holdout"):
        open_reader("scenes", "4@64x64", "holdout", Options())


def truncate(root: Path) -> None:
    data = (root / "masks/a.png").read_bytes()
    write(root / "masks/a.png", data[: len(data) * 2 // 3])


def truncate_image(root: Path) -> None:
    data = (root / "images/a.png").read_bytes()
    write(root / "images/a.png", data[: len(data) * 2 // 3])


def put_unknown_ids(root: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, :5], mask[4, :2] = 77, 200
    write(root / "masks/a.png", encode_mask(mask))


def put_colours(root: Path) -> None:
    write(root / "masks/a.png", encode_image(photograph(), "png"))


def put_other_size(root: Path) -> None:
    write(root / "images/a.png", encode_image(photograph((24, 40)), "png"))


def put_text(root: Path) -> None:
    write(root / "masks/a.png", b"a b c")


@pytest.mark.parametrize(
    ("damage", "problem", "detail", "counts"),
    [
        (truncate, "unreadable mask", "truncated", {}),
        (put_text, "unreadable mask", "of no known kind", {}),
        (truncate_image, "unreadable image", "truncated", {}),
        (put_unknown_ids, "unknown id", "", {"77": 5, "200": 2}),
        (put_colours, "colours where ids are expected", "", {}),
        (put_other_size, "size mismatch", "mask 32 x 24, image 40 x 24", {}),
    ],
)
def test_each_problem_of_an_id_mask_is_named(
    tmp_path: Path, damage: Callable[[Path], None], problem: str, detail: str, counts: dict[str, int]
) -> None:
    write(tmp_path / "masks/a.png", encode_mask(RNG.integers(0, 12, SHAPE, dtype=np.uint8)))
    write(tmp_path / "images/a.png", encode_image(photograph(), "png"))
    reader = open_reader("id_masks", str(tmp_path), "train", Options(labels="camvid"))
    assert reader.read(reader.list_items().items[0]).mask.shape == SHAPE
    damage(tmp_path)
    found = problem_of(reader)
    assert (found.problem, found.counts) == (problem, counts)
    assert detail in found.detail
    assert found.file_name == ("images/a.png" if problem == "unreadable image" else "masks/a.png")


def test_ids_where_colours_are_expected_are_named(tmp_path: Path) -> None:
    write(tmp_path / "colormap.json", b'{"road": [100, 100, 110], "car": [20, 40, 200]}')
    write(tmp_path / "masks/a.png", encode_mask(np.zeros(SHAPE, np.uint8)))
    write(tmp_path / "images/a.jpg", encode_image(photograph()))
    found = problem_of(open_reader("colormap", str(tmp_path), "train", Options()))
    assert (found.problem, found.file_name) == ("ids where colours are expected", "masks/a.png")


def test_files_without_a_partner_are_named_and_do_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"masks/{name}.png", encode_mask(np.zeros(SHAPE, np.uint8)))
    for name in ("b", "c"):
        write(tmp_path / f"images/{name}.jpg", encode_image(photograph()))
    listing = open_reader("id_masks", str(tmp_path), "train", Options(labels="camvid")).list_items()
    assert [item.source_id for item in listing.items] == ["b"]
    assert [(orphan.problem, orphan.file_name) for orphan in listing.orphans] == [
        ("mask without image", "masks/a.png"),
        ("image without mask", "images/c.jpg"),
    ]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "trainannot/a.png", encode_mask(np.zeros(SHAPE, np.uint8)))
    write(tmp_path / "train/a.jpg", encode_image(photograph()))
    write(tmp_path / "train/a.png", encode_image(photograph(), "png"))
    with pytest.raises(UsageError, match=r"train/a\.jpg and .*train/a\.png have the same name"):
        open_reader("camvid", str(tmp_path), "train", Options()).list_items()


@pytest.mark.parametrize("missing", ["masks", "images", ""])
def test_missing_and_empty_folders_are_refused(tmp_path: Path, missing: str) -> None:
    for folder in {"masks", "images"} - {missing}:
        if missing:
            write(tmp_path / folder / "a.png", encode_mask(np.zeros(SHAPE, np.uint8)))
    reader = open_reader("id_masks", str(tmp_path), "train", Options(labels="camvid"))
    with pytest.raises(UsageError, match=rf"{missing or 'masks'}: no .*files here \(missing or empty folder\)"):
        reader.list_items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no colormap.json here; name a label set with --labels"),
        ("{", "not JSON"),
        ("[1, 2]", "expected an object of class names"),
        ('{"a": [0, 0, 0], "b": [0, 0, 0]}', "already that of 'a'"),
        ('{"a": [0, 0, 256]}', "three integers from 0 to 255"),
        ("{}", "at least one class"),
    ],
)
def test_a_colormap_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "colormap.json").write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        open_reader("colormap", str(tmp_path), "train", Options())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kitti", Options(), "unknown format 'kitti': choose one of ade20k"),
        ("id_masks", Options(), "needs --labels"),
        ("camvid", Options(snap_colours=3.0), "takes no --snap-colours"),
        ("id_masks", Options(labels="voc", snap_colours=3.0), "takes no --snap-colours"),
        ("scenes", Options(labels="voc"), "takes no --labels"),
        ("masks", Options(labels="nowhere.yaml"), "neither a file nor one of the shipped sets"),
        ("masks", Options(labels="voc", snap_colours=-1.0), "--snap-colours"),
        ("colormap", Options(labels="voc", snap_colours=float("nan")), "--snap-colours"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, name: str, options: Options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_reader(name, str(tmp_path), "train", options)


def test_bad_files_are_described_with_the_first_twenty_names_and_summed_counts() -> None:
    bad = [BadItem("unknown id", f"masks/{number:02d}.png", counts={"77": 3, "200": 1}) for number in range(23)]
    bad.append(BadItem("size mismatch", "masks/99.png", "mask 3 x 4, image 5 x 6"))
    text = describe_bad("data", bad, 100)
    assert text.startswith("data: 24 of 100 files are bad: unknown id in 23 (masks/00.png, ")
    assert "masks/19.png and 3 more" in text
    assert "masks/20.png" not in text
    assert "77: 69 pixels, 200: 23 pixels" in text
    assert "size mismatch in 1 (masks/99.png) [mask 3 x 4, image 5 x 6]" in text
    assert "\n" not in text


def test_first_names_names_all_where_there_are_few() -> None:
    names = [str(number) for number in range(20)]
    assert first_names(names) == ", ".join(names)
    assert first_names([*names, "x"]) == f"{', '.join(names)} and 1 more"


def test_unknown_ids_are_counted_and_ignored_ones_are_not_unknown() -> None:
    labels = load_label_set("camvid")
    mask = np.array([[0, 11, 12], [12, 40000, 10]], np.uint16)
    assert unknown_ids(mask, labels) == {"12": 2, "40000": 1}
    assert narrow(mask).dtype == np.uint16
    assert narrow(np.array([[255]], np.uint16)).dtype == np.uint8
