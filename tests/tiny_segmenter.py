"""A small segmenter with random weights: real code, real files, and predictions that nobody trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from segdatagen.labels import LabelSet, load_label_set
from segdatagen.segmenters import SegmenterConfig, SegmenterWeights, build_segmenter, save_segmenter, scores

HEADS = (1, 1, 1, 1)


def make_segmenter(
    folder: Path,
    labels: LabelSet | None = None,
    seed: int = 0,
    class_losses: Sequence[float | None] | None = None,
) -> Path:
    """Weights for `labels` (scenes) whose `class_losses` are as given, 1 for each class otherwise."""
    labels = labels or load_label_set("scenes")
    config = SegmenterConfig(num_classes=labels.num_classes, hidden=(8, 8, 8, 8), heads=HEADS, decoder_hidden=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_segmenter(config).eval()
        noise = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        # Scaled, and without a favourite: the classes that are found differ from pixel to pixel.
        network.decode_head.classifier.weight *= 20
        network.decode_head.classifier.bias -= scores(network, noise).mean((0, 2, 3))
    tensors = network.state_dict()
    losses = tuple(class_losses) if class_losses is not None else (1.0,) * labels.num_classes
    weights = SegmenterWeights(
        network=config,
        label_set=labels.name,
        classes=labels.names,
        size=(32, 32),
        class_losses=losses,
        iou=(0.5,) * labels.num_classes,
        mean_iou=0.5,
    )
    save_segmenter(str(folder), weights, tensors)
    return folder
