"""Training of a text-to-image model in SDXL's form, on images and captions: from random weights, or on from others.

Its text encoders and its tokenizer are small and its own where it begins at random. The VAE is trained before, by the
kind `vae`. Steps, averages and checkpoints are the loop's.
"""

import functools
from typing import Any, ClassVar, Self

import numpy as np
from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from segdatagen.prompts import CLIP_TOKENS, TokenBudget, class_sentence
from segdatagen.stages.prompt import budget_of, counter_of
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.data import TrainingData
from segdatagen.training.latent_parts import Parts, check_text_to_image, load_parts, vae_of
from segdatagen.training.latent_weights import load_vae
from segdatagen.training.noise import SDXL_SCHEDULE
from segdatagen.training.text_to_image import TextToImageOptions, TextToImageTraining
from segdatagen.weights import WeightsUri


class BaseNetworkOptions(BaseModel):
    """A new network. Defaults are SDXL's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vae: WeightsUri
    blocks: tuple[int, ...] = Field(default=(320, 640, 1280), min_length=2, max_length=4, description="2 to 4 numbers")
    layers_per_block: int = Field(default=2, ge=1)
    transformer_layers: tuple[int, ...] = Field(default=(0, 2, 10), description="per block; 0: none")
    heads: tuple[int, ...] = Field(default=(5, 10, 20), description="of attention, per block")
    norm_groups: int = Field(default=32, ge=1)
    size_embedding: int = Field(default=256, ge=2, multiple_of=2, description="per number of the size conditioning")
    text_widths: tuple[int, int] = (768, 1280)
    text_layers: tuple[int, int] = Field(default=(12, 32), description="2 at least: the last but one is what is seen")
    text_heads: tuple[int, int] = (12, 20)
    vocabulary: int = Field(default=49408, ge=514, description="tokens at most, trained on the captions")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for name in ("transformer_layers", "heads"):
            if len(getattr(self, name)) != len(self.blocks):
                raise ValueError(f"{name}: give a number per block, {len(self.blocks)} of them")
        if wrong := [width for width in self.blocks if width % self.norm_groups]:
            raise ValueError(f"blocks: {wrong[0]} is not a multiple of norm_groups {self.norm_groups}")
        if wrong := [w for w, heads in zip(self.blocks, self.heads, strict=True) if heads < 1 or w % heads]:
            raise ValueError(f"heads: {wrong[0]} channels cannot be shared among them evenly")
        if not self.transformer_layers[-1] or min(self.transformer_layers) < 0:
            raise ValueError("transformer_layers: the last block needs one at least, for the text")
        if min(self.text_layers) < 2:
            raise ValueError("text_layers: each text encoder needs two at least")
        if any(w < 1 or h < 1 or w % h for w, h in zip(self.text_widths, self.text_heads, strict=True)):
            raise ValueError("text_heads: a width cannot be shared among its heads evenly")
        return self


class BaseTrainingOptions(TextToImageOptions):
    """The YAML of `segdatagen train base`: `network` or `init_weights`, one of the two."""

    fixed: ClassVar[tuple[str, ...]] = (*TextToImageOptions.fixed, "network")

    network: BaseNetworkOptions | None = None
    train_text_encoders: bool = True

    @model_validator(mode="before")
    @classmethod
    def _frozen_beside_lora(cls, data: Any) -> Any:
        """Text encoders are trained by default, but not beside LoRA."""
        if isinstance(data, dict) and data.get("lora") is not None:
            return {"train_text_encoders": False, **data}
        return data

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.network is None) == (self.init_weights is None):
            raise ValueError("give network, to begin at random, or init_weights, to go on: one of the two")
        if self.network is not None and self.lora is not None:
            raise ValueError("lora: a network that begins at random has nothing to adapt; give init_weights")
        if self.network is not None and not self.train_text_encoders:
            raise ValueError("train_text_encoders: new text encoders know nothing, and have to be trained")
        return self


class BaseTraining(TextToImageTraining):
    """The kind `base`."""

    name = "base"
    title = "Text-to-image model"
    options_type = BaseTrainingOptions

    def __init__(self, options: BaseTrainingOptions, data: TrainingData) -> None:
        self._network, self._init = options.network, options.init_weights
        if options.init_weights is not None:
            check_text_to_image("init_weights", options.init_weights)
            vae = vae_of(options.init_weights)
        else:
            assert options.network is not None
            vae = options.network.vae
        super().__init__(options, data, vae)

    @property
    def start(self) -> str | None:
        """`init_weights`."""
        return self._init

    @functools.cached_property
    def parts(self) -> Parts:
        """Those of the weights it starts from; networks of the options, at random, where there are none."""
        network = self._network
        if network is None:
            return load_parts(str(self.start))
        tokenizer = self._tokenizer
        *_, latent_channels, height, width = self._latents.records.info.shape
        return Parts(
            unet=make_unet(network, latent_channels, max(height, width)),
            encoders=[make_encoder(network, number, tokenizer) for number in (0, 1)],
            tokenizers=[tokenizer, tokenizer],
            vae=load_vae(network.vae),
            schedule=SDXL_SCHEDULE,
        )

    @functools.cached_property
    def budget(self) -> TokenBudget:
        """What the text encoders see."""
        if self._network is None:
            return budget_of(str(self.start))
        return TokenBudget([counter_of(self._tokenizer)], CLIP_TOKENS)

    def learned(self, rows: np.ndarray) -> np.ndarray:
        """The images of sources."""
        return self.data.images_of(rows)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """That of new text encoders, trained on the captions and the sentence of all classes."""
        labels, network = self.data.label_set, self._network
        assert network is not None
        texts = [*filter(None, self.data.captions), class_sentence(labels.ids.tolist(), labels)]
        return train_tokenizer(texts, network.vocabulary)


def make_unet(network: BaseNetworkOptions, latent_channels: int, side: int) -> UNet2DConditionModel:
    """A UNet in SDXL's form, at random: text and size conditioning, attention where `transformer_layers` is not 0."""
    attends = [layers > 0 for layers in network.transformer_layers]
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=network.blocks,
        layers_per_block=network.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        transformer_layers_per_block=tuple(max(layers, 1) for layers in network.transformer_layers),
        attention_head_dim=network.heads,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=network.size_embedding,
        projection_class_embeddings_input_dim=6 * network.size_embedding + network.text_widths[1],
        cross_attention_dim=sum(network.text_widths),
        norm_num_groups=network.norm_groups,
    )


def make_encoder(network: BaseNetworkOptions, number: int, tokenizer: Any) -> Any:
    """The text encoder 0 or 1 of a base, at random; 1 has the pooled embedding."""
    width = network.text_widths[number]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=network.text_heads[number],
        num_hidden_layers=network.text_layers[number],
        projection_dim=network.text_widths[1],
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if number else CLIPTextModel)(config)
