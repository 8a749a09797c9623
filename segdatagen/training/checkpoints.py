"""Checkpoints of a training: one safetensors file each, put whole or not at all; the newest are kept.

Tensors are flattened by parameter name under `model.`, `average.` and `optimizer.`; the step and the facts of the
training are JSON in the header. Knows no kind of network, and nothing is pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder

CHECKPOINTS_NAME = "checkpoints"
"""Their folder in `out`."""
PREFIX, SUFFIX = "step-", ".safetensors"
_HEADER_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps: tensors by name, and facts that fit in JSON."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Folder, checkpoint: Checkpoint, keep: int) -> None:
    """Put a checkpoint, then delete all but the last `keep`, and those of later steps, which could not be read.

    Raises StorageError, with the last ones as they were.
    """
    metadata = {"step": str(checkpoint.step), "facts": json.dumps(checkpoint.facts)}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    folder.put(_name(checkpoint.step), save(stored, metadata=metadata))
    names = _names(folder)
    later = [name for name in names if name > _name(checkpoint.step)]
    folder.delete([*names[: len(names) - len(later)][:-keep], *later])


def load_newest(folder: Folder) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Raises `SegdatagenError` where there are some and none is: starting again is the user's decision. OSError, as the
    storage raises it, is no sign of a damaged one.
    """
    names = _names(folder)
    for name in reversed(names):
        try:
            return _parse(folder.read(name))
        except (SafetensorError, ValueError, KeyError):
            continue
    if names:
        raise SegdatagenError(f"none of the checkpoints in {folder.uri} can be read: delete them to start again")
    return None


def newest_step(folder: Folder) -> int | None:
    """The step of the newest checkpoint, whole or not; None where there is none."""
    names = _names(folder)
    return int(names[-1].removeprefix(PREFIX).removesuffix(SUFFIX)) if names else None


def collect(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a training by flat names. Optimizer state is absent where a parameter never had a gradient."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    return tensors


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put the tensors of `collect` back, keeping devices and memory formats."""
    for prefix, module in (("model.", model), ("average.", average)):
        module.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            stored = tensors.get(f"optimizer.{key}.{name}")
            if stored is not None:
                like = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                optimizer.state[parameter][key] = like.detach().copy_(stored)


def _name(step: int) -> str:
    return f"{PREFIX}{step:08d}{SUFFIX}"


def _names(folder: Folder) -> list[str]:
    return [entry.name for entry in folder.entries(SUFFIX) if entry.name.startswith(PREFIX)]


def _parse(data: bytes) -> Checkpoint:
    tensors = load(data)
    length = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
    header = json.loads(data[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length])
    metadata = header["__metadata__"]
    return Checkpoint(int(metadata["step"]), tensors, json.loads(metadata["facts"]))
