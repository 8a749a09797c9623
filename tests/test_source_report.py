"""The figures of a store are those of its pixels, and its pictures show masks in colours, segments outlined."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import Refused, make_scenes_store
from look_alikes import every_id, segment, write, write_mask, write_panoptic

from segdatagen.cli import main
from segdatagen.colours import encode
from segdatagen.datasets import Options, open_reader
from segdatagen.images import decode_image, decode_mask
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.labels import load_label_set
from segdatagen.outlines import encode_panoptic
from segdatagen.source_report import figures_of, picture_of
from segdatagen.sources import SourceStore, open_store
from segdatagen.tables import read_part

CODES = np.where(np.indices((24, 32))[1] < 16, 7, 70_000)


def store_of(folder: Path, data_format: str, root: Path, split: str = "train", **options: str) -> SourceStore:
    reader = open_reader(data_format, str(root), split, Options(**options))
    request = IngestRequest(data_format, str(root), split, str(folder))
    shard = ingest_shard(reader.list_items().items, "part-00000.parquet", reader, request, keep=True)
    assert shard.part is not None
    return seal_store(request, reader, [shard.part], shard.bad)


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    store = open_store(str(make_scenes_store(tmp_path / "store", 9, 64)))
    rows = read_part(store.folder, "part-00000.parquet").to_pylist()
    masks = [decode_mask(row["mask"]) for row in rows]
    figures = figures_of(store)
    assert (figures.sources, figures.masks, figures.images, figures.captions) == (9, 9, 9, 9)
    assert figures.segments == sum(len(row["segments"]) for row in rows)
    assert figures.crowds == 0
    total = sum(mask.size for mask in masks)
    for label, found in zip(store.label_set.classes, figures.classes, strict=True):
        assert found.name == label.name
        assert found.sources == sum((mask == label.id).any() for mask in masks)
        assert found.pixel_share == pytest.approx(sum((mask == label.id).sum() for mask in masks) / total)
        assert found.segments == sum(s["class_id"] == label.id for row in rows for s in row["segments"])


def test_crowds_are_counted_and_segments_outlined(tmp_path: Path) -> None:
    segments = [segment(7, 1), segment(70_000, 200, iscrowd=1)]
    root = write_panoptic(tmp_path / "coco", {"a": (CODES, segments), "b": (CODES, segments)})
    store = store_of(tmp_path / "store", "coco_panoptic", root, "val2017")
    figures = figures_of(store)
    assert (figures.segments, figures.crowds, figures.images, figures.captions) == (4, 2, 2, 0)
    picture = picture_of(store, "b")
    (row,) = store.read_rows("part-00000.parquet", [1], ["image", "mask", "segment_map"]).to_pylist()
    painted = encode_panoptic(decode_mask(row["mask"]), decode_mask(row["segment_map"]), store.label_set)
    assert np.array_equal(picture, np.hstack([decode_image(row["image"]), painted]))


def test_masks_without_images_and_segments_are_drawn_alone(tmp_path: Path) -> None:
    mask = every_id([0, 1, 20, 255])
    write_mask(tmp_path / "masks/a.png", mask)
    store = store_of(tmp_path / "store", "masks", tmp_path / "masks", labels="voc")
    figures = figures_of(store)
    assert (figures.masks, figures.images, figures.captions, figures.segments) == (1, 0, 0, 0)
    assert np.array_equal(picture_of(store, "a"), encode(mask, load_label_set("voc")))


def test_the_command_prints_and_draws(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = make_scenes_store(tmp_path / "store", 3, 64)
    path = tmp_path / "pictures/one.png"
    assert main(["sources", str(out), "--id", "train-000001", "--picture", str(path)]) == 0
    assert "".join(capfd.readouterr().out.split()) == f"{path}:sourcetrain-000001of{out}".replace(" ", "")
    assert main(["sources", str(out)]) == 0
    text = capfd.readouterr().out
    assert "3 sources: 3 masks, 3 images, 3 captions" in text
    assert "road" in text
    with PIL.Image.open(path) as picture:
        assert picture.size == (128, 64)
    assert main(["sources", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sources"] == 3


def test_a_store_of_captions_has_figures_and_no_pictures(refused_here: Refused, tmp_path: Path) -> None:
    path = write(tmp_path / "ideas.txt", b"A tram\nA field\n")
    store = store_of(tmp_path / "store", "captions", path, labels="voc")
    figures = figures_of(store)
    assert (figures.sources, figures.masks, figures.captions, figures.classes) == (2, 0, 2, ())
    line = refused_here("sources", store.folder.uri, "--id", "ideas-000000001", "--picture", tmp_path / "x.png")
    assert "is a caption without a mask" in line


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--id", "train-9", "--picture", "x.png"), "no source 'train-9' here; its sources are called train-000000, "),
        (("--id", "train-000001"), "--id and --picture belong together"),
        (("--picture", "x.png"), "--id and --picture belong together"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    refused_here: Refused, tmp_path: Path, scenes_store: Path, more: tuple[str, ...], problem: str
) -> None:
    words = [str(tmp_path / word) if word == "x.png" else word for word in more]
    assert problem in refused_here("sources", scenes_store, *words)
    assert "no source store here" in refused_here("sources", tmp_path)
