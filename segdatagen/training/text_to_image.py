"""Training of a UNet that draws after text, and of its text encoders unless they are frozen: in full, or by LoRA.

Shared by the kinds that are such a model: of images (`base`) and of colour maps (`text2mask`). Steps, averages and
checkpoints are the loop's.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from diffusers import UNet2DConditionModel
from pydantic import model_validator
from torch import Tensor, nn

from segdatagen.prompts import TokenBudget
from segdatagen.stages.prompt import budget_of
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_options import LatentTrainingOptions, LoraOptions
from segdatagen.training.latent_parts import Parts, load_parts
from segdatagen.training.latent_training import LatentTraining, Noisy
from segdatagen.training.latent_weights import put_model, record_of
from segdatagen.training.latents import TextCache, text_cache
from segdatagen.training.lora import LowRank, add_low_rank, check_targets, merged
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.training_prompts import require_enough_captions
from segdatagen.weights import WEIGHTS_NAME, fingerprint_of


class TextToImageOptions(LatentTrainingOptions):
    """What trainings of a UNet that draws after text can be told."""

    fixed: ClassVar[tuple[str, ...]] = (*LatentTrainingOptions.fixed, "train_text_encoders", "lora")

    train_text_encoders: bool = False
    lora: LoraOptions | None = None

    @model_validator(mode="after")
    def _encoders_are_whole(self) -> Self:
        if self.lora is not None and self.train_text_encoders:
            raise ValueError(
                "lora: its layers are the UNet's, so the text encoders stay: set train_text_encoders to false"
            )
        return self


class TextToImage(nn.Module):
    """What learns: a UNet, and its text encoders unless they are frozen."""

    def __init__(self, unet: nn.Module, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.unet = unet
        self.encoders = nn.ModuleList(encoders)


class TextToImageTraining(LatentTraining):
    """What the kinds `base` and `text2mask` share."""

    title: ClassVar[str]

    def __init__(self, options: TextToImageOptions, data: TrainingData, vae: str) -> None:
        """Raises UsageError where the captions, the sources or the weights it starts from cannot be used."""
        require_enough_captions(options, data)
        self._options = options
        if options.lora is not None and self.start is not None:
            check_targets(self.start, options.lora)
        super().__init__(options, data, vae)

    @property
    def options(self) -> TextToImageOptions:
        """The options."""
        return self._options

    @property
    @abstractmethod
    def start(self) -> str | None:
        """The weights that it begins with; None: none."""

    @functools.cached_property
    def frozen(self) -> Mapping[str, str]:
        """All it starts from: at least the VAE and the tokenizers stay. Of a new model the VAE."""
        if self.start is not None:
            return {"base": fingerprint_of(self.start)}
        return {"vae": self._latents.records.info.facts["vae"]}

    @functools.cached_property
    def parts(self) -> Parts:
        """Those of the weights it starts from."""
        assert self.start is not None
        return load_parts(self.start)

    @functools.cached_property
    def budget(self) -> TokenBudget:
        """What the text encoders see."""
        assert self.start is not None
        return budget_of(self.start)

    @functools.cached_property
    def text_cache(self) -> TextCache | None:
        """Only where the text encoders are frozen, and the options want it."""
        if self.start is None or self._options.train_text_encoders or not self._options.cache_prompts:
            return None
        return text_cache(self._options, self.start, self.prompts.distinct)

    def build(self) -> nn.Module:
        """The UNet, and the text encoders unless they are frozen; with LoRA the layers that it adds, and no more."""
        self.__dict__.pop("parts", None)  # random weights are made under the seed of the caller
        parts, options = self.parts, self._options
        if options.gradient_checkpointing:
            parts.unet.enable_gradient_checkpointing()
        if options.lora is not None:
            return add_low_rank(parts.unet.requires_grad_(False), options.lora)
        encoders = parts.encoders if options.train_text_encoders else []
        return TextToImage(parts.unet, encoders).requires_grad_(True).train()

    def predict(self, network: nn.Module, noisy: Noisy, batch: Batch) -> Tensor:
        """The UNet's prediction."""
        lora = isinstance(network, LowRank)  # its layers lie in the UNet of the parts
        unet: Any = self.parts.unet.to(noisy.latents.device) if lora else network.get_submodule("unet")
        found: Tensor = unet(
            noisy.latents,
            noisy.timesteps.to(noisy.latents.device),
            encoder_hidden_states=noisy.text.hidden,
            added_cond_kwargs=self.added(noisy.text, len(noisy.latents)),
            return_dict=False,
        )[0]
        return found

    def encoders_of(self, network: nn.Module) -> Sequence[Any]:
        """Those that are trained, or else the frozen ones."""
        if self._options.train_text_encoders:
            return list(network.get_submodule("encoders").children())
        return self.parts.encoders

    def whole(self, average: nn.Module) -> nn.Module:
        """The average, its layers merged where they are those of LoRA: those in the UNet are what learns."""
        return TextToImage(merged(self.parts.unet, average), []) if isinstance(average, LowRank) else average

    def trained_parts(self, average: nn.Module) -> Parts:
        """The model with what was learned in its place."""
        start = self.parts
        unet = merged(start.unet, average) if isinstance(average, LowRank) else average.get_submodule("unet")
        assert isinstance(unet, UNet2DConditionModel)
        return replace(start, unet=unet, encoders=self.encoders_of(average))

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per source: what is learned of it, and what is drawn of its prompt."""
        rows = self.chosen()
        drawn = self.drawn(self.trained_parts(average), rows)
        return self.grid([[real, *made] for real, made in zip(self.learned(rows), drawn, strict=True)])

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/`, a folder of StableDiffusionXLPipeline; layers of LoRA are merged into the UNet."""
        parts, options = self.trained_parts(average), self._options
        figures = self.figures(parts)
        encoders, blocks = "trained" if options.train_text_encoders else "frozen", parts.unet.config.block_out_channels
        lora = "" if options.lora is None else f"; LoRA of rank {options.lora.rank}, merged"
        rows = {
            "network": f"UNet in SDXL's form, blocks {tuple(blocks)}; text encoders {encoders}{lora}",
            **size_rows(nn.ModuleList([parts.unet, *parts.encoders]), options),
            **training_rows(options, self.data, summary, f"`{self.start}`" if self.start else None),
            "noise": f"timesteps {options.timesteps}, min-SNR gamma {options.min_snr_gamma or 'none'}",
            "prompts": self.prompts_in_words(),
            **{
                name: f"{value:.4f} on layouts for {len(self.chosen())} of its sources"
                for name, value in figures.items()
            },
        }
        card = model_card(f"{self.title} for {self.data.label_set.name}", rows, options)
        record = record_of(self.name, options, self.data, summary, figures)
        folder = Folder(options.out).child(WEIGHTS_NAME)
        return Saved(put_model(folder, parts, card, record, options.store_dtype), figures=figures)

    @abstractmethod
    def learned(self, rows: np.ndarray) -> np.ndarray:
        """What is learned of sources, uint8 `[n, H, W, 3]`: images, or colour maps."""

    def figures(self, parts: Parts) -> dict[str, float]:
        """What is measured at the end: nothing but the loss, without a judge."""
        return {}
