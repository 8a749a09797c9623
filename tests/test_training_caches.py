"""What makes a cache another one, and a training another one: nothing goes on with what was made of other data."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_scenes_store, visible
from tiny_latent import make_vae
from tiny_latent_training import fields, write
from tiny_training import configurer, train_here

from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import decode_image, decode_mask, encode_image, encode_mask
from segdatagen.priors import PriorOptions
from segdatagen.sources import ROW_GROUP_SIZE, open_store
from segdatagen.storage import Folder
from segdatagen.training import record_cache
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latents import fill, here, latent_cache
from segdatagen.training.prior_cache import prior_cache
from segdatagen.training.record_cache import CacheInfo, RecordCache
from segdatagen.training.run import train

CANNY = PriorOptions(name="canny")


@pytest.fixture(scope="module")
def other_store(scenes_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other scenes, as many as those of `scenes_store`, in parts of the same names and sizes."""
    folder = make_scenes_store(tmp_path_factory.mktemp("other") / "store", split="val")
    counts = [[(part.name, part.num_rows) for part in open_store(str(at)).info.parts] for at in (folder, scenes_store)]
    assert counts[0] == counts[1]
    return folder


def options_of(store: Path, folder: Path, **changes: Any) -> LatentTrainingOptions:
    """Options whose caches lie below `folder`, whatever the store."""
    return LatentTrainingOptions.model_validate(fields(store, folder / "out", cache=str(folder / "cache"), **changes))


def assert_others_have_none(found: RecordCache, others: list[RecordCache]) -> None:
    assert found.is_whole
    assert not any(other.is_whole for other in others)
    assert len({found.info.key, *(other.info.key for other in others)}) == 1 + len(others)


def test_another_store_fit_or_vae_has_other_latents(
    scenes_store: Path, other_store: Path, latent_vae: Path, tmp_path: Path
) -> None:
    vae, plain = str(latent_vae), options_of(scenes_store, tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        make_vae().save_pretrained(tmp_path / "vae")
    cache = latent_cache(plain, vae, "images")
    fill([cache], "cpu", here)
    others = [
        latent_cache(options_of(other_store, tmp_path), vae, "images"),
        latent_cache(options_of(scenes_store, tmp_path, fit="crop"), vae, "images"),
        latent_cache(options_of(scenes_store, tmp_path, fit="pad"), vae, "images"),
        latent_cache(plain, str(tmp_path / "vae"), "images"),
        latent_cache(plain, vae, "colour_maps"),
    ]
    assert_others_have_none(cache.records, [other.records for other in others])
    assert latent_cache(plain, vae, "images").records.is_whole
    fill(others[:1], "cpu", here)
    assert (cache.records.read(range(6)) != others[0].records.read(range(6))).any(axis=(1, 2, 3, 4, 5)).all()


def test_another_store_fit_or_prior_has_other_drawings(scenes_store: Path, other_store: Path, tmp_path: Path) -> None:
    plain = options_of(scenes_store, tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    priors = [
        PriorOptions(name="canny", canny_low=20, canny_high=60),
        PriorOptions(name="boundaries"),
        PriorOptions(name="hed", weights=str(tmp_path / "first")),
        PriorOptions(name="hed", weights=str(tmp_path / "second")),
        PriorOptions(name="hed", weights=str(tmp_path / "second"), resolution=64),
    ]
    cache = prior_cache(plain, CANNY)
    fill([cache], "cpu", here)
    others = [
        prior_cache(options_of(other_store, tmp_path), CANNY),
        prior_cache(options_of(scenes_store, tmp_path, fit="crop"), CANNY),
        prior_cache(options_of(scenes_store, tmp_path, fit="pad"), CANNY),
        *(prior_cache(plain, prior) for prior in priors),
    ]
    assert_others_have_none(cache.records, [other.records for other in others])
    blended = CANNY.model_copy(update={"w1": 0.1, "w2": 0.2})
    assert prior_cache(plain, blended).records.is_whole  # drawn the same, blended later
    fill([others[0], others[3]], "cpu", here)
    for other in (others[0], others[3]):
        assert (cache.records.read(range(6)) != other.records.read(range(6))).any()


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_sources_are_fitted_as_asked_for(scenes_store: Path, tmp_path: Path, fit: Any) -> None:
    options = options_of(scenes_store, tmp_path, size=[48, 32], fit=fit)
    assert options.geometry == Geometry(size=(48, 32), fit=fit)


def change_a_pixel(store: Path, column: str) -> None:
    """Of the last source of a store."""
    (part,) = open_store(str(store)).info.parts
    table = pq.read_table(store / part.name)
    values = table[column].to_pylist()
    if column == "mask":
        mask = decode_mask(values[-1])
        mask[5, 7] = next(id_ for id_ in np.unique(mask) if id_ != mask[5, 7])
        values[-1] = encode_mask(mask)
    else:
        image = decode_image(values[-1]).copy()
        image[5, 7, 1] ^= 1
        values[-1] = encode_image(image, "png")
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table, store / part.name, row_group_size=ROW_GROUP_SIZE)


@pytest.mark.parametrize("column", ["mask", "image"])
def test_a_training_does_not_go_on_when_one_pixel_has_changed(scenes_store: Path, tmp_path: Path, column: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(scenes_store, store)
    configure = configurer(tmp_path, store)
    train_here(configure("out", steps=1))
    assert train_here(configure("out", steps=2)).step == 2
    change_a_pixel(store, column)
    with pytest.raises(UsageError, match=r"another training is here \(its images, masks or captions are others\)"):
        train_here(configure("out", steps=3))


def test_another_training_is_refused_before_its_caches_are_made(
    scenes_store: Path, other_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    """Also beside a newer checkpoint that is torn: its header may be gone, and that of the one before is there."""
    cache, torn = tmp_path / "cache", tmp_path / "out" / "checkpoints" / "step-00000009.safetensors"
    found = fields(scenes_store, tmp_path / "out", base=str(latent_base), cache=str(cache), steps=1)
    train("controlnet", write(tmp_path, "first", found), True, None, lambda _: None)
    before = visible(cache)
    assert before
    others = write(tmp_path, "others", found | {"sources": str(other_store)})
    for damage in (None, b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"{}"):
        if damage is not None:
            torn.write_bytes(damage)
        with pytest.raises(UsageError, match=r"another training is here .its images, masks or captions are others."):
            train("controlnet", others, True, None, lambda _: None)
        assert visible(cache) == before
    again = train("controlnet", str(tmp_path / "first.yaml"), True, None, lambda _: None)
    assert (again.step, again.passed_over) == (1, (9,))


def test_a_cache_of_many_shards_holds_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_cache, "MOST_MAPS", 4)
    cache = RecordCache(Folder(str(tmp_path)), CacheInfo(facts={}, counts=(3,) * 20, shape=(2,), dtype="float32"))
    records = np.arange(120, dtype=np.float32).reshape(60, 2)
    for number in range(20):
        cache.put_shard(number, records[3 * number : 3 * number + 3])
    order = np.random.default_rng(0).permutation(60)
    before = len(os.listdir("/proc/self/fd"))
    found = np.concatenate([cache.read(order[start : start + 6].tolist()) for start in range(0, 60, 6)])
    assert np.array_equal(found, records[order])
    assert len(os.listdir("/proc/self/fd")) - before <= 4
