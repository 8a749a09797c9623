"""Training of a ControlNet that draws after the colour maps of masks (SegGen, section 3.3), beside a frozen base.

It begins as a copy of the UNet's way down behind layers of zeros: at first it changes nothing. Steps, averages and
checkpoints are the loop's.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ControlNetModel
from pydantic import Field
from torch import nn

from segdatagen.diffusion.conditions import Conditions, ControlEncoder
from segdatagen.errors import placed
from segdatagen.images import Image
from segdatagen.latent_folders import check_controlnet
from segdatagen.priors import PriorOptions
from segdatagen.sources import has_any, open_store
from segdatagen.training.beside_base import BesideBaseOptions, BesideBaseTraining, in_unit
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.latent_training import Noisy
from segdatagen.training.latent_weights import load_network
from segdatagen.training.latents import Cache
from segdatagen.training.prior_cache import prior_cache
from segdatagen.training_record import require_colours_of
from segdatagen.weights import local_weights

EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of the layers that see the picture: each but the first halves it. A VAE of factor 4 needs the first three."""


class ControlNetTrainingOptions(BesideBaseOptions):
    """The YAML of `segdatagen train controlnet`. `init_weights` are those of a ControlNet of the same classes."""

    fixed: ClassVar[tuple[str, ...]] = (*BesideBaseOptions.fixed, "outlines")

    outlines: bool = Field(default=True, description="segments of panoptic sources are outlined (SegGen, A.2)")


class ControlNetTraining(BesideBaseTraining):
    """The kind `controlnet`."""

    name = "controlnet"
    title = "ControlNet on colour maps"
    new = "the way down of its base"
    options_type = ControlNetTrainingOptions

    def __init__(self, options: ControlNetTrainingOptions, data: TrainingData) -> None:
        super().__init__(options, data)
        if options.init_weights is not None:
            check_controlnet(options.init_weights, self.shape)
            with placed("init_weights"):
                require_colours_of(options.init_weights, data.label_set)
        self._outlined = options.outlines and has_any(open_store(options.sources), "segments")
        self._maps = prior_cache(options, PriorOptions(name="colour_map", of="mask", outlines=self._outlined))

    def caches(self) -> list[Cache]:
        """Those of the latents and prompts, and the colour maps."""
        return [*super().caches(), self._maps]

    def build(self) -> nn.Module:
        """A ControlNet of the base, or that of `init_weights`."""
        init, unet = self.options.init_weights, self.parts.unet
        network: Any
        if init is not None:
            network = load_network(ControlNetModel, local_weights(init), init)
        else:
            halvings = self.shape.vae_factor.bit_length() - 1
            channels = EMBEDDING_CHANNELS[: halvings + 1]
            network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
        if self.options.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        built: nn.Module = network.requires_grad_(True).train()
        return built

    def steering(self, network: nn.Module, noisy: Noisy, batch: Batch) -> dict[str, Any]:
        """Residuals of the way down and of the middle."""
        pictures = torch.from_numpy(self._maps.at(batch.sources, batch.flipped)[:, 0]).to(noisy.latents.device)
        down, middle = network(
            noisy.latents,
            noisy.timesteps.to(noisy.latents.device),
            encoder_hidden_states=noisy.text.hidden,
            controlnet_cond=in_unit(pictures),
            added_cond_kwargs=self.added(noisy.text, len(noisy.latents)),
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def condition(self, average: Any, conditions: Conditions, rows: np.ndarray) -> Conditions:
        """With the colour maps of the sources. Of a copy: the encoder takes layers off."""
        encoder = ControlEncoder(copy.deepcopy(average).eval())
        control = encoder.encode(in_unit(torch.from_numpy(np.stack(self.shown(rows)))), self.options.sample_scale)
        return replace(conditions, controls=[control])

    def shown(self, rows: np.ndarray) -> Sequence[Image]:
        """The colour maps of masks."""
        return list(self._maps.at(rows, rows < 0)[:, 0])

    def record_fields(self) -> dict[str, Any]:
        """Whether colour maps have outlines, which a job has to give them, too."""
        return {"outlines": self._outlined}

    def card_rows(self) -> dict[str, str]:
        """Whether colour maps have outlines."""
        return {"colour maps": "with outlined segments (SegGen, appendix A.2)" if self._outlined else "plain"}
