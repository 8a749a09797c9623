"""Weights of latent diffusion in the layout of `from_pretrained`, put whole, with a record of their training.

diffusers and transformers write the files; the one that says what a folder is comes last. Knows no kind.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from transformers import CLIPTokenizer
from transformers.utils import logging

from segdatagen.diffusion.latent_models import NETWORKS
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.latent_folders import WITHOUT_TENSORS
from segdatagen.network_tensors import tensor_files
from segdatagen.storage import Folder
from segdatagen.training.data import TrainingData
from segdatagen.training.kind import Summary
from segdatagen.training.options import TrainingOptions
from segdatagen.training_record import RECORD_NAME, TrainingRecord
from segdatagen.weights import CARD_NAME, CONFIG_NAME, INDEX_NAME, StoreDtype, local_weights

LAST_NAMES = (CONFIG_NAME, INDEX_NAME)
"""At the top of a folder: without it the folder is no model."""
SAVED_SUFFIXES = (".safetensors", ".json", ".txt")
"""Of what the libraries save."""


def record_of(
    kind: str, options: TrainingOptions, data: TrainingData, summary: Summary, figures: Mapping[str, float]
) -> TrainingRecord:
    """The record of a training that ends here."""
    return TrainingRecord(
        kind=kind,
        label_set=data.label_set.name,
        classes=data.label_set.names,
        colours=tuple(label.colour for label in data.label_set.classes),
        size=options.size,
        training={
            "steps": summary.steps,
            "batch_size": options.batch_size,
            "images": summary.num_images,
            "data": summary.data_fingerprint,
            "loss": round(summary.loss, 5),
        },
        figures={name: round(value, 5) for name, value in {**figures, **summary.validation}.items()},
    )


def put_model(folder: Folder, model: Any, card: str, record: TrainingRecord, store_dtype: StoreDtype) -> str:
    """Put a network or a pipeline as `save_pretrained` writes it, its model card and its record; returns the URI.

    `model` stays as it is: tensors are cast on a copy. By way of a temporary folder, since object stores have none of
    the calls that the libraries make.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            logging.disable_progress_bar()  # across the display of the whole
            _as_dtype(model, getattr(torch, store_dtype)).save_pretrained(scratch)
        except (OSError, SafetensorError) as error:
            raise SegdatagenError(f"{scratch}: the weights cannot be written there first ({error})") from error
        put_saved(folder, Path(scratch), card, record)
    return folder.uri


def put_saved(folder: Folder, scratch: Path, card: str, record: TrainingRecord) -> None:
    """Put card, record and all files of `scratch` in place of what was saved in the folder before.

    What makes it a model goes first and comes last, so that a folder that has it is whole and of one training. Earlier
    shards go, too: the libraries prefer an index of shards to the one file beside it.
    """
    names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    folder.delete(LAST_NAMES)
    folder.put(CARD_NAME, card.encode())
    folder.put(RECORD_NAME, record.model_dump_json(indent=2).encode())
    for name in names:
        if name not in LAST_NAMES:
            folder.put_file(name, scratch / name)
    there = {entry.name for entry in folder.entries() if entry.name.endswith(SAVED_SUFFIXES)}
    folder.delete(there - {*names, RECORD_NAME})
    for name in names:
        if name in LAST_NAMES:
            folder.put_file(name, scratch / name)


def load_vae(uri: str) -> AutoencoderKL:
    """A VAE of a folder, float32, on the CPU, not to be trained. Raises UsageError where there is none."""
    return load_network(AutoencoderKL, local_weights(uri), uri).eval().requires_grad_(False)


def load_network(kind: Any, folder: Path, uri: str) -> Any:
    """A network of diffusers or transformers from its folder, float32, on the CPU. Raises UsageError."""
    try:
        logging.disable_progress_bar()
        ours = kind.__module__.startswith("diffusers")
        types: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=tensor_files(folder, kind.__name__)[0],
            **(types if ours else {"dtype": torch.float32}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{uri}: no {kind.__name__} can be loaded from {folder} ({reason})") from error


def load_text_encoders(folder: Path, uri: str) -> list[Any]:
    """Both text encoders of a base in SDXL's form, float32, on the CPU. Raises UsageError where one is broken."""
    return [load_network(NETWORKS[name], folder / name, uri) for name in ("text_encoder", "text_encoder_2")]


def load_tokenizers(folder: Path) -> list[Any]:
    """Both tokenizers of a base in SDXL's form."""
    return [CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in WITHOUT_TENSORS]


def cast_copy(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy on the CPU in another type of number. By torch's own `to`: diffusers' prints a warning on the way."""
    return torch.nn.Module.to(copy.deepcopy(model), "cpu", dtype)


def _as_dtype(model: Any, dtype: torch.dtype) -> Any:
    return cast_copy(model, dtype) if isinstance(model, torch.nn.Module) else model.as_dtype(dtype)
