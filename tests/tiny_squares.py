"""Squares of three colours on grey as a source store with captions, and tiny trainings that learn from their texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tiny_clip import COLOURS, colour_labels

from segdatagen.datasets import Options, open_reader
from segdatagen.images import encode_image, encode_mask
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.sources import read_arrays
from segdatagen.training.captioner import (
    CaptionerTraining,
    CaptionerTrainingOptions,
)
from segdatagen.training.clip import ClipTraining, ClipTrainingOptions
from segdatagen.training.data import TrainingArrays
from segdatagen.training.run import train

CPU = torch.device("cpu")
SIDE = 32
LABELS = colour_labels()
CAPTIONER = {
    "patch": 16,
    "vision_hidden": 32,
    "vision_layers": 1,
    "queries": 4,
    "qformer_hidden": 32,
    "qformer_layers": 1,
    "decoder_hidden": 32,
    "decoder_layers": 1,
    "heads": 2,
}
CLIP = {
    "patch": 16,
    "vision_hidden": 16,
    "vision_layers": 1,
    "text_hidden": 16,
    "text_layers": 1,
    "projection": 16,
    "heads": 2,
}
SIZES = {"captioner": CAPTIONER, "clip": CLIP}
Configure = Callable[..., Path]


def put_store(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A source store of the squares, by way of a Parquet file, and beside it one to judge by, in another order."""
    ingest_rows(folder / "validation", rows[::-1]).rename(folder / "judged")
    return ingest_rows(folder, rows)


def ingest_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "squares.parquet")
    (folder / "squares.yaml").write_text(LABELS.to_yaml())
    reader = open_reader(
        "parquet", str(folder / "squares.parquet"), "train", Options(labels=str(folder / "squares.yaml"))
    )
    request = IngestRequest("parquet", str(folder), "train", str(folder / "store"))
    shard = ingest_shard(reader.list_items().items, "part-00000.parquet", reader, request, keep=True)
    assert shard.part is not None
    seal_store(request, reader, [shard.part], shard.bad)
    return folder / "store"


def square_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Images with a square of one of three colours on grey, its mask and a caption; all three take turns."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(count):
        name = list(COLOURS)[number % 3]
        image, mask = np.full((SIDE, SIDE, 3), 128.0), np.full((SIDE, SIDE), 9, np.uint8)
        top, left, side = *chance.integers(0, 8, 2), int(chance.integers(14, 24))
        image[top : top + side, left : left + side] = COLOURS[name]
        mask[top : top + side, left : left + side] = 5 - list(COLOURS).index(name)
        noisy = np.clip(image + chance.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
        caption = f"a {name} square on grey ground"
        rows.append({"image": encode_image(noisy, "png"), "mask": encode_mask(mask), "caption": caption})
    return rows


def fields(kind: str, store: Path, out: Path) -> dict[str, Any]:
    return {
        "sources": str(store),
        "validation": str(store.parent / "judged"),
        "out": str(out),
        "size": [SIDE, SIDE],
        "network": SIZES[kind],
        "steps": 24,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "ema_start": 8,
        "torch_threads": 1,
        "checkpoint_every": 8,
    }


def configurer(folder: Path, squares: Path) -> Configure:
    """`configure("clip", "out", steps=5)`: a configuration file of a training on squares, into `folder/out`."""

    def make(kind: str, name: str, store: Path = squares, **changes: Any) -> Path:
        path = folder / f"{name}.yaml"
        chosen = fields(kind, store, folder / name) | changes
        path.write_text(yaml.safe_dump({key: value for key, value in chosen.items() if value is not None}))
        return path

    return make


def train_here(kind: str, config: Path) -> Any:
    return train(kind, str(config), True, None, lambda _: None)


def kind_of(kind: str, store: Path, **changes: Any) -> Any:
    options_type, made = {
        "captioner": (CaptionerTrainingOptions, CaptionerTraining),
        "clip": (ClipTrainingOptions, ClipTraining),
    }[kind]
    options: Any = options_type.model_validate(fields(kind, store, store / "out") | changes)
    return made(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))


def losses_of(out: Path) -> list[str]:
    return [line.split(",")[1] for line in (out / "loss.csv").read_text().splitlines()[1:]]
