"""Tensors of a network's folder in the layout of `from_pretrained`: which files hold them, and whether all are there.

What a network consists of is known by building it from its config without memory, which takes torch and seconds. So
what fitted is remembered in the user's cache, by config, names and shapes: the next look reads headers alone.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segdatagen.errors import SegdatagenError, UsageError, one_line
from segdatagen.weight_hashes import cache_folder
from segdatagen.weights import require_shapes, safetensors_shapes

Shapes = dict[str, tuple[int, ...]]

STEMS = {"CLIPTextModel": "model", "CLIPTextModelWithProjection": "model"}
"""Names of tensor files begin with these in transformers; networks of diffusers all have DIFFUSERS_STEM."""
DIFFUSERS_STEM = "diffusion_pytorch_model"
LIBRARIES = ("torch", "diffusers", "transformers")
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention of a VAE as old files name it; diffusers reads them still."""
CLIP_PREFIX = "text_model."
"""Of a text encoder; some versions of transformers write it and others not, and all read both."""
NOT_LEARNT = "position_ids"
"""A list of numbers that old files hold among the tensors of CLIP."""


def tensor_files(folder: Path, kind: str) -> tuple[str | None, list[Path]]:
    """The files that a network of the class `kind` is loaded from, and their variant: `fp16`, or None for whole ones.

    Raises UsageError, in one line, where there are none, or an index of them cannot be read.
    """
    stem = STEMS.get(kind, DIFFUSERS_STEM)
    for variant in (None, "fp16"):
        mark = f".{variant}" if variant else ""
        index, single = folder / f"{stem}.safetensors.index{mark}.json", folder / f"{stem}{mark}.safetensors"
        if index.is_file():
            return variant, _shards(index)
        if single.is_file():
            return variant, [single]
    others = sorted(path.name for pattern in ("*.bin", "*.safetensors*") for path in folder.glob(pattern))
    found = f"only {', '.join(others)}" if others else "none"
    raise UsageError(f"{folder} needs weights as safetensors, and holds {found}: fetch or convert them")


def check_network(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Raise UsageError, in one line, unless the tensors of a folder are exactly those of `kind` with this config.

    Files that are cut off are found, too. Bytes of tensors are not read.
    """
    found = {name: shape for path in tensor_files(folder, kind)[1] for name, shape in safetensors_shapes(path).items()}

    def compare() -> None:
        require_shapes(_as_loaded(_shapes_of(folder, kind, config)), _as_loaded(found), str(folder))

    unless_remembered([kind, config, found], compare)


def unless_remembered(seen: Sequence[Any], check: Callable[[], None]) -> None:
    """Call `check`, unless it passed before when as much was seen, all of it JSON, with these versions of libraries."""
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    key = hashlib.blake2b(json.dumps([*seen, versions], sort_keys=True).encode(), digest_size=16)
    cache, name = cache_folder("networks_that_fit"), f"{key.hexdigest()}.json"
    with contextlib.suppress(OSError, SegdatagenError):
        if cache is not None and cache.exists(name):
            return
    check()
    with contextlib.suppress(OSError, SegdatagenError):
        if cache is not None:
            cache.put(name, b"{}\n")


def _shards(index: Path) -> list[Path]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.parent / name for name in sorted(set(shards))]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"{index} names no files of tensors: fetch it again") from error


def _shapes_of(folder: Path, kind: str, config: Mapping[str, Any]) -> Shapes:
    """Every tensor of a network by its config."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    broken = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)
    try:
        with torch.device("meta"), quiet_diffusers():
            network = _build(kind, config)
    except broken as error:
        raise UsageError(f"{folder / 'config.json'} describes no {kind}: {one_line(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _build(kind: str, config: Mapping[str, Any]) -> Any:
    """A network of a config, on the current torch device."""
    if kind in STEMS:
        import transformers

        return getattr(transformers, kind)(transformers.CLIPTextConfig.from_dict(dict(config)))
    import diffusers

    return getattr(diffusers, kind).from_config(dict(config))


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without diffusers' warnings: published configs have fields that it does not know, and casts are meant."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _as_loaded(shapes: Shapes) -> Shapes:
    """Shapes by the names that every version of a library and its files has in common."""
    common: Shapes = {}
    for name, shape in shapes.items():
        if name.endswith(NOT_LEARNT):
            continue
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        common[name.removeprefix(CLIP_PREFIX)] = shape
    return common
