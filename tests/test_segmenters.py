"""Segmenters: trained by the loop that trains everything, loaded as they were saved, refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Refused, make_scenes_store
from torch.nn import functional

from segdatagen.cli import main
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.labels import load_label_set
from segdatagen.metrics.segmentation import confusion, mean_iou
from segdatagen.segmenters import (
    Segmenter,
    SegmenterConfig,
    SegmenterWeights,
    build_segmenter,
    check_segmenter,
    pixel_losses,
    save_segmenter,
    scores,
)
from segdatagen.sources import read_arrays
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.kind import TrainingProgress, TrainingResult
from segdatagen.training.loop import build_network
from segdatagen.training.run import train
from segdatagen.training.segmenter import SegmenterTraining, SegmenterTrainingOptions
from segdatagen.weights import TENSORS_NAME, read_weights

SIZE = (64, 64)
CPU = torch.device("cpu")
Configure = Callable[..., Path]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("segmenter")
    training, validation = folder / "training", folder / "validation"
    make_scenes_store(training, 16, SIZE[0])
    make_scenes_store(validation, 6, SIZE[0], "val")
    return training, validation


@pytest.fixture
def configure(tmp_path: Path, stores: tuple[Path, Path]) -> Configure:
    def make(**changes: object) -> Path:
        fields: dict[str, object] = {
            "sources": str(stores[0]),
            "validation": str(stores[1]),
            "out": str(tmp_path / "out"),
            "size": list(SIZE),
            "steps": 40,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "hidden": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "heads": [1, 1, 1, 1],
            "decoder_hidden": 32,
            "ema_decay": 0.8,
            "ema_start": 10,
            "torch_threads": 1,
        }
        path = tmp_path / "segmenter.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return path

    return make


def silent(progress: TrainingProgress) -> None:
    """What a program gives that shows no progress."""


def train_here(config: Path) -> TrainingResult:
    return train("segmenter", str(config), True, None, silent)


def test_trained_segmenter_finds_large_classes_and_records_what_it_lacks(
    configure: Configure, stores: tuple[Path, Path]
) -> None:
    result = train_here(configure())
    assert result.weights is not None
    weights = read_weights(Path(result.weights), SegmenterWeights)
    labels = load_label_set("scenes")
    images, channels, *_ = read_arrays(str(stores[1]), Geometry(size=SIZE, fit="resize"))
    segmenter = Segmenter(result.weights, labels.names, batch_size=4)
    found, losses = segmenter.judge(images, channels)
    assert np.array_equal(found, segmenter.predict(images))
    matrix = confusion(channels, found, labels.num_classes)
    assert mean_iou(matrix) == pytest.approx(weights.mean_iou, abs=2e-5)
    road = labels.channel_of("road")
    chance = (channels == road).mean()
    assert weights.iou[road] is not None
    assert weights.iou[road] > 1.2 * chance
    for channel, mean in enumerate(weights.class_losses):
        shown = channels == channel
        assert mean == pytest.approx(losses[shown].mean(), rel=1e-3) if shown.any() else mean is None
    again = train_here(configure(out=f"{result.out}-again", init_weights=result.weights, steps=2, learning_rate=1e-9))
    assert again.weights is not None
    assert read_weights(Path(again.weights), SegmenterWeights).mean_iou == pytest.approx(weights.mean_iou, abs=0.02)
    with pytest.raises(UsageError, match="of another network"):
        train_here(configure(out=f"{result.out}-other", init_weights=result.weights, decoder_hidden=16))
    card = Path(result.weights, "README.md").read_text()
    assert f"| mIoU | {weights.mean_iou} on `{stores[1]}`, 6 images |" in card
    assert list(Path(result.out, "samples").iterdir())


def test_a_training_ends_with_its_miou(configure: Configure, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["train", "segmenter", str(configure(steps=2)), "--local"]
    assert main(words) == 0
    printed = capfd.readouterr().out.splitlines()[-1]
    assert main([*words, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    stored = read_weights(Path(result["weights"]), SegmenterWeights).mean_iou
    assert result["figures"]["mean_iou"] == stored
    assert printed == f"weights: {result['weights']}, mean iou {stored:.4f}"


@pytest.mark.parametrize("change", [{"heads": [2, 1, 1, 1]}, {"reductions": [4, 4, 2, 1]}, {"strides": [4, 2, 2, 2]}])
def test_a_training_does_not_go_on_as_another_network(configure: Configure, change: dict[str, object]) -> None:
    """Heads change no shape of a tensor: nothing else would notice."""
    train_here(configure(steps=2, checkpoint_every=1))
    (name,) = change
    with pytest.raises(UsageError, match=f"another training is here .its {name} is "):
        train_here(configure(steps=4, **change))


def test_the_loss_is_that_of_its_parts_however_much_of_them_is_ignored(configure: Configure) -> None:
    """As a batch of several workers, or of several parts; over all of the data it is the mean per labelled pixel."""
    options = SegmenterTrainingOptions.model_validate(yaml.safe_load(configure(flip=False, batch_size=16).read_text()))
    images, channels, labels, captions = read_arrays(options.sources, options.geometry)
    channels[:5, 8:] = -1
    kind = SegmenterTraining(options, TrainingArrays(images, channels, labels, captions))
    network = build_network(kind, CPU).eval()

    def loss(share: Share) -> float:
        return float(kind.loss(network, batch_of_step(kind.data, Order(0, 16, False), 0, share, CPU)).detach())

    whole = loss(Share())
    assert np.mean([loss(Share(rank, 4)) for rank in range(4)]) == pytest.approx(whole, rel=1e-5)
    logits = scores(network, torch.from_numpy(images)).detach()
    expected = functional.cross_entropy(logits, torch.from_numpy(channels).long(), ignore_index=-1)
    assert whole == pytest.approx(float(expected), rel=1e-5)


def test_pixel_losses_are_those_of_torch_and_nothing_where_ignored() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=chance)
    channels = torch.randint(-1, 3, (2, 4, 5), generator=chance)
    losses = pixel_losses(logits, channels)
    assert torch.equal(losses == 0, channels < 0)
    labelled = channels >= 0
    expected = functional.cross_entropy(logits.permute(0, 2, 3, 1)[labelled], channels[labelled])
    assert float(losses[labelled].mean()) == pytest.approx(float(expected))


@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_scores_have_the_size_of_the_images(size: tuple[int, int]) -> None:
    network = build_segmenter(SegmenterConfig(num_classes=5, hidden=(8, 8, 8, 8), heads=(1, 1, 1, 1)))
    images = torch.zeros((1, *size, 3), dtype=torch.uint8)
    assert scores(network, images).shape == (1, 5, *size)


def test_wrong_segmenters_are_refused(tmp_path: Path) -> None:
    config = SegmenterConfig(num_classes=2, hidden=(8, 8, 8, 8), heads=(1, 1, 1, 1), decoder_hidden=8)
    weights = SegmenterWeights(
        network=config,
        label_set="two",
        classes=("a", "b"),
        size=SIZE,
        class_losses=(1.0, None),
        iou=(0.5, None),
        mean_iou=0.5,
    )
    uri = str(tmp_path / "weights")
    save_segmenter(uri, weights, build_segmenter(config).state_dict())
    Segmenter(uri, ("a", "b"))
    with pytest.raises(UsageError, match=r"was trained on two \(a, b\), not on b, a"):
        Segmenter(uri, ("b", "a"))
    with pytest.raises(UsageError, match="holds weights of the kind mask_ddpm, and segmenter is needed here"):
        Segmenter("builtin:scenes-mask-ddpm", ("a", "b"))
    (tmp_path / "weights" / "config.json").write_text(
        json.dumps(weights.model_dump(mode="json") | {"network": config.model_dump() | {"decoder_hidden": 16}})
    )
    with pytest.raises(UsageError, match=r"do not fit their config.json"):
        Segmenter(uri, ("a", "b"))
    tensors = tmp_path / "weights" / TENSORS_NAME
    whole = tensors.read_bytes()
    for broken in (b"", b"garbage" * 20, whole[: len(whole) // 2], whole[:-1]):
        tensors.write_bytes(broken)
        with pytest.raises(UsageError, match=r"cannot be read .*: fetch or train them again"):
            check_segmenter(uri, ("a", "b"))
    tensors.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        Segmenter(uri, ("a", "b"))
    with pytest.raises(ValueError, match="8 channels cannot be shared by 3 heads"):
        SegmenterConfig(num_classes=2, hidden=(8, 8, 8, 8), heads=(3, 1, 1, 1))


@pytest.mark.parametrize("same", ["itself", "copy"])
def test_the_store_of_the_training_is_no_validation(
    refused_here: Refused, configure: Configure, stores: tuple[Path, Path], tmp_path: Path, same: str
) -> None:
    copy = shutil.copytree(stores[0], tmp_path / "copy") if same == "copy" else stores[0]
    row = "`train segmenter` with its sources as validation, or a copy of them"
    refused_here("train", "segmenter", configure(validation=str(copy)), "--local", row=row)


def test_missing_validation_store_is_refused(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        train_here(configure(validation=str(tmp_path / "nothing")))
    assert not (tmp_path / "out").exists()


def test_lower_precision_trains_and_draws(configure: Configure, tmp_path: Path) -> None:
    result = train_here(configure(precision="bf16", steps=4))
    assert result.weights is not None
    assert (tmp_path / "out" / "samples" / "step-00000004.png").exists()
