"""Training of CLIP: regions of masks with the texts of their classes, as they are scored, and images with captions.

From scratch in small form, or from the weights of a public model. Steps, averages and checkpoints are the loop's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from segdatagen.clip_scores import ClipOptions, ClipScorer, check_clip, load_clip
from segdatagen.errors import UsageError
from segdatagen.images import Image
from segdatagen.labels import Text
from segdatagen.metrics.first_of import groups_of, share_first
from segdatagen.prompts import CLIP_TOKENS, named_classes
from segdatagen.regions import regions_of
from segdatagen.storage import Folder
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_weights import put_saved, record_of
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.options import TrainingOptions
from segdatagen.training.text_data import (
    model_folder,
    require_captions,
)
from segdatagen.training.text_pictures import score_table
from segdatagen.training.validation import read_validation
from segdatagen.weights import WEIGHTS_NAME

MOST_JUDGED = 300
GROUP = 8
"""Images that the matching one stands among when it is judged."""
PICTURE_ROWS = 12
LARGEST_SCALE = math.log(100)
"""Of the logarithm of the temperature, as in CLIP."""
_SCORED = ClipOptions.model_fields


class ClipSizes(BaseModel):
    """The parts of a new CLIP. Defaults: 0.9 million parameters for images of 64 x 64 pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(default=8, ge=1, description="pixels along a patch of the image encoder")
    vision_hidden: int = Field(default=96, ge=4)
    vision_layers: int = Field(default=4, ge=1)
    text_hidden: int = Field(default=96, ge=4)
    text_layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1, description="of every attention")
    projection: int = Field(default=64, ge=1, description="of both encoders")
    vocabulary: int = Field(default=2048, ge=1024, description="tokens at most, learned from the captions")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ClipSizes":
        for name in ("vision_hidden", "text_hidden"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of heads {self.heads}")
        return self


class ClipTrainingOptions(TrainingOptions):
    """The YAML of `segdatagen train clip`. Regions and texts have to be those of the scores that it is trained for."""

    fixed: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.fixed,
        *("network", "captions", "template", "min_pixels", "max_regions"),
    )

    validation: str = Field(min_length=1, description="URI of a source store, not that of the training")
    network: ClipSizes = Field(default=ClipSizes(), description="of a new one; init_weights bring their own")
    captions: bool = Field(default=True, description="whole images with captions, too, not only regions")
    template: Text = Field(default=_SCORED["template"].default, description="text with {name}")
    min_pixels: int = Field(default=_SCORED["min_pixels"].default, ge=1, description="of a region")
    max_regions: int = Field(
        default=_SCORED["max_regions"].default, ge=1, le=100, description="of a class, the largest"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ClipTrainingOptions":
        self.scoring("any")
        if self.batch_size // (self.num_workers * self.accumulate) < 2:
            raise ValueError("batch_size: rows that are computed together are told apart: 2 or more of them")
        if self.init_weights is not None and self.network != ClipSizes():
            raise ValueError("network: init_weights bring their own; leave one of the two out")
        if self.init_weights is None and (self.size[0] != self.size[1] or self.size[0] % self.network.patch):
            raise ValueError(f"size: a new network sees squares of whole patches of {self.network.patch} pixels")
        return self

    def scoring(self, weights: str) -> ClipOptions:
        """The options by which runs score what was trained by these."""
        return ClipOptions(
            weights=weights, template=self.template, min_pixels=self.min_pixels, max_regions=self.max_regions
        )


class ClipTraining:
    """The kind `clip`."""

    name = "clip"
    frozen: Mapping[str, str] = {}
    options_type = ClipTrainingOptions

    def __init__(self, options: ClipTrainingOptions, arrays: TrainingArrays) -> None:
        self.options, self.data = options, arrays
        self.reads_captions = options.captions
        scoring, labels = options.scoring(options.init_weights or "new"), arrays.label_set
        if len(arrays.images) < 2:  # nothing to tell a pair from
            raise UsageError(f"{options.sources}: {len(arrays.images)} sources are too few, 2 are needed: ingest more")
        self.validation = read_validation(options.validation, options, arrays.label_set).first(MOST_JUDGED)
        self._captions = self._captions_of(arrays, options.sources)
        self._references = self._captions_of(self.validation, options.validation)
        self._class_texts = [scoring.text_of(label.prompt) for label in named_classes(labels)]
        self._channels = [labels.channel_of(label.name) for label in named_classes(labels)]
        self._shown = self._classes_with_regions()
        self._crops, self._crop_classes = self._judged_crops()
        self._groups = (groups_of(self._crop_classes, GROUP, 0), groups_of(self._references, GROUP, 0))
        self._require_groups()
        self._start: Any = None
        if options.init_weights is None:
            texts = [*self._class_texts, *self._captions]
            self._tokenizer: Any = train_tokenizer(texts, options.network.vocabulary)
            side = options.size[1]
            crop = {"height": side, "width": side}
            self._images: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop)
        else:
            folder = check_clip(scoring, labels)
            self._start, self._images, self._tokenizer = load_clip(folder, options.init_weights)

    def build(self) -> nn.Module:
        """A CLIP of the options, new, or that of `init_weights`. Without dropout: chance is the batch's alone."""
        network: nn.Module = self._start
        if network is None:
            network = new_model(self.options.network, self._tokenizer, self.options.size[0])
        return network.eval()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Contrastive loss of a region of each row with the texts of classes, and of the rows with their captions.

        Rows are contrasted with those that are computed together: with more workers, or `accumulate`, each meets fewer.
        """
        images, channels = batch.images.cpu().numpy(), batch.channels.cpu().numpy()
        crops, classes = [], []
        for row, source in enumerate(batch.sources.tolist()):
            drawn = self._draw(source, images[row], channels[row], batch.row_chance[row])
            if drawn is not None:
                crops.append(drawn[0])
                classes.append(drawn[1])
        captions = [self._captions[source] for source in batch.sources.tolist()] if self.options.captions else []
        pixels = self._pixels([*crops, *(list(images) if captions else [])], batch.images.device)
        loss = 0 * network.get_parameter("logit_scale")
        if not len(pixels):
            return loss
        seen = self._see(network, pixels)
        texts = list(dict.fromkeys([*(self._class_texts[found] for found in classes), *captions]))
        said = self._read(network, texts)
        scale = network.get_parameter("logit_scale").float().clamp(max=LARGEST_SCALE).exp()
        for vectors, own in (
            (seen[: len(crops)], [self._class_texts[found] for found in classes]),
            (seen[len(crops) :], captions),
        ):
            if own:
                which = torch.tensor([texts.index(text) for text in own], device=seen.device)
                with torch.autocast(seen.device.type, enabled=False):  # two similar texts are one number in bfloat16
                    loss = loss + contrastive_loss(scale * vectors @ said[which].T, which)
        return loss

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per class: the first crop of it, and its probabilities for the texts of all classes."""
        scorer = self._scorer(average)
        first = sorted({found: place for place, found in reversed(list(enumerate(self._crop_classes)))}.items())
        crops = [self._crops[place] for _, place in first[:PICTURE_ROWS]]
        with torch.autocast(average.get_parameter("logit_scale").device.type, enabled=False):  # as in the loss
            similar = scorer.image_vectors(crops) @ scorer.text_vectors(self._class_texts).T
        shares = (similar * average.get_parameter("logit_scale").detach().exp()).softmax(dim=1).cpu().numpy()
        names = [label.prompt for label in named_classes(self.data.label_set)]
        return score_table(crops, names, shares, [found for found, _ in first[:PICTURE_ROWS]])

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/` as `from_pretrained` and the scores of a run load it, with its figures in `README.md`."""
        options, labels = self.options, self.data.label_set
        folder = Folder(options.out).child(WEIGHTS_NAME)
        with model_folder(average, options.store_dtype, self._images, self._tokenizer) as scratch:
            device = str(average.get_parameter("logit_scale").device)
            figures = self.figures(ClipScorer(options.scoring(str(scratch)), labels, device))
            rows = {
                "network": "CLIP",
                **size_rows(average, options),
                **training_rows(options, self.data, summary),
                "regions": f"of {options.min_pixels} pixels or more, the {options.max_regions} largest of a class",
                "text of a class": options.template,
                "judged on": f"`{options.validation}`, {len(self.validation.images):,} images",
                **{name.replace("_", " "): f"{value:.3f}" for name, value in figures.items()},
            }
            record = record_of(self.name, options, self.data, summary, figures)
            put_saved(folder, scratch, model_card(f"CLIP for {labels.name}", rows, options), record)
        return Saved(folder.uri, figures=figures)

    def figures(self, scorer: ClipScorer) -> dict[str, float]:
        """How often the matching image comes first of 8: a crop for the text of its class, an image for its caption."""
        crops = scorer.image_vectors(self._crops).cpu().numpy()
        texts = scorer.text_vectors(self._class_texts).cpu().numpy()[self._crop_classes]
        found = {"class_text_first_of_8": share_first(texts, crops, self._groups[0])}
        if self.options.captions:
            images = scorer.image_vectors(list(self.validation.images)).cpu().numpy()
            said = scorer.text_vectors(self._references).cpu().numpy()
            found["caption_first_of_8"] = share_first(said, images, self._groups[1])
        return found

    def _captions_of(self, arrays: TrainingArrays, uri: str) -> list[str]:
        if not self.options.captions:
            return []
        return require_captions(arrays.captions, uri, self.name, "; or set captions to false")

    def _classes_with_regions(self) -> np.ndarray:
        """Whether a source shows a region of a class that is large enough, bool `[N, C]`, classes as `_channels`."""
        least = self.options.min_pixels
        shown = [
            [bool(regions_of(channels, channel, least, 1)) for channel in self._channels]
            for channels in self.data.channels
        ]
        return np.array(shown, dtype=np.bool_).reshape(len(shown), len(self._channels))

    def _judged_crops(self) -> tuple[list[Image], list[int]]:
        """The largest region of each class in each validation image, and which of the named classes it shows."""
        crops, classes = [], []
        for image, channels in zip(self.validation.images, self.validation.channels, strict=True):
            for place, channel in enumerate(self._channels):
                for region in regions_of(channels, channel, self.options.min_pixels, 1):
                    crops.append(region.crop(image))
                    classes.append(place)
        return crops, classes

    def _require_groups(self) -> None:
        options = self.options
        classes = int(self._shown.any(axis=0).sum())
        if classes < 2:
            raise UsageError(
                f"{options.sources}: {classes} classes with a region are too few, 2 are needed: ingest more, or lower "
                "min_pixels"
            )
        if not len(self._groups[0]):
            raise UsageError(
                f"validation: {options.validation} has no region beside {GROUP - 1} of other classes to judge by: "
                "ingest more, or lower min_pixels"
            )
        if options.captions and not len(self._groups[1]):
            raise UsageError(
                f"validation: {options.validation} has no image beside {GROUP - 1} of other captions to judge by: "
                "ingest more"
            )

    def _draw(
        self, source: int, image: Image, channels: np.ndarray, chance: torch.Generator
    ) -> tuple[Image, int] | None:
        """A region of a row and its class: rarer classes are drawn more often than their share of the regions."""
        options = self.options
        weights = torch.from_numpy(self._shown[source] / np.maximum(self._shown.sum(axis=0), 1))
        if not weights.any():
            return None
        place = int(torch.multinomial(weights, 1, generator=chance))
        regions = regions_of(channels, self._channels[place], options.min_pixels, options.max_regions)
        region = regions[int(torch.randint(len(regions), (), generator=chance))]
        return region.crop(image), place

    def _pixels(self, images: Sequence[Image], device: torch.device) -> Tensor:
        """What the network sees of images of any sizes, float32 `[N, 3, H, W]`."""
        if not images:
            return torch.empty(0, device=device)
        found = self._images(images=list(images), return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.stack(found)).to(device)

    def _see(self, network: Any, pixels: Tensor) -> Tensor:
        hidden = network.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(network.visual_projection(hidden).float(), dim=-1)

    def _read(self, network: Any, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=CLIP_TOKENS, return_tensors="pt")
        device = network.logit_scale.device
        found = network.text_model(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        return functional.normalize(network.text_projection(found.pooler_output).float(), dim=-1)

    def _scorer(self, network: nn.Module) -> ClipScorer:
        loaded = (network, self._images, self._tokenizer)
        return ClipScorer.of_model(self.options.scoring("memory"), self.data.label_set, loaded)


def contrastive_loss(logits: Tensor, which: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy where rows with the same text are equally right answers to each other.

    `logits` `[N, N]` of images and the texts of the same rows; `which` int `[N]` numbers the texts.
    """
    same = (which[:, None] == which[None, :]).float()
    wanted = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)) / 2


def new_model(sizes: ClipSizes, tokenizer: Any, side: int) -> CLIPModel:
    """A CLIP with random weights for images of `side` pixels."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_hidden,
        intermediate_size=4 * sizes.text_hidden,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_hidden,
        intermediate_size=4 * sizes.vision_hidden,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.heads,
        image_size=side,
        patch_size=sizes.patch,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=sizes.projection)
    return CLIPModel(config)
