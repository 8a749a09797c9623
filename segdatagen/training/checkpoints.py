"""Checkpoints of a training: one safetensors file each, put whole or not at all; the newest are kept.

Tensors are flattened by parameter name under `model.`, `average.` and `optimizer.`; the step and the facts of the
training are JSON in the header. Tensors are written and read one by one, since a checkpoint may be as large as what is
left of the memory. Knows no kind of network, and nothing is pickled.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder

CHECKPOINTS_NAME = "checkpoints"
"""Their folder in `out`."""
MOST_HEADER = 2**27
"""Bytes of a header; the length of a damaged one may be anything."""
PREFIX, SUFFIX = "step-", ".safetensors"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What networks and optimizers hold, by its name in the header of a safetensors file."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps: tensors by name, and facts that fit in JSON.

    `passed_over`: steps of newer ones that could not be read.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: dict[str, Any]
    passed_over: tuple[int, ...] = ()


def save_checkpoint(folder: Folder, checkpoint: Checkpoint, keep: int) -> None:
    """Put a checkpoint, then delete all but the last `keep`, and those of later steps, which could not be read.

    Raises StorageError, with the last ones as they were.
    """
    folder.put_written(_name(checkpoint.step), lambda file: _write(file, checkpoint))
    names = _names(folder)
    later = [name for name in names if name > _name(checkpoint.step)]
    folder.delete([*names[: len(names) - len(later)][:-keep], *later])


@contextlib.contextmanager
def open_newest(folder: Folder) -> Iterator[Checkpoint | None]:
    """The newest checkpoint that is whole, whose tensors are read as they are asked for; None where there is none.

    Raises `SegdatagenError` where there are some and none is whole: starting again is the user's decision. OSError, as
    the storage raises it, is no sign of a damaged one.
    """
    names = _names(folder)
    damaged: list[int] = []
    with contextlib.ExitStack() as stack:
        for name in reversed(names):
            path = stack.enter_context(folder.as_file(name))
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
                metadata = opened.metadata()
                facts = json.loads(metadata["facts"])
                checkpoint = Checkpoint(int(metadata["step"]), _Stored(opened), facts, tuple(damaged))
            except (SafetensorError, ValueError, KeyError, TypeError):
                stack.close()
                damaged.append(_step_of(name))
                continue
            yield checkpoint
            return
    if names:
        raise SegdatagenError(f"none of the checkpoints in {folder.uri} can be read: delete them to start again")
    yield None


class _Stored(Mapping[str, Tensor]):
    """The tensors of an open safetensors file."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._names = tuple(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._opened.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def newest_facts(folder: Folder) -> dict[str, Any] | None:
    """The facts of the newest checkpoint whose header can be read; None where there is none. No tensor is read."""
    for name in reversed(_names(folder)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            length = int.from_bytes(folder.read_range(name, 0, 8), "little")
            header = json.loads(folder.read_range(name, 8, min(length, MOST_HEADER)))
            facts: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
            return facts
    return None


def newest_step(folder: Folder) -> int | None:
    """The step of the newest checkpoint, whole or not; None where there is none."""
    names = _names(folder)
    return _step_of(names[-1]) if names else None


def collect(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a training by flat names. Optimizer state is absent where a parameter never had a gradient."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    return tensors


def places_of(
    names: Collection[str], model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Where the tensors of these names belong, by name; makes the state of the optimizer that they need.

    Raises SegdatagenError where they are not those of this training.
    """
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimizer.{key}.{name}" in names:
                like = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                optimizer.state[parameter][key] = like.detach()
    places = collect(model, average, optimizer)
    if others := places.keys() ^ set(names):
        raise SegdatagenError(f"the checkpoint is of another network ({min(others)}): delete it to start again")
    return places


@torch.no_grad()
def restore(
    places: Mapping[str, Tensor], stored: Mapping[str, Tensor] | None, spread: Callable[[Tensor], None]
) -> None:
    """Put tensors where they belong, keeping devices and memory formats, and call `spread` with each place.

    `stored` is None for a worker whose tensors `spread` brings.
    """
    for name, place in places.items():
        if stored is not None:
            place.copy_(stored[name].view_as(place))
        spread(place)


def _step_of(name: str) -> int:
    return int(name.removeprefix(PREFIX).removesuffix(SUFFIX))


def _name(step: int) -> str:
    return f"{PREFIX}{step:08d}{SUFFIX}"


def _names(folder: Folder) -> list[str]:
    return [entry.name for entry in folder.entries(SUFFIX) if entry.name.startswith(PREFIX)]


def _write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write a safetensors file, with one tensor in memory at a time; the library would hold all of them.

    The format: 8 bytes with the length of the header, little-endian; the header, JSON, filled up to 8 bytes; the bytes
    of the tensors, those of large numbers first, so that each begins at a multiple of its own.
    """
    metadata = {"step": str(checkpoint.step), "facts": json.dumps(checkpoint.facts)}
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(checkpoint.tensors, key=lambda name: (-checkpoint.tensors[name].element_size(), name))
    end = 0
    for name in ordered:
        tensor = checkpoint.tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in ordered:
        stored = checkpoint.tensors[name].detach().cpu().contiguous()
        file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
