"""Training of a network beside a base that is frozen: it steers the base with pictures, and learns how.

Shared by the kinds `controlnet` and `t2i_adapter`. Embeddings of prompts and latents of images are read from caches.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from segdatagen.diffusion.conditions import Conditions
from segdatagen.diffusion.latent_models import LatentModels
from segdatagen.images import Image
from segdatagen.prompts import TokenBudget
from segdatagen.stages.prompt import budget_of
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latent_parts import Parts, check_text_to_image, load_parts, vae_of
from segdatagen.training.latent_training import LatentTraining, Noisy
from segdatagen.training.latent_weights import put_model, record_of
from segdatagen.training.latents import TextCache, text_cache
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.training_prompts import require_enough_captions
from segdatagen.weights import WEIGHTS_NAME, WeightsUri, fingerprint_of


class BesideBaseOptions(LatentTrainingOptions):
    """What trainings beside a frozen base can be told."""

    base: WeightsUri
    sample_scale: float = Field(default=1.0, ge=0, description="weight of the network in the sample grids")


class BesideBaseTraining(LatentTraining):
    """What the kinds `controlnet` and `t2i_adapter` share."""

    title: ClassVar[str]
    new: ClassVar[str] = "random weights"
    """What a network without `init_weights` starts from, in words."""

    def __init__(self, options: BesideBaseOptions, data: TrainingData) -> None:
        """Raises UsageError where the captions, the sources or the base cannot be used."""
        require_enough_captions(options, data)
        self._options = options
        self.shape = check_text_to_image("base", options.base)
        super().__init__(options, data, vae_of(options.base))

    @property
    def options(self) -> BesideBaseOptions:
        """The options."""
        return self._options

    @functools.cached_property
    def frozen(self) -> Mapping[str, str]:
        """All of the base."""
        return {"base": fingerprint_of(self._options.base)}

    @functools.cached_property
    def parts(self) -> Parts:
        """Those of the base."""
        return load_parts(self._options.base)

    @functools.cached_property
    def budget(self) -> TokenBudget:
        """What the text encoders see."""
        return budget_of(self._options.base)

    @functools.cached_property
    def text_cache(self) -> TextCache | None:
        """Embeddings of the prompts, where the options want it."""
        if not self._options.cache_prompts:
            return None
        return text_cache(self._options, self._options.base, self.prompts.distinct)

    @abstractmethod
    def steering(self, network: nn.Module, noisy: Noisy, batch: Batch) -> dict[str, Any]:
        """What the network makes of a batch, as arguments of the UNet."""

    @abstractmethod
    def condition(self, average: Any, conditions: Conditions, rows: np.ndarray) -> Conditions:
        """The conditions of sources, with what the network makes of their pictures."""

    @abstractmethod
    def shown(self, rows: np.ndarray) -> Sequence[Image]:
        """The picture that the network sees of each source, uint8 `[H, W, 3]`."""

    def predict(self, network: nn.Module, noisy: Noisy, batch: Batch) -> Tensor:
        """The frozen UNet's prediction, steered by the network."""
        unet: Any = self.parts.unet.to(noisy.latents.device)
        if self._options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        found: Tensor = unet(
            noisy.latents,
            noisy.timesteps.to(noisy.latents.device),
            encoder_hidden_states=noisy.text.hidden,
            added_cond_kwargs=self.added(noisy.text, len(noisy.latents)),
            return_dict=False,
            **self.steering(network, noisy, batch),
        )[0]
        return found

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per source: what the network sees, the real image, and what is drawn."""
        rows = self.chosen()

        def change(_: LatentModels, conditions: Conditions) -> Conditions:
            return self.condition(average, conditions, rows)

        self.parts.unet.to(next(average.parameters()).device)
        drawn = self.drawn(self.parts, rows, change)
        images = self.data.images_of(rows)
        return self.grid([[*cells[:2], *cells[2]] for cells in zip(self.shown(rows), images, drawn, strict=True)])

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/`, a folder of the network alone."""
        options = self._options
        rows = {
            "network": f"{type(average).__name__} for a base of blocks {self.shape.blocks}",
            **size_rows(average, options),
            **training_rows(options, self.data, summary, self.new if options.init_weights is None else None),
            "base": f"`{options.base}`, frozen, fingerprint `{self.frozen['base']}`",
            "noise": f"timesteps {options.timesteps}, min-SNR gamma {options.min_snr_gamma or 'none'}",
            "prompts": self.prompts_in_words(),
            **self.card_rows(),
        }
        card = model_card(f"{self.title} for {self.data.label_set.name}", rows, options)
        record = record_of(self.name, options, self.data, summary, {}).model_copy(update=self.record_fields())
        folder = Folder(options.out).child(WEIGHTS_NAME)
        return Saved(put_model(folder, average, card, record, options.store_dtype))

    def record_fields(self) -> dict[str, Any]:
        """What the record says of the pictures."""
        return {}

    def card_rows(self) -> dict[str, str]:
        """What the model card says of the pictures."""
        return {}


def in_unit(pictures: Tensor) -> Tensor:
    """uint8 `[B, H, W, C]` as float32 `[B, C, H, W]` in [0, 1], on the same device."""
    return pictures.permute(0, 3, 1, 2).to(torch.float32) / 255
