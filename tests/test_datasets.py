"""Every reader on real files: what it finds and what it reads. What it refuses is in `test_bad_items`."""

import io
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from segdatagen.colours import encode
from segdatagen.datasets import BadItem, Item, Options, RawSource, Reader, open_reader
from segdatagen.datasets.scenes import make_scene, scene_seed
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


def test_real_voc_masks_hold_the_pixels_that_were_counted_elsewhere(shared: Path) -> None:
    known = json.loads((shared / "data/voc/class_pixels.json").read_text())
    reader = open_reader("masks", str(shared / "data/voc/SegmentationClass"), "train", Options(labels="voc"))
    items = reader.list_items().items
    assert len(items) == 1153
    names = dict(zip(reader.label_set.ids.tolist(), reader.label_set.names, strict=True))
    for item in items[::40]:
        mask = reader.read(item).mask
        found = {names[id_]: int((mask == id_).sum()) for id_ in np.unique(mask).tolist() if id_ not in (0, 255)}
        assert found == {_voc_name(name): pixels for name, pixels in known["images"][item.source_id]["pixels"].items()}


def _voc_name(name: str) -> str:
    labels = load_label_set("voc")
    return labels.names[labels.channel_of(name)]


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


def test_the_line_about_far_colours_names_a_distance_that_takes_them_all(tmp_path: Path) -> None:
    """Colours scaled with a filter that overshoots are farther from every class than one would think."""
    write(tmp_path / "colormap.json", json.dumps(COLOURMAP).encode())
    for name, size in (("a", 67), ("b", 41)):
        painted = np.zeros((32, 32, 3), np.uint8)
        painted[8:24, 8:24] = COLOURMAP["car"]
        scaled = PIL.Image.fromarray(painted).resize((size, size), PIL.Image.Resampling.LANCZOS)
        write(tmp_path / f"{name}.png", encode_image(np.asarray(scaled), "png"))

    def bad(distance: float) -> list[BadItem]:
        reader = open_reader("masks", str(tmp_path), "train", Options(snap_colours=distance))
        found = []
        for item in reader.list_items().items:
            try:
                reader.read(item)
            except BadItem as problem:
                found.append(pickle.loads(pickle.dumps(problem)))
        return found

    line = describe_bad(str(tmp_path), bad(10.0), 2)
    (named,) = re.findall(r"the farthest is [\d.]+ away: --snap-colours (\d+) takes them all", line)
    assert not bad(float(named))
    assert bad(float(named) - 1)


@pytest.mark.parametrize("snap_colours", [None, 0.0])
def test_the_ignore_colour_is_read_as_the_ignore_id(tmp_path: Path, snap_colours: float | None) -> None:
    labels = load_label_set("camvid")
    mask = ids(labels)
    assert (mask == labels.ignore_ids[0]).any()
    write(tmp_path / "a.png", encode_image(encode(mask, labels), "png"))
    (source,) = read_all(
        open_reader("masks", str(tmp_path), "train", Options(labels="camvid", snap_colours=snap_colours))
    ).values()
    assert np.array_equal(source.mask, mask)


def test_masks_alone_may_hold_ids_or_exactly_the_colours(tmp_path: Path) -> None:
    labels = load_label_set("camvid")
    mask = ids(labels)
    write(tmp_path / "ids.png", encode_mask(mask))
    write(tmp_path / "colours.png", encode_image(encode(mask, labels), "png"))
    found = read_all(open_reader("masks", str(tmp_path), "train", Options(labels="camvid")))
    assert set(found) == {"ids", "colours"}
    assert all(np.array_equal(source.mask, mask) for source in found.values())


@pytest.mark.parametrize(
    ("pixel", "problem", "detail"),
    [
        ((1, 2, 3), "unknown colour", "neither ids nor exactly the colours of camvid"),
        ((3, 3, 3), "colours where ids are expected", "grey in RGB: keep one channel of it"),
    ],
)
def test_masks_alone_of_other_colours_are_refused(
    tmp_path: Path, pixel: tuple[int, int, int], problem: str, detail: str
) -> None:
    painted = np.zeros((4, 4, 3), np.uint8)
    painted[1] = pixel
    write(tmp_path / "a.png", encode_image(painted, "png"))
    found = problem_of(open_reader("masks", str(tmp_path), "train", Options(labels="camvid")))
    assert (found.problem, found.detail) == (problem, detail)


def with_palette(colours: np.ndarray, numbers: np.ndarray) -> bytes:
    """A PNG whose palette has colour `n` of these, uint8 `[N, 3]`, under number `n`."""
    picture = PIL.Image.fromarray(numbers.astype(np.uint8), "P")
    picture.putpalette(colours.astype(np.uint8).tobytes())
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def test_colours_of_a_palette_are_colours(tmp_path: Path) -> None:
    """A painted mask that was saved again with a palette: numbers mean nothing where they are no ids."""
    labels = load_label_set("voc")
    chosen = np.array([15, 7, 0])
    numbers = RNG.integers(0, 3, SHAPE) + 30
    palette = np.zeros((33, 3))
    palette[30:] = [label.colour for id_ in chosen for label in labels.classes if label.id == id_]
    write(tmp_path / "painted.png", with_palette(palette, numbers))
    write(tmp_path / "ids.png", with_palette(palette, chosen[numbers - 30]))
    found = read_all(open_reader("masks", str(tmp_path), "train", Options(labels="voc")))
    assert all(np.array_equal(source.mask, chosen[numbers - 30]) for source in found.values())
    assert set(found) == {"painted", "ids"}


@pytest.mark.parametrize("painted", [[15, 7, 0], [5, 6, 7, 7], [0, 0, 1, 3]])
def test_a_palette_of_other_classes_than_its_numbers_is_refused(tmp_path: Path, painted: list[int]) -> None:
    """Where two numbers share a colour, too, unless it is that of the class of one of them."""
    labels = load_label_set("voc")
    colours = np.array([label.colour for label in labels.classes])
    write(tmp_path / "a.png", with_palette(colours[painted], np.resize(np.arange(len(painted)), SHAPE)))
    found = problem_of(open_reader("masks", str(tmp_path), "train", Options(labels="voc")))
    assert (found.problem, found.detail) == ("palette of other classes", "save it as grey ids, or in RGB")


def test_a_palette_does_for_colours(colourmap_folder: tuple[Path, np.ndarray]) -> None:
    root, mask = colourmap_folder
    colours = np.array(list(COLOURMAP.values()))
    write(root / "masks/a.png", with_palette(colours[::-1], 3 - mask))
    (source,) = read_all(open_reader("colormap", str(root), "train", Options())).values()
    assert np.array_equal(source.mask, mask)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photograph_that_exif_turns_is_refused(tmp_path: Path, orientation: int) -> None:
    """Whether its mask was drawn on the pixels as they lie or as they are shown, the files do not say."""
    write(tmp_path / "masks/a.png", encode_mask(np.zeros(SHAPE, np.uint8)))
    (tmp_path / "images").mkdir()
    tags = PIL.Image.Exif()
    for tag in (orientation, 1):
        tags[0x0112] = tag
        PIL.Image.fromarray(photograph()).save(tmp_path / "images/a.jpg", exif=tags)
        reader = open_reader("id_masks", str(tmp_path), "train", Options(labels="camvid"))
        if tag == 1:
            assert set(read_all(reader)) == {"a"}
        else:
            assert problem_of(reader).problem == "image turned by EXIF"


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


def test_readers_and_problems_travel_between_processes(camvid: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, masks = camvid
    reader = pickle.loads(pickle.dumps(open_reader("camvid", str(root), "train", Options())))
    assert set(read_all(reader)) == set(masks)
    problem = pickle.loads(pickle.dumps(BadItem("unknown id", "a.png", "why", {"7": 2})))
    assert (problem.problem, problem.file_name, problem.detail, problem.counts) == (
        "unknown id",
        "a.png",
        "why",
        {"7": 2},
    )
