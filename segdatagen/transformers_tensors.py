"""Tensors of a transformers model's folder, in files as `save_pretrained` leaves them: whether they are its config's.

The library itself compares, as it knows names that older files have; it is given shapes alone, so that no tensor is
read. That takes torch and seconds: `network_tensors` remembers what fitted. It does not know what a model is for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segdatagen.errors import UsageError, one_line
from segdatagen.model_configs import read_json
from segdatagen.network_tensors import Shapes
from segdatagen.weights import TENSORS_NAME, safetensors_shapes

INDEX_NAME = f"{TENSORS_NAME}.index.json"
CANNOT_LOAD = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What the library raises of files that it can make nothing of."""


def tensor_shapes(folder: Path) -> Shapes:
    """Shapes of all tensors by the names in their files.

    Raises UsageError where a file that should be there is not, has a broken header, or lacks bytes.
    """
    index, names = folder / INDEX_NAME, [TENSORS_NAME]
    if index.is_file():
        shards = read_json(index, f"{folder} has no whole weights").get("weight_map")
        if not isinstance(shards, dict):
            raise UsageError(f"{index} names no files of tensors: fetch it again")
        names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no {name}: only safetensors are loaded; fetch or convert them")
    return {key: shape for name in names for key, shape in safetensors_shapes(folder / name).items()}


def require_tensors(folder: Path, class_name: str, shapes: Shapes, config: Any = None) -> None:
    """Raise UsageError, in one line, unless a class of transformers finds all its tensors among these, in its shapes.

    What it has no use for may be there too. `config` is that of the folder if it was read before.
    """
    import torch
    import transformers

    network = getattr(transformers, class_name)
    try:
        with quiet():
            _, found = network.from_pretrained(
                None,
                config=network.config_class.from_pretrained(folder) if config is None else config,
                state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except CANNOT_LOAD as error:
        raise UsageError(f"{folder} cannot be loaded as {class_name} of transformers: {one_line(error)}") from error
    if absent := sorted(found["missing_keys"]):
        raise UsageError(f"the weights {folder} lack {len(absent)} tensors of their network, {absent[0]} first")
    if others := sorted(name for name, *_ in found["mismatched_keys"]):
        raise UsageError(
            f"the weights {folder} hold {len(others)} tensors of another shape than their network's, {others[0]} first"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars: what is wrong is said in one line."""
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()
