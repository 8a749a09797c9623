"""What trainings of latent diffusion have in common: latents, prompts and noise of a batch, the loss, and pictures.

A kind says which networks learn, how they predict the noise, and what is put. Steps, averages and checkpoints are the
loop's.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from segdatagen.diffusion.conditions import Conditions, TextCondition
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.render import Wanted, describe, render
from segdatagen.diffusion.vae import shift_and_scale
from segdatagen.errors import SegdatagenError, placed
from segdatagen.images import Image
from segdatagen.prompts import TokenBudget
from segdatagen.records import derive_seed
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latent_parts import Parts, embed
from segdatagen.training.latents import Cache, Kept, LatentCache, TextCache, latent_cache
from segdatagen.training.noise import Noise
from segdatagen.training.pictures import ENLARGED_SIDE, grid, spread_rows
from segdatagen.training.stored import StoredSources
from segdatagen.training.training_prompts import NO_PROMPT, TrainingPrompts, write_prompts
from segdatagen.training.validation import mean_loss, open_validation

IMAGES_PER_ROW = 2
PICTURES_AT_ONCE = 8


@dataclass(frozen=True)
class Noisy:
    """Noisy latents float32 `[B, C, h, w]` on the device, the noise in them, timesteps int64 `[B]` on the CPU, text."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: TextCondition


class LatentTraining(ABC):
    """What a kind of latent diffusion shares with the others."""

    name: str
    kept: ClassVar[Kept] = "images"
    reads: ClassVar[tuple[str, ...]] = ("mask", "image")
    """What every source must have."""
    reads_captions = True

    def __init__(self, options: LatentTrainingOptions, data: TrainingData, vae: str) -> None:
        """Raises UsageError for too few captions, and for a VAE that cannot be used."""
        if isinstance(data, StoredSources):
            data.require(self.reads)
        self.data = data
        self._latents = latent_cache(options, vae, self.kept)

    @property
    @abstractmethod
    def options(self) -> LatentTrainingOptions:
        """The options of the kind."""

    @property
    @abstractmethod
    def frozen(self) -> Mapping[str, str]:
        """Fingerprints of what is not trained."""

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """All parts as the training begins; what it trains is replaced by what it has learned."""

    @property
    def text_cache(self) -> TextCache | None:
        """Embeddings of the prompts, where text encoders are frozen."""
        return None

    @abstractmethod
    def build(self) -> nn.Module:
        """The networks that learn."""

    @abstractmethod
    def predict(self, network: nn.Module, noisy: Noisy, batch: Batch) -> Tensor:
        """The predicted noise `[B, C, h, w]`."""

    @abstractmethod
    def picture(self, average: nn.Module) -> np.ndarray:
        """What the networks draw by now."""

    @abstractmethod
    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put the weights."""

    @property
    @abstractmethod
    def budget(self) -> TokenBudget:
        """How long prompts may be."""

    @functools.cached_property
    def prompts(self) -> TrainingPrompts:
        """The prompts of all sources."""
        return write_prompts(self.options, self.data, self.budget)

    def caches(self) -> list[Cache]:
        """What has to be filled before the first step."""
        return [self._latents, *filter(None, [self.text_cache]), *(self.held_out.caches() if self.held_out else [])]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise, rows weighted by `min_snr_gamma`."""
        noisy = self.noisy(network, batch)
        predicted = self.predict(network, noisy, batch).float()
        errors = ((predicted - noisy.noise) ** 2).mean(dim=(1, 2, 3))
        weights = self._noise.weights(noisy.timesteps, self.options.min_snr_gamma)
        return (weights.to(errors.device) * errors).mean()

    @functools.cached_property
    def held_out(self) -> "LatentTraining | None":
        """This kind on the sources that it is only measured on, always with their prompts. Raises UsageError."""
        options, kind = self.options, cast(Any, type(self))
        if options.validation is None:
            return None
        store = open_validation(options.validation, options, self.data.label_set)
        changes = {"sources": options.validation, "validation": None, "drop_prompt": 0.0}
        with placed("validation"):
            found: LatentTraining = kind(options.model_copy(update=changes), StoredSources(store, options.geometry))
        vars(found)["budget"] = self.budget  # a tokenizer of its own would be another one
        return found

    def validation_loss(self, average: nn.Module) -> float | None:
        """The loss on other sources, beside what this training has of parts."""
        if self.held_out is None:
            return None
        vars(self.held_out)["parts"] = self.parts
        return mean_loss(self.held_out, self.whole(average))

    def whole(self, average: nn.Module) -> nn.Module:
        """The average as `loss` takes a network."""
        return average

    def noisy(self, network: nn.Module, batch: Batch) -> Noisy:
        """The noisy latents of a batch: all its chance is drawn here, row by row."""
        device = batch.device
        shift, scale = self._shift_and_scale
        clean = (self._ready.draw(batch.sources, batch.flipped, batch.row_chance) - shift) * scale
        noise = draw_noise(batch.row_chance, clean.shape[1:], torch.device("cpu"))
        timesteps = self._noise.timesteps(batch.row_chance, self.options.timesteps)
        latents = self._noise.add(clean, noise, timesteps)
        text = self.embedded(network, self.prompts.of(batch), device)
        return Noisy(self._formatted(latents.to(device)), noise.to(device), timesteps, text)

    def embedded(self, network: nn.Module, prompts: Sequence[str], device: torch.device) -> TextCondition:
        """Embeddings of prompts: by the encoders that learn, or as they were kept; of no prompt as a run has it."""
        cache = self.text_cache
        if cache is None:
            encoders = [encoder.to(device) for encoder in self.encoders_of(network)]
            found = embed(self.parts.tokenizers, encoders, prompts)
        else:
            kept = cache.at(prompts)
            found = TextCondition(kept.hidden.to(device), None if kept.pooled is None else kept.pooled.to(device))
        if not self.parts.zeros_for_no_prompt:
            return found
        return found.with_zeros(torch.tensor([prompt == NO_PROMPT for prompt in prompts], device=device))

    def encoders_of(self, network: nn.Module) -> Sequence[Any]:
        """The text encoders, for a kind that trains them; else those of the parts."""
        return self.parts.encoders

    def added(self, text: TextCondition, rows: int) -> dict[str, Tensor]:
        """SDXL's size conditioning as images are asked for: original and target size that of the training, no crop."""
        width, height = self.options.size
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=text.hidden.device)
        assert text.pooled is not None
        return {"text_embeds": text.pooled, "time_ids": ids.expand(rows, -1)}

    def drawn(self, parts: Parts, rows: np.ndarray, change: Any = None) -> list[list[Image]]:
        """IMAGES_PER_ROW images of each source, uint8 `[H, W, 3]`; the same seeds every time.

        `change` is given the models and the conditions of the text, and returns those with what a kind adds.
        """
        width, height = self.options.size
        prompts = self.prompts.first(rows.tolist())
        with parts.models() as models, torch.inference_mode():
            conditions: Conditions = describe(models, prompts, [None] * len(prompts), (height, width))
            conditions = conditions if change is None else change(models, conditions)
            places = [place for place in range(len(rows)) for _ in range(IMAGES_PER_ROW)]
            seeds = [
                derive_seed(self.options.seed, "picture", int(rows[place]), number % IMAGES_PER_ROW)
                for number, place in enumerate(places)
            ]
            made = render(models, conditions, Wanted(places, seeds), self.options.sampler, PICTURES_AT_ONCE).images
        return [list(made[n * IMAGES_PER_ROW : (n + 1) * IMAGES_PER_ROW]) for n in range(len(rows))]

    def prompts_in_words(self) -> str:
        """Which prompts there are, and how many sources have a caption to put into them, for the model card."""
        options, captions = self.options, self.data.captions
        zeros = ", embedded as zeros," if self.parts.zeros_for_no_prompt else ""
        return (
            f"{', '.join(options.prompts)}; none{zeros} in {options.drop_prompt:.0%} of the rows; "
            f"{sum(map(bool, captions)):,} of {len(captions):,} sources have a caption"
        )

    def chosen(self) -> np.ndarray:
        """The sources of a sample grid, int64."""
        return spread_rows(self.data.num_sources, self.options.sample_rows)

    def grid(self, cells: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """A sample grid, enlarged where it is small."""
        return grid(cells, magnify=max(1, ENLARGED_SIDE // max(self.options.size)))

    @functools.cached_property
    def _noise(self) -> Noise:
        return Noise(self.parts.schedule)

    @functools.cached_property
    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        return shift_and_scale(self.parts.vae, torch.device("cpu"))

    @functools.cached_property
    def _ready(self) -> LatentCache:
        for cache in self.caches():
            if not cache.records.is_whole:
                raise SegdatagenError(f"{cache.records.folder.uri}: the cache is not whole: run the same command again")
        return self._latents

    def _formatted(self, x: Tensor) -> Tensor:
        memory_format = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=memory_format)
