"""Segmenters: SegFormer networks of the transformers library, images in, a score per class and pixel out.

Judges of generated images and sources of filters. torch and transformers are imported when a network is built or run.
This module does not know what is done with the scores, nor how a segmenter is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.errors import UsageError
from segdatagen.weights import (
    TENSORS_NAME,
    StoreDtype,
    check_tensors,
    fill,
    local_weights,
    put_weights,
    read_tensors,
    read_weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

FEW = 3
"""Classes that an error names."""
Count = Annotated[int, Field(ge=1)]
Stages = tuple[Count, Count, Count, Count]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as every published SegFormer expects its RGB images in [0, 1]."""


class SegmenterConfig(BaseModel):
    """Architecture of a SegFormer (Xie et al., 2021), stage by stage. The defaults have 1.5 million parameters.

    `strides` are (4, 2, 2, 2) in the paper; small images need a first stride of 1 or 2, or small things are gone
    before anything is learnt of them. `reductions` divide the side of the keys of each stage's attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(ge=1)
    hidden: Stages = (24, 48, 96, 160)
    depths: Stages = (2, 2, 2, 2)
    heads: Stages = (1, 2, 4, 5)
    strides: Stages = (2, 2, 2, 2)
    reductions: Stages = (8, 4, 2, 1)
    decoder_hidden: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> SegmenterConfig:
        for channels, heads in zip(self.hidden, self.heads, strict=True):
            if heads < 1 or channels % heads:
                raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        return self


class SegmenterWeights(BaseModel):
    """What `config.json` of a segmenter says: the network, what it was trained on, and how well it does.

    `class_losses` are the means of the cross-entropy of each class's pixels on real images, which FreeMask's filter
    compares with; `iou` is per class, of validation images; both null for a class that they did not show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["segmenter"] = "segmenter"
    network: SegmenterConfig
    label_set: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    """Width and height of the training images."""
    class_losses: tuple[float | None, ...]
    iou: tuple[float | None, ...]
    mean_iou: float | None
    training: dict[str, Any] = {}


def build_segmenter(config: SegmenterConfig) -> nn.Module:
    """A `SegformerForSemanticSegmentation` of this architecture, on the current torch device, not trained."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    first, *others = config.strides
    network: nn.Module = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=config.num_classes,
            depths=list(config.depths),
            hidden_sizes=list(config.hidden),
            num_attention_heads=list(config.heads),
            sr_ratios=list(config.reductions),
            patch_sizes=[7 if first == 4 else 3, *(3 for _ in others)],
            strides=list(config.strides),
            mlp_ratios=[4, 4, 4, 4],
            decoder_hidden_size=config.decoder_hidden,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
    )
    return network


def scores(network: nn.Module, images: Tensor) -> Tensor:
    """Logits float32 `[B, C, H, W]` for images uint8 `[B, H, W, 3]` RGB, at the size of the images."""
    import torch
    from torch.nn import functional

    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    logits: Tensor = network(pixel_values=pixels).logits.float()
    return functional.interpolate(logits, size=images.shape[1:3], mode="bilinear", align_corners=False)


def pixel_losses(logits: Tensor, channels: Tensor) -> Tensor:
    """Cross-entropy of every pixel, float32 `[B, H, W]`, for channels int64 `[B, H, W]`; 0 where they are below 0."""
    from torch.nn import functional

    return functional.cross_entropy(logits, channels.clamp(min=-1), ignore_index=-1, reduction="none")


class Segmenter:
    """Trained weights, ready to judge: images in, classes or losses out, a few at a time."""

    def __init__(self, uri: str, label_names: tuple[str, ...], device: str = "cpu", batch_size: int = 16) -> None:
        """Load. Raises `UsageError` unless the weights at `uri` are a segmenter of exactly these classes."""
        self.config = check_segmenter(uri, label_names)
        self._network = load_segmenter(uri, label_names).to(device)
        self._device, self._batch_size = device, batch_size

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The best channel of every pixel, int16 `[N, H, W]`, for images uint8 `[N, H, W, 3]`."""
        found, _ = self._judge(images, None)
        return found

    def judge(self, images: np.ndarray, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`predict`, and the loss of every pixel float32 `[N, H, W]` against `channels [N, H, W]`, below 0 ignored."""
        return self._judge(images, channels)

    def _judge(self, images: np.ndarray, channels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        import torch

        found = np.empty(images.shape[:3], np.int16)
        losses = np.zeros(images.shape[:3], np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                rows = slice(start, start + self._batch_size)
                logits = scores(self._network, torch.from_numpy(images[rows]).to(self._device))
                found[rows] = logits.argmax(1).cpu().numpy()
                if channels is not None:
                    wanted = torch.from_numpy(channels[rows].astype(np.int64)).to(self._device)
                    losses[rows] = pixel_losses(logits, wanted).cpu().numpy()
        return found, losses


def check_segmenter(uri: str, label_names: tuple[str, ...]) -> SegmenterWeights:
    """`config.json` of a segmenter. Raises `UsageError` if it is none, damaged or of other classes; needs no torch."""
    folder = local_weights(uri)
    config = read_weights(folder, SegmenterWeights)
    if config.classes != label_names:
        raise UsageError(
            f"the segmenter {uri} was trained on {config.label_set} ({_shown(config.classes)}), "
            f"not on {_shown(label_names)}: use one of the same classes in the same order"
        )
    check_tensors(folder / TENSORS_NAME)
    return config


def _shown(classes: tuple[str, ...]) -> str:
    """The first classes, and how many there are if those are not all."""
    first = ", ".join(classes[:FEW])
    return first if len(classes) <= FEW else f"{first} and {len(classes) - FEW} more"


def save_segmenter(
    uri: str, config: SegmenterWeights, tensors: Mapping[str, Tensor], store_dtype: StoreDtype = "float32"
) -> None:
    """Write the weights folder of a segmenter: see `put_weights`."""
    import torch

    dtype = getattr(torch, store_dtype)
    stored = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }
    put_weights(uri, config, stored)


def load_segmenter(uri: str, label_names: tuple[str, ...]) -> nn.Module:
    """The network of the weights at `uri`, float32, on the CPU, for inference. Raises `UsageError`."""
    network = build_segmenter(check_segmenter(uri, label_names).network)
    fill(network, read_tensors(local_weights(uri) / TENSORS_NAME), uri)
    return network.eval()
