"""Every reader on real files: what it finds, what it reads, and every problem that it reports with values and counts."""

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from segdatagen.colours import encode
from segdatagen.datasets import BadItem, Item, Options, RawSource, Reader, open_reader
from segdatagen.datasets.reader import first_names, narrow, unknown_ids
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.errors import UsageError
from segdatagen.images import decode_image, encode_image, encode_mask
from segdatagen.ingest import describe_bad
from segdatagen.labels import LabelSet, load_label_set

RNG = np.random.default_rng(11)
COLOURMAP = {"background": [0, 0, 0], "road": [100, 100, 110], "car": [20, 40, 200], "tree": [0, 96, 32]}
SHAPE = (24, 32)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def photograph(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def ids(label_set: LabelSet, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return RNG.choice(np.append(label_set.ids, label_set.ignore_ids), shape).astype(np.uint8)


def read_all(reader: Reader) -> dict[str, RawSource]:
    return {item.source_id: reader.read(item) for item in reader.list_items().items}


def problem_of(reader: Reader) -> BadItem:
    """The one item of a data set is bad: how?"""
    (item,) = reader.list_items().items
    with pytest.raises(BadItem) as caught:
        reader.read(item)
    return caught.value


@pytest.fixture
def camvid(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder laid out as CamVid is, with nested names, JPEG and PNG photographs and files that are neither."""
    labels = load_label_set("camvid")
    masks = {"0006R0_f02070": ids(labels), "0016E5_08159": ids(labels), "night/0001TP_006690": ids(labels)}
    for name, mask in masks.items():
        write(tmp_path / "trainannot" / f"{name}.png", encode_mask(mask))
    write(tmp_path / "train/0006R0_f02070.png", encode_image(photograph(), "png"))
    write(tmp_path / "train/0016E5_08159.jpg", encode_image(photograph()))
    write(tmp_path / "train/night/0001TP_006690.JPEG", encode_image(photograph()))
    write(tmp_path / "train/readme.txt", b"not a picture")
    write(tmp_path / "train/.hidden.png", b"not a picture")
    return tmp_path, masks


@pytest.fixture
def colourmap_folder(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Paper 001's layout with one pair."""
    mask = RNG.integers(0, 4, SHAPE, dtype=np.uint8)
    write(tmp_path / "colormap.json", json.dumps(COLOURMAP).encode())
    write(tmp_path / "masks/a.png", encode_image(np.array(list(COLOURMAP.values()), np.uint8)[mask], "png"))
    write(tmp_path / "images/a.jpg", encode_image(photograph()))
    return tmp_path, mask


def test_camvid_pairs_masks_and_images_by_name(camvid: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, masks = camvid
    reader = open_reader("camvid", str(root), "train", Options())
    listing = reader.list_items()
    assert [item.source_id for item in listing.items] == sorted(masks)
    assert listing.orphans == ()
    assert listing.items[0] == Item("0006R0_f02070", "trainannot/0006R0_f02070.png", "train/0006R0_f02070.png")
    for name, source in read_all(reader).items():
        assert np.array_equal(source.mask, masks[name])
        assert source.image is not None
        assert decode_image(source.image).shape == (*SHAPE, 3)
    assert (root / "train/0016E5_08159.jpg").read_bytes() == read_all(reader)["0016E5_08159"].image


def test_real_camvid_is_read_whole_names_and_counts(shared: Path) -> None:
    root = shared / "data/camvid"
    for split, number in (("train", 367), ("val", 101)):
        reader = open_reader("camvid", str(root), split, Options())
        listing = reader.list_items()
        assert len(listing.items) == number
        assert not listing.orphans
        for item in listing.items[::60]:
            source = reader.read(item)
            assert source.mask.shape == (360, 480)
            expected = cv2.imread(str(root / item.mask_name), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(source.mask, expected)


def test_real_colour_masks_decode_to_their_classes(shared: Path) -> None:
    root = shared / "data/samples/colourbook_bdd"
    colours = json.loads((root / "colormap.json").read_text())
    reader = open_reader("colormap", str(root), "train", Options())
    shipped = open_reader("colormap", str(root), "train", Options(labels="colourbook_bdd"))
    assert reader.label_set.names == shipped.label_set.names == tuple(colours)
    sources, by_name = read_all(reader), read_all(shipped)
    assert len(sources) == 4
    for name, source in sources.items():
        painted = np.asarray(PIL.Image.open(root / "masks" / f"{name}.png").convert("RGB"))
        assert np.array_equal(np.array(list(colours.values()))[source.mask], painted)
        assert np.array_equal(by_name[name].mask, source.mask)


def test_colormap_reads_colours_in_the_order_of_the_file(colourmap_folder: tuple[Path, np.ndarray]) -> None:
    root, mask = colourmap_folder
    reader = open_reader("colormap", str(root), "train", Options())
    assert reader.label_set.names == tuple(COLOURMAP)
    assert reader.label_set.background_ids == (0,)
    (source,) = read_all(reader).values()
    assert np.array_equal(source.mask, mask)


def test_masks_alone_have_no_images(tmp_path: Path) -> None:
    labels = load_label_set("voc")
    mask = ids(labels)
    write(tmp_path / "deep/er/a.png", encode_mask(mask))
    reader = open_reader("masks", str(tmp_path), "train", Options(labels="voc"))
    (item,) = reader.list_items().items
    assert item == Item("deep/er/a", "deep/er/a.png", None)
    source = reader.read(item)
    assert np.array_equal(source.mask, mask)
    assert source.image is None


def test_id_masks_of_a_palette_and_of_sixteen_bits(tmp_path: Path) -> None:
    mask = ids(load_label_set("voc"))
    picture = PIL.Image.fromarray(mask, "P")
    picture.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks/palette.png")
    write(tmp_path / "masks/wide.png", encode_mask(mask.astype(np.uint16)))
    for name in ("palette", "wide"):
        write(tmp_path / f"images/{name}.png", encode_image(photograph(), "png"))
    for source in read_all(open_reader("id_masks", str(tmp_path), "train", Options(labels="voc"))).values():
        assert source.mask.dtype == np.uint8
        assert np.array_equal(source.mask, mask)


def test_ids_past_255_stay_wide(tmp_path: Path) -> None:
    labels = tmp_path / "wide.yaml"
    labels.write_text(
        "name: wide\nversion: '1'\nclasses:\n"
        "  - {id: 7, name: a, prompt: a, colour: [1, 2, 3], kind: stuff}\n"
        "  - {id: 300, name: b, prompt: b, colour: [4, 5, 6], kind: stuff}\n"
    )
    mask = np.array([[7, 300], [300, 300]], np.uint16)
    write(tmp_path / "data/a.png", encode_mask(mask))
    (source,) = read_all(open_reader("masks", str(tmp_path / "data"), "train", Options(labels=str(labels)))).values()
    assert source.mask.dtype == np.uint16
    assert np.array_equal(source.mask, mask)


def antialiased(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """A disc of car on road, painted with soft edges; returns the picture and where the disc clearly is."""
    large = np.empty((256, 256, 3), np.uint8)
    large[:] = COLOURMAP["road"]
    cv2.circle(large, (128, 128), 90, COLOURMAP["car"], -1)
    picture = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    write(root / "colormap.json", json.dumps(COLOURMAP).encode())
    write(root / "a.png", encode_image(picture, "png"))
    rows, columns = np.mgrid[:64, :64] + 0.5
    return picture, np.hypot(rows - 32, columns - 32) < 22.5


def test_antialiased_paint_is_refused_with_its_colours_and_counts(tmp_path: Path) -> None:
    picture, _ = antialiased(tmp_path)
    problem = problem_of(open_reader("masks", str(tmp_path), "train", Options()))
    known = set(map(tuple, COLOURMAP.values()))
    expected = Counter(colour for colour in map(tuple, picture.reshape(-1, 3).tolist()) if colour not in known)
    assert problem.problem == "unknown colour"
    assert problem.counts == {f"({r}, {g}, {b})": count for (r, g, b), count in expected.items()}
    assert sum(problem.counts.values()) > 50


def test_antialiased_paint_is_snapped_to_the_nearest_colour(tmp_path: Path) -> None:
    picture, disc = antialiased(tmp_path)
    (source,) = read_all(open_reader("masks", str(tmp_path), "train", Options(snap_colours=80.0))).values()
    colours = np.array(list(COLOURMAP.values()))
    distances = np.linalg.norm(picture[:, :, None].astype(float) - colours, axis=-1)
    assert np.array_equal(source.mask, distances.argmin(axis=-1))
    assert ((source.mask == 2) != disc).mean() < 0.02


def test_the_snapping_distance_is_euclidean_and_included(tmp_path: Path) -> None:
    painted = np.empty((2, 2, 3), np.uint8)
    painted[:] = COLOURMAP["road"]
    painted[0, 0] += np.array([3, 4, 12], np.uint8)  # 13 away.
    write(tmp_path / "colormap.json", json.dumps(COLOURMAP).encode())
    write(tmp_path / "a.png", encode_image(painted, "png"))
    (source,) = read_all(open_reader("masks", str(tmp_path), "train", Options(snap_colours=13.0))).values()
    assert source.mask.tolist() == [[1, 1], [1, 1]]
    problem = problem_of(open_reader("masks", str(tmp_path), "train", Options(snap_colours=12.9)))
    assert problem.counts == {"(103, 104, 122)": 1}
    assert problem.detail == "farther than 12.9 from every class"


def test_the_ignore_colour_is_read_as_the_ignore_id(tmp_path: Path) -> None:
    labels = load_label_set("camvid")
    mask = ids(labels)
    assert (mask == labels.ignore_ids[0]).any()
    write(tmp_path / "a.png", encode_image(encode(mask, labels), "png"))
    (source,) = read_all(
        open_reader("masks", str(tmp_path), "train", Options(labels="camvid", snap_colours=0.0))
    ).values()
    assert np.array_equal(source.mask, mask)


def test_scenes_are_what_the_generator_makes() -> None:
    reader = open_reader("scenes", "12@48x40", "val", Options())
    listing = reader.list_items()
    assert [item.source_id for item in listing.items] == [f"val-{index:06d}" for index in range(12)]
    source, scene = reader.read(listing.items[7]), make_scene(scene_seed("val", 7), 48, 40)
    assert source.image is not None
    assert source.segment_map is not None
    assert np.array_equal(decode_image(source.image), scene.image)
    assert np.array_equal(source.mask, scene.mask)
    assert np.array_equal(source.segment_map, scene.segment_map)
    assert source.caption == scene.caption
    assert [vars(segment) for segment in source.segments or ()] == [
        {name: getattr(segment, name) for name in ("id", "class_id", "area", "bbox", "iscrowd")}
        for segment in scene.segments
    ]
    assert reader.label_set == load_label_set("scenes")


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
    write(tmp_path / "masks/a.png", encode_mask(ids(load_label_set("camvid"))))
    write(tmp_path / "images/a.png", encode_image(photograph(), "png"))
    reader = open_reader("id_masks", str(tmp_path), "train", Options(labels="camvid"))
    assert len(read_all(reader)) == 1
    damage(tmp_path)
    found = problem_of(reader)
    assert (found.problem, found.counts) == (problem, counts)
    assert detail in found.detail
    assert found.file_name == ("images/a.png" if problem == "unreadable image" else "masks/a.png")


def test_ids_where_colours_are_expected_are_named(colourmap_folder: tuple[Path, np.ndarray]) -> None:
    root, mask = colourmap_folder
    write(root / "masks/a.png", encode_mask(mask))
    found = problem_of(open_reader("colormap", str(root), "train", Options()))
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


def test_two_images_of_one_name_are_refused(camvid: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = camvid
    write(root / "train/0016E5_08159.png", encode_image(photograph(), "png"))
    with pytest.raises(UsageError, match=r"0016E5_08159\.jpg and .*0016E5_08159\.png have the same name"):
        open_reader("camvid", str(root), "train", Options()).list_items()


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
        ("cityscapes", Options(), "unknown format 'cityscapes': choose one of camvid"),
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


def test_readers_and_problems_travel_between_processes(camvid: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, masks = camvid
    reader = pickle.loads(pickle.dumps(open_reader("camvid", str(root), "train", Options())))
    assert set(read_all(reader)) == set(masks)
    problem = pickle.loads(pickle.dumps(BadItem("unknown id", "a.png", "why", {"7": 2})))
    assert (problem.problem, problem.file_name, problem.detail, problem.counts) == ("unknown id", "a.png", "why", {"7": 2})


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
