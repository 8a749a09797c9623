"""The kind `base`: its loss by hand, the folder that it leaves, and the same weights after a kill."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import child_environment, visible
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from tiny_latent import make_vae
from tiny_latent_training import CPU, base_fields, base_kind, tensors_of, train_here, write

from segdatagen.diffusion.latent_models import load_base
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.errors import UsageError
from segdatagen.latent_folders import check_base
from segdatagen.training.data import Order, Share, batch_of_step
from segdatagen.training.latent_parts import embed
from segdatagen.training.latents import fill, here
from segdatagen.training.loop import build_network


def test_base_from_nothing_is_a_folder_that_diffusers_and_we_load(
    latent_store: Path, latent_vae: Path, tmp_path: Path
) -> None:
    result = train_here(
        "base", write(tmp_path, "out", base_fields(latent_store, tmp_path / "out", latent_vae, min_snr_gamma=5.0))
    )
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
    further = base_fields(
        latent_store, tmp_path / "on", latent_vae, network=None, init_weights=result.weights, store_dtype="float16"
    )
    before = tensors_of(result.weights)
    on = train_here("base", write(tmp_path, "on", further | {"learning_rate": 1e-9, "train_text_encoders": False}))
    after = tensors_of(on.weights)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), before[name], rtol=1e-3, atol=1e-3)


def test_base_loss_is_that_of_hand(latent_store: Path, latent_vae: Path, tmp_path: Path) -> None:
    kind = base_kind(
        base_fields(latent_store, tmp_path, latent_vae, drop_prompt=0.5, min_snr_gamma=5.0, cache_dtype="float32")
    )
    fill(kind.caches(), "cpu", here)
    network = build_network(kind, CPU)
    order = Order(0, 4, True)
    loss = kind.loss(network, batch_of_step(kind.data, order, 1, Share(), CPU))
    batch = batch_of_step(kind.data, order, 1, Share(), CPU)
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


def test_prompts_are_those_that_jobs_write(latent_store: Path, latent_vae: Path, tmp_path: Path) -> None:
    kind = base_kind(base_fields(latent_store, tmp_path, latent_vae, flip=False))
    for caption, (as_caption, simple, appended) in zip(kind.data.captions, kind.prompts.texts, strict=True):
        assert as_caption == caption
        assert simple.startswith("A photo of ")
        assert appended == f"{caption}; {simple.removeprefix('A photo of ')}"
    drawn = [
        text
        for step in range(40)
        for text in kind.prompts.of(batch_of_step(kind.data, Order(0, 2, False), step, Share(), CPU))
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


def test_killed_base_training_resumes_to_the_same_weights(latent_store: Path, latent_vae: Path, tmp_path: Path) -> None:
    config = write(tmp_path, "killed", base_fields(latent_store, tmp_path / "killed", latent_vae))
    child = [sys.executable, "-c", KILLED_CHILD, config, "4"]
    assert subprocess.run(child, env=child_environment()).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights").exists()
    killed = tensors_of(train_here("base", config).weights)
    whole = tensors_of(
        train_here("base", write(tmp_path, "whole", base_fields(latent_store, tmp_path / "whole", latent_vae))).weights
    )
    assert killed.keys() == whole.keys()
    assert [name for name, tensor in killed.items() if not torch.equal(tensor, whole[name])] == []


def test_another_vae_at_the_same_place_is_another_training(
    latent_store: Path, latent_vae: Path, tmp_path: Path
) -> None:
    shutil.copytree(latent_vae, tmp_path / "vae")
    found = base_fields(latent_store, tmp_path / "out", tmp_path / "vae", cache=str(tmp_path / "cache"))
    train_here("base", write(tmp_path, "out", found))
    make_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(UsageError, match="its vae was another"):
        train_here("base", write(tmp_path, "out", found))
    assert len(os.listdir(tmp_path / "cache")) == 1  # it was refused before its latents were made


def test_frozen_weights_are_only_read(latent_vae: Path, latent_store: Path, tmp_path: Path) -> None:
    before = visible(latent_vae)
    train_here("base", write(tmp_path, "out", base_fields(latent_store, tmp_path / "out", latent_vae, steps=2)))
    assert visible(latent_vae) == before
