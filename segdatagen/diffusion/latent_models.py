"""Latent diffusion models from their folders onto a device, ready to draw images.

Networks, tokenizers and file formats are those of diffusers and transformers; a folder's own code is never run, nothing
is fetched. Whether folders fit together is checked elsewhere, before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from segdatagen.clip_tokenizer import load_clip_tokenizer
from segdatagen.diffusion.conditions import ControlEncoder
from segdatagen.diffusion.denoise import LatentNetwork
from segdatagen.diffusion.latent_options import DECODE_BATCH, Numerics
from segdatagen.diffusion.single_file import load_networks
from segdatagen.diffusion.text import TextEncoder
from segdatagen.errors import UsageError, one_line
from segdatagen.latent_folders import COMPONENTS, WITHOUT_TENSORS, Shape, check_base
from segdatagen.model_configs import read_json
from segdatagen.network_tensors import NOT_LEARNT, tensor_files
from segdatagen.transformers_tensors import quiet
from segdatagen.weights import local_weights

NETWORKS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
"""What a model is made of, by folder."""


@dataclass(frozen=True)
class LatentModels:
    """What every image needs: UNet with its noise schedule, VAE, text encoders; so many images are decoded at once."""

    network: LatentNetwork
    vae: AutoencoderKL
    text: TextEncoder
    shape: Shape
    decode_batch: int = DECODE_BATCH


def load_base(uri: str, numerics: Numerics, device: str, config_uri: str | None = None) -> LatentModels:
    """A text-to-image model. Raises UsageError where `check_base` does, or where one file of it is not whole."""
    shape, folder = check_base(uri, config_uri), local_weights(config_uri or uri)
    index = read_json(folder / "model_index.json", uri)
    kinds = {name: kind for name, kind in NETWORKS.items() if name in COMPONENTS[shape.family]}
    if numerics.vae:
        del kinds["vae"]
    if config_uri is None:
        networks = {name: _load(kind, folder / name, numerics, device) for name, kind in kinds.items()}
    else:
        dtype = getattr(torch, numerics.dtype)
        made = load_networks(uri, folder, kinds)
        networks = {name: made[name].to(device, dtype).eval().requires_grad_(False) for name in kinds}
    return LatentModels(
        network=LatentNetwork(
            prepared(networks["unet"], numerics),
            read_json(folder / "scheduler" / "scheduler_config.json", uri),
            numerics.attention,
        ),
        vae=load_vae(numerics.vae, numerics, device) if numerics.vae else _upcast(networks["vae"], numerics),
        text=TextEncoder(
            [load_clip_tokenizer(folder / name) for name in WITHOUT_TENSORS if name in COMPONENTS[shape.family]],
            [networks[name] for name in ("text_encoder", "text_encoder_2") if name in networks],
            wants_zeros(index),
        ),
        shape=shape,
        decode_batch=numerics.decode_batch,
    )


def wants_zeros(index: Mapping[str, Any]) -> bool:
    """Whether what has no prompt is embedded as zeros, and not as the empty string, as `model_index.json` says it."""
    return bool(index.get("force_zeros_for_empty_prompt", False))


def load_vae(uri: str, numerics: Numerics, device: str) -> AutoencoderKL:
    """A VAE in place of the base's own."""
    return _upcast(_load(AutoencoderKL, local_weights(uri), numerics, device), numerics)


def load_controlnet(uri: str, numerics: Numerics, device: str) -> ControlEncoder:
    """A ControlNet, taken apart."""
    network = _load(ControlNetModel, local_weights(uri), numerics, device)
    return ControlEncoder(prepared(network, numerics))


def load_adapter(uri: str, numerics: Numerics, device: str) -> T2IAdapter:
    """A T2I-Adapter."""
    return _load(T2IAdapter, local_weights(uri), numerics, device)


def _upcast(vae: AutoencoderKL, numerics: Numerics) -> AutoencoderKL:
    """In float32 where half precision would overflow: SDXL's own says so in its configuration."""
    return vae.float() if numerics.dtype == "float16" and vae.config.force_upcast else vae


def _load(kind: Any, folder: Path, numerics: Numerics, device: str) -> Any:
    """A network. Raises UsageError, in one line, where a tensor of it is missing, of another shape, or one too many.

    The libraries draw what is missing at random.
    """
    more: dict[str, Any] = {"low_cpu_mem_usage": False} if kind.__module__.startswith("diffusers") else {}
    name = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    try:
        with quiet():
            network, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=tensor_files(folder, kind.__name__)[0],
                output_loading_info=True,
                **{name: getattr(torch, numerics.dtype)},
                **more,
            )
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} cannot be loaded as {kind.__name__}: {one_line(error)}") from error
    for what, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has no place for")):
        if names := sorted(key for key in found[what] if not key.endswith(NOT_LEARNT)):
            raise UsageError(f"{folder}: its {kind.__name__} {verb} {len(names)} tensors, {names[0]} first")
    return network.to(device).eval().requires_grad_(False)


def prepared(network: Any, numerics: Numerics) -> Any:
    """The network with what makes it faster or smaller: see `Numerics`."""
    if numerics.fuse_qkv:
        network.fuse_qkv_projections()
    if numerics.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if numerics.float8_weights:
        network.enable_layerwise_casting(torch.float8_e4m3fn, getattr(torch, numerics.dtype))
    if numerics.compile:
        network.compile(mode=None, fullgraph=False, dynamic=False)
    return network
