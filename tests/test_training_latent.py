"""What trainings of latent diffusion share: noise against closed forms, tokenizers, and caches against the VAE."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from tiny_latent import make_vae
from tiny_latent_training import CPU, base_fields, base_kind, fields

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.sources import read_arrays
from segdatagen.storage import Folder
from segdatagen.training.base import BaseTrainingOptions
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.latent_training import Noisy
from segdatagen.training.latents import fill, here, latent_cache
from segdatagen.training.loop import build_network
from segdatagen.training.noise import SDXL_SCHEDULE, Noise, require_trainable
from segdatagen.training.pictures import colour_masks
from segdatagen.training.record_cache import INFO_NAME, CacheInfo, RecordCache
from segdatagen.training.vae import moments


def test_noise_is_that_of_diffusers() -> None:
    noise = Noise(SDXL_SCHEDULE)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    latents, drawn = (torch.randn(8, 4, 3, 5, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 1, 10, 250, 500, 900, 998, 999])
    torch.testing.assert_close(
        noise.add(latents, drawn, timesteps), scheduler.add_noise(latents, drawn, timesteps), rtol=1e-5, atol=1e-6
    )
    snr = compute_snr(scheduler, timesteps)
    torch.testing.assert_close(noise.weights(timesteps, 5.0), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert noise.weights(timesteps, None).tolist() == [1.0] * 8
    with pytest.raises(UsageError, match="there predicts v_prediction"):
        require_trainable({**SDXL_SCHEDULE, "prediction_type": "v_prediction"}, "there")


def test_noise_of_a_base_with_betas_of_its_own_is_that_of_diffusers() -> None:
    betas = [0.01, 0.02, 0.05, 0.3]
    schedule = {**SDXL_SCHEDULE, "num_train_timesteps": 4, "trained_betas": betas, "clip_sample": False}
    torch.testing.assert_close(Noise(schedule).bars, torch.cumprod(1 - torch.tensor(betas), 0))


@pytest.mark.parametrize(("name", "power"), [("uniform", 1.0), ("cubic", 1 / 3)])
def test_timesteps_follow_their_distribution(name: Any, power: float) -> None:
    """P(t < x T) is x where uniform, and 1 - (1 - x)^(1/3) where cubic: within 4 standard deviations."""
    generator = torch.Generator().manual_seed(0)
    drawn = Noise(SDXL_SCHEDULE).timesteps([generator] * 4000, name)
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) <= 999
    for x in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = 1 - (1 - x) ** power
        deviation = math.sqrt(expected * (1 - expected) / len(drawn))
        assert abs(float((drawn < x * 1000).float().mean()) - expected) < 4 * deviation


def test_tokenizer_is_the_same_every_time_and_knows_every_byte(tmp_path: Path) -> None:
    texts = ["a street with two cars", "A photo of traffic light, car", "two cars and a traffic light"] * 3
    first, second = (train_tokenizer(order, 540) for order in (texts, texts[::-1]))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= 540
    first.save_pretrained(tmp_path)
    loaded = type(first).from_pretrained(tmp_path)
    for text in ("two traffic lights; zebra", "Fußgänger am Übergang", "日本"):
        ids = first(text).input_ids
        assert loaded(text).input_ids == ids
        assert first.unk_token_id not in ids[1:-1]
        assert first.decode(ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")
    assert len(first("two cars").input_ids) == 4  # words that are frequent are one token each


@pytest.mark.parametrize("of", ["images", "colour_maps"])
def test_cache_holds_what_the_vae_makes_of_both_orientations(
    latent_store: Path, latent_vae: Path, tmp_path: Path, of: Any
) -> None:
    found = base_fields(latent_store, tmp_path, latent_vae, cache=str(tmp_path / "cache"), cache_dtype="float32")
    options = BaseTrainingOptions.model_validate(found)
    cache = latent_cache(options, str(latent_vae), of)
    fill([cache], "cpu", here)
    arrays = TrainingArrays(*read_arrays(str(latent_store), options.geometry))
    pictures = arrays.images if of == "images" else colour_masks(arrays.channels, arrays.label_set)
    network = make_vae().from_pretrained(latent_vae)
    kept = torch.from_numpy(cache.records.read(range(6)))
    for place, seen in enumerate((pictures, pictures[:, :, ::-1].copy())):
        mean, logvar = moments(network, seen)
        torch.testing.assert_close(kept[:, place, 0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kept[:, place, 1], logvar, rtol=1e-4, atol=1e-4)
    assert not torch.equal(kept[:, 0], kept[:, 1])
    chance = [torch.Generator().manual_seed(row) for row in range(3)]
    drawn = cache.draw(np.array([4, 0, 4]), np.array([True, False, False]), chance)
    for row, (source, side) in enumerate(((4, 1), (0, 0), (4, 0))):
        noise = torch.randn(kept.shape[3:], generator=torch.Generator().manual_seed(row))
        torch.testing.assert_close(drawn[row], kept[source, side, 0] + (kept[source, side, 1] / 2).exp() * noise)


@pytest.mark.parametrize("timesteps", ["uniform", "cubic"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_start": 0.001, "beta_end": 0.03, "beta_schedule": "linear"},
        {"num_train_timesteps": 40, "trained_betas": np.geomspace(1e-4, 0.3, 40).tolist()},
    ],
)
def test_the_loss_is_of_the_timesteps_and_betas_that_it_is_told(
    latent_store: Path, latent_base: Path, tmp_path: Path, schedule: dict[str, Any], timesteps: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(latent_base, base)
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | schedule))
    changes = {"cache": str(tmp_path / "cache"), "min_snr_gamma": 5.0, "timesteps": timesteps}
    kind = base_kind(fields(latent_store, tmp_path, init_weights=str(base), batch_size=6, **changes))
    fill(kind.caches(), "cpu", here)
    network = build_network(kind, CPU)
    batch, again = (batch_of_step(kind.data, Order(0, 6, True), 1, Share(), CPU) for _ in range(2))
    loss = kind.loss(network, batch)
    scheduler = DDPMScheduler(**schedule)
    cache = latent_cache(kind.options, str(base / "vae"), "images")
    clean = cache.draw(again.sources, again.flipped, again.row_chance) * kind.parts.vae.config.scaling_factor
    noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in again.row_chance])
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in again.row_chance])
    share = uniform if timesteps == "uniform" else 1 - uniform**3
    at = (share * scheduler.config.num_train_timesteps).long()
    latents = scheduler.add_noise(clean, noise, at)
    noisy = Noisy(latents, noise, at, kind.embedded(network, kind.prompts.of(again), CPU))
    errors = ((kind.predict(network, noisy, again) - noise) ** 2).mean(dim=(1, 2, 3))
    snr = compute_snr(scheduler, at)
    torch.testing.assert_close(loss, (snr.clamp(max=5) / snr * errors).mean(), rtol=1e-4, atol=1e-6)


def test_cache_is_whole_or_not_at_all_and_another_vae_has_another(
    latent_store: Path, latent_vae: Path, tmp_path: Path
) -> None:
    found = base_fields(latent_store, tmp_path, latent_vae, cache=str(tmp_path / "cache"))
    options = BaseTrainingOptions.model_validate(found)
    cache = latent_cache(options, str(latent_vae), "images")

    def killed(numbers: Any, work: Any) -> Any:
        for number in numbers:
            yield work(number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill([cache], "cpu", killed)
    assert not cache.records.is_whole
    kind = base_kind(found)
    network, batch = build_network(kind, CPU), batch_of_step(kind.data, Order(0, 2, True), 0, Share(), CPU)
    with pytest.raises(SegdatagenError, match="the cache is not whole"):
        kind.loss(network, batch)
    made: list[int] = []
    fill([cache], "cpu", lambda numbers, work: made.extend(numbers) or [])
    assert (made, cache.records.is_whole) == ([], True)  # the shard that came whole is not made again
    other = tmp_path / "vae"
    shutil.copytree(latent_vae, other)
    assert latent_cache(options, str(other), "images").records.info.key == cache.records.info.key
    file = next(other.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert not latent_cache(options, str(other), "images").records.is_whole


def test_records_come_back_by_row_from_any_shard(tmp_path: Path) -> None:
    info = CacheInfo(facts={"of": "test"}, counts=(3, 1, 2), shape=(2, 4), dtype="float32")
    cache = RecordCache(Folder(str(tmp_path)), info)
    everything = np.arange(6 * 8, dtype=np.float32).reshape(6, 2, 4)
    starts = [0, 3, 4, 6]
    cache.fill(lambda number: everything[starts[number] : starts[number + 1]], here)
    rows = [5, 0, 3, 4, 2, 5]
    assert np.array_equal(cache.read(rows), everything[rows])
    assert np.array_equal(cache.read(rows, [1, 0, 0, 1, 1, 0]), everything[rows, [1, 0, 0, 1, 1, 0]])
    assert np.array_equal(np.stack([cache._fetch((s, r)) for s, r in ((2, 1), (0, 0))]), everything[[5, 0]])
    with pytest.raises(ValueError, match="not float32"):
        cache.put_shard(1, everything[:1].astype(np.float16))
    (tmp_path / info.key / INFO_NAME).write_text("{}")
    with pytest.raises(SegdatagenError):
        _ = cache.is_whole
