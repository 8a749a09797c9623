"""Depth as a prior: any `AutoModelForDepthEstimation` of transformers, from a folder of `save_pretrained`.

Near is white. torch and transformers are imported when a folder is looked into; nothing is fetched, no code of the
folder is run. It does not know what a drawing is used for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdatagen.errors import UsageError
from segdatagen.images import Image
from segdatagen.model_configs import read_json
from segdatagen.network_tensors import Shapes, unless_remembered
from segdatagen.priors.options import PriorOptions
from segdatagen.priors.sizes import Fit, draw_fitted
from segdatagen.transformers_tensors import CANNOT_LOAD, INDEX_NAME, quiet, require_tensors, tensor_shapes
from segdatagen.weights import CONFIG_NAME, TENSORS_NAME, local_weights

if TYPE_CHECKING:
    from torch import Tensor

PROCESSOR_NAME = "preprocessor_config.json"
METRIC_KINDS = {"glpn", "zoedepth"}
"""Networks that tell a distance, which grows with depth; others tell its inverse, or say `metric` in their options."""


def check_depth(options: PriorOptions) -> None:
    """Raise UsageError unless the folder is there, of a network for depth that transformers knows, with its tensors.

    Without torch where it fitted before.
    """
    folder = _folder(options)
    shapes, config = tensor_shapes(folder), read_json(folder / CONFIG_NAME, f"{folder} is no depth model")
    unless_remembered(["depth", config, shapes], lambda: _require_loadable(folder, shapes))


def _require_loadable(folder: Path, shapes: Shapes) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    config = _config(folder)
    require_tensors(folder, KNOWN[config.model_type], shapes, config)


def load_depth(options: PriorOptions, device: str) -> DepthDrawer:
    """The network, float32. Raises UsageError as `check_depth` does, and where weights are missing or do not fit."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder = _folder(options)
    config = _config(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(str(folder), **local)
            network, loading = AutoModelForDepthEstimation.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
    except CANNOT_LOAD as error:
        raise UsageError(f"{folder} cannot be loaded as a network for depth ({_first_line(error)})") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} tensors of its network, {missing[0]} first")
    return DepthDrawer(network.to(device).eval(), config, processor, options.resolution)


class DepthDrawer:
    """A network for depth as a function of pictures."""

    def __init__(self, network: Any, config: Any, processor: Any, resolution: int | None) -> None:
        """Finds out, on a blank picture, which sizes the network takes. Raises UsageError where only its own."""
        self._network, self._processor = network, processor
        kind = getattr(config, "depth_estimation_type", "")
        self._is_metric = config.model_type in METRIC_KINDS or kind == "metric"
        fit = self._find_fit(_multiple(config, processor))
        if fit is None:
            raise UsageError(f"the {config.model_type} of {network.name_or_path} takes pictures of one size only")
        self._fit = Fit(fit.multiple, resolution, fit.square)

    def __call__(self, picture: Image) -> Image:
        """Depth uint8 `[H, W, 3]`, three equal channels, from 0 (furthest) to 255 (nearest), of uint8 `[H, W, 3]`.

        A picture of one depth is black.
        """
        depth = draw_fitted(picture, self._estimate, self._fit)
        depth = -depth if self._is_metric else depth
        low, high = depth.min(), depth.max()
        levels = (depth - low) / (high - low) * 255 if high > low else np.zeros_like(depth)
        return np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)

    def _estimate(self, picture: Image) -> np.ndarray:
        """The depth of every pixel, float32 `[H, W]`."""
        from torch.nn import functional

        depth = self._depth(picture)
        if depth.shape[2:] != picture.shape[:2]:
            depth = functional.interpolate(depth, picture.shape[:2], mode="bicubic")
        found: np.ndarray = depth[0, 0].cpu().numpy()
        return found

    def _depth(self, picture: Image) -> Tensor:
        """What the network says, float32 `[1, 1, h, w]`."""
        import torch

        how = self._processor
        with torch.inference_mode():
            pixels = torch.tensor(picture, device=self._network.device).permute(2, 0, 1)[None].float()
            if how.do_rescale:
                pixels = pixels * how.rescale_factor
            if getattr(how, "do_normalize", False):
                mean, deviation = (
                    torch.tensor(values, device=pixels.device)[:, None, None]
                    for values in (how.image_mean, how.image_std)
                )
                pixels = (pixels - mean) / deviation
            depth: Tensor = self._network(pixel_values=pixels).predicted_depth[:, None]
        return depth

    def _find_fit(self, multiple: int) -> Fit | None:
        """Sizes whose depth comes out at the same size, or else any that the network takes; None: neither.

        DPT halves its patches once more: of an odd number of them it tells a depth that is larger than the picture. Nor
        does it know their rows from their columns, so that pictures must be square.
        """
        taken = []
        for square in (False, True):
            for sides in (multiple, 2 * multiple):
                picture = np.zeros((3 * sides, (3 if square else 5) * sides, 3), np.uint8)
                try:
                    found = self._depth(picture)
                except (ValueError, RuntimeError):
                    continue
                taken.append(Fit(sides, square=square))
                if found.shape[2:] == picture.shape[:2]:
                    return taken[-1]
        return taken[0] if taken else None


def _folder(options: PriorOptions) -> Path:
    folder = local_weights(options.weights or "")
    if folder.is_file():
        raise UsageError(f"{folder} is a file: a depth model is a folder as save_pretrained leaves it")
    missing = [name for name in (CONFIG_NAME, PROCESSOR_NAME) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (TENSORS_NAME, INDEX_NAME)):
        missing.append(TENSORS_NAME)
    if missing:
        raise UsageError(f"{folder} is no depth model of transformers: it lacks {', '.join(missing)}")
    return folder


def _config(folder: Path) -> Any:
    """`config.json`. Raises UsageError where it is not that of a network for depth."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(f"{folder / CONFIG_NAME}: of no network of transformers ({_first_line(error)})") from error
    names: Mapping[str, str] = KNOWN
    architectures = config.architectures or [names.get(config.model_type)]
    if names.get(config.model_type) not in architectures:
        raise UsageError(
            f"{folder} holds {' and '.join(map(str, architectures))} ({config.model_type}), no network for depth; "
            f"those are {', '.join(sorted(names))}"
        )
    return config


def _multiple(config: Any, processor: Any) -> int:
    """The multiple of pixels that the sides of pictures must be."""
    owners = (config, getattr(config, "backbone_config", None), processor)
    names = ("patch_size", "ensure_multiple_of", "size_divisor")
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return math.lcm(*(number for number in found if isinstance(number, int) and number > 0))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
