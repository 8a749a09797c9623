"""Captioners: vision-language models of the transformers library, images in, a caption each out.

BLIP-2 as in SegGen (section 3, "Captioner Model"), or any other `image-text-to-text` model. torch and transformers are
imported when a model is loaded. Knows neither sources nor what becomes of a caption.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.device_errors import is_out_of_memory
from segdatagen.errors import UsageError, one_line
from segdatagen.images import pixel_hash
from segdatagen.labels import Text
from segdatagen.model_configs import read_json, require_no_code
from segdatagen.network_tensors import Shapes, unless_remembered
from segdatagen.transformers_tensors import CANNOT_LOAD, quiet, require_tensors, tensor_shapes
from segdatagen.weights import CONFIG_NAME, OptionalWeightsUri, local_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from segdatagen.images import Image

CaptionerKind = Literal["blip2", "model", "data_set", "classes"]
MODEL_KINDS = ("blip2", "model")
BLIP2_TYPE = "blip-2"
QUESTIONS = {
    "blip2": "Question: What are shown in the photo? Answer:",
    "model": "Describe the photo in one short sentence.",
}
"""What a model is asked if the options do not say; of BLIP-2 in SegGen's words."""
REMEMBERED = 4096
"""Images whose captions a model keeps."""
_A_QUESTION = "text on one line without spaces at its ends"
NETWORKS = "image-text-to-text"
"""Networks of transformers that describe images, in its own word."""
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_JSON_NAMES = (CONFIG_NAME, "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class CaptionerOptions(BaseModel):
    """Where captions come from; all of it is content.

    `blip2`, `model`: from a model below `weights`; `data_set`: those of the sources; `classes`: their class names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CaptionerKind = "classes"
    weights: OptionalWeightsUri = None
    question: Text | None = Field(default=None, description=_A_QUESTION)
    max_new_tokens: int = Field(default=40, ge=1, le=1000, strict=True, description="of a caption, at most")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(
        default=4, ge=1, le=256, strict=True, description="images at a time", exclude_if=lambda value: value == 4
    )

    @model_validator(mode="after")
    def _weights_belong_to_models(self) -> CaptionerOptions:
        if self.kind in MODEL_KINDS and self.weights is None:
            raise ValueError(f"weights: missing; {self.kind} needs those of a model")
        fields = type(self).model_fields.items()
        unused = sorted(name for name, field in fields if name != "kind" and getattr(self, name) != field.default)
        if unused and self.kind not in MODEL_KINDS:
            raise ValueError(f"{', '.join(unused)}: {self.kind} has no model; only {', '.join(MODEL_KINDS)} have")
        return self

    @property
    def asked(self) -> str:
        """What the model is asked; empty where there is none."""
        return self.question or QUESTIONS.get(self.kind, "")


def check_captioner(uri: str, kind: CaptionerKind = "model") -> Path:
    """The local folder of a captioner's weights; without torch, and in milliseconds, where it fitted before.

    Raises UsageError where it is no `from_pretrained` folder with safetensors and a processor, of a model that
    transformers loads to describe images, where tensors are missing, broken or of another shape, where it asks for code
    of its own to be run, or where `kind` is blip2 and the model is not.
    """
    folder = local_weights(uri)
    if not (folder / CONFIG_NAME).is_file():
        raise UsageError(f"{uri} is no folder of a captioner: it holds no {CONFIG_NAME}")
    no_captioner = f"{uri} is no captioner"
    configs = {name: read_json(folder / name, no_captioner) for name in _JSON_NAMES if (folder / name).is_file()}
    for name, config in configs.items():
        require_no_code(f"{folder / name}", config)
    found = configs[CONFIG_NAME].get("model_type")
    if kind == "blip2" and found != BLIP2_TYPE:
        raise UsageError(f"the captioner {uri} is of type {found}, not {BLIP2_TYPE}: use kind model")
    if not configs.keys() & {"processor_config.json", "preprocessor_config.json"}:
        raise UsageError(f"{uri} holds no processor_config.json: save the model's processor beside it")
    shapes = tensor_shapes(folder)
    files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    unless_remembered([NETWORKS, configs, files, shapes], lambda: _require_loadable(folder, uri, shapes))
    return folder


class Captioner:
    """A model, ready to describe images, greedily and a few at a time.

    A batch is always full: its neighbours change no more of a caption than floats do of other sums. Where memory runs
    out it is halved, from then on.
    """

    def __init__(self, options: CaptionerOptions, device: str = "cpu") -> None:
        """Load. Raises UsageError where `check_captioner` does, or transformers cannot load it as such a model."""
        import torch

        if options.weights is None:
            raise UsageError(f"captioner: {options.kind} has no model to load")
        folder = check_captioner(options.weights, options.kind)
        model, processor = load_captioner(folder, options.weights, getattr(torch, options.dtype))
        self._set_up(options, model.to(device).eval(), processor)

    @classmethod
    def of_model(cls, options: CaptionerOptions, model: Any, processor: Any) -> Captioner:
        """A captioner around a model in memory, where it is, with what `load_captioner` would give as its processor."""
        captioner = cls.__new__(cls)
        captioner._set_up(options, model, processor)
        return captioner

    def asked_otherwise(self, options: CaptionerOptions) -> Captioner:
        """The same model with other options."""
        return Captioner.of_model(options, self._model, self._processor)

    def _set_up(self, options: CaptionerOptions, model: Any, processor: Any) -> None:
        self._options, self._model, self._processor = options, model, processor
        self._batch_size = options.batch_size
        self._said: dict[str, str] = {}

    def captions(self, images: Sequence[Image]) -> list[str]:
        """What the model says of each image, uint8 H x W x 3 RGB of any size; "" where it says nothing.

        It is asked once about an image that comes again among the next few thousand, as that of a source with many
        variants does, block after block. Raises the device's error when one does not fit alone.
        """
        hashes = [pixel_hash(image) for image in images]
        new = {
            image_hash: image for image_hash, image in zip(hashes, images, strict=True) if image_hash not in self._said
        }
        left = list(new.items())
        while left:
            size = self._batch_size
            batch = left[:size]
            full = [image for _, image in batch] + [batch[-1][1]] * (size - len(batch))
            try:
                answers = self._answers(full, [self._options.asked] * size)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._batch_size //= 2
                continue
            self._said |= {key: answer for (key, _), answer in zip(batch, answers, strict=False)}
            left = left[size:]
        found = [self._said[key] for key in hashes]
        for key in list(self._said)[: max(0, len(self._said) - REMEMBERED)]:
            del self._said[key]
        return found

    def _answers(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        """Answers to a question each, which may have other lengths."""
        import torch

        inputs = self._inputs(images, questions).to(self._model.device, self._model.dtype)
        limits = {"max_new_tokens": self._options.max_new_tokens, "max_length": None}
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            found = self._model.generate(**inputs, **limits, **greedy)
        asked = inputs["input_ids"]
        length = asked.shape[1]
        # Decoders repeat what they were asked, unless they got it as embeddings; encoder-decoders never do.
        if found.shape[1] >= length and torch.equal(found[:, :length], asked):
            found = found[:, length:]
        texts = self._processor.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [clean_answer(text, question) for text, question in zip(texts, questions, strict=True)]

    def _inputs(self, images: Sequence[Image], questions: Sequence[str]) -> Any:
        """Tensors of the model's processor, padded where it does not change an answer."""
        import PIL.Image

        processor, padded = self._processor, {"padding": True, "return_tensors": "pt"}
        pictures = [PIL.Image.fromarray(image) for image in images]
        if getattr(processor, "chat_template", None):
            turns = [
                [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
                for image, question in zip(pictures, questions, strict=True)
            ]
            return processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=padded
            )
        # A processor with query tokens puts the image's place before the question itself.
        place = "" if hasattr(processor, "num_query_tokens") else str(getattr(processor, "image_token", ""))
        texts = [question if place in question else f"{place}\n{question}" for question in questions]
        return processor(images=pictures, text=texts, **padded)


def clean_answer(text: str, question: str) -> str:
    """An answer on one line, without the question before it, and without what follows where it is asked again."""
    answer = " ".join(text.split())
    again = re.escape(" ".join(question.split()))
    answer = re.sub(rf"^{again}\s*", "", answer, flags=re.IGNORECASE)
    return re.split(again, answer, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def _require_loadable(folder: Path, uri: str, shapes: Shapes) -> None:
    """Raise UsageError unless transformers has a captioner of this type, with these tensors, and its processor."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
    except CANNOT_LOAD as error:
        raise UsageError(f"{uri} is no captioner: {one_line(error)}") from error
    kind = KNOWN.get(config.model_type)
    if kind is None:
        raise UsageError(
            f"{uri} is no captioner: it holds a {config.model_type}, which is no {NETWORKS} model of transformers"
        )
    _require_image_token(uri, _load_processor(folder, uri), config)
    require_tensors(folder, kind, shapes, config)


def _load_processor(folder: Path, uri: str) -> Any:
    """The processor of a folder. Raises UsageError where there is none of images and text."""
    from transformers import AutoProcessor

    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(folder, **_LOCAL)
    except CANNOT_LOAD as error:
        raise UsageError(f"the processor of the captioner {uri} cannot be loaded: {one_line(error)}") from error
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise UsageError(f"{uri} has no processor of images and text: save the model's processor beside it")
    return processor


def _require_image_token(uri: str, processor: Any, config: Any) -> None:
    if getattr(processor, "num_query_tokens", 1) is None or getattr(config, "image_token_id", 1) is None:
        raise UsageError(f"{uri} was saved by an old transformers: its processor and config lack the image token")


def load_captioner(folder: Path, uri: str, dtype: Any) -> tuple[Any, Any]:
    """Model and processor of a folder that was checked, padded as answers need it, on the CPU.

    Raises UsageError where transformers cannot make one of it.
    """
    from transformers import AutoModelForImageTextToText

    processor = _load_processor(folder, uri)
    try:
        with quiet():
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
            )
    except CANNOT_LOAD as error:
        raise UsageError(
            f"the captioner {uri} cannot be loaded as an {NETWORKS} model of transformers: {one_line(error)}"
        ) from error
    if absent := sorted(found["missing_keys"]):
        raise UsageError(f"the weights of the captioner {uri} lack {len(absent)} tensors, {absent[0]} first")
    _require_image_token(uri, processor, model.config)
    # A decoder goes on where its last token stands. An encoder's distances from image to question grow with what is
    # between them, so its padding comes last.
    has_encoder = model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder
    processor.tokenizer.padding_side = "right" if has_encoder else "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return model, processor
