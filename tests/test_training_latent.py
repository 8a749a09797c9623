"""Trainings of latent diffusion: noise and losses against closed forms, caches against the VAE, and what they leave."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Refused, child_environment, make_scenes_store, visible
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file
from tiny_latent import make_vae
from torch import Tensor

from segdatagen.config_files import read_config
from segdatagen.diffusion.latent_models import load_adapter, load_base, load_controlnet
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image
from segdatagen.latent_folders import check_adapter, check_base, check_controlnet
from segdatagen.priors import Prior
from segdatagen.sources import read_arrays
from segdatagen.storage import Folder
from segdatagen.training.base import BaseTraining, BaseTrainingOptions
from segdatagen.training.checkpoints import load_newest
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.controlnet import ControlNetTraining, ControlNetTrainingOptions
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.kind import TrainingResult
from segdatagen.training.latent_parts import embed
from segdatagen.training.latents import fill, here, latent_cache
from segdatagen.training.loop import build_network
from segdatagen.training.noise import SDXL_SCHEDULE, Noise
from segdatagen.training.pictures import colour_masks
from segdatagen.training.record_cache import INFO_NAME, CacheInfo, RecordCache
from segdatagen.training.run import kind_type, train
from segdatagen.training.t2i_adapter import AdapterTraining, AdapterTrainingOptions
from segdatagen.training.text2mask import Text2MaskTraining, Text2MaskTrainingOptions
from segdatagen.training.vae import moments

CPU = torch.device("cpu")
NETWORK = {
    "blocks": [16, 32],
    "layers_per_block": 1,
    "transformer_layers": [0, 1],
    "heads": [2, 4],
    "norm_groups": 8,
    "size_embedding": 8,
    "text_widths": [16, 24],
    "text_layers": [2, 2],
    "text_heads": [2, 2],
    "vocabulary": 600,
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        make_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its own: caches lie beside it."""
    return make_scenes_store(tmp_path_factory.mktemp("latent") / "store")


def fields(store: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "sources": str(store),
        "out": str(out),
        "size": [32, 32],
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "ema_start": 4,
        "torch_threads": 1,
        "checkpoint_every": 2,
        "sample_every": 1000,
        "sample_rows": 2,
        "sampler": {"steps": 2},
    } | changes


def base_fields(store: Path, out: Path, vae: Path, **changes: Any) -> dict[str, Any]:
    return fields(store, out, network=NETWORK | {"vae": str(vae)}) | changes


def write(folder: Path, name: str, found: dict[str, Any]) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(found))
    return str(path)


def train_here(kind: str, config: str) -> TrainingResult:
    return train(kind, config, True, None, lambda _: None)


def base_kind(found: dict[str, Any]) -> BaseTraining:
    options = BaseTrainingOptions.model_validate(found)
    return BaseTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))


def tensors_of(weights: str | None) -> dict[str, Tensor]:
    assert weights is not None
    files = sorted(Path(weights).rglob("*.safetensors"))
    return {f"{file.parent.name}.{name}": t for file in files for name, t in load_file(file).items()}


def test_noise_is_that_of_diffusers() -> None:
    noise = Noise(SDXL_SCHEDULE, "here")
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
        Noise({**SDXL_SCHEDULE, "prediction_type": "v_prediction"}, "there")


@pytest.mark.parametrize(("name", "power"), [("uniform", 1.0), ("cubic", 1 / 3)])
def test_timesteps_follow_their_distribution(name: Any, power: float) -> None:
    """P(t < x T) is x where uniform, and 1 - (1 - x)^(1/3) where cubic: within 4 standard deviations."""
    generator = torch.Generator().manual_seed(0)
    drawn = Noise(SDXL_SCHEDULE, "here").timesteps([generator] * 4000, name)
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
def test_cache_holds_what_the_vae_makes_of_both_orientations(store: Path, vae: Path, tmp_path: Path, of: Any) -> None:
    found = base_fields(store, tmp_path, vae, cache=str(tmp_path / "cache"), cache_dtype="float32")
    options = BaseTrainingOptions.model_validate(found)
    cache = latent_cache(options, str(vae), of)
    fill([cache], "cpu", here)
    arrays = TrainingArrays(*read_arrays(str(store), options.geometry))
    pictures = arrays.images if of == "images" else colour_masks(arrays.channels, arrays.label_set)
    network = make_vae().from_pretrained(vae)
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


def test_cache_is_whole_or_not_at_all_and_another_vae_has_another(store: Path, vae: Path, tmp_path: Path) -> None:
    found = base_fields(store, tmp_path, vae, cache=str(tmp_path / "cache"))
    options = BaseTrainingOptions.model_validate(found)
    cache = latent_cache(options, str(vae), "images")

    def killed(numbers: Any, work: Any) -> Any:
        for number in numbers:
            yield work(number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill([cache], "cpu", killed)
    assert not cache.records.is_whole
    kind = base_kind(found)
    network, batch = build_network(kind, CPU), batch_of_step(kind.arrays, Order(0, 2, True), 0, Share(), CPU)
    with pytest.raises(SegdatagenError, match="the cache is not whole"):
        kind.loss(network, batch)
    made: list[int] = []
    fill([cache], "cpu", lambda numbers, work: made.extend(numbers) or [])
    assert (made, cache.records.is_whole) == ([], True)  # the shard that came whole is not made again
    other = tmp_path / "vae"
    shutil.copytree(vae, other)
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


def test_base_from_nothing_is_a_folder_that_diffusers_and_we_load(store: Path, vae: Path, tmp_path: Path) -> None:
    result = train_here("base", write(tmp_path, "out", base_fields(store, tmp_path / "out", vae, min_snr_gamma=5.0)))
    assert result.weights is not None
    shape = check_base(result.weights)
    assert (shape.family, shape.blocks, shape.text_channels, shape.vae_factor) == ("sdxl", (16, 32), 40, 2)
    models = load_base(result.weights, Numerics(), "cpu")
    pipeline = StableDiffusionXLPipeline.from_pretrained(result.weights)
    ours, theirs = (
        models.text.encode(["a street"]),
        pipeline.encode_prompt("a street", do_classifier_free_guidance=False),
    )
    torch.testing.assert_close(ours.hidden, theirs[0])
    torch.testing.assert_close(ours.pooled, theirs[2])
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    negative = pipeline.encode_prompt("a street", do_classifier_free_guidance=True)[1]
    torch.testing.assert_close(negative, models.text.encode([""]).hidden)  # no prompt is what was trained as none
    card = Path(result.weights, "README.md").read_text()
    for words in ("6 of batch 2", "licence", "min-SNR gamma 5.0", "caption, simple, appended"):
        assert words in card
    further = base_fields(store, tmp_path / "on", vae, network=None, init_weights=result.weights, store_dtype="float16")
    before = tensors_of(result.weights)
    on = train_here("base", write(tmp_path, "on", further | {"learning_rate": 1e-9, "train_text_encoders": False}))
    after = tensors_of(on.weights)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), before[name], rtol=1e-3, atol=1e-3)


def test_base_loss_is_that_of_hand(store: Path, vae: Path, tmp_path: Path) -> None:
    kind = base_kind(base_fields(store, tmp_path, vae, drop_prompt=0.5, min_snr_gamma=5.0, cache_dtype="float32"))
    fill(kind.caches(), "cpu", here)
    network = build_network(kind, CPU)
    order = Order(0, 4, True)
    loss = kind.loss(network, batch_of_step(kind.arrays, order, 1, Share(), CPU))
    batch = batch_of_step(kind.arrays, order, 1, Share(), CPU)
    parts = kind.parts
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    records = torch.from_numpy(
        kind.caches()[0].records.read(batch.sources.tolist(), batch.flipped.astype(int).tolist())
    )
    mean, logvar = records[:, 0], records[:, 1]
    first = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in batch.row_chance])
    latents = (mean + (logvar / 2).exp() * first) * parts.vae.config.scaling_factor
    noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in batch.row_chance])
    steps = torch.tensor([int(1000 * torch.rand((), generator=g, dtype=torch.float64)) for g in batch.row_chance])
    prompts = []
    for source, generator in zip(batch.sources, batch.row_chance, strict=True):
        dropped, form = torch.rand(2, generator=generator).tolist()
        prompts.append("" if dropped < 0.5 else kind.prompts.texts[source][int(3 * form)])
    assert "" in prompts
    assert any(prompts)
    text = embed(parts.tokenizers, parts.encoders, prompts)
    made = parts.unet(
        scheduler.add_noise(latents, noise, steps),
        steps,
        encoder_hidden_states=text.hidden,
        added_cond_kwargs={
            "text_embeds": text.pooled,
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(4, 1),
        },
    ).sample
    weights = torch.clamp(compute_snr(scheduler, steps), max=5) / compute_snr(scheduler, steps)
    torch.testing.assert_close(loss, (weights * ((made - noise) ** 2).mean(dim=(1, 2, 3))).mean(), rtol=1e-4, atol=1e-5)
    loss.backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("encoders.0") for name in trained)
    assert any(name.startswith("encoders.1") for name in trained)


def test_prompts_are_those_that_jobs_write(store: Path, vae: Path, tmp_path: Path) -> None:
    kind = base_kind(base_fields(store, tmp_path, vae, flip=False))
    for caption, (as_caption, simple, appended) in zip(kind.arrays.captions, kind.prompts.texts, strict=True):
        assert as_caption == caption
        assert simple.startswith("A photo of ")
        assert appended == f"{caption}; {simple.removeprefix('A photo of ')}"
    drawn = [
        text
        for step in range(40)
        for text in kind.prompts.of(batch_of_step(kind.arrays, Order(0, 2, False), step, Share(), CPU))
    ]
    assert set(drawn) == set(kind.prompts.distinct)
    assert 1 <= drawn.count("") <= 20  # 8 of 80 are expected


KILLED_CHILD = """
import os, signal, sys
from segdatagen.training import loop
from segdatagen.training.run import train

written = loop.Loop._write
def die(self, step):
    written(self, step)
    if step >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

loop.Loop._write = die
train("base", sys.argv[1], True, None, lambda _: None)
"""


def test_killed_base_training_resumes_to_the_same_weights(store: Path, vae: Path, tmp_path: Path) -> None:
    config = write(tmp_path, "killed", base_fields(store, tmp_path / "killed", vae))
    child = [sys.executable, "-c", KILLED_CHILD, config, "4"]
    assert subprocess.run(child, env=child_environment()).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights").exists()
    killed = tensors_of(train_here("base", config).weights)
    whole = tensors_of(
        train_here("base", write(tmp_path, "whole", base_fields(store, tmp_path / "whole", vae))).weights
    )
    assert killed.keys() == whole.keys()
    assert [name for name, tensor in killed.items() if not torch.equal(tensor, whole[name])] == []


def test_another_vae_at_the_same_place_is_another_training(store: Path, vae: Path, tmp_path: Path) -> None:
    shutil.copytree(vae, tmp_path / "vae")
    found = base_fields(store, tmp_path / "out", tmp_path / "vae", cache=str(tmp_path / "cache"))
    train_here("base", write(tmp_path, "out", found))
    make_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(UsageError, match="its vae was another"):
        train_here("base", write(tmp_path, "out", found))
    assert len(os.listdir(tmp_path / "cache")) == 2


def test_frozen_weights_are_only_read(vae: Path, store: Path, tmp_path: Path) -> None:
    before = visible(vae)
    train_here("base", write(tmp_path, "out", base_fields(store, tmp_path / "out", vae, steps=2)))
    assert visible(vae) == before


@pytest.fixture(scope="module")
def base(store: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that learned for one step. Only to be read."""
    folder = tmp_path_factory.mktemp("base")
    found = base_fields(store, folder / "out", vae, steps=1, ema_start=0, ema_decay=0.0, batch_size=4)
    return Path(str(train_here("base", write(folder, "base", found)).weights))


TUNED: dict[str, dict[str, Any]] = {
    "text2mask": {},
    "controlnet": {},
    "t2i_adapter": {"prior": {"name": "canny"}, "res_blocks": 1},
}


@pytest.mark.parametrize("kind", TUNED)
def test_what_begins_with_a_base_learns_and_leaves_the_base_as_it_was(
    store: Path, base: Path, tmp_path: Path, kind: str
) -> None:
    before = visible(base)
    found = fields(store, tmp_path / "out", base=str(base), learning_rate=1e-2, **TUNED[kind])
    result = train_here(kind, write(tmp_path, kind, found))
    assert visible(base) == before
    assert result.weights is not None
    shape = check_base(str(base))
    if kind == "text2mask":
        assert check_base(result.weights) == shape
        assert result.figures.keys() == {"within_palette", "classes_present"}
        load_base(result.weights, Numerics(), "cpu")
        changed, kept = tensors_of(result.weights), tensors_of(str(base))
        assert {n.split(".")[0] for n, t in changed.items() if not torch.equal(t, kept[n])} == {"unet"}
    elif kind == "controlnet":
        check_controlnet(result.weights, shape)
        network = load_controlnet(result.weights, Numerics(), "cpu").network
        assert any(bool(layer.weight.any()) for layer in network.controlnet_down_blocks)  # no longer zero
    else:
        check_adapter(result.weights, shape)
        load_adapter(result.weights, Numerics(), "cpu")
    picture = decode_image((tmp_path / "out" / "samples" / "step-00000006.png").read_bytes())
    assert picture.shape[0] == 2 * (128 + 4) + 4
    newest = load_newest(Folder(str(tmp_path / "out" / "checkpoints")))
    assert newest is not None
    names = {name.removeprefix("model.") for name in newest.tensors if name.startswith("model.")}
    assert not any("text_model" in name or "decoder" in name for name in names)  # what is frozen is not in there
    card = Path(result.weights, "README.md").read_text()
    assert str(base) in card
    again = fields(store, tmp_path / "again", base=str(base), init_weights=result.weights, **TUNED[kind]) | {"steps": 1}
    assert train_here(kind, write(tmp_path, "again", again)).step == 1


def test_an_untrained_controlnet_changes_nothing_and_only_it_has_gradients(
    store: Path, base: Path, tmp_path: Path
) -> None:
    found = fields(store, tmp_path, base=str(base), cache=str(tmp_path / "cache"))
    options = ControlNetTrainingOptions.model_validate(found)
    arrays = TrainingArrays(*read_arrays(options.sources, options.geometry))
    steered, alone = (
        ControlNetTraining(options, arrays),
        BaseTraining(
            BaseTrainingOptions.model_validate(
                fields(store, tmp_path, init_weights=str(base), train_text_encoders=False)
            ),
            arrays,
        ),
    )
    fill([*steered.caches(), *alone.caches()], "cpu", here)
    network = build_network(steered, CPU)
    batches = [batch_of_step(arrays, Order(0, 2, True), 2, Share(), CPU) for _ in range(2)]
    loss = steered.loss(network, batches[0])
    torch.testing.assert_close(loss, alone.loss(build_network(alone, CPU), batches[1]), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in steered.parts.unet.parameters())
    assert float(network.get_submodule("controlnet_mid_block").get_parameter("weight").grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_text_cache_holds_what_the_encoders_make(store: Path, base: Path, tmp_path: Path) -> None:
    found = fields(store, tmp_path, base=str(base), cache=str(tmp_path / "cache"), cache_dtype="float32")
    options = ControlNetTrainingOptions.model_validate(found)
    kind = ControlNetTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    prompts = [kind.prompts.texts[4][2], "", kind.prompts.texts[0][0]]
    kept = kind.embedded(build_network(kind, CPU), prompts, CPU)
    made = load_base(str(base), Numerics(), "cpu").text.encode(prompts)
    live = ControlNetTraining(options.model_copy(update={"cache_prompts": False}), kind.arrays)
    assert len(live.caches()) == 1
    found_live = live.embedded(build_network(live, CPU), prompts, CPU)
    torch.testing.assert_close(found_live.hidden, made.hidden)
    assert not found_live.hidden.requires_grad
    torch.testing.assert_close(kept.hidden, made.hidden)
    torch.testing.assert_close(kept.pooled, made.pooled)


def test_adapter_sees_the_blended_priors_of_the_row(store: Path, base: Path, tmp_path: Path) -> None:
    found = fields(store, tmp_path, base=str(base), cache=str(tmp_path / "cache"), **TUNED["t2i_adapter"])
    options = AdapterTrainingOptions.model_validate(found | {"w1": [0.4, 0.4], "w2": [0.9, 0.9]})
    kind = AdapterTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    batch = batch_of_step(kind.arrays, Order(0, 4, True), 0, Share(), CPU)
    assert 0 < batch.flipped.sum() < 4
    seen: list[Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, pictures: Tensor) -> list[Tensor]:
            seen.append(pictures)
            return []

    kind.steering(Watching(), kind.noisy(build_network(kind, CPU), batch), batch)
    prior, labels = Prior(options.prior, kind.arrays.label_set), kind.arrays.label_set
    for row, (source, flipped) in enumerate(zip(batch.sources, batch.flipped, strict=True)):
        of_image = prior.of_image(kind.arrays.images[source])
        of_mask = prior.of_mask(labels.ids[kind.arrays.channels[source]].astype(np.uint8))
        blended = np.clip(np.rint(0.4 * of_image.astype(float) + 0.9 * of_mask), 0, 255)
        wanted = blended[:, ::-1] if flipped else blended
        assert np.array_equal(np.rint(seen[0][row].permute(1, 2, 0).numpy() * 255), wanted)


def test_lora_begins_as_the_base_and_is_merged_into_it(store: Path, base: Path, tmp_path: Path) -> None:
    found = fields(store, tmp_path / "out", base=str(base), lora={"rank": 2, "alpha": 4}, learning_rate=1e-2)
    options = Text2MaskTrainingOptions.model_validate(found)
    kind = Text2MaskTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    network = build_network(kind, CPU)
    parameters = dict(network.named_parameters())
    assert all("lora" in name for name in parameters)
    unet = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    same = kind.trained_parts(network).unet.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in unet.items())
    result = train_here("text2mask", write(tmp_path, "lora", found))
    newest = load_newest(Folder(str(tmp_path / "out" / "checkpoints")))
    assert newest is not None
    learned = {name: t for name, t in newest.tensors.items() if name.startswith("average.layers.")}
    assert learned.keys() == {f"average.{name}" for name in parameters}
    saved = load_file(Path(str(result.weights)) / "unet" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == unet.keys()
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, unet[name])}
    assert changed
    for name in changed:
        place = f"average.layers.{name.removesuffix('.weight').replace('.', '/')}"
        a, b = (learned[f"{place}/lora_{letter}/default/weight"] for letter in "AB")
        torch.testing.assert_close(saved[name], unet[name] + 4 / 2 * b @ a, rtol=1e-4, atol=1e-6)
    wrong = fields(store, tmp_path / "wrong", base=str(base), lora={"rank": 2, "targets": ["nothing"]})
    config = write(tmp_path, "wrong", wrong)
    with pytest.raises(UsageError, match=r"lora.targets: nothing are not all layers"):
        train_here("text2mask", config)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_captions(store: Path) -> None:
    for path in store.glob("*.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("caption")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.nulls(len(table), pa.string())), path)


def change_unet(folder: Path, **changes: Any) -> None:
    """Put another one there, which nobody trained."""
    UNet2DConditionModel.from_config(dict(UNet2DConditionModel.load_config(folder)) | changes).save_pretrained(folder)


@pytest.fixture
def wrong(tmp_path: Path, store: Path, base: Path, vae: Path) -> dict[str, str]:
    """Copies of stores and weights, each with one thing wrong."""
    names = ("captionless", "other", "inpainter", "attentive", "painter", "other_vae")
    made = {name: tmp_path / name for name in names}
    for name in ("captionless", "other"):
        shutil.copytree(store, made[name])
    for name in ("inpainter", "attentive", "painter"):
        shutil.copytree(base, made[name])
    shutil.copytree(vae, made["other_vae"])
    without_captions(made["captionless"])
    labels = made["other"] / "labels.yaml"
    labels.write_text(labels.read_text().replace("name: car,", "name: automobile,"))
    change_unet(made["inpainter"] / "unet", in_channels=9)
    change_unet(made["attentive"] / "unet", down_block_types=["CrossAttnDownBlock2D"] * 2)
    edit_json(made["painter"] / "training.json", classes=["sea", "sky"], label_set="coast")
    edit_json(made["other_vae"] / "config.json", _class_name="VQModel")
    return {name: str(path) for name, path in made.items()} | {"base": str(base), "store": str(store)}


LORA_AND_TEXT = {"lora": {"rank": 2}, "train_text_encoders": True}
OF_IMAGE = {"prior": {"name": "canny", "of": "image"}}
Changes = dict[str, Any]


@pytest.mark.parametrize(
    ("row", "kind", "changes"),
    [
        ("`train base` on sources without captions", "base", {"sources": "captionless"}),
        ("`train controlnet` on sources without captions", "controlnet", {"sources": "captionless"}),
        ("`train base` with fewer sources than a batch", "base", {"batch_size": 8}),
        ("`train base` with neither `network` nor `init_weights`", "base", {"network": None}),
        ("`train base` with a VAE that is none", "base", {"network": NETWORK | {"vae": "other_vae"}}),
        ("`train text2mask` with a base that was made to inpaint", "text2mask", {"base": "inpainter"}),
        ("`train text2mask` with a VAE as the base", "text2mask", {"base": "other_vae"}),
        ("`train text2mask` on from one of other classes", "text2mask", {"init_weights": "painter"}),
        (
            "`train text2mask` with LoRA and text encoders",
            "text2mask",
            LORA_AND_TEXT,
        ),
        ("`train t2i_adapter` with a base of another architecture", "t2i_adapter", {"base": "attentive"}),
        (
            "`train t2i_adapter` with a prior of the image alone",
            "t2i_adapter",
            OF_IMAGE,
        ),
        ("`train t2i_adapter` with `w1: [1, 0]`", "t2i_adapter", {"w1": [1, 0]}),
        ("`train vae` with a validation store of other labels", "vae", {"validation": "other"}),
    ],
)
def test_wrong_training(
    refused_here: Refused,
    wrong: dict[str, str],
    vae: Path,
    tmp_path: Path,
    row: str,
    kind: str,
    changes: dict[str, Any],
) -> None:
    plain = {
        "base": base_fields(Path(wrong["store"]), tmp_path / "out", vae),
        "vae": fields(Path(wrong["store"]), tmp_path / "out", block_channels=[8, 16], norm_groups=4),
    }
    found = plain.get(kind, fields(Path(wrong["store"]), tmp_path / "out", base=wrong["base"], **TUNED.get(kind, {})))
    if kind == "vae":
        found = {name: value for name, value in found.items() if name not in ("sampler", "sample_rows")}

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        return wrong.get(value, value) if isinstance(value, str) else value

    config = write(tmp_path, "train", found | placed(changes))
    refused_here("train", kind, config, "--local", row=row)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "jobs").glob("*/*.yaml")), ids=str)
def test_shipped_configurations_of_trainings_can_be_read(path: Path) -> None:
    told = path.read_text()
    found = re.search(rf"segdatagen train (\w+) \S*{path.parent.name}/{path.name}", told)
    if found is None:
        assert "methods:" in told or "steps:" not in told  # a job or a label set
        return
    options = read_config(kind_type(found[1]).options_type, str(path))
    assert options.batch_size % (options.num_workers * options.accumulate) == 0


@pytest.mark.usefixtures("ray_session")
def test_ray_fills_the_caches_and_trains_the_weights_of_the_local_loop(store: Path, base: Path, tmp_path: Path) -> None:
    found = fields(store, tmp_path / "here", base=str(base), cache=str(tmp_path / "cache_here"), **TUNED["t2i_adapter"])
    here_weights = tensors_of(train_here("t2i_adapter", write(tmp_path, "here", found)).weights)
    found |= {"out": str(tmp_path / "ray"), "cache": str(tmp_path / "cache_ray")}
    on_ray = train("t2i_adapter", write(tmp_path, "ray", found), False, None, lambda _: None)
    assert visible(tmp_path / "cache_ray") == visible(tmp_path / "cache_here")
    there = tensors_of(on_ray.weights)
    assert [name for name, tensor in here_weights.items() if not torch.equal(tensor, there[name])] == []


@pytest.mark.parametrize("kind", ["base", *TUNED])
def test_less_memory_is_the_same_training(store: Path, vae: Path, base: Path, tmp_path: Path, kind: str) -> None:
    """As presets for GPUs ask for it: the losses are those of the plain training, and in bf16 they stay numbers."""
    plain = fields(store, tmp_path / "plain", base=str(base), batch_size=4, steps=3, **TUNED.get(kind, {}))
    if kind == "base":
        plain = base_fields(store, tmp_path / "plain", vae, batch_size=4, steps=3)
    frugal = plain | {"out": str(tmp_path / "frugal"), "gradient_checkpointing": True, "accumulate": 2}
    losses = []
    for name, found in (("plain", plain), ("frugal", frugal)):
        train_here(kind, write(tmp_path, name, found))
        with (tmp_path / name / "loss.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 3
    half = train_here(kind, write(tmp_path, "half", frugal | {"out": str(tmp_path / "half"), "precision": "bf16"}))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(half.weights).values())
    assert math.isfinite(half.loss)
