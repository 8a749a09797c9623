"""Trainings of tiny latent diffusion models: their configurations, and the weights that others begin with."""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tiny_latent import make_vae
from torch import Tensor

from segdatagen.sources import read_arrays
from segdatagen.training.base import BaseTraining, BaseTrainingOptions
from segdatagen.training.data import TrainingArrays
from segdatagen.training.kind import TrainingResult
from segdatagen.training.run import train

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

TUNED: dict[str, dict[str, Any]] = {
    "text2mask": {},
    "controlnet": {},
    "t2i_adapter": {"prior": {"name": "canny"}, "res_blocks": 1},
}


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


def save_vae(folder: Path) -> Path:
    """A VAE that nobody trained, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        make_vae().save_pretrained(folder)
    return folder


def train_base(store: Path, vae: Path, folder: Path) -> Path:
    """Weights of a base that learned for one step."""
    found = base_fields(store, folder / "out", vae, steps=1, ema_start=0, ema_decay=0.0, batch_size=4)
    return Path(str(train_here("base", write(folder, "base", found)).weights))
