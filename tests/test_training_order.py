"""What depends on the seed: the order of the images, their chance and the first weights; and mirroring as asked for."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import CPU, Configure, configurer, fields, kind_of, train_here
from torch import Tensor, nn

from segdatagen.training.data import Batch, Order, Share, batch_of_step, sources_of_step
from segdatagen.training.loop import build_network
from segdatagen.training.mask_ddpm import MaskDDPMTraining

STEPS = 6
BATCH = 4


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches whose losses a training computes, in the order of its steps."""
    seen: list[Batch] = []
    loss = MaskDDPMTraining.loss

    def watched(self: MaskDDPMTraining, network: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch)
        return loss(self, network, batch)

    monkeypatch.setattr(MaskDDPMTraining, "loss", watched)
    return seen


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(sources_of_step(40, seed, epoch, 40).tolist()) for seed in range(4) for epoch in range(5)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({*orders, tuple(range(40))}) == 4 * 5 + 1


def test_rows_steps_and_seeds_have_chance_of_their_own(scenes_store: Path, tmp_path: Path) -> None:
    arrays = kind_of(fields(scenes_store, tmp_path)).data
    drawn = []
    for seed, step in itertools.product(range(3), range(4)):
        batch = batch_of_step(arrays, Order(seed, BATCH, False), step, Share(), CPU)
        drawn += [float(torch.rand((), generator=chance)) for chance in (batch.chance, *batch.row_chance)]
    assert len(set(drawn)) == len(drawn) == 3 * 4 * (1 + BATCH)


def test_seeds_have_first_weights_of_their_own(scenes_store: Path, tmp_path: Path) -> None:
    found = fields(scenes_store, tmp_path)
    first, again, other = (build_network(kind_of(found | {"seed": seed}), CPU).state_dict() for seed in (1, 1, 2))
    drawn = {name for name, tensor in first.items() if tensor.unique().numel() > 1}
    assert "outc.weight" in drawn
    assert {name for name in first if not torch.equal(first[name], other[name])} == drawn
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("flip", [True, False])
def test_a_training_learns_from_the_rows_of_its_seed(
    configure: Configure, scenes_store: Path, tmp_path: Path, learned: list[Batch], seed: int, flip: bool
) -> None:
    """Without `flip` no row is mirrored; with it some are, images and masks alike."""
    train_here(configure("out", seed=seed, flip=flip, steps=STEPS, batch_size=BATCH))
    arrays = kind_of(fields(scenes_store, tmp_path)).data
    assert len(learned) == STEPS
    mirrored = 0
    for step, batch in enumerate(learned):
        for row, source in enumerate(sources_of_step(len(arrays.images), seed, step, BATCH)):
            turned = not np.array_equal(batch.images[row].numpy(), arrays.images[source])
            mirrored += turned
            side = slice(None, None, -1 if turned else 1)
            assert np.array_equal(batch.images[row].numpy(), arrays.images[source][:, side])
            assert np.array_equal(batch.channels[row].numpy(), arrays.channels[source][:, side])
    assert 0 < mirrored < STEPS * BATCH if flip else mirrored == 0
