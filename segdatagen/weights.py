"""Weights of models: where a weights URI lies on this machine, and what a weights folder holds.

A folder of the mask-guided DDPM is `config.json` (a `MaskDDPMWeights`) beside `model.safetensors`; tensors may be
stored as float16 and are loaded as float32. Nothing is unpickled. torch is imported when tensors are read, not before.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from segdatagen.config_files import Place, read_stored
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.storage import Folder
from segdatagen.weight_hashes import content_hash
from segdatagen.weights_cache import cached_path, is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from segdatagen.diffusion.mask_unet import MaskUNet

CONFIG_NAME = "config.json"
INDEX_NAME = "model_index.json"
"""What a folder of several networks has in place of `config.json`."""
TENSORS_NAME = "model.safetensors"
CARD_NAME = "README.md"
"""The model card: for people, and no part of the fingerprint."""
WEIGHTS_NAME = "weights"
"""The folder of finished weights below the `out` of a training."""
MOST_NAMES = 5
"""Of files beside weights that are not there."""
BUILTIN_PATH = Path(__file__).parent / "builtin"

NAMES_WEIGHTS = "names weights"
"""In the metadata of an option: its value says where weights lie. `map_weights` finds it by that."""
_A_PLACE = "builtin:NAME, a path, hf://org/name@revision or s3://bucket/folder"
WeightsUri = Annotated[Place, Field(description=_A_PLACE), NAMES_WEIGHTS]
OptionalWeightsUri = Annotated[Place | None, Field(description=_A_PLACE), NAMES_WEIGHTS]

StoreDtype = Literal["float32", "float16"]
Config = TypeVar("Config", bound=BaseModel)


class MaskDDPMWeights(BaseModel):
    """What `config.json` of a mask-guided DDPM says: the network, what it was trained on, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mask_ddpm"] = "mask_ddpm"
    network: MaskUNetConfig
    label_set: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    """Width and height of the training images."""
    training: dict[str, Any] = {}


class _AnyWeights(BaseModel):
    """What every `config.json` says."""

    kind: str


def builtin_names() -> list[str]:
    """Names of the weights that are shipped with the package."""
    return sorted(path.parent.name for name in (CONFIG_NAME, INDEX_NAME) for path in BUILTIN_PATH.glob(f"*/{name}"))


def local_weights(uri: str) -> Path:
    """The local folder or file that `builtin:NAME`, a path, or the URI of weights in the cache stands for.

    Raises `UsageError` where it does not exist, naming what does; nothing is fetched.
    """
    if uri.startswith("builtin:"):
        name = uri.removeprefix("builtin:")
        if name not in builtin_names():
            raise UsageError(f"there are no weights {uri}: the shipped ones are {', '.join(builtin_names()) or 'none'}")
        return BUILTIN_PATH / name
    if is_remote(uri):
        return cached_path(uri)
    path = Path(uri.removeprefix("file://")).expanduser()
    if not path.exists():
        parent = next(parent for parent in path.absolute().parents if parent.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
        beside = ", ".join([*names[:MOST_NAMES], "..."] if len(names) > MOST_NAMES else names) or "nothing"
        raise UsageError(f"there are no weights at {uri}: {parent} holds {beside}")
    return path


Stamps = tuple[tuple[str, int, int], ...]
"""Files of weights: path, bytes and time of the last change in ns."""


def stamps_of(*uris: str) -> Stamps:
    """What tells files from others at the same places, without reading them. Raises UsageError as `local_weights`."""
    found: list[Path] = []
    for uri in uris:
        place = local_weights(uri)
        found += [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    stats = [(str(path), path.stat()) for path in found]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def absolute_weights(uri: str) -> str:
    """The same weights named so that every working folder finds them; builtin:NAME and other hosts stay."""
    is_path = not uri.startswith("builtin:") and ("://" not in uri or uri.startswith("file://"))
    return Folder(uri).absolute_uri if is_path else uri


def map_weights(options: Config, change: Callable[[str], str]) -> Config:
    """The same options with every URI of weights in them changed, however deep it lies. Nothing is validated again."""
    updates: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if NAMES_WEIGHTS in field.metadata and value is not None:
            updates[name] = change(value)
        elif isinstance(value, BaseModel):
            updates[name] = map_weights(value, change)
        elif isinstance(value, tuple) and any(isinstance(entry, BaseModel) for entry in value):
            updates[name] = tuple(map_weights(e, change) if isinstance(e, BaseModel) else e for e in value)
    return options.model_copy(update=updates)


def fingerprint_of(uri: str) -> str:
    """Hash of the weights that `uri` stands for: names and bytes of all files but the model card, 32 hex digits.

    Large files that did not change since they were hashed on this machine are not read again: see `weight_hashes`.
    """
    path = local_weights(uri)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        if name == CARD_NAME or any(part.startswith(".") for part in name.split("/")):
            continue
        digest.update(name.encode() + b"\0" + content_hash(file))
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; floats become float32. Raises `UsageError` on a missing or broken file."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def read_weights(folder: Path, config_type: type[Config]) -> Config:
    """`config.json` of a weights folder. Raises `UsageError` where it is none of this kind of weights."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file, not a weights folder: make one of it with `segdatagen weights convert`")
    try:
        kind = read_stored(Folder(str(folder)), CONFIG_NAME, _AnyWeights, UsageError).kind
        if kind != (wanted := config_type.model_fields["kind"].default):
            raise UsageError(f"{folder} holds weights of the kind {kind}, and {wanted} is needed here")
        return read_stored(Folder(str(folder)), CONFIG_NAME, config_type, UsageError)
    except OSError as error:
        raise UsageError(f"{folder} is no weights folder: it holds no readable {CONFIG_NAME} ({error})") from error


def check_tensors(path: Path) -> None:
    """Raise `UsageError` where a safetensors file is missing, truncated or has a broken header; needs no torch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file by their names. Raises UsageError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the weights {path} cannot be read ({error}): fetch them again") from error


def check_mask_ddpm(uri: str, num_classes: int) -> MaskDDPMWeights:
    """`config.json` of weights; `UsageError` where `load_mask_ddpm` would raise it for what shows without tensors.

    Missing weights, a broken header, a truncated file and another number of classes are found in milliseconds and
    without torch.
    """
    folder = local_weights(uri)
    config = read_weights(folder, MaskDDPMWeights)
    _require_classes(config, num_classes, uri)
    check_tensors(folder / TENSORS_NAME)
    return config


def load_mask_ddpm(uri: str, num_classes: int) -> tuple[MaskUNet, MaskDDPMWeights]:
    """The network of the weights at `uri`, float32, on the CPU, for inference, and its `config.json`.

    Raises `UsageError` where the weights are missing, broken, or made for another number of classes.
    """
    import torch

    from segdatagen.diffusion.mask_unet import MaskUNet

    folder = local_weights(uri)
    config = read_weights(folder, MaskDDPMWeights)
    _require_classes(config, num_classes, uri)
    with torch.device("meta"):
        model = MaskUNet(config.network)
    fill(model, read_tensors(folder / TENSORS_NAME), uri)
    return model.eval(), config


def fill(model: nn.Module, tensors: Mapping[str, Tensor], uri: str) -> None:
    """Make `tensors` the weights of `model`. Raises `UsageError` unless names and shapes are exactly the model's."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    require_shapes(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, uri)
    model.load_state_dict(tensors, assign=True)


def require_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], uri: str) -> None:
    """Raise UsageError, in one line, unless the tensors of the weights `uri` are those that a network expects."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise UsageError(
            f"the weights {uri} do not fit their {CONFIG_NAME}: {len(wrong)} tensors are missing, unexpected or of "
            f"another shape, {wrong[0]} first (expected {expected.get(wrong[0])}, found {found.get(wrong[0])})"
        )


def save_mask_ddpm(
    uri: str, config: MaskDDPMWeights, tensors: Mapping[str, Tensor], store_dtype: StoreDtype = "float32"
) -> None:
    """Write the weights folder of a mask-guided DDPM: see `put_weights`."""
    import torch

    dtype = getattr(torch, store_dtype)
    put_weights(uri, config, {name: tensor.detach().cpu().to(dtype) for name, tensor in tensors.items()})


def put_weights(uri: str, config: BaseModel, tensors: Mapping[str, Tensor]) -> None:
    """Write a weights folder; `config.json` goes first and comes last, so that a folder that has one is whole.

    Tensors go by way of a temporary file: in memory their file would stand twice beside them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Folder(uri)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / TENSORS_NAME
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise SegdatagenError(f"{path}: the weights cannot be written there first ({error})") from error
        folder.delete([CONFIG_NAME])
        folder.put_file(TENSORS_NAME, path)
    folder.put(CONFIG_NAME, config_bytes(config))


def config_bytes(config: BaseModel) -> bytes:
    """`config.json` of a weights folder."""
    return (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode()


def _require_classes(config: MaskDDPMWeights, num_classes: int, uri: str) -> None:
    if config.network.num_classes != num_classes:
        raise UsageError(
            f"the weights {uri} were trained on the {config.network.num_classes} classes of {config.label_set}, "
            f"but the label set of this job has {num_classes}: use weights of the same label set"
        )


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"the weights {path} cannot be read ({error}): fetch or train them again")
