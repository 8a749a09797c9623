"""Training of a T2I-Adapter that draws after visual priors of image and mask, blended (SGA, section 3.2.2).

Priors are drawn once and kept; how much of each is in a row's picture is drawn at every step, so that any blend that a
job asks for was seen. The base is frozen. Steps, averages and checkpoints are the loop's.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from diffusers import T2IAdapter
from pydantic import Field, model_validator
from torch import nn

from segdatagen.diffusion.conditions import Conditions, encode_adapter
from segdatagen.errors import UsageError
from segdatagen.images import Image
from segdatagen.latent_folders import check_adapter, network_config
from segdatagen.priors import PRIORS, BlendWeights, PriorOptions, blend, check_prior
from segdatagen.training.beside_base import BesideBaseOptions, BesideBaseTraining, in_unit
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.latent_training import Noisy
from segdatagen.training.latent_weights import load_network
from segdatagen.training.latents import Cache, require_multiples
from segdatagen.training.prior_cache import prior_cache
from segdatagen.weights import local_weights


class AdapterTrainingOptions(BesideBaseOptions):
    """The YAML of `segdatagen train t2i_adapter`. Defaults are those of T2I-Adapter for SDXL where it states them."""

    fixed: ClassVar[tuple[str, ...]] = (*BesideBaseOptions.fixed, "prior", "w1", "w2", "res_blocks")

    timesteps: Literal["uniform", "cubic"] = "cubic"
    prior: PriorOptions = Field(description="drawn of both, image and mask; w1 and w2 are ranges beside it")
    w1: tuple[float, float] = Field(default=(0.5, 1.0), description="range of the scale of the image's prior")
    w2: tuple[float, float] = Field(default=(0.5, 1.0), description="range of the scale of the mask's prior")
    res_blocks: int = Field(default=2, ge=1, description="per scale")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("w1", self.w1), ("w2", self.w2)):
            if not 0 <= low <= high or high == 0 or not np.isfinite(high):
                raise ValueError(f"{name}: give the least and the greatest scale, not [{low:g}, {high:g}]")
        if self.prior.of != "both":
            raise ValueError(f"prior: it is drawn of both, image and mask, not of: {self.prior.of}")
        return self


class AdapterTraining(BesideBaseTraining):
    """The kind `t2i_adapter`."""

    name = "t2i_adapter"
    title = "T2I-Adapter on blended priors"
    options_type = AdapterTrainingOptions

    def __init__(self, options: AdapterTrainingOptions, data: TrainingData) -> None:
        super().__init__(options, data)
        kind = PRIORS.get(options.prior.name)
        if kind is not None and not kind.draws_images:
            others = ", ".join(name for name, other in PRIORS.items() if other.draws_images)
            raise UsageError(
                f"prior: {options.prior.name} is drawn of masks alone, and an adapter learns from priors of image and "
                f"mask: choose one of {others}"
            )
        check_prior(options.prior)
        self._adapter = options
        types = network_config(f"{local_weights(options.base)}/unet", "UNet2DConditionModel")["down_block_types"]
        if len(types) not in (2, 3) or "CrossAttn" in types[0]:
            raise UsageError(
                f"base: {options.base} is of another architecture: adapters of SDXL's form need two or three blocks, "
                "the first without attention"
            )
        factor = 2 * self.shape.vae_factor
        if options.init_weights is not None:
            factor = check_adapter(options.init_weights, self.shape)
        require_multiples(options.size, factor, "the T2I-Adapter takes")
        self._priors = prior_cache(options, options.prior)

    def caches(self) -> list[Cache]:
        """Those of the latents and prompts, and the priors."""
        return [*super().caches(), self._priors]

    def build(self) -> nn.Module:
        """An adapter for the base, or that of `init_weights`."""
        init, blocks = self.options.init_weights, self.shape.blocks
        network: Any
        if init is not None:
            network = load_network(T2IAdapter, local_weights(init), init)
        else:
            network = T2IAdapter(
                in_channels=3,
                channels=list(blocks) + [blocks[-1]] * (len(blocks) == 3),  # one more, for the middle block
                num_res_blocks=self._adapter.res_blocks,
                downscale_factor=2 * self.shape.vae_factor,
                adapter_type="full_adapter_xl",
            )
        built: nn.Module = network.requires_grad_(True).train()
        return built

    def steering(self, network: nn.Module, noisy: Noisy, batch: Batch) -> dict[str, Any]:
        """Features per scale, of priors that are blended with scales drawn for every row."""
        drawn = self._priors.at(batch.sources, batch.flipped)
        pictures = []
        for pair, generator in zip(drawn, batch.row_chance, strict=True):
            shares = torch.rand(2, generator=generator).tolist()
            scales = [low + share * (high - low) for share, (low, high) in zip(shares, self._ranges, strict=True)]
            pictures.append(blend(pair[0], pair[1], *scales))
        features = network(in_unit(torch.from_numpy(np.stack(pictures)).to(noisy.latents.device)))
        return {"down_intrablock_additional_residuals": list(features)}

    def condition(self, average: Any, conditions: Conditions, rows: np.ndarray) -> Conditions:
        """With the blended priors of the sources."""
        pictures = in_unit(torch.from_numpy(np.stack(self.shown(rows))))
        return replace(conditions, adapters=[encode_adapter(average, pictures, self.options.sample_scale)])

    def shown(self, rows: np.ndarray) -> Sequence[Image]:
        """Priors, each with the middle of its range."""
        scales = BlendWeights(*(float(np.mean(limits)) for limits in self._ranges))
        return [blend(of_image, of_mask, *scales) for of_image, of_mask in self._priors.at(rows, rows < 0)]

    def card_rows(self) -> dict[str, str]:
        """Which priors."""
        return {"priors": f"{self._adapter.prior.name} of image (x {self._adapter.w1}) and mask (x {self._adapter.w2})"}

    @functools.cached_property
    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return self._adapter.w1, self._adapter.w2
