"""Trainings of a tiny mask-guided DDPM that take a second: their configurations, and what they leave."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from segdatagen.sources import read_arrays
from segdatagen.storage import Folder
from segdatagen.training.checkpoints import Checkpoint, open_newest
from segdatagen.training.data import TrainingArrays
from segdatagen.training.kind import TrainingProgress, TrainingResult
from segdatagen.training.mask_ddpm import MaskDDPMTraining, MaskDDPMTrainingOptions
from segdatagen.training.run import train
from segdatagen.weights import TENSORS_NAME

STEPS = 24
CPU = torch.device("cpu")
Configure = Callable[..., Path]


def configurer(folder: Path, store: Path) -> Configure:
    """`configure("out", steps=5)`: a configuration file of a training that takes a second, into `folder/out`."""

    def make(name: str, **changes: Any) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields(store, folder / name) | changes))
        return path

    return make


def fields(store: Path, out: Path) -> dict[str, Any]:
    return {
        "sources": str(store),
        "out": str(out),
        "size": [32, 32],
        "hidden": 4,
        "time_embedding": 8,
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "cosine",
        "warmup_steps": 3,
        "ema_decay": 0.9,
        "ema_start": 8,
        "drop_probability": 0.3,
        "torch_threads": 1,
        "checkpoint_every": 8,
        "sample_every": 1000,
        "sample_masks": 2,
        "sampler": {"steps": 2},
    }


def silent(progress: TrainingProgress) -> None:
    """What a program gives that shows no progress."""


def train_here(config: Path) -> TrainingResult:
    return train("mask_ddpm", str(config), True, None, silent)


def weights_of(result: TrainingResult) -> dict[str, Tensor]:
    assert result.weights is not None
    return dict(load_file(Path(result.weights) / TENSORS_NAME))


def assert_same_weights(found: TrainingResult, expected: TrainingResult) -> None:
    tensors, others = weights_of(found), weights_of(expected)
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / "loss.csv").open() as file:
        return list(csv.DictReader(file))


def newest_of(folder: Path) -> Checkpoint:
    """The newest checkpoint below a folder, in memory."""
    with open_newest(Folder(str(folder))) as found:
        assert found is not None
        return Checkpoint(found.step, {name: tensor.clone() for name, tensor in found.tensors.items()}, found.facts)


def kind_of(configuration: dict[str, Any]) -> MaskDDPMTraining:
    options = MaskDDPMTrainingOptions.model_validate(configuration)
    return MaskDDPMTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
