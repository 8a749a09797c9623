"""CLIP scores of the classes of a mask: how well the image of a labelled region fits the text of its class.

The similarity of Fang et al. (WACV 2024, "Post Filter with Category-Calibrated CLIP Rank"), with the regions of a mask
for boxes. torch and transformers are imported when a model is loaded. It does not know ranks, limits or runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.clip_tokenizer import load_clip_tokenizer
from segdatagen.errors import UsageError, one_line
from segdatagen.labels import LabelSet, Text
from segdatagen.model_configs import read_json, require_no_code
from segdatagen.network_tensors import unless_remembered
from segdatagen.prompts import CLIP_TOKENS, named_classes, parse_template
from segdatagen.regions import regions_of
from segdatagen.transformers_tensors import CANNOT_LOAD, quiet, require_tensors, tensor_shapes
from segdatagen.weights import CONFIG_NAME, WeightsUri, local_weights

if TYPE_CHECKING:
    from torch import Tensor

    from segdatagen.images import Image, Mask

Measure = Literal["similarity", "probability"]
CLIP = "CLIPModel"
"""Its class in transformers."""
CHUNK = 8
"""Crops in one forward pass, always so many: the score of an image follows from its own crops alone."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files of a tokenizer: one of these sets is enough."""


class ClipOptions(BaseModel):
    """How crops are scored; scores by other options cannot be compared.

    `similarity`: cosine of crop and text of the own class (Fang et al.); `probability`: softmax over the texts of all
    classes, at the temperature of the model. `{name}` of the template is the prompt name of the class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: WeightsUri
    template: Text = Field(default="a photo of a {name}", description="text on one line without spaces at its ends")
    measure: Measure = "similarity"
    min_pixels: int = Field(default=100, ge=1, strict=True, description="of a region; smaller ones are not scored")
    max_regions: int = Field(default=3, ge=1, le=100, strict=True, description="of a class, the largest")

    @model_validator(mode="after")
    def _template_names_the_class(self) -> ClipOptions:
        if not any(field == "name" for _, field in parse_template(self.template, ("name",))):
            raise ValueError(f"template: must say where the name of the class stands, {{name}}, not {self.template!r}")
        return self

    def scoring(self) -> ClipOptions:
        """These options alone, without what a subclass adds."""
        return ClipOptions(**{name: getattr(self, name) for name in ClipOptions.model_fields})

    def text_of(self, name: str) -> str:
        """The text of a class with this prompt name."""
        parts = parse_template(self.template, ("name",))
        return "".join(literal + (name if field else "") for literal, field in parts)


def check_clip(options: ClipOptions, label_set: LabelSet) -> Path:
    """The local folder of a CLIP model; loads its tokenizer alone.

    Raises UsageError, in one line, where the folder is no CLIP of transformers with safetensors, a tokenizer and a
    preprocessor, or the text of a class is longer than its text encoder sees.
    """
    uri, folder = options.weights, local_weights(options.weights)
    config = read_json(folder / CONFIG_NAME, f"{uri} is no CLIP model")
    require_no_code(uri, config)
    if config.get("model_type") != "clip":
        raise UsageError(f"{uri} holds a {config.get('model_type', 'model without a type')}, and a clip is needed")
    if not any((folder / name).is_file() for name in PROCESSORS):
        raise UsageError(f"{uri} has no {PROCESSORS[0]}: save the image processor of the model beside it")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise UsageError(f"{uri} has no tokenizer: save tokenizer.json, or vocab.json and merges.txt, beside it")
    shapes = tensor_shapes(folder)
    unless_remembered([CLIP, config, shapes], lambda: require_tensors(folder, CLIP, shapes))
    if not named_classes(label_set):
        raise UsageError(f"the label set {label_set.name} has no class but background: there is nothing to score")
    tokenizer = load_clip_tokenizer(folder)
    longest = min(CLIP_TOKENS, int(tokenizer.model_max_length))
    for text in (options.text_of(label.prompt) for label in named_classes(label_set)):
        tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
        if tokens > longest:
            raise UsageError(f"template: {text!r} takes {tokens} tokens, and CLIP sees {longest}: shorten it")
    return folder


class ClipScorer:
    """A CLIP model and the texts of all classes of a label set, ready to score."""

    def __init__(self, options: ClipOptions, label_set: LabelSet, device: str = "cpu") -> None:
        """Load. Raises UsageError where `check_clip` does, or transformers cannot load it as CLIP."""
        folder = check_clip(options, label_set)
        model, processor, tokenizer = load_clip(folder, options.weights)
        self._set_up(options, label_set, (model.to(device).eval(), processor, tokenizer))

    @classmethod
    def of_model(cls, options: ClipOptions, label_set: LabelSet, loaded: tuple[Any, Any, Any]) -> ClipScorer:
        """A scorer around a model in memory, where it is: model, image processor, tokenizer, as of `load_clip`."""
        scorer = cls.__new__(cls)
        scorer._set_up(options, label_set, loaded)
        return scorer

    def _set_up(self, options: ClipOptions, label_set: LabelSet, loaded: tuple[Any, Any, Any]) -> None:
        self._options = options
        self._model, self._processor, self._tokenizer = loaded
        self._device = self._model.device
        self._table = label_set.channel_table()
        classes = named_classes(label_set)
        self._ids = {int(self._table[label.id]): label.id for label in classes}
        self._place = {channel: place for place, channel in enumerate(self._ids)}
        self._texts = self.text_vectors([options.text_of(label.prompt) for label in classes])

    def scores(self, image: Image, mask: Mask) -> dict[int, float]:
        """The score of each class, by class id in label order: the mean over its regions in `mask` of class ids.

        `image` uint8 H x W x 3 and `mask` H x W. Classes without a region of enough pixels, and background, have none.
        """
        channels = self._table[mask]
        shown = [channel for channel in np.unique(channels).tolist() if channel in self._ids]
        most, least = self._options.max_regions, self._options.min_pixels
        regions = [region for channel in shown for region in regions_of(channels, channel, least, most)]
        if not regions:
            return {}
        found = self._measure(self.image_vectors([region.crop(image) for region in regions]))
        own = np.array([found[row, self._place[region.channel]] for row, region in enumerate(regions)])
        of = np.array([region.channel for region in regions])
        return {self._ids[channel]: float(own[of == channel].mean()) for channel in shown if (of == channel).any()}

    def _measure(self, images: Tensor) -> np.ndarray:
        """What each of the crops `[N, D]` has of each class, float64 [N, C]."""
        similar = (images @ self._texts.T).double()
        if self._options.measure == "probability":
            similar = (similar * self._model.logit_scale.detach().double().exp()).softmax(dim=1)
        found: np.ndarray = similar.cpu().numpy()
        return found

    def image_vectors(self, crops: Sequence[Image]) -> Tensor:
        """Unit vectors float32 `[N, D]` of crops uint8 H x W x 3 of any sizes, on the device."""
        import torch

        # Of a crop three pixels high transformers would take the rows for its channels.
        processed = self._processor(images=list(crops), return_tensors="np", input_data_format="channels_last")
        pixels = torch.from_numpy(np.stack(processed["pixel_values"]))
        found = []
        for start in range(0, len(pixels), CHUNK):
            part = pixels[start : start + CHUNK]
            full = torch.cat([part, part.new_zeros(CHUNK - len(part), *part.shape[1:])]).to(self._device)
            with torch.inference_mode():
                hidden = self._model.vision_model(pixel_values=full).pooler_output
                found.append(_unit(self._model.visual_projection(hidden))[: len(part)])
        return torch.cat(found)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors float32 `[N, D]` of texts, each alone, so that padding changes nothing, on the device."""
        import torch

        found = []
        for text in texts:
            ids = torch.tensor([self._tokenizer(text).input_ids], device=self._device)
            with torch.inference_mode():
                hidden = self._model.text_model(input_ids=ids).pooler_output
                found.append(_unit(self._model.text_projection(hidden)))
        return torch.cat(found)


def judged_by(options: ClipOptions, pinned: str) -> Mapping[str, str]:
    """What scores by these options depend on, by field; `pinned` stands for the weights."""
    return {name: str(value) for name, value in (options.scoring().model_dump() | {"weights": pinned}).items()}


def _unit(vectors: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.normalize(vectors, dim=-1)


def load_clip(folder: Path, uri: str) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer of a folder that was checked, on the CPU.

    Raises UsageError where transformers cannot make CLIP of it.
    """
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        with quiet():
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            model, found = CLIPModel.from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True, local_files_only=True
            )
    except CANNOT_LOAD as error:
        raise UsageError(f"{uri} cannot be loaded as CLIP by transformers: {one_line(error)}") from error
    if absent := sorted(found["missing_keys"]):
        raise UsageError(f"the weights of {uri} lack {len(absent)} tensors, {absent[0]} first")
    return model, processor, load_clip_tokenizer(folder)
