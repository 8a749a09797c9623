"""Training of a text-to-image model in SDXL's form, on images and captions: from random weights, or on from others.

Its text encoders and its tokenizer are small and its own where it begins at random. The VAE is trained before, by the
kind `vae`. Steps, averages and checkpoints are the loop's.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from segdatagen.latent_folders import network_config
from segdatagen.prompts import CLIP_TOKENS, TokenBudget, class_sentence
from segdatagen.stages.prompt import budget_of, counter_of
from segdatagen.storage import Folder
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latent_parts import Parts, check_sdxl, load_parts, vae_of
from segdatagen.training.latent_training import LatentTraining, Noisy
from segdatagen.training.latent_weights import load_vae, put_model, record_of
from segdatagen.training.latents import TextCache, text_cache
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.noise import SDXL_SCHEDULE
from segdatagen.training.training_prompts import require_captions
from segdatagen.weights import WEIGHTS_NAME, OptionalWeightsUri, WeightsUri, fingerprint_of


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
    vocabulary: int = Field(default=49408, ge=1, description="tokens, trained on the captions; 514 at least")

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


class BaseTrainingOptions(LatentTrainingOptions):
    """The YAML of `segdatagen train base`: `network` or `init_weights`, one of the two."""

    fixed: ClassVar[tuple[str, ...]] = (*LatentTrainingOptions.fixed, "network", "train_text_encoders")

    network: BaseNetworkOptions | None = None
    train_text_encoders: bool = True

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.network is None) == (self.init_weights is None):
            raise ValueError("give network, to begin at random, or init_weights, to go on: one of the two")
        if self.network is not None and not self.train_text_encoders:
            raise ValueError("train_text_encoders: new text encoders know nothing, and have to be trained")
        return self


class TextToImage(nn.Module):
    """What learns: a UNet, and its text encoders unless they are frozen."""

    def __init__(self, unet: nn.Module, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.unet = unet
        self.encoders = nn.ModuleList(encoders)


class BaseTraining(LatentTraining):
    """The kind `base`."""

    name = "base"
    title: ClassVar[str] = "Text-to-image model"
    options_type: type[LatentTrainingOptions] = BaseTrainingOptions

    def __init__(self, options: BaseTrainingOptions, arrays: TrainingArrays) -> None:
        require_captions(options, arrays)
        self._options = options
        if options.init_weights is not None:
            check_sdxl("init_weights", options.init_weights)
        self._start: OptionalWeightsUri = options.init_weights
        super().__init__(options, arrays, _vae_uri(options))

    @property
    def options(self) -> BaseTrainingOptions:
        """The options."""
        return self._options

    @functools.cached_property
    def frozen(self) -> Mapping[str, str]:
        """The VAE, and the text encoders unless they are trained."""
        if self._start is not None and not self._options.train_text_encoders:
            return {"base": fingerprint_of(self._start)}
        return {"vae": self._latents.records.info.facts["vae"]}

    @functools.cached_property
    def parts(self) -> Parts:
        """Those of the weights it starts from; networks of the options, at random, where there are none."""
        if self._start is not None:
            return load_parts(self._start)
        network = self._options.network
        assert network is not None
        tokenizer = self._tokenizer
        return Parts(
            unet=make_unet(network, int(network_config(network.vae, "AutoencoderKL")["latent_channels"]), self._side),
            encoders=[make_encoder(network, number, tokenizer) for number in (0, 1)],
            tokenizers=[tokenizer, tokenizer],
            vae=load_vae(network.vae),
            schedule=SDXL_SCHEDULE,
        )

    @functools.cached_property
    def budget(self) -> TokenBudget:
        """What the text encoders see."""
        if self._start is not None:
            return budget_of(self._start)
        return TokenBudget([counter_of(self._tokenizer)], CLIP_TOKENS)

    @functools.cached_property
    def text_cache(self) -> TextCache | None:
        """Only where the text encoders are frozen."""
        if self._start is None or self._options.train_text_encoders:
            return None
        return text_cache(self._options, self._start, self.prompts.distinct)

    def build(self) -> nn.Module:
        """The UNet, and the text encoders unless they are frozen."""
        self.__dict__.pop("parts", None)  # random weights are made under the seed of the caller
        parts = self.parts
        unet = parts.unet.requires_grad_(True).train()
        if self._options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        trained = self._options.train_text_encoders
        return TextToImage(unet, [e.requires_grad_(True).train() for e in parts.encoders] if trained else [])

    def predict(self, network: nn.Module, noisy: Noisy, batch: Batch) -> Tensor:
        """The UNet's prediction."""
        unet: Any = network.get_submodule("unet")
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
        trained = list(network.get_submodule("encoders").children())
        return trained or self.parts.encoders

    def trained_parts(self, average: nn.Module) -> Parts:
        """The model with what was learned in its place."""
        start, unet = self.parts, average.get_submodule("unet")
        assert isinstance(unet, UNet2DConditionModel)
        return Parts(unet, self.encoders_of(average), start.tokenizers, start.vae, start.schedule)

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per source: its image, and what is drawn of its prompt."""
        rows = self.chosen()
        drawn = self.drawn(self.trained_parts(average), rows)
        return self.grid([[self.arrays.images[row], *made] for row, made in zip(rows, drawn, strict=True)])

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/`, a folder of StableDiffusionXLPipeline."""
        parts, options = self.trained_parts(average), self._options
        figures = self.figures(parts)
        encoders, blocks = "trained" if options.train_text_encoders else "frozen", parts.unet.config.block_out_channels
        rows = {
            "network": f"UNet in SDXL's form, blocks {tuple(blocks)}; text encoders {encoders}",
            **size_rows(average, options),
            **training_rows(options, self.arrays, summary),
            "noise": f"timesteps {options.timesteps}, min-SNR gamma {options.min_snr_gamma}, SDXL's schedule",
            "prompts": f"{', '.join(options.prompts)}; none in {options.drop_prompt:.0%} of the rows",
            **{name: f"{value:.4f}" for name, value in figures.items()},
        }
        card = model_card(f"{self.title} for {self.arrays.label_set.name}", rows)
        record = record_of(self.name, options, self.arrays, summary, figures)
        folder = Folder(options.out).child(WEIGHTS_NAME)
        return Saved(put_model(folder, parts, card, record, options.store_dtype), figures=figures)

    def figures(self, parts: Parts) -> dict[str, float]:
        """What is measured at the end: nothing but the loss, without a judge."""
        return {}

    @property
    def _side(self) -> int:
        return int(max(self._latents.records.info.shape[-2:]))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """That of new text encoders, trained on the captions and the sentence of all classes."""
        labels, network = self.arrays.label_set, self._options.network
        assert network is not None
        texts = [*filter(None, self.arrays.captions), class_sentence(labels.ids.tolist(), labels)]
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


def _vae_uri(options: BaseTrainingOptions) -> str:
    if options.init_weights is not None:
        return vae_of(options.init_weights)
    assert options.network is not None
    return options.network.vae
