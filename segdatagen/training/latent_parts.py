"""A text-to-image model in parts, as a training needs it: what learns, what is frozen, and all of it to draw pictures.

Parts are those of diffusers and transformers, in SDXL's form. It does not know which of them a kind trains.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from segdatagen.diffusion.conditions import TextCondition
from segdatagen.diffusion.denoise import LatentNetwork
from segdatagen.diffusion.latent_models import LatentModels, wants_zeros
from segdatagen.diffusion.text import TextEncoder, token_ids
from segdatagen.errors import UsageError, placed
from segdatagen.latent_folders import Shape, check_base
from segdatagen.model_configs import read_json
from segdatagen.training.latent_weights import cast_copy, load_network, load_text_encoders, load_tokenizers, load_vae
from segdatagen.training.noise import require_trainable
from segdatagen.training_record import require_kind
from segdatagen.weights import local_weights


@dataclass(frozen=True)
class Parts:
    """A whole text-to-image model: networks on one device, tokenizers, and the schedule as diffusers stores it."""

    unet: UNet2DConditionModel
    encoders: Sequence[Any]
    tokenizers: Sequence[Any]
    vae: AutoencoderKL
    schedule: Mapping[str, Any]
    zeros_for_no_prompt: bool = False
    """As `TextEncoder` has it; SDXL's own is true. A training learns what a run will do."""

    @contextlib.contextmanager
    def models(self) -> Iterator[LatentModels]:
        """The parts as the denoising loop takes them, on the device of the UNet while the block runs.

        VAE and text encoders then go back to where they lay: while a training reads caches, not on its GPU.
        """
        device, config = self.unet.device, self.unet.config
        moved = [(part, part.device) for part in (self.vae, *self.encoders)]
        shape = Shape(
            family="sdxl",
            blocks=tuple(config.block_out_channels),
            in_channels=config.in_channels,
            latent_channels=config.out_channels,
            text_channels=config.cross_attention_dim,
            vae_factor=2 ** (len(self.vae.config.block_out_channels) - 1),
        )
        try:
            encoders = [encoder.to(device).eval() for encoder in self.encoders]
            text = TextEncoder(self.tokenizers, encoders, self.zeros_for_no_prompt)
            yield LatentModels(LatentNetwork(self.unet, self.schedule), self.vae.to(device), text, shape)
        finally:
            for part, before in moved:
                part.to(before)

    def as_dtype(self, dtype: torch.dtype) -> "Parts":
        """A copy on the CPU in another type of number."""
        networks: list[Any] = [self.unet, self.vae, *self.encoders]
        unet, vae, *encoders = (cast_copy(network, dtype) for network in networks)
        assert isinstance(unet, UNet2DConditionModel)
        assert isinstance(vae, AutoencoderKL)
        return replace(self, unet=unet, vae=vae, encoders=encoders)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what diffusers' StableDiffusionXLPipeline reads.

        Without that class, whose import asks for libraries that nothing here needs.
        """
        schedule = {name: value for name, value in self.schedule.items() if not name.startswith("_")}
        parts = {
            "unet": self.unet,
            "vae": self.vae,
            "text_encoder": self.encoders[0],
            "text_encoder_2": self.encoders[1],
            "tokenizer": self.tokenizers[0],
            "tokenizer_2": self.tokenizers[1],
            "scheduler": EulerDiscreteScheduler.from_config(schedule),
        }
        for name, part in parts.items():
            part.save_pretrained(Path(folder, name))
        index = {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": diffusers.__version__,
            "force_zeros_for_empty_prompt": self.zeros_for_no_prompt,
            **{name: [_library(part), type(part).__name__] for name, part in parts.items()},
        }
        Path(folder, "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _library(part: Any) -> str:
    return type(part).__module__.partition(".")[0]


def check_text_to_image(option: str, uri: str) -> Shape:
    """As `check_sdxl`; raises UsageError also for weights that were trained here as something else than a base."""
    with placed(option):
        require_kind(uri, "base")
    return check_sdxl(option, uri)


def check_sdxl(option: str, uri: str) -> Shape:
    """The shape of a base. Raises UsageError unless it is a folder of a text-to-image model in SDXL's form."""
    try:
        shape = check_base(uri)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
    if shape.family != "sdxl":
        raise UsageError(f"{option}: {uri} is a model of SD 1.5, and trainings here are of models in SDXL's form")
    if shape.in_channels != shape.latent_channels:
        raise UsageError(f"{option}: {uri} was made to inpaint: give a text-to-image model")
    require_trainable(read_schedule(uri), f"{option}: {uri}")
    return shape


def load_parts(uri: str) -> Parts:
    """All parts of a base, float32, on the CPU, none to be trained. Raises UsageError where one is broken."""
    folder = local_weights(uri)
    return Parts(
        unet=load_network(UNet2DConditionModel, folder / "unet", uri).eval().requires_grad_(False),
        encoders=[encoder.eval().requires_grad_(False) for encoder in load_text_encoders(folder, uri)],
        tokenizers=load_tokenizers(folder),
        vae=load_vae(vae_of(uri)),
        schedule=read_schedule(uri),
        zeros_for_no_prompt=wants_zeros(read_json(folder / "model_index.json", uri)),
    )


def vae_of(uri: str) -> str:
    """Where the VAE of a base lies."""
    return str(local_weights(uri) / "vae")


def read_schedule(uri: str) -> dict[str, Any]:
    """The noise schedule of a base. Raises UsageError."""
    return read_json(Path(local_weights(uri)) / "scheduler" / "scheduler_config.json", f"{uri} has no scheduler")


def embed(tokenizers: Sequence[Any], encoders: Sequence[Any], prompts: Sequence[str]) -> TextCondition:
    """Embeddings of prompts in one batch, with gradients: as `TextEncoder.encode`, which has none."""
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        ids = token_ids(tokenizer, prompts).to(encoder.device)
        found = encoder(ids, output_hidden_states=True)
        hidden.append(found.hidden_states[-2])
        pooled = found[0]
    return TextCondition(torch.cat(hidden, dim=-1), pooled)
