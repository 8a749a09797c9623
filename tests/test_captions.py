"""Captions from every kind of file, as sources of their own and beside the masks of another data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import JobFactory, Refused, make_scenes_store
from look_alikes import read_all, write, write_mask

from segdatagen.cli import main
from segdatagen.datasets import Options, open_reader
from segdatagen.datasets.captions import read_captions
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.methods import LoadSource
from segdatagen.sources import SourceStore, open_store, read_arrays, transformed_counts
from segdatagen.stages.stage import objects
from segdatagen.tables import read_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

COCO: dict[str, Any] = {
    "info": {"description": "naïve"},
    "images": [{"id": 5, "file_name": "000000000005.jpg"}, {"id": 3, "file_name": "000000000003.jpg"}],
    "annotations": [
        {"image_id": 3, "id": 900, "caption": " A zebra grazes\nin  the grass. "},
        {"image_id": 5, "id": 37, "caption": "Un café au coin de la rue"},
        {"image_id": 3, "id": 12, "caption": "Two zebras"},
    ],
}


def write_coco(path: Path, document: object = COCO, ascii_only: bool = False) -> Path:
    return write(path, json.dumps(document, ensure_ascii=ascii_only).encode())


def captions_of(path: Path) -> dict[str, str | None]:
    reader = open_reader("captions", str(path), "train", Options(labels="ade20k"))
    assert reader.label_set.name == "ade20k"
    return {name: source.caption for name, source in read_all(reader).items()}


@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_caption_of_coco_is_a_source(tmp_path: Path, ascii_only: bool) -> None:
    path = write_coco(tmp_path / "captions_train2017.json", COCO, ascii_only)
    assert captions_of(path) == {
        "000000000003-0": "A zebra grazes in the grass.",
        "000000000005-0": "Un café au coin de la rue",
        "000000000003-1": "Two zebras",
    }


def test_images_may_stand_behind_the_captions(tmp_path: Path) -> None:
    turned = dict(reversed(COCO.items()))
    assert next(iter(turned)) == "annotations"
    assert captions_of(write_coco(tmp_path / "a.json", turned)) == captions_of(write_coco(tmp_path / "b.json"))


def test_lines_name_captions_or_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.tsv", b"a.jpg\tA red bus\n\nb.c\tTwo dogs, one ball\t!\n")
    assert captions_of(path) == {"a": "A red bus", "b.c": "Two dogs, one ball !"}
    path = write(tmp_path / "ideas.txt", b"A tram in the rain\n  A  field\n")
    assert captions_of(path) == {"ideas-000000001": "A tram in the rain", "ideas-000000002": "A field"}


def test_json_lines_have_their_usual_keys(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a/b.png", "text": "A bridge"},
        {"source_id": "x.y", "caption": "Ein Fluß"},
        {"id": 7, "caption": "A quay", "url": "https://example.org"},
    ]
    path = write(tmp_path / "metadata.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    assert captions_of(path) == {"a/b": "A bridge", "x.y": "Ein Fluß", "7": "A quay"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.tsv", "a.jpg\tA bus", {"a": "A bus"}),
        ("a.jsonl", '{"image": "a.jpg", "caption": "A bus"}', {"a": "A bus"}),
        ("a.json", json.dumps(COCO["annotations"][1:2]), {"5-0": "Un café au coin de la rue"}),
        ("a.json", json.dumps(COCO | {"annotations": COCO["annotations"][2:]}), {"000000000003-0": "Two zebras"}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_belongs_to_no_caption(
    tmp_path: Path, name: str, text: str, expected: dict[str, str], encoding: str
) -> None:
    assert captions_of(write(tmp_path / name, text.encode(encoding))) == expected


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u000b"])
def test_only_newlines_end_a_line(tmp_path: Path, separator: str) -> None:
    rows = [{"id": 1, "caption": f"A bus{separator}in the rain"}, {"id": 2, "caption": "A field"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert captions_of(write(tmp_path / "a.jsonl", text.encode())) == {"1": "A bus in the rain", "2": "A field"}
    assert captions_of(write(tmp_path / "a.tsv", f"1\tA bus{separator}!\r\n".encode())) == {"1": "A bus !"}


def test_an_image_may_have_several_captions_in_any_form(tmp_path: Path) -> None:
    rows = [{"image_id": 3, "id": number, "caption": text} for number, text in enumerate(["A zebra", "Two"])]
    lines = "\n".join(map(json.dumps, rows))
    assert captions_of(write(tmp_path / "a.jsonl", lines.encode())) == {"3": "A zebra", "3-1": "Two"}
    assert captions_of(write(tmp_path / "a.json", json.dumps(rows).encode())) == {"3-0": "A zebra", "3-1": "Two"}
    assert captions_of(write(tmp_path / "a.tsv", b"3.jpg\tA zebra\n3.jpg\tTwo\n")) == {"3": "A zebra", "3-1": "Two"}


def test_a_caption_without_a_name_is_numbered(tmp_path: Path) -> None:
    lines = b'{"image": null, "caption": "A bus"}\n{"image": null, "id": 7, "caption": "A field"}\n'
    assert captions_of(write(tmp_path / "a.jsonl", lines)) == {"a-000000001": "A bus", "7": "A field"}
    assert captions_of(write(tmp_path / "b.json", b'[{"caption": "A bus"}]')) == {"b-000000001": "A bus"}


def test_captions_reach_the_sources_of_any_format(tmp_path: Path) -> None:
    for name in ("000000000003", "000000000005", "000000000007"):
        write_mask(tmp_path / f"masks/{name}.png", np.zeros((8, 8), np.uint8))
    options = Options(labels="camvid", captions=str(write_coco(tmp_path / "captions.json")))
    reader = open_reader("masks", str(tmp_path / "masks"), "train", options)
    items = reader.list_items().items
    assert {item.source_id: item.caption for item in items} == {
        "000000000003": "A zebra grazes in the grass.",  # of two the first
        "000000000005": "Un café au coin de la rue",
        "000000000007": None,
    }


def test_folders_before_a_name_may_be_others_unless_two_files_have_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_mask(tmp_path / f"masks/{name}.png", np.zeros((8, 8), np.uint8))
    lines = b"train2017/a.jpg\tA bus\ntrain2017/b.jpg\tOne\nval2017/b.jpg\tOther\nc\tA field\nold/c.jpg\tA lawn\n"
    options = Options(labels="camvid", captions=str(write(tmp_path / "captions.tsv", lines)))
    items = open_reader("masks", str(tmp_path / "masks"), "train", options).list_items().items
    assert [item.caption for item in items] == ["A bus", None, "A field"]


@pytest.mark.parametrize("partition", [None, "names.txt"])
@pytest.mark.parametrize("kind", ["coco", "lines"])
def test_a_name_without_folders_means_no_item_where_two_have_it(
    tmp_path: Path, kind: str, partition: str | None
) -> None:
    for name in ("cam0/0001", "cam1/0001", "cam1/0002"):
        write_mask(tmp_path / f"masks/{name}.png", np.zeros((8, 8), np.uint8))
    files = {1: "cam0/0001.jpg", 2: "old/0001.jpg", 3: "cam1/0002.jpg"}
    images = [{"id": id_, "file_name": name} for id_, name in files.items()]
    annotations = [{"image_id": id_, "caption": text} for id_, text in ((2, "A bus"), (1, "A dog"), (3, "A cow"))]
    path = write(tmp_path / "captions.tsv", b"cam0/0001.jpg\tA dog\ncam1/0002.jpg\tA cow\n")
    if kind == "coco":
        path = write_coco(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    listed = None
    if partition is not None:
        listed = str(write(tmp_path / partition, b"cam1/0001\ncam1/0002\n"))
    options = Options(labels="camvid", captions=str(path), partition=listed)
    items = open_reader("masks", str(tmp_path / "masks"), "train", options).list_items().items
    found = {item.source_id: item.caption for item in items}
    rest = {"cam1/0001": None, "cam1/0002": "A cow"}
    assert found == (rest if partition else {"cam0/0001": "A dog"} | rest)


def test_captions_of_none_of_a_partition_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_mask(tmp_path / f"masks/{name}.png", np.zeros((8, 8), np.uint8))
    path, listed = write(tmp_path / "captions.tsv", b"a\tA bus\n"), write(tmp_path / "names.txt", b"b\n")
    options = Options(labels="camvid", captions=str(path), partition=str(listed))
    with pytest.raises(UsageError, match="no caption for any source: it names a, while sources are called b"):
        open_reader("masks", str(tmp_path / "masks"), "train", options).list_items()


def test_captions_go_before_those_of_the_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.tsv", b"train-000001\tA street of my own\n")
    reader = open_reader("scenes", "3@32x32", "train", Options(captions=str(path)))
    store = store_of(tmp_path / "store", "scenes", "3@32x32", Options(captions=str(path)))
    first, second, _ = read_part(store.folder, store.info.parts[0].name, ["caption"])["caption"].to_pylist()
    assert second == "A street of my own"
    assert first == reader.read(reader.list_items().items[0]).caption
    assert store.info.captions == str(path)


def store_of(folder: Path, data_format: str, root: str, options: Options) -> SourceStore:
    reader = open_reader(data_format, root, "train", options)
    request = IngestRequest(data_format, root, "train", str(folder), captions=options.captions)
    shard = ingest_shard(reader.list_items().items, "part-00000.parquet", reader, request, keep=True)
    assert shard.part is not None
    return seal_store(request, reader, [shard.part], shard.bad)


@pytest.fixture
def caption_store(tmp_path: Path) -> SourceStore:
    path = write(tmp_path / "ideas.txt", b"A tram in the rain\nA field\n")
    return store_of(tmp_path / "ideas", "captions", str(path), Options(labels="scenes"))


def test_a_store_of_captions_has_no_masks_and_no_classes(caption_store: SourceStore) -> None:
    rows = read_part(caption_store.folder, "part-00000.parquet").to_pylist()
    assert [row["caption"] for row in rows] == ["A tram in the rain", "A field"]
    empty = ("image", "mask", "segment_map", "segments", "height", "width")
    assert all(row[name] is None for row in rows for name in empty)
    assert all(row["class_ids"] == row["class_pixels"] == [] for row in rows)
    counts = transformed_counts(open_store(caption_store.folder.uri), Geometry(size=(32, 32)))
    assert counts.shape == (2, 12)
    assert not counts.any()


@pytest.mark.parametrize("words", [("plan",), ("plan", "--dry-run"), ("run",)])
def test_methods_that_need_masks_refuse_captions(
    refused_here: Refused, make_job: JobFactory, caption_store: SourceStore, words: tuple[str, ...]
) -> None:
    line = refused_here(words[0], make_job(sources=caption_store.folder.uri), *words[1:])
    assert "2 of 2 sources are captions without a mask (ideas-000000001, ideas-000000002)" in line
    assert "mask_ddpm starts from masks" in line


def test_a_row_whose_source_is_a_caption_gets_a_reason(caption_store: SourceStore) -> None:
    load = LoadSource(caption_store, Geometry(size=(32, 32)))
    batch = {"source_file": objects(["part-00000.parquet"] * 2), "source_row": objects([0, 1])}
    assert load(batch)["reason"].tolist() == ["the source is a caption without a mask"] * 2


def test_training_refuses_captions(caption_store: SourceStore) -> None:
    with pytest.raises(UsageError, match="source ideas-000000001 has no mask: images and masks are needed"):
        read_arrays(caption_store.folder.uri, Geometry(size=(32, 32)))


def test_ingest_says_how_many_sources_have_a_caption(
    ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_mask(tmp_path / f"masks/{name}.png", np.zeros((8, 8), np.uint8))
    path = write(tmp_path / "captions.tsv", b"a\tA bus\nc\tA field\nd\tA lawn\n")
    words = f"ingest masks {tmp_path}/masks --split train --labels voc --captions {path} --out {tmp_path}/store"
    assert main(words.split()) == 0
    assert "2 of 3 sources have a caption" in capfd.readouterr().out


def test_captions_are_ingested_by_the_command(ray_session: None, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "captions.json")
    words = [
        "ingest",
        "captions",
        str(path),
        "--split",
        "train",
        "--labels",
        "scenes",
        "--out",
        str(tmp_path / "store"),
    ]
    assert main(words) == 0
    store = open_store(str(tmp_path / "store"))
    assert store.index["source_id"].to_pylist() == ["000000000003-0", "000000000005-0", "000000000003-1"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.json", "{", "broken JSON at byte 1"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": "x"}]}', "it lists no images"),
        ("a.json", '{"images": [{"id": 1}]}', "an entry has no file_name"),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "a caption is for image 2, which the file does not list",
        ),
        ("a.jsonl", '{"id": 1, "caption": "x"}\n{"id": 2,\n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", '{"id": 1}', "a.jsonl:1: expected an object with one text under caption or text"),
        ("a.jsonl", "[1]", "a.jsonl:1: expected an object with one text"),
        ("a.jsonl", '{"image": {"path": "a.jpg"}, "caption": "x"}', "image must be a text or a number, not {"),
        ("a.json", '[{"image_id": 1}]', "a.json, entry 1: expected an object with one text under caption or text"),
        ("a.txt", "\n\n", "no captions here"),
    ],
)
def test_files_of_captions_that_are_none_are_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        captions_of(write(tmp_path / name, text.encode()))
    assert problem in str(caught.value)


def test_empty_captions_are_named_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"a\tA bus\nb\t  \n")
    (orphan,) = open_reader("captions", str(path), "train", Options(labels="voc")).list_items().orphans
    assert (orphan.problem, orphan.file_name) == ("empty caption", f"{path}:2")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"A bus without a name\n", ":1: whose caption is this? Expected name<TAB>caption"),
        (b"train-000000\t \n", ":1: the caption is empty"),
        (b"0001\tA bus\n", "no caption for any source: it names 0001, while sources are called train-000000"),
        (b"\xff\xfe", "not a text file"),
        (None, "no such file: captions are COCO's JSON, JSON lines or name<TAB>caption"),
    ],
)
def test_captions_for_other_sources_are_refused(tmp_path: Path, text: bytes | None, problem: str) -> None:
    path = tmp_path / "captions.tsv"
    if text is not None:
        write(path, text)
    with pytest.raises(UsageError) as caught:
        open_reader("scenes", "3@32x32", "train", Options(captions=str(path))).list_items()
    assert problem in str(caught.value)


def test_json_that_does_not_say_whose_caption_it_is(refused_on_ray: Refused, tmp_path: Path) -> None:
    path = write(tmp_path / "captions.jsonl", b'{"caption": "A bus"}\n')
    words = ["ingest", "scenes", "3@32x32", "--split", "train", "--out", tmp_path / "store", "--captions", path]
    refused_on_ray(*words, row="`--captions` in JSON without a name of the image")


def test_a_list_of_captions_takes_no_further_captions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no --captions"):
        open_reader("captions", str(tmp_path), "train", Options(labels="voc", captions="x.tsv"))
    with pytest.raises(UsageError, match=r"needs --labels \(the classes of masks"):
        open_reader("captions", str(tmp_path), "train", Options())


def test_another_captions_file_makes_another_store(refused_on_ray: Refused, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store", 3)
    path = write(tmp_path / "captions.tsv", b"train-000001\tA street of my own\n")
    line = refused_on_ray("ingest", "scenes", "3@32x32", "--split", "train", "--out", out, "--captions", path)
    assert "its sources differ" in line
    assert next(iter(read_captions(str(path)))).name == "train-000001"
