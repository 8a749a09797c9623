"""Checkpoints of paper 001's own implementation, made into weights folders.

A Lightning checkpoint holds the network twice, `model.*` and its average `ema_model.*`; a bare state dict holds it
once. The network follows from the shapes of the tensors, classes and size from whoever converts, since no checkpoint
tells them. It does not know how such a file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from segdatagen.config_files import shown
from segdatagen.datasets.folder import read_colormap
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.errors import UsageError
from segdatagen.geometry import SIZE_STEP
from segdatagen.labels import LabelSet, load_label_set
from segdatagen.storage import Folder
from segdatagen.torch_files import StoredTensor, TorchFile
from segdatagen.weights import (
    CARD_NAME,
    CONFIG_NAME,
    TENSORS_NAME,
    MaskDDPMWeights,
    StoreDtype,
    config_bytes,
    local_weights,
    save_mask_ddpm,
)

if TYPE_CHECKING:
    from torch import Tensor

    Leaf = StoredTensor | Tensor

TAKEN = {
    "ema_model.": "ema_model.*, the average of the weights",
    "": "all tensors",
    "model.": "model.*: the checkpoint has no average",
}
"""Where the network may stand among the tensors of a checkpoint: the average before what it is the average of."""
ANCHORS = {"outc.weight": 4, "mask_conv.double_conv.0.weight": 4, "down1.emb_layer.1.weight": 2}
"""Tensors whose shapes tell the network, with their dimensions."""
COLORMAP_NAME = "colormap.json"
NUM_NAMED = 3
"""How many tensors of a kind an error names."""


@dataclass(frozen=True)
class Conversion:
    """What to convert, and what the checkpoint does not say: its classes, and width and height of its images."""

    checkpoint: str
    out: str
    label_set: LabelSet
    size: tuple[int, int] = (128, 128)
    store_dtype: StoreDtype = "float32"


@dataclass(frozen=True)
class Converted:
    """What a conversion found and wrote. `left_out` counts the tensors of the checkpoint that were not `taken`."""

    out: str
    network: dict[str, Any]
    num_parameters: int
    taken: str
    left_out: int
    unchanged: bool


def convert_checkpoint(conversion: Conversion, progress: Callable[[int, int], None]) -> Converted:
    """Write the weights folder of a checkpoint. Safe to run again; `progress` counts tensors.

    Raises UsageError, before anything is written, where the file is no checkpoint of this network, has another number
    of classes, or the folder holds something else.
    """
    path = local_weights(conversion.checkpoint)
    if not path.is_file():
        raise UsageError(f"{path} is a folder: name a checkpoint, a .ckpt, .pt or .pth file")
    folder = Folder(conversion.out)
    folder.require_writable()
    with contextlib.closing(TorchFile(path)) as file:
        prefix, found, left_out = _network_tensors(path, file.content)
        network = _network_of(path, found)
        _require_layout(path, network, found)
        if network.num_classes != conversion.label_set.num_classes:
            raise UsageError(
                f"{path} knows {network.num_classes} classes, label set {conversion.label_set.name} has "
                f"{conversion.label_set.num_classes}: name the classes that it was trained on with --labels"
            )
        config = _config(conversion, path, network, TAKEN[prefix], file.content)
        num_parameters = sum(math.prod(_shape(leaf) or ()) for leaf in found.values())
        card = _model_card(conversion, config, num_parameters)
        unchanged = _is_there(folder, {CARD_NAME: card, CONFIG_NAME: config_bytes(config)})
        if not unchanged:
            tensors = _loaded(file, found, progress)
            folder.put(CARD_NAME, card)
            save_mask_ddpm(folder.uri, config, tensors, conversion.store_dtype)
    return Converted(folder.uri, network.model_dump(), num_parameters, TAKEN[prefix], left_out, unchanged)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of `128x128`. Raises UsageError unless both are multiples of 8."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if min(width, height) < SIZE_STEP or width % SIZE_STEP or height % SIZE_STEP:
        raise UsageError(f"--size is WIDTHxHEIGHT in multiples of {SIZE_STEP}, for example 128x128, not {text!r}")
    return width, height


def read_labels(name: str) -> LabelSet:
    """A label set by its name or file, or the path of the `colormap.json` that the network was trained with."""
    folder, slash, file = name.rpartition("/")
    return read_colormap(folder or slash or ".") if file == COLORMAP_NAME else load_label_set(name)


def _network_tensors(path: Path, content: Any) -> tuple[str, dict[str, Leaf], int]:
    """The prefix of the network in a checkpoint, its tensors without it, and how many other tensors there are."""
    state = content if isinstance(content, Mapping) else {}
    if isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and _shape(value) is not None}
    for prefix in TAKEN:
        if f"{prefix}outc.weight" in tensors:
            taken = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
            return prefix, taken, len(tensors) - len(taken)
    places = ", ".join(f"{prefix}outc.weight" for prefix in TAKEN)
    held = f"it holds {_named(tensors)}" if tensors else "it holds no tensors by name"
    raise UsageError(f"{path}: no checkpoint of the mask-guided DDPM, which has one of {places}: {held}")


def _network_of(path: Path, found: Mapping[str, Leaf]) -> MaskUNetConfig:
    """The network that tensors of these shapes are of."""
    for name, dimensions in ANCHORS.items():
        if name not in found or len(_shape(found[name]) or ()) != dimensions:
            raise UsageError(f"{path}: no checkpoint of the mask-guided DDPM: {name} is missing, or of another shape")
    hidden, classes, time = ((_shape(found[name]) or ())[1] for name in ANCHORS)
    attention = any(name.startswith(("sa3.", "sa4.")) for name in found)
    try:
        return MaskUNetConfig(num_classes=classes, hidden=hidden, time_embedding=time, attention=attention)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"{path}: no mask-guided DDPM has {wrong['loc'][0]} {wrong['input']}") from error


def _require_layout(path: Path, network: MaskUNetConfig, found: Mapping[str, Leaf]) -> None:
    """Raise UsageError unless names and shapes are exactly the network's, and the file can hold so many numbers."""
    import torch

    from segdatagen.diffusion.mask_unet import MaskUNet

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in MaskUNet(network).state_dict().items()}
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [n for n in expected if n in found and _shape(found[n]) != expected[n]],
    }
    wrong = "; ".join(f"{kind}: {_named(names)}" for kind, names in differences.items() if names)
    if wrong:
        raise UsageError(f"{path}: not the layers of the mask-guided DDPM with hidden {network.hidden}: {wrong}")
    if sum(map(math.prod, expected.values())) > path.stat().st_size:
        raise UsageError(f"{path}: claims more numbers than a file of its size can hold")


def _loaded(file: TorchFile, found: Mapping[str, Leaf], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
    """The tensors, read. Raises UsageError unless all are finite numbers with a fraction."""
    tensors = {}
    for done, (name, leaf) in enumerate(found.items(), 1):
        tensor = file.load(leaf)
        if not tensor.is_floating_point() or not all(map(math.isfinite, tensor.aminmax())):
            what = "NaN or infinity" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
            raise UsageError(f"{file.path}: {name} holds {what}: no weights to draw images with")
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes
        tensors[name] = tensor if alone else tensor.clone()  # safetensors refuses two tensors in one storage
        progress(done, len(found))
    return tensors


def _config(
    conversion: Conversion, path: Path, network: MaskUNetConfig, taken: str, content: Mapping[str, Any]
) -> MaskDDPMWeights:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    counts = {name: content.get(name) for name in ("epoch", "global_step")}
    return MaskDDPMWeights(
        network=network,
        label_set=conversion.label_set.name,
        classes=conversion.label_set.names,
        size=conversion.size,
        training={"converted_from": path.name, "blake2b": digest, "taken": taken, "stored_as": conversion.store_dtype}
        | {name: count for name, count in counts.items() if type(count) is int},
    )


def _model_card(conversion: Conversion, config: MaskDDPMWeights, num_parameters: int) -> bytes:
    network, origin = config.network, config.training
    width, height = config.size
    rows = {
        "network": f"mask-guided DDPM, hidden {network.hidden}, attention {'on' if network.attention else 'off'}",
        "parameters": f"{num_parameters:,}, stored as {conversion.store_dtype}",
        "classes": f"{network.num_classes}: {', '.join(config.classes)}",
        "size": f"{width} x {height}",
        "converted from": f"`{origin['converted_from']}`, blake2b `{origin['blake2b']}`",
        "taken": origin["taken"],
        "epoch, steps": f"{origin.get('epoch', 'unknown')}, {origin.get('global_step', 'unknown')}",
        "not in the checkpoint": "classes, size and terms of use: the first two are as given when it was converted",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# Mask-guided DDPM for {config.label_set}, converted\n\n| | |\n|---|---|\n{table}\n".encode()


def _is_there(folder: Folder, expected: Mapping[str, bytes]) -> bool:
    """Whether exactly this conversion lies in the folder. Raises UsageError where it holds anything else."""
    present = {entry.name for entry in folder.entries()}
    foreign = present - {*expected, TENSORS_NAME}
    changed = [name for name, data in expected.items() if name in present and folder.read(name) != data]
    if foreign or changed or (present and CARD_NAME not in present):
        raise UsageError(
            f"{folder.uri} holds something else ({_named(sorted(foreign) or present)}): choose another --out"
        )
    return present == {*expected, TENSORS_NAME}


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, read or not; None for anything else."""
    if isinstance(value, StoredTensor):
        return value.shape
    import torch

    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _named(names: Iterable[str]) -> str:
    """The first names, and how many more there are; each cut to 60 characters, and quoted where it is not plain."""
    every = [name if name.isprintable() and len(name) <= 60 else shown(name) for name in names]
    more = f" and {len(every) - NUM_NAMED} more" if len(every) > NUM_NAMED else ""
    return ", ".join(every[:NUM_NAMED]) + more
