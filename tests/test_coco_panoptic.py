"""COCO panoptic: segments against the published samples and the numbers of pixels; each contradiction is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from look_alikes import problem_of, read_all, read_only, segment, write, write_mask, write_panoptic

from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.images import decode_mask
from segdatagen.labels import load_label_set
from segdatagen.sources import source_row

LABELS = load_label_set("coco_panoptic")
CODES = np.zeros((24, 32), np.int64)
CODES[:, 8:16], CODES[:, 16:24], CODES[:10, 24:] = 5, 0x0201FF, 0xFFFFFF
SEGMENTS = [segment(0x0201FF, 200), segment(5, 13), segment(0xFFFFFF, 1, iscrowd=1)]
SAMPLES = "data/samples/coco_panoptic"


def test_the_samples_are_read_as_they_are_published(shared: Path) -> None:
    root = shared / SAMPLES
    annotations = json.loads((root / "panoptic_examples.json").read_text())["annotations"]
    sources = read_all(open_reader("coco_panoptic", str(root), "examples", Options(images="input_images")))
    assert len(sources) == len(annotations) == 2
    num_crowds = 0
    for annotation in annotations:
        name = Path(annotation["file_name"]).stem
        source = sources[name]
        assert source.segments is not None
        assert source.segment_map is not None
        assert source.image == (root / f"input_images/{name}.jpg").read_bytes()
        with PIL.Image.open(root / f"panoptic_examples/{name}.png") as picture:
            codes = np.asarray(picture).astype(int) @ [1, 256, 65536]
        with PIL.Image.open(root / f"panoptic_examples_2ch_format/{name}.png") as picture:
            category = np.asarray(picture)[..., 0]
        assert np.array_equal(source.mask, category)  # the other published form of the same annotation
        rows = annotation["segments_info"]
        assert [s.id for s in source.segments] == list(range(1, len(rows) + 1))
        for found, row in zip(source.segments, rows, strict=True):
            assert (found.class_id, found.area, list(found.bbox)) == (row["category_id"], row["area"], row["bbox"])
            assert found.iscrowd == bool(row["iscrowd"])
            assert np.array_equal(source.segment_map == found.id, codes == row["id"])
        assert np.array_equal(source.segment_map == 0, codes == 0)
        num_crowds += sum(s.iscrowd for s in source.segments)
    assert num_crowds == 3


def test_numbers_of_24_bits_become_places_in_the_list(tmp_path: Path) -> None:
    source = read_only("coco_panoptic", write_panoptic(tmp_path, {"000000000009": (CODES, SEGMENTS)}), "val2017")
    assert source.segments is not None
    assert source.mask is not None
    assert [(s.id, s.class_id, s.area, s.bbox, s.iscrowd) for s in source.segments] == [
        (1, 200, 192, (16, 0, 8, 24), False),
        (2, 13, 192, (8, 0, 8, 24), False),
        (3, 1, 80, (24, 0, 8, 10), True),
    ]
    numbers = {0: 0, 0x0201FF: 1, 5: 2, 0xFFFFFF: 3}
    assert np.array_equal(source.segment_map, np.vectorize(numbers.get)(CODES))
    classes = {0: 0, 0x0201FF: 200, 5: 13, 0xFFFFFF: 1}
    assert np.array_equal(source.mask, np.vectorize(classes.get)(CODES))
    assert LABELS.ignore_ids == (0,)
    assert [LABELS.names[LABELS.channel_table()[id_]] for id_ in (200, 13, 1)] == ["rug-merged", "stop sign", "person"]


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16), (700, np.uint16)])
def test_more_than_255_segments_are_stored_in_16_bits(tmp_path: Path, count: int, dtype: type) -> None:
    codes = np.resize(np.arange(1, count + 1), (40, 40)) * 1000
    ids = LABELS.ids[np.arange(count) % LABELS.num_classes].tolist()
    segments = [segment((n + 1) * 1000, category) for n, category in enumerate(ids)]
    reader = open_reader(
        "coco_panoptic", str(write_panoptic(tmp_path, {"many": (codes, segments)})), "val2017", Options()
    )
    (item,) = reader.list_items().items
    row: dict[str, Any] = source_row(item, reader.read(item), "val2017", LABELS)
    stored = decode_mask(row["segment_map"])
    assert stored.dtype == dtype
    assert np.array_equal(stored, codes // 1000)
    assert len(row["segments"]) == count
    assert decode_mask(row["mask"]).dtype == np.uint8


def test_crowds_tell_two_stores_apart(tmp_path: Path) -> None:
    digests = set()
    for name, crowd in (("a", 0), ("b", 1)):
        segments = [segment(0x0201FF, 200), segment(5, 13), segment(0xFFFFFF, 1, iscrowd=crowd)]
        root = write_panoptic(tmp_path / name, {"x": (CODES, segments)})
        reader = open_reader("coco_panoptic", str(root), "val2017", Options())
        (item,) = reader.list_items().items
        digests.add(source_row(item, reader.read(item), "val2017", LABELS)["digest"])
    assert len(digests) == 2


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = root / "annotations/panoptic_val2017.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return root


def of_first(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["annotations"][0]["segments_info"][0].update(changes)


def drop_segment(document: dict[str, Any]) -> None:
    del document["annotations"][0]["segments_info"][1]


def add_segment(document: dict[str, Any]) -> None:
    document["annotations"][0]["segments_info"].append(segment(77, 1))


def add_image(document: dict[str, Any]) -> None:
    document["images"].append({"id": 99, "file_name": "000000000099.jpg"})


def double_annotation(document: dict[str, Any]) -> None:
    document["annotations"].append(document["annotations"][0])


def another_image(document: dict[str, Any]) -> None:
    document["annotations"][0]["image_id"] = "1"


MASK = "annotations/panoptic_val2017/x.png"


@pytest.mark.parametrize(
    ("change", "problem", "file_name", "detail", "counts"),
    [
        (drop_segment, "unknown segment", MASK, "not listed", {"5": 192}),
        (add_segment, "segment without pixels", MASK, "not in the picture", {"77": 0}),
        (of_first(area=0), "segment without pixels", MASK, "its area is 0", {str(0x0201FF): 0}),
        (of_first(category_id=12), "unknown id", MASK, "", {"12": 192}),
        (of_first(category_id=201), "unknown id", MASK, "", {"201": 192}),
        (of_first(id=5), "duplicate id", MASK, "two segments have id 5", {}),
        (of_first(id=1 << 24), "unreadable annotation", MASK, "segment 16777216 has category 200", {}),
        (of_first(category_id=None), "unreadable annotation", MASK, "has category None", {}),
        (add_image, "image without annotation", "000000000099.jpg", "", {}),
        (double_annotation, "duplicate id", "x.png", "two annotations of image 1", {}),
    ],
)
def test_each_contradiction_between_picture_and_json_is_named(
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    problem: str,
    file_name: str,
    detail: str,
    counts: dict[str, int],
) -> None:
    root = rewrite(write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)}), change)
    found = problem_of("coco_panoptic", root, "val2017")
    assert (found.problem, found.file_name, found.counts) == (problem, file_name, counts)
    assert detail in found.detail


def test_an_annotation_of_an_image_that_is_not_listed_is_named(tmp_path: Path) -> None:
    root = rewrite(write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)}), another_image)
    orphans = open_reader("coco_panoptic", str(root), "val2017", Options()).list_items().orphans
    assert [(bad.problem, bad.detail) for bad in orphans] == [
        ("unreadable annotation", "image 1 is not in the JSON"),
        ("image without annotation", ""),
    ]


@pytest.mark.parametrize(("gone", "problem"), [(MASK, "missing mask"), ("val2017/x.jpg", "mask without image")])
def test_files_that_are_not_there_are_named(tmp_path: Path, gone: str, problem: str) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS), "y": (CODES, SEGMENTS)})
    (root / gone).unlink()
    listing = open_reader("coco_panoptic", str(root), "val2017", Options()).list_items()
    assert [item.source_id for item in listing.items] == ["y"]
    assert [(bad.problem, bad.file_name) for bad in listing.orphans] == [(problem, MASK)]


def test_images_that_the_json_does_not_list_are_no_mistake(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS), "y": (CODES, SEGMENTS)})
    rewrite(root, lambda document: (document["images"].pop(), document["annotations"].pop(), None)[-1])
    assert list(read_all(open_reader("coco_panoptic", str(root), "val2017", Options()))) == ["x"]


def test_a_picture_of_ids_is_no_picture_of_segments(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)})
    write_mask(root / MASK, np.zeros((24, 32), np.uint8))
    assert problem_of("coco_panoptic", root, "val2017").problem == "ids where colours are expected"


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)})
    write(root / MASK, (root / MASK).read_bytes()[:-30])
    found = problem_of("coco_panoptic", root, "val2017")
    assert (found.problem, found.file_name) == ("unreadable mask", MASK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": [', r"panoptic_val2017\.json: broken JSON at byte 17: Expecting value"),
        ("[]", "holds no annotations"),
        ('{"images": []}', "holds no annotations"),
        ('{"annotations": [{"image_id": 3}]}', "an annotation has no file_name and no segments_info"),
        ('{"annotations": [{"image_id": [3], "file_name": "x.png", "segments_info": []}]}', r"has image_id \[3\]"),
        ('{"images": [7]}', "an image has no id and no file_name"),
        ('{"annotations": []} 4', "more follows"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)})
    (root / "annotations/panoptic_val2017.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        open_reader("coco_panoptic", str(root), "val2017", Options()).list_items()


def test_a_missing_json_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path, {"x": (CODES, SEGMENTS)})
    with pytest.raises(UsageError, match=r"no annotations/panoptic_val\.json here .* holds panoptic_val2017\.json"):
        open_reader("coco_panoptic", str(root), "val", Options())


def test_categories_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    good = [{"id": 13, "name": "stop sign"}, {"id": 200, "name": "rug-merged"}, {"id": 12, "name": "street sign"}]
    root = write_panoptic(tmp_path / "good", {"x": (CODES, SEGMENTS)}, categories=good)
    assert read_all(open_reader("coco_panoptic", str(root), "val2017", Options()))
    shifted = [{"id": 13, "name": "parking meter"}, {"id": 14, "name": "bench"}]
    root = write_panoptic(tmp_path / "shifted", {"x": (CODES, SEGMENTS)}, categories=shifted)
    with pytest.raises(UsageError, match=r"other categories .* \(13 is parking meter, not stop sign, 14 is bench, not"):
        open_reader("coco_panoptic", str(root), "val2017", Options()).list_items()
