"""Training of captioners: BLIP-2, asked as it is asked in a run, and what it says of images that it never saw.

From scratch in small form, or from the weights of a public model. Steps, averages and checkpoints are the loop's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from segdatagen.captioners import BLIP2_TYPE, QUESTIONS, Captioner, CaptionerOptions, check_captioner, load_captioner
from segdatagen.diffusion.mask_unet import one_hot
from segdatagen.errors import UsageError
from segdatagen.labels import Text
from segdatagen.metrics.class_mentions import ClassMentions, class_mentions, named_channels
from segdatagen.model_configs import read_json
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_weights import put_saved, record_of
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.options import TrainingOptions
from segdatagen.training.pictures import spread_rows
from segdatagen.training.text_data import (
    PICTURE,
    decoder_tokenizer,
    model_folder,
    require_captions,
)
from segdatagen.training.text_pictures import captioned
from segdatagen.training.validation import read_validation
from segdatagen.weights import CONFIG_NAME, WEIGHTS_NAME, local_weights

MOST_JUDGED = 300
PICTURE_ROWS = 8
FREE_POSITIONS = 128
"""Tokens that the decoder of a new network can say, whatever the longest caption of its training is."""
NOT_LEARNED = -100
"""Label of tokens that are given: the image, the question, the padding."""


class CaptionerSizes(BaseModel):
    """The parts of a new BLIP-2. Defaults: 1.9 million parameters for images of 64 x 64 pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(default=8, ge=1, description="pixels along a patch of the vision tower")
    vision_hidden: int = Field(default=128, ge=4)
    vision_layers: int = Field(default=4, ge=1)
    queries: int = Field(default=16, ge=1, description="what the decoder gets of an image, in tokens")
    qformer_hidden: int = Field(default=128, ge=4)
    qformer_layers: int = Field(default=2, ge=1)
    decoder_hidden: int = Field(default=128, ge=4)
    decoder_layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1, description="of every attention")
    vocabulary: int = Field(default=2048, ge=512, description="tokens at most, learned from the captions")

    @model_validator(mode="after")
    def _heads_divide(self) -> "CaptionerSizes":
        for name in ("vision_hidden", "qformer_hidden", "decoder_hidden"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of heads {self.heads}")
        return self


class CaptionerTrainingOptions(TrainingOptions):
    """The YAML of `segdatagen train captioner`."""

    fixed: ClassVar[tuple[str, ...]] = (
        *(*TrainingOptions.fixed, "network", "question", "max_caption_tokens"),
        *("freeze_vision", "freeze_language_model", "presence_loss", "patch_loss"),
    )

    validation: str = Field(min_length=1, description="URI of a source store with captions, not those of the training")
    network: CaptionerSizes = Field(default=CaptionerSizes(), description="of a new one; init_weights bring their own")
    question: Text = Field(default=QUESTIONS["blip2"], description="as the captioner of a run will ask")
    max_caption_tokens: int = Field(default=CaptionerOptions.model_fields["max_new_tokens"].default, ge=2)
    freeze_vision: bool = Field(default=False, description="of init_weights")
    freeze_language_model: bool = Field(default=False, description="of init_weights")
    presence_loss: float = Field(default=0.0, ge=0, description="weight of: which classes does the caption name?")
    patch_loss: float = Field(default=0.0, ge=0, description="weight of: which classes does a patch show?")

    @model_validator(mode="after")
    def _fits(self) -> "CaptionerTrainingOptions":
        if self.init_weights is None and (self.freeze_vision or self.freeze_language_model):
            raise ValueError("freeze_vision and freeze_language_model need init_weights: a new network knows nothing")
        if self.init_weights is not None and self.network != CaptionerSizes():
            raise ValueError("network: init_weights bring their own; leave one of the two out")
        if self.init_weights is None and (self.size[0] != self.size[1] or self.size[0] % self.network.patch):
            raise ValueError(f"size: a new network sees squares of whole patches of {self.network.patch} pixels")
        return self


class CaptionerNetwork(nn.Module):
    """A BLIP-2, and two linear layers that only its training knows: classes of the caption, classes of a patch.

    The first reads every output of the Q-Former, of which the largest counts; the second what the vision tower makes
    of each patch. Both tell the parts below the decoder early what is worth seeing.
    """

    def __init__(self, model: Any, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(model.config.qformer_config.hidden_size, num_classes)
        self.patches = nn.Linear(model.config.vision_config.hidden_size, num_classes)


class CaptionerTraining:
    """The kind `captioner`."""

    name = "captioner"
    reads_captions = True
    frozen: Mapping[str, str] = {}
    options_type = CaptionerTrainingOptions

    def __init__(self, options: CaptionerTrainingOptions, arrays: TrainingArrays) -> None:
        self.options = options
        self.data = arrays
        captions = require_captions(arrays.captions, options.sources, self.name)
        self.validation = read_validation(options.validation, options, arrays.label_set).first(MOST_JUDGED)
        self._references = require_captions(self.validation.captions, options.validation, self.name)
        if options.init_weights is None:
            self._start, self._processor = None, new_processor(options, captions)
        else:
            self._start, self._processor = _load_start(options.init_weights)
        asked = self._processor(images=_pictures(arrays.images[:1]), text=[options.question], return_tensors="pt")
        self._asked: list[int] = asked["input_ids"][0].tolist()
        self._said = self._tokens_of(captions)
        self._mean_length = float(np.mean([len(tokens) for tokens in self._said]))
        self._named = torch.from_numpy(named_channels(captions, arrays.label_set)).float()

    def build(self) -> nn.Module:
        """A BLIP-2 of the options: new, or that of `init_weights`. Without dropout: chance is the batch's alone."""
        options, tokenizer = self.options, self._processor.tokenizer
        model = self._start
        if model is None:
            model = new_model(
                options.network, tokenizer, options.size[0], len(self._asked) + options.max_caption_tokens
            )
        else:
            model.vision_model.requires_grad_(not options.freeze_vision)
            model.language_model.requires_grad_(not options.freeze_language_model)
        return CaptionerNetwork(model, self.data.label_set.num_classes).eval()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the tokens of the captions, per token; of `presence_loss` and `patch_loss` besides."""
        model: Any = network.get_submodule("model")
        device = batch.images.device
        pixels = self._processor.image_processor(_pictures(batch.images.cpu().numpy()), return_tensors="pt")
        tokens, mask, labels = (part.to(device) for part in self._padded(batch.sources.tolist()))
        found = model(pixel_values=pixels["pixel_values"].to(device), input_ids=tokens, attention_mask=mask)
        loss = caption_loss(found.logits, labels) / self._mean_length
        if self.options.presence_loss:
            known = network.get_submodule("presence")(found.qformer_outputs.last_hidden_state).amax(dim=1)
            wanted = self._named[torch.from_numpy(batch.sources)].to(device)
            loss = loss + self.options.presence_loss * functional.binary_cross_entropy_with_logits(known, wanted)
        if self.options.patch_loss:
            shown = network.get_submodule("patches")(found.vision_outputs.last_hidden_state[:, 1:])
            loss = loss + self.options.patch_loss * patch_loss(shown, batch.channels)
        return loss

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per validation image: the image, what the captioner says, and the caption of the data set in grey."""
        images = self.validation.images
        chosen = spread_rows(len(images), PICTURE_ROWS).tolist()
        captioner = Captioner.of_model(self._asking("memory"), average.get_submodule("model"), self._processor)
        said = captioner.captions([images[row] for row in chosen])
        texts = [(text, self._references[row]) for text, row in zip(said, chosen, strict=True)]
        return captioned([images[row] for row in chosen], texts)

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/` as `from_pretrained` and the captioner of a run load it, with its figures in `README.md`."""
        options, labels = self.options, self.data.label_set
        model: Any = average.get_submodule("model")
        folder = Folder(options.out).child(WEIGHTS_NAME)
        with model_folder(model, options.store_dtype, self._processor) as scratch:
            said = Captioner(self._asking(str(scratch)), str(model.device)).captions(list(self.validation.images))
            mentions = class_mentions(said, self.validation.channels, self._references, labels)
            figures = {
                "named_are_there": mentions.named_are_there,
                "told_are_named": mentions.told_are_named,
                "there_are_named": mentions.there_are_named,
                "same_captions": float(np.mean([a == b for a, b in zip(said, self._references, strict=True)])),
            }
            record = record_of(self.name, options, self.data, summary, figures)
            put_saved(folder, scratch, self._model_card(model, summary, mentions, figures), record)
        return Saved(folder.uri, figures=figures)

    def _asking(self, weights: str) -> CaptionerOptions:
        options = self.options
        return CaptionerOptions(
            kind="blip2", weights=weights, question=options.question, max_new_tokens=options.max_caption_tokens
        )

    def _tokens_of(self, captions: list[str]) -> list[list[int]]:
        """The tokens of each caption as they follow the question, and the end. Raises UsageError on one too long."""
        tokenizer, longest = self._processor.tokenizer, self.options.max_caption_tokens
        encode = {text: tokenizer(f" {text}", add_special_tokens=False).input_ids for text in sorted(set(captions))}
        for text, tokens in encode.items():
            if len(tokens) >= longest:
                raise UsageError(
                    f"max_caption_tokens: {text[:60]!r} takes {len(tokens) + 1} tokens with its end, and {longest} are "
                    "allowed: raise it, here and in max_new_tokens of runs"
                )
        return [[*encode[text], tokenizer.eos_token_id] for text in captions]

    def _padded(self, sources: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, attention and labels of rows, int64 `[B, L]`, padded at the left as in a run."""
        said = [self._said[source] for source in sources]
        length = len(self._asked) + max(map(len, said))
        tokens = torch.full((len(said), length), int(self._processor.tokenizer.pad_token_id))
        mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, NOT_LEARNED)
        for row, caption in enumerate(said):
            whole = [*self._asked, *caption]
            tokens[row, -len(whole) :] = torch.tensor(whole)
            mask[row, -len(whole) :] = 1
            labels[row, -len(caption) :] = torch.tensor(caption)
        return tokens, mask, labels

    def _model_card(
        self, model: nn.Module, summary: Summary, mentions: ClassMentions, figures: Mapping[str, float]
    ) -> str:
        options, sizes, labels = self.options, self.options.network, self.data.label_set
        layers = f"{sizes.vision_layers} + {sizes.qformer_layers} + {sizes.decoder_layers} layers"
        rows = {
            "network": f"BLIP-2, {layers if options.init_weights is None else 'of the weights it starts from'}",
            **size_rows(model, options),
            **training_rows(options, self.data, summary),
            "question": options.question,
            "judged on": f"`{options.validation}`, {len(self._references):,} images",
            "classes named that are there": f"{figures['named_are_there']:.3f}",
            "classes there, and named by the data set's caption, that are named": f"{figures['told_are_named']:.3f}",
            "classes there that are named": f"{figures['there_are_named']:.3f} "
            f"({mentions.told_of_there:.3f} by the data set's captions)",
            "captions equal to the data set's": f"{figures['same_captions']:.3f}",
        }
        counts = zip(labels.names, mentions.named, mentions.right, mentions.told, mentions.repeated, strict=True)
        classes = "\n".join(f"| {' | '.join(map(str, row))} |" for row in counts)
        heads = "| class | named | and there | there and in the data set's caption | and named |\n|---|---|---|---|---|"
        return f"{model_card(f'Captioner for {labels.name}', rows, options)}\n{heads}\n{classes}\n"


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labelled tokens, summed over each row and averaged over rows.

    `logits` `[B, L, V]` at a token are those of the next; `labels` `[B, L]` are `NOT_LEARNED` where a token is given.
    """
    given, wanted = logits[:, :-1].float(), labels[:, 1:]
    losses = functional.cross_entropy(given.transpose(1, 2), wanted, ignore_index=NOT_LEARNED, reduction="sum")
    return losses / len(labels)


def patch_loss(logits: Tensor, channels: Tensor) -> Tensor:
    """Cross-entropy with the shares of the classes in each patch; what is ignored has no share.

    `logits` `[B, P, C]` of a square grid of patches, row by row; `channels` int `[B, H, W]`.
    """
    side = round(logits.shape[1] ** 0.5)
    shares = functional.adaptive_avg_pool2d(one_hot(channels, logits.shape[2]), side).flatten(2).transpose(1, 2)
    return -(shares * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def new_processor(options: CaptionerTrainingOptions, captions: list[str]) -> Any:
    """Image processor and tokenizer of a new network, padded at the left as decoders need it."""
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    spoken = [f" {caption}" for caption in captions]
    tokenizer = decoder_tokenizer([options.question, *spoken], options.network.vocabulary)
    tokenizer.padding_side = "left"
    width, height = options.size
    images = BlipImageProcessorPil(size={"height": height, "width": width})
    return Blip2Processor(images, tokenizer, num_query_tokens=options.network.queries)


def new_model(sizes: CaptionerSizes, tokenizer: Any, side: int, longest: int) -> Any:
    """A BLIP-2 with random weights for images of `side` pixels and at most `longest` tokens, those of queries included.

    Published configurations leave the first weights at nearly 0, because others are loaded into them; and queries that
    begin equal would stay equal.
    """
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.decoder_hidden,
        word_embed_proj_dim=sizes.decoder_hidden,
        ffn_dim=4 * sizes.decoder_hidden,
        num_hidden_layers=sizes.decoder_layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=longest + FREE_POSITIONS,
        tie_word_embeddings=False,
        dropout=0.0,
        **special,
    )
    config = Blip2Config(
        vision_config={
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": 4 * sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.heads,
            "image_size": side,
            "patch_size": sizes.patch,
            "initializer_range": 0.02,
        },
        qformer_config={
            "vocab_size": 1,
            "hidden_size": sizes.qformer_hidden,
            "intermediate_size": 4 * sizes.qformer_hidden,
            "num_hidden_layers": sizes.qformer_layers,
            "num_attention_heads": sizes.heads,
            "encoder_hidden_size": sizes.vision_hidden,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config=text.to_dict(),
        num_query_tokens=sizes.queries,
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
        tie_word_embeddings=False,
    )
    model = Blip2ForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens)
    return model


def _load_start(uri: str) -> tuple[Any, Any]:
    """Model and processor of `init_weights`, float32. Raises UsageError where they are no BLIP-2 with a decoder."""
    found = read_json(local_weights(uri) / CONFIG_NAME, f"init_weights: {uri} is no captioner").get("model_type")
    if found != BLIP2_TYPE:
        raise UsageError(f"init_weights: {uri} is a {found or 'model without a type'}, and a {BLIP2_TYPE} is trained")
    folder = check_captioner(uri, "blip2")
    model, processor = load_captioner(folder, uri, torch.float32)
    if not model.config.use_decoder_only_language_model:
        raise UsageError(
            f"init_weights: {uri} has a language model with an encoder; train one with a decoder alone (OPT)"
        )
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:  # one tensor under two names is in no checkpoint twice
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.language_model.config.tie_word_embeddings = False
    return model, processor


def _pictures(images: np.ndarray) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(image) for image in images]
