"""A latent diffusion model in one safetensors file, as the authors of Stable Diffusion lay it out: its networks.

diffusers turns the names of the file into its own, and configurations from a folder say what the networks are. Every
tensor of a network has to be in the file, in its shape. It does not know what the networks are for; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from segdatagen.errors import UsageError
from segdatagen.model_configs import read_json
from segdatagen.network_tensors import CLIP_PREFIX, NOT_LEARNT
from segdatagen.weights import fill, local_weights

OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
"""Of the second text encoder of SDXL."""


def load_networks(uri: str, configs: Path, names: Iterable[str]) -> dict[str, Any]:
    """Networks of a file by the names of their folders below `configs`: unet, vae, text_encoder, text_encoder_2.

    On the CPU, in the precision of the file. Raises UsageError where a tensor is missing or of another shape.
    """
    makers = {"unet": _unet, "vae": _vae, "text_encoder": _clip, "text_encoder_2": _open_clip}
    tensors = load_file(local_weights(uri))
    networks: dict[str, Any] = {}
    for name in names:
        try:
            network, found = makers[name](tensors, configs / name)
        except KeyError as error:
            raise UsageError(f"{uri}: its {name} lacks {error.args[0]}") from error
        # Of a name that is absent diffusers makes a tensor that is None.
        kept = {key: tensor for key, tensor in found.items() if tensor is not None and not key.endswith(NOT_LEARNT)}
        fill(network, kept, uri)
        networks[name] = network
    return networks


def _unet(tensors: Mapping[str, Tensor], folder: Path) -> tuple[Any, dict[str, Tensor]]:
    config = read_json(folder / "config.json", str(folder))
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
    return network, convert_ldm_unet_checkpoint(tensors, network.config)


def _vae(tensors: Mapping[str, Tensor], folder: Path) -> tuple[Any, dict[str, Tensor]]:
    config = read_json(folder / "config.json", str(folder))
    with torch.device("meta"):
        network = AutoencoderKL.from_config(config)
    return network, convert_ldm_vae_checkpoint(tensors, network.config)


def _clip(tensors: Mapping[str, Tensor], folder: Path) -> tuple[Any, dict[str, Tensor]]:
    network = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    return network, _named(network, convert_ldm_clip_checkpoint(tensors))


def _open_clip(tensors: Mapping[str, Tensor], folder: Path) -> tuple[Any, dict[str, Tensor]]:
    network = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    return network, _named(network, convert_open_clip_checkpoint(network, tensors, OPEN_CLIP_PREFIX))


def _named(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As this version of transformers names the tensors of CLIP: some classes have its prefix, others dropped it."""
    if hasattr(network, "text_model"):
        return tensors
    return {name.removeprefix(CLIP_PREFIX): tensor for name, tensor in tensors.items()}
