"""Sources that a training reads where it asks for them, and what it keeps neither in memory nor on a device."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_latent_training import TUNED, base_fields, fields, tensors_of, train_here, write
from torch import nn

from segdatagen import sources
from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.sources import ROW_GROUP_SIZE, first_without, open_store, read_arrays
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part
from segdatagen.training import latents, run
from segdatagen.training.data import TrainingArrays, TrainingData
from segdatagen.training.latent_parts import load_parts
from segdatagen.training.stored import StoredSources

GEOMETRY = Geometry(size=(24, 16), fit="crop")


@pytest.fixture
def parts_of_three(tmp_path: Path) -> str:
    """A store of ten scenes in four parts."""
    reader = open_reader("scenes", "10@32x32", "train", Options())
    request, items = IngestRequest("scenes", "10@32x32", "train", str(tmp_path / "store")), reader.list_items().items
    made = [
        ingest_shard(items[start : start + 3], f"part-{start // 3:05d}.parquet", reader, request, keep=True)
        for start in range(0, 10, 3)
    ]
    seal_store(request, reader, [shard.part for shard in made if shard.part is not None], [])
    return request.out


def test_what_is_read_of_a_store_is_what_it_has_in_memory(parts_of_three: str) -> None:
    kept, stored = (
        TrainingArrays(*read_arrays(parts_of_three, GEOMETRY)),
        StoredSources(open_store(parts_of_three), GEOMETRY),
    )
    assert stored.num_sources == kept.num_sources == 10
    assert (stored.label_set, stored.captions) == (kept.label_set, kept.captions)
    np.testing.assert_array_equal(stored.class_pixels, kept.class_pixels)
    counted = [np.unique(channels[channels >= 0]).tolist() for channels in kept.channels]
    assert [np.flatnonzero(row).tolist() for row in stored.class_pixels] == counted
    for rows in ([9, 0, 4, 3, 4], np.arange(10), [2]):
        np.testing.assert_array_equal(stored.images_of(rows), kept.images[rows])
        np.testing.assert_array_equal(stored.channels_of(rows), kept.channels[rows])


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_source_without_pixels_is_named(parts_of_three: str, column: str) -> None:
    folder, store = Folder(parts_of_three), open_store(parts_of_three)
    named = read_part(folder, "part-00002.parquet", ["source_id"])["source_id"][1].as_py()
    assert first_without(store, column) is None
    table = read_part(folder, "part-00002.parquet")
    values = table[column].to_pylist()
    place = table.column_names.index(column)
    emptied = pa.array([values[0], None, values[2]], table.schema.field(column).type)
    put_table(
        folder, "part-00002.parquet", table.set_column(place, table.schema.field(column), emptied), ROW_GROUP_SIZE
    )
    stored, other = StoredSources(store, GEOMETRY), {"image": "mask", "mask": "image"}[column]
    stored.require([other])
    with pytest.raises(UsageError, match=f"store: source {named} has no {column}: images and masks are needed"):
        stored.require([other, column])


def test_the_first_without_a_value_is_found_without_reading_the_values(
    parts_of_three: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a column behind those that are lists of records, and only in the part that lacks one."""
    folder, store = Folder(parts_of_three), open_store(parts_of_three)
    table = read_part(folder, "part-00001.parquet")
    field = table.schema.field("caption")
    emptied = pa.array([*table["caption"].to_pylist()[:2], None], field.type)
    named = table["source_id"][2].as_py()
    put_table(folder, "part-00001.parquet", table.set_column(table.column_names.index("caption"), field, emptied), 2)
    read: list[str] = []

    def counting(folder: Folder, name: str, columns: list[str]) -> pa.Table:
        read.append(name)
        return read_part(folder, name, columns)

    monkeypatch.setattr(sources, "read_part", counting)
    assert first_without(store, "image") is None
    assert read == []
    assert first_without(store, "caption") == named
    assert read == ["part-00001.parquet"]


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_source_that_is_damaged_is_named(parts_of_three: str, tmp_path: Path, column: str) -> None:
    folder, store = Folder(parts_of_three), open_store(parts_of_three)
    table = read_part(folder, "part-00003.parquet")
    field, named = table.schema.field(column), table["source_id"][0].as_py()
    torn = pa.array([table[column][0].as_py()[:40]], field.type)
    put_table(folder, "part-00003.parquet", table.set_column(table.column_names.index(column), field, torn), 8)
    stored = StoredSources(store, GEOMETRY)
    reads = {"image": stored.images_of, "mask": stored.channels_of}
    with pytest.raises(DecodeError, match=f"store: source {named}: its {column} is damaged: "):
        reads.pop(column)([9])
    assert len(next(iter(reads.values()))([9, 8])) == 2  # the other column is whole, and is all that is read


@pytest.mark.parametrize("kind", ["base", *TUNED])
def test_trainings_on_caches_decode_a_few_pictures_and_learn_the_same(
    latent_store: Path,
    latent_vae: Path,
    latent_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Against data in memory, with the caches of before: no image of a batch is decoded, and two of the grid are."""
    found = fields(latent_store, tmp_path / "out", base=str(latent_base), steps=3, **TUNED.get(kind, {}))
    if kind == "base":
        found = base_fields(latent_store, tmp_path / "out", latent_vae, steps=3)
    found["cache"] = str(tmp_path / "cache")

    def in_memory(options: Any) -> TrainingData:
        return TrainingArrays(*read_arrays(options.sources, options.geometry))

    with monkeypatch.context() as patched:
        patched.setattr(run, "read_data", in_memory)
        kept = tensors_of(
            train_here(kind, write(tmp_path, "memory", found | {"out": str(tmp_path / "memory")})).weights
        )
    decoded: list[str] = []
    for name in ("decode_image", "decode_mask"):
        decode = getattr(sources, name)
        monkeypatch.setattr(sources, name, lambda data, n=name, d=decode: decoded.append(n) or d(data))
    learned = tensors_of(train_here(kind, write(tmp_path, "stored", found)).weights)
    assert [name for name, tensor in learned.items() if not torch.equal(tensor, kept[name])] == []
    assert learned.keys() == kept.keys()
    images, masks = {"base": (2, 0), "text2mask": (0, 4)}.get(kind, (2, 0))  # two sources of the grid, and of figures
    assert (decoded.count("decode_image"), decoded.count("decode_mask")) == (images, masks)


def test_text2mask_learns_from_masks_without_images(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    shutil.copytree(latent_store, tmp_path / "store")
    folder = Folder(str(tmp_path / "store"))
    for part in open_store(folder.uri).info.parts:
        table = read_part(folder, part.name)
        field, place = table.schema.field("image"), table.column_names.index("image")
        nothing = pa.nulls(table.num_rows, field.type)
        put_table(folder, part.name, table.set_column(place, field, nothing), ROW_GROUP_SIZE)
    more = {"base": str(latent_base), "cache": str(tmp_path / "cache"), "steps": 2}
    without = train_here("text2mask", write(tmp_path, "without", fields(tmp_path / "store", tmp_path / "out", **more)))
    whole = train_here("text2mask", write(tmp_path, "whole", fields(latent_store, tmp_path / "whole", **more)))
    kept = tensors_of(whole.weights)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors_of(without.weights).items())
    with pytest.raises(UsageError, match="has no image: images and masks are needed"):
        train_here("controlnet", write(tmp_path, "control", fields(tmp_path / "store", tmp_path / "other", **more)))


def test_networks_that_filled_a_cache_are_let_go(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    found = fields(latent_store, tmp_path / "out", base=str(latent_base), cache=str(tmp_path / "cache"), steps=1)
    train_here("controlnet", write(tmp_path, "filled", found))
    assert any((tmp_path / "cache").rglob("cache.json"))
    assert latents._network.cache_info().currsize == latents._encoder.cache_info().currsize == 0


def test_frozen_parts_are_on_the_device_of_the_unet_while_pictures_are_drawn(
    latent_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is one that holds no numbers, so that moves are written down in place of done."""
    parts = load_parts(str(latent_base))
    parts.unet.to("meta")
    moves: list[tuple[str, str]] = []

    def to(module: nn.Module, device: Any) -> nn.Module:
        moves.append((type(module).__name__, str(device)))
        return module

    for part in {type(one) for one in (parts.vae, *parts.encoders)}:
        monkeypatch.setattr(part, "to", to)
    names = sorted(type(part).__name__ for part in (parts.vae, *parts.encoders))
    with parts.models():
        assert sorted(moves) == [(name, "meta") for name in names]
        moves.clear()
    assert sorted(moves) == [(name, "cpu") for name in names]
