"""Steps of a training: rows, shares and rates, averages and losses against closed forms, and the same step in parts."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from literal_mask_ddpm import betas, predict_noise
from safetensors.torch import load_file
from tiny_training import CPU, STEPS, Configure, configurer, fields, kind_of, log_of, newest_of, train_here, weights_of
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from segdatagen.errors import UsageError
from segdatagen.training.data import Batch, Order, Share, batch_of_step, sources_of_step
from segdatagen.training.loop import build_network, learning_rate_at, update_average
from segdatagen.training.mask_ddpm import MaskDDPMTraining, MaskDDPMTrainingOptions
from segdatagen.training.run import KINDS, kind_type, read_options


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


FREE = {
    *("sources", "out", "validation"),  # where they lie; a hash of the data is compared
    *("steps", "learning_rate", "learning_rate_schedule", "warmup_steps", "ema_decay", "ema_start", "max_grad_norm"),
    *("precision", "channels_last", "accumulate", "num_workers", "use_gpu", "max_hours", "torch_threads"),
    *("checkpoint_every", "keep_checkpoints", "sample_every", "store_dtype"),
    *("sampler", "sample_rows", "sample_masks", "sample_scale", "cache", "cache_prompts", "gradient_checkpointing"),
    *("base", "synthetic"),  # hashes of them are compared
}
"""Options that a training which goes on may change."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_decides_what_is_learned_is_fixed(kind: str) -> None:
    options = kind_type(kind).options_type
    assert set(options.fixed) <= options.model_fields.keys()
    assert options.model_fields.keys() - set(options.fixed) <= FREE


def test_average_of_weights_has_its_closed_form() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    first, constant = average.weight.detach().clone(), network.weight.detach().clone()
    for _ in range(7):
        update_average(average, network, 0.9)
    torch.testing.assert_close(average.weight, 0.9**7 * first + (1 - 0.9**7) * constant)
    update_average(average, network, 0.0)
    assert torch.equal(average.weight, constant)


def test_average_is_a_copy_until_it_starts(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("copied", ema_start=STEPS, learning_rate_schedule="constant"))
    train_here(configure("averaged", ema_start=STEPS - 1, learning_rate_schedule="constant"))
    for name, same in (("copied", True), ("averaged", False)):
        newest = newest_of(tmp_path / name / "checkpoints")
        assert torch.equal(newest.tensors["average.outc.weight"], newest.tensors["model.outc.weight"]) is same


def test_what_is_saved_is_the_average_of_the_steps(configure: Configure, tmp_path: Path) -> None:
    """A copy of the weights for three steps, then `0.8 * average + 0.2 * weights` at each step."""
    changes = {"steps": 7, "ema_start": 3, "ema_decay": 0.8, "checkpoint_every": 1, "keep_checkpoints": 7}
    result = train_here(configure("out", **changes, learning_rate_schedule="constant"))
    kept = [load_file(path) for path in sorted((tmp_path / "out" / "checkpoints").iterdir())]
    assert len(kept) == 7
    saved = weights_of(result)
    for name, tensor in saved.items():
        average = kept[2][f"model.{name}"]
        for checkpoint in kept[3:]:
            average = 0.8 * average + 0.2 * checkpoint[f"model.{name}"]
            torch.testing.assert_close(checkpoint[f"average.{name}"], average, atol=1e-6, rtol=1e-6, msg=name)
        assert torch.equal(tensor, kept[-1][f"average.{name}"])
    assert not torch.equal(saved["outc.weight"], kept[-1]["model.outc.weight"])


def test_the_optimizer_steps_at_the_rate_of_the_log(configure: Configure, tmp_path: Path) -> None:
    config = configure("out")
    rates: list[float] = []
    with register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])):
        train_here(config)
    options = read_options("mask_ddpm", str(config))
    assert len(set(rates)) == STEPS - 1, "warm-up and cosine meet at the learning rate"
    assert rates == [learning_rate_at(options, step) for step in range(STEPS)]
    assert [float(row["learning_rate"]) for row in log_of(tmp_path / "out")] == pytest.approx(rates, rel=1e-4)


def test_learning_rate_warms_up_and_falls_to_zero(scenes_store: Path, tmp_path: Path) -> None:
    options = MaskDDPMTrainingOptions.model_validate(fields(scenes_store, tmp_path) | {"steps": 103})
    rates = [learning_rate_at(options, step) for step in range(103)]
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[3 + 99 // 2] == pytest.approx(0.5e-3, rel=0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    constant = options.model_copy(update={"learning_rate_schedule": "constant"})
    assert learning_rate_at(constant, 102) == 1e-3


def test_labels_are_dropped_for_the_whole_batch_of_all_workers(scenes_store: Path, tmp_path: Path) -> None:
    kind = kind_of(fields(scenes_store, tmp_path))
    network = build_network(kind, CPU)
    mask_weight = network.get_submodule("mask_conv.double_conv.0").get_parameter("weight")
    dropped = []
    for step in range(20):
        seen = []
        for rank in (0, 1):
            network.zero_grad(set_to_none=True)
            kind.loss(network, batch_of_step(kind.data, Order(0, 2, True), step, Share(rank, 2), CPU)).backward()
            seen.append(mask_weight.grad is None)
        assert seen[0] == seen[1]
        dropped.append(seen[0])
    assert 1 <= sum(dropped) <= 14  # 6 of 20 are expected, 4 standard deviations around them


def test_captions_tell_two_trainings_apart_only_where_they_are_read(scenes_store: Path, tmp_path: Path) -> None:
    arrays = kind_of(fields(scenes_store, tmp_path)).data
    assert len(arrays.captions) == 6
    assert all(arrays.captions)
    other = dataclasses.replace(arrays, captions=(None, *arrays.captions[1:]))
    assert other.fingerprint() == arrays.fingerprint()
    assert other.fingerprint(with_captions=True) != arrays.fingerprint(with_captions=True)
    with pytest.raises(UsageError, match="5 captions do not belong to 6 images"):
        dataclasses.replace(arrays, captions=arrays.captions[1:])


def test_loss_is_one_where_nothing_is_predicted(scenes_store: Path, tmp_path: Path) -> None:
    kind = kind_of(fields(scenes_store, tmp_path))
    network = build_network(kind, CPU)
    for name in ("weight", "bias"):
        nn.init.zeros_(network.get_submodule("outc").get_parameter(name))
    with torch.inference_mode():
        batches = [batch_of_step(kind.data, Order(0, 4, False), step, Share(), CPU) for step in range(5)]
        losses = [float(kind.loss(network, batch)) for batch in batches]
    assert np.mean(losses) == pytest.approx(1, abs=0.02)


def test_loss_is_that_of_hand(scenes_store: Path, tmp_path: Path) -> None:
    """Of four steps, with and without masks: what was drawn is drawn again, and the network is that of the paper."""
    kind = kind_of(fields(scenes_store, tmp_path) | {"drop_probability": 0.5})
    network = build_network(kind, CPU)
    tensors, order, dropped = network.state_dict(), Order(0, 2, True), 0
    alpha_hat = np.cumprod([1 - beta for beta in betas()])
    for step in range(4):
        with torch.inference_mode():
            loss = kind.loss(network, batch_of_step(kind.data, order, step, Share(), CPU))
        batch = batch_of_step(kind.data, order, step, Share(), CPU)
        without = float(torch.rand((), generator=batch.chance)) < 0.5
        dropped += without
        squares = []
        for image, channels, chance in zip(batch.images, batch.channels, batch.row_chance, strict=True):
            t = int(torch.randint(1, 1000, (), generator=chance))
            noise = torch.randn(3, 32, 32, generator=chance)
            clean = image.permute(2, 0, 1) / 127.5 - 1
            noisy = alpha_hat[t] ** 0.5 * clean + (1 - alpha_hat[t]) ** 0.5 * noise
            mask = (channels[None] == torch.arange(12)[:, None, None]).float()
            predicted = predict_noise(tensors, noisy[None].float(), t, None if without else mask[None])
            squares.append((predicted[0] - noise) ** 2)
        torch.testing.assert_close(loss, torch.stack(squares).mean(), rtol=1e-4, atol=1e-6)
    assert 0 < dropped < 4


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_every_epoch_is_a_permutation(num_sources: int, batch_size: int, seed: int) -> None:
    steps = 3 * num_sources // batch_size + 1
    order = np.concatenate([sources_of_step(num_sources, seed, step, batch_size) for step in range(steps)])
    for epoch in range(len(order) // num_sources):
        part = order[epoch * num_sources : (epoch + 1) * num_sources]
        assert sorted(part.tolist()) == list(range(num_sources))


def test_shares_of_workers_make_up_the_batch(scenes_store: Path, tmp_path: Path) -> None:
    arrays = kind_of(fields(scenes_store, tmp_path)).data
    before = arrays.fingerprint()
    order = Order(seed=5, batch_size=8, flip=True)
    whole = batch_of_step(arrays, order, 3, Share(), CPU)
    shares = [batch_of_step(arrays, order, 3, Share(rank, 4), CPU) for rank in range(4)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(torch.cat([share.channels for share in shares]), whole.channels)
    generators = [generator for share in shares for generator in share.row_chance]
    for found, expected in zip(generators, whole.row_chance, strict=True):
        assert torch.equal(found.get_state(), expected.get_state())
    chosen = sources_of_step(len(arrays.images), 5, 3, 8)
    flipped = 0
    for row, source in enumerate(chosen):
        mirrored = not np.array_equal(whole.images[row].numpy(), arrays.images[source])
        flipped += mirrored
        side = slice(None, None, -1 if mirrored else 1)
        assert np.array_equal(whole.images[row].numpy(), arrays.images[source][:, side])
        assert np.array_equal(whole.channels[row].numpy(), arrays.channels[source][:, side])
    assert 0 < flipped < 8
    assert arrays.fingerprint() == before  # the store in memory is not what is mirrored
    with pytest.raises(UsageError, match="batch_size 8 is not a multiple of num_workers 3"):
        batch_of_step(arrays, order, 3, Share(0, 3), CPU)


def test_parts_of_a_batch_make_the_step_of_the_whole(configure: Configure) -> None:
    whole = weights_of(train_here(configure("whole", batch_size=4, steps=6)))
    parts = weights_of(train_here(configure("parts", batch_size=4, steps=6, accumulate=4)))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    with pytest.raises(UsageError, match="batch_size 4 is not a multiple of num_workers x accumulate, 1 x 3"):
        train_here(configure("uneven", batch_size=4, accumulate=3))


def test_gradients_are_shortened(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train_here(configure("free", steps=4))
    free = lengths.copy()
    lengths.clear()
    train_here(configure("held", steps=4, max_grad_norm=0.01))
    assert min(free) > 0.02
    assert lengths == pytest.approx([0.01] * 4, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_are_done_in_the_precision_asked_for(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    loss, seen = MaskDDPMTraining.loss, []

    def watched(self: MaskDDPMTraining, network: nn.Module, batch: Batch) -> Tensor:
        last = network.get_submodule("outc")
        with last.register_forward_hook(lambda *called: seen.append(called[2].dtype)):
            return loss(self, network, batch)

    monkeypatch.setattr(MaskDDPMTraining, "loss", watched)
    train_here(configure("out", precision=precision, steps=3))
    assert seen == [torch.float32 if precision == "fp32" else torch.bfloat16] * 3
