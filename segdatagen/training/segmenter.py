"""Training of segmenters: their options, their loss, and what their weights say of real images they never saw.

Judges and filters read the last: IoU and mean loss of each class. Steps, averages and checkpoints are the loop's.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from segdatagen.config_files import describe
from segdatagen.metrics.segmentation import confusion, iou_of, mean_iou
from segdatagen.segmenters import (
    SegmenterConfig,
    SegmenterWeights,
    Stages,
    build_segmenter,
    check_segmenter,
    load_segmenter,
    pixel_losses,
    save_segmenter,
    scores,
)
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.mixture import Mixture, SyntheticOptions, read_mixture
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.options import TrainingOptions, require_same_network
from segdatagen.training.pictures import ENLARGED_SIDE, colour_masks, grid, spread_rows
from segdatagen.training.validation import read_validation
from segdatagen.weights import WEIGHTS_NAME

PICTURE_ROWS = 8
JUDGED_AT_ONCE = 32
NETWORK_FIELDS = ("hidden", "depths", "heads", "strides", "reductions", "decoder_hidden")


class SegmenterTrainingOptions(TrainingOptions):
    """The YAML of `segdatagen train segmenter`."""

    fixed: ClassVar[tuple[str, ...]] = (*TrainingOptions.fixed, *NETWORK_FIELDS)

    validation: str = Field(min_length=1, description="URI of a source store of real images, not those of the training")
    hidden: Stages = Field(default=(24, 48, 96, 160), description="channels of the four stages")
    depths: Stages = (2, 2, 2, 2)
    heads: Stages = (1, 2, 4, 5)
    strides: Stages = Field(default=(2, 2, 2, 2), description="the paper's are 4, 2, 2, 2")
    reductions: Stages = (8, 4, 2, 1)
    decoder_hidden: int = Field(default=128, ge=1)
    synthetic: SyntheticOptions | None = Field(default=None, description="published samples in place of real images")

    @model_validator(mode="after")
    def _is_a_network(self) -> Self:
        try:
            self.network(1)
        except ValidationError as error:
            raise ValueError(describe(error, SegmenterConfig)) from error
        return self

    def network(self, num_classes: int) -> SegmenterConfig:
        """The network of these options for so many classes."""
        return SegmenterConfig(num_classes=num_classes, **{name: getattr(self, name) for name in NETWORK_FIELDS})


class SegmenterTraining:
    """The kind `segmenter`."""

    name = "segmenter"
    reads_captions = False
    options_type = SegmenterTrainingOptions

    def __init__(self, options: SegmenterTrainingOptions, arrays: TrainingArrays) -> None:
        self.options = options
        self.data = arrays
        self.validation = read_validation(options.validation, options, arrays.label_set)
        self._labelled_per_image = max(np.count_nonzero(arrays.channels >= 0) / len(arrays.channels), 1.0)
        self.mixture: Mixture | None = None
        if options.synthetic is not None:
            self.mixture = read_mixture(options.synthetic, options.geometry, arrays.label_set)
        self.frozen: Mapping[str, str] = {} if self.mixture is None else self.mixture.facts()
        self.config = options.network(arrays.label_set.num_classes)
        if options.init_weights is not None:
            found = check_segmenter(options.init_weights, arrays.label_set.names)
            require_same_network(options.init_weights, (found.network, self.config), (found.classes, arrays.label_set))

    def build(self) -> nn.Module:
        """A SegFormer of the options, for the classes of the data: new, or that of `init_weights`."""
        if self.options.init_weights is None:
            return build_segmenter(self.config)
        return load_segmenter(self.options.init_weights, self.data.label_set.names).train()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy per labelled pixel, of real images or of samples in their place.

        Per pixel in the mean of the data, not of these rows: so each labelled pixel counts alike, and the mean over
        shares of a batch is that of the batch. Batch normalisation still sees the rows that are computed together.
        """
        images, channels = (batch.images, batch.channels) if self.mixture is None else self.mixture.mixed(batch)
        losses = pixel_losses(scores(network, images), channels)
        return losses.sum() / (len(losses) * self._labelled_per_image)

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per validation image: the image, its mask, and the mask that was found."""
        chosen = spread_rows(len(self.validation.images), PICTURE_ROWS)
        images, channels = self.validation.images[chosen], self.validation.channels[chosen]
        found, _ = self._judge(average, images, channels)
        painted = [colour_masks(masks, self.data.label_set) for masks in (channels, found)]
        rows = [[images[i], painted[0][i], painted[1][i]] for i in range(len(chosen))]
        return grid(rows, magnify=max(1, ENLARGED_SIDE // max(self.options.size)))

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/` with `README.md`, `model.safetensors` and `config.json`."""
        label_set, options = self.data.label_set, self.options
        matrix, class_losses = self._validate(average)
        mean = round(mean_iou(matrix), 5)
        iou = [None if np.isnan(value) else round(float(value), 5) for value in iou_of(matrix)]
        config = SegmenterWeights(
            network=self.config,
            label_set=label_set.name,
            classes=label_set.names,
            size=options.size,
            class_losses=class_losses,
            iou=tuple(iou),
            mean_iou=mean,
            training={
                "steps": summary.steps,
                "batch_size": options.batch_size,
                "images": summary.num_images,
                "validation_images": len(self.validation.images),
                "data": summary.data_fingerprint,
                "loss": round(summary.loss, 5),
                "synthetic_images": 0 if self.mixture is None else len(self.mixture.images),
                **self.frozen,
            },
        )
        folder = Folder(options.out).child(WEIGHTS_NAME)
        folder.put("README.md", self._model_card(average, config, summary).encode())
        save_segmenter(folder.uri, config, average.state_dict(), options.store_dtype)
        return Saved(folder.uri, {"mean_iou": mean})

    def _validate(self, average: nn.Module) -> tuple[np.ndarray, tuple[float | None, ...]]:
        """Confusion matrix, and the mean loss of the pixels of each class, over all validation images."""
        num_classes = self.config.num_classes
        matrix = np.zeros((num_classes, num_classes), np.int64)
        sums, pixels = np.zeros(num_classes), np.zeros(num_classes, np.int64)
        for start in range(0, len(self.validation.images), JUDGED_AT_ONCE):
            rows = slice(start, start + JUDGED_AT_ONCE)
            channels = self.validation.channels[rows]
            found, losses = self._judge(average, self.validation.images[rows], channels)
            matrix += confusion(channels, found, num_classes)
            labelled = channels >= 0
            sums += np.bincount(channels[labelled], weights=losses[labelled], minlength=num_classes)
            pixels += np.bincount(channels[labelled], minlength=num_classes)
        return matrix, tuple(float(total / n) if n else None for total, n in zip(sums, pixels, strict=True))

    @torch.inference_mode()
    def _judge(self, network: nn.Module, images: np.ndarray, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = next(network.parameters()).device
        logits = scores(network, torch.from_numpy(images).to(device))
        wanted = torch.from_numpy(channels.astype(np.int64)).to(device)
        return logits.argmax(1).cpu().numpy().astype(np.int16), pixel_losses(logits, wanted).cpu().numpy()

    def _model_card(self, average: nn.Module, config: SegmenterWeights, summary: Summary) -> str:
        options = self.options
        rows = {
            "network": f"SegFormer, hidden {options.hidden}, depths {options.depths}, strides {options.strides}",
            **size_rows(average, options),
            **training_rows(options, self.data, summary),
            "synthetic": "none" if self.mixture is None else self.mixture.in_words(),
            "mIoU": f"{config.mean_iou} on `{options.validation}`, {len(self.validation.images):,} images",
        }
        classes = "\n".join(
            f"| {name} | {iou} | {loss if loss is None else round(loss, 4)} |"
            for name, iou, loss in zip(config.classes, config.iou, config.class_losses, strict=True)
        )
        card = model_card(f"Segmenter for {self.data.label_set.name}", rows, options)
        return f"{card}\n| class | IoU | mean loss |\n|---|---|---|\n{classes}\n"
