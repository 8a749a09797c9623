"""The kinds `captioner` and `clip`: what they learn, the same weights after a kill, and parts that stay frozen."""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import child_environment, make_scenes_store
from safetensors.torch import load_file
from tiny_captioner import save_blip2
from tiny_clip import make_clip
from tiny_squares import (
    CPU,
    LABELS,
    SIDE,
    Configure,
    configurer,
    kind_of,
    losses_of,
    put_store,
    square_rows,
    train_here,
)

from segdatagen.captioners import Captioner, CaptionerOptions
from segdatagen.clip_scores import ClipOptions, ClipScorer
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import decode_image
from segdatagen.regions import regions_of
from segdatagen.sources import read_arrays
from segdatagen.training.captioner import NOT_LEARNED
from segdatagen.training.clip import ClipTraining
from segdatagen.training.data import Order, Share, batch_of_step
from segdatagen.training.loop import build_network
from segdatagen.training_record import read_record


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 squares. Only to be read."""
    return put_store(tmp_path_factory.mktemp("squares") / "data", square_rows(24))


@pytest.fixture(scope="module")
def four_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four scenes, each with a caption of its own, and beside it the first three. Only to be read."""
    folder = tmp_path_factory.mktemp("four")
    make_scenes_store(folder / "judged", 3)
    return make_scenes_store(folder / "store", 4)


@pytest.fixture
def configure(tmp_path: Path, squares: Path) -> Configure:
    return configurer(tmp_path, squares)


# What they learn


def test_a_captioner_says_the_captions_that_it_was_taught(four_scenes: Path, configure: Configure) -> None:
    path = configure("captioner", "out", four_scenes, steps=150, ema_start=1000, flip=False, presence_loss=0.1)
    result = train_here("captioner", path)
    images, _, _, captions = read_arrays(str(four_scenes), Geometry(size=(SIDE, SIDE), fit="resize"))
    assert len(set(captions)) == 4
    captioner = Captioner(CaptionerOptions(kind="blip2", weights=result.weights))
    assert captioner.captions(list(images)) == list(captions)
    assert result.figures["same_captions"] == 1
    assert result.figures["named_are_there"] == 1
    assert result.figures["told_are_named"] == 1
    assert result.figures["there_are_named"] < 1, "the data set's captions name no sidewalk"
    record = read_record(result.weights)
    assert record is not None
    assert record.figures == {name: pytest.approx(value, abs=1e-5) for name, value in result.figures.items()}
    card = (Path(result.weights) / "README.md").read_text()
    assert "| captions equal to the data set's | 1.000 |" in card
    assert "| licence | that of the data" in card
    assert decode_image((Path(result.out) / "samples" / "step-00000150.png").read_bytes()).shape[0] > 3 * 128


def test_a_clip_tells_three_colours_apart(squares: Path, configure: Configure) -> None:
    result = train_here("clip", configure("clip", "out", steps=80, batch_size=6, ema_start=1000, store_dtype="float16"))
    assert result.figures == {"class_text_first_of_8": 1, "caption_first_of_8": 1}
    scorer = ClipScorer(ClipOptions(weights=result.weights, measure="probability"), LABELS)
    images, channels, *_ = read_arrays(str(squares), Geometry(size=(SIDE, SIDE), fit="resize"))
    ids = np.array(LABELS.ids)
    for image, mask in zip(images[:6], channels[:6], strict=True):
        assert all(score > 0.8 for score in scorer.scores(image, ids[mask].astype(np.uint8)).values())
    assert all(
        tensor.dtype == torch.float16 for tensor in load_file(Path(result.weights) / "model.safetensors").values()
    )
    picture = decode_image((Path(result.out) / "samples" / "step-00000080.png").read_bytes())
    assert picture.shape[1] > 3 * 76, "a column per class"


def test_clip_learns_regions_without_captions(tmp_path: Path, configure: Configure) -> None:
    rows = [{name: row[name] for name in ("image", "mask")} for row in square_rows(12)]
    store = put_store(tmp_path / "data", rows)
    result = train_here("clip", configure("clip", "out", store, captions=False, steps=2))
    assert result.figures.keys() == {"class_text_first_of_8"}


# The same after a kill

KILLED_CHILD = """
import os, signal, sys
from segdatagen.training.run import train

def die(progress):
    if progress.step >= 12:
        os.kill(os.getpid(), signal.SIGKILL)

train("captioner", sys.argv[1], True, None, die)
"""


def test_a_killed_captioner_ends_in_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    changes = {"presence_loss": 0.5, "patch_loss": 0.5}
    config = configure("captioner", "killed", **changes)
    child = [sys.executable, "-c", KILLED_CHILD, str(config)]
    assert subprocess.run(child, env=child_environment()).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights").exists()
    train_here("captioner", config)
    train_here("captioner", configure("captioner", "whole", **changes))
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_a_stopped_clip_ends_in_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    assert train_here("clip", configure("clip", "stopped", max_hours=1e-9)).step == 8
    train_here("clip", configure("clip", "stopped"))
    train_here("clip", configure("clip", "whole"))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def assert_same(found: Path, whole: Path) -> None:
    """Weights, losses, tokenizer and configuration of two trainings."""
    tensors, others = (load_file(out / "weights" / "model.safetensors") for out in (found, whole))
    assert tensors.keys() == others.keys()
    assert [name for name in others if not torch.equal(tensors[name], others[name])] == []
    assert losses_of(found) == losses_of(whole)
    for name in ("tokenizer.json", "config.json"):
        assert (found / "weights" / name).read_bytes() == (whole / "weights" / name).read_bytes()


@pytest.mark.parametrize("kind", ["captioner", "clip"])
def test_lower_precision_takes_nearly_the_same_steps(kind: str, configure: Configure, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train_here(kind, configure(kind, precision, precision=precision, steps=4))
    losses = [[float(loss) for loss in losses_of(tmp_path / name)] for name in ("fp32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


# As in a run


def test_the_captioner_is_trained_on_what_a_run_asks(squares: Path) -> None:
    kind = kind_of("captioner", squares, flip=False)
    network = build_network(kind, CPU)
    batch = batch_of_step(kind.data, Order(0, 4, False), 0, Share(), CPU)
    captioner = Captioner.of_model(CaptionerOptions(kind="blip2", weights="x"), network.model, kind._processor)
    asked = captioner._inputs(list(batch.images.numpy()), [captioner._options.asked] * 4)
    tokens, mask, labels = kind._padded([0, 1, 2, 3])
    tokenizer = kind._processor.tokenizer
    for row in range(4):
        given = tokens[row][mask[row].bool() & (labels[row] == NOT_LEARNED)]
        assert torch.equal(given, asked["input_ids"][row])
        said = labels[row][labels[row] != NOT_LEARNED]
        assert torch.equal(tokens[row][-len(said) :], said)
        assert tokenizer.decode(said[:-1]).strip() == kind.data.captions[row]
        assert said[-1] == tokenizer.eos_token_id
        assert mask[row].tolist() == sorted(mask[row].tolist()), "padding stands at the left"
    with torch.inference_mode():
        seen = network.model(**asked).logits[:, -1]
        loss = kind.loss(network, batch)
    said = [torch.tensor(kind._said[source]) for source in batch.sources.tolist()]
    firsts = torch.stack([tokens[0] for tokens in said])
    assert seen.shape == (4, len(tokenizer))
    whole = sum(float(_loss_alone(network.model, asked, row, tokens)) for row, tokens in enumerate(said))
    assert firsts.shape == (4,)
    assert float(loss) == pytest.approx(whole / 4 / kind._mean_length, rel=1e-4)


def _loss_alone(model: Any, asked: Any, row: int, said: torch.Tensor) -> torch.Tensor:
    """The loss of one caption as transformers computes it, without padding, summed over its tokens."""
    tokens = torch.cat([asked["input_ids"][row], said])[None]
    labels = torch.cat([torch.full_like(asked["input_ids"][row], NOT_LEARNED), said])[None]
    with torch.inference_mode():
        found = model(pixel_values=asked["pixel_values"][row : row + 1], input_ids=tokens, labels=labels)
    return found.loss * len(said)


def test_presence_is_asked_of_the_classes_that_the_caption_names(squares: Path) -> None:
    """By a layer that says the same of every image: each class is there with the probability of its bias alone."""
    plain, asked = kind_of("captioner", squares), kind_of("captioner", squares, presence_loss=0.5)
    network, labels = build_network(plain, CPU), asked.data.label_set
    shares = torch.tensor([0.9, 0.2, 0.3, 0.6])
    with torch.no_grad():
        network.presence.weight.zero_()
        network.presence.bias.copy_(torch.logit(shares))
        batches = [batch_of_step(asked.data, Order(0, 4, False), 0, Share(), CPU) for _ in range(2)]
        difference = float(asked.loss(network, batches[0]) - plain.loss(network, batches[1]))
    captions = [asked.data.captions[source] for source in batches[0].sources]
    named = torch.tensor([[f"a {label.prompt}" in caption for label in labels.classes] for caption in captions])
    assert named.sum(dim=1).tolist() == [1] * 4
    assert difference == pytest.approx(-0.5 * float(torch.where(named, shares, 1 - shares).log().mean()), abs=1e-5)


def test_rarer_classes_are_drawn_more_often(squares: Path) -> None:
    """Red lies along the edge of all images, green in a third: where both are, green is drawn three times as often."""
    plain = kind_of("clip", squares, flip=False)
    red, green = (plain.data.label_set.names.index(f"{colour}_square") for colour in ("red", "green"))
    channels = plain.data.channels.copy()
    channels[:, 26:] = red
    kind = ClipTraining(plain.options, dataclasses.replace(plain.data, channels=channels))
    image, mask = kind.data.images[1], channels[1]
    assert set(np.unique(mask)) == {0, red, green}
    drawn = [kind._channels[kind._draw(1, image, mask, _chance(number))[1]] for number in range(400)]
    assert set(drawn) == {red, green}
    assert drawn.count(green) / 400 == pytest.approx(3 / 4, abs=0.09), "within four standard deviations"


def _chance(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_clip_is_trained_on_crops_as_they_are_scored(squares: Path) -> None:
    kind = kind_of("clip", squares, flip=False)
    images, channels = kind.data.images, kind.data.channels
    for source in range(6):
        chance = torch.Generator().manual_seed(source)
        crop, place = kind._draw(source, images[source], channels[source], chance)
        (region,) = kind_regions(channels[source], kind._channels[place])
        assert np.array_equal(crop, region.crop(images[source]))
    network = build_network(kind, CPU)
    scorer = kind._scorer(network)
    vectors = kind._see(network, kind._pixels([images[0]], CPU)), kind._read(network, ["a red square", "a"])
    torch.testing.assert_close(vectors[0].detach(), scorer.image_vectors([images[0]]).clone())
    torch.testing.assert_close(vectors[1].detach(), scorer.text_vectors(["a red square", "a"]).clone())


def kind_regions(channels: np.ndarray, channel: int) -> list[Any]:
    return regions_of(channels, channel, 100, 3)


# From weights


def test_fine_tuning_leaves_frozen_parts_as_they_were(tmp_path: Path, configure: Configure) -> None:
    start = save_blip2(tmp_path / "start")
    changes = {"init_weights": str(start), "network": None, "freeze_vision": True, "freeze_language_model": True}
    path = configure("captioner", "out", **changes, steps=3, max_caption_tokens=60, ema_start=100)
    result = train_here("captioner", path)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (start, result.weights))
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"qformer", "query_tokens", "language_projection"}
    assert train_here("captioner", configure("captioner", "out", **changes, steps=4, max_caption_tokens=60)).step == 4
    other = configure("captioner", "t5-out", init_weights=str(save_blip2(tmp_path / "t5", "t5")), network=None)
    with pytest.raises(UsageError, match="language model with an encoder; train one with a decoder alone"):
        train_here("captioner", other)


def test_clip_goes_on_from_weights(tmp_path: Path, configure: Configure) -> None:
    start = make_clip(tmp_path / "start")
    path = configure("clip", "out", init_weights=str(start), network=None, steps=1, learning_rate=1e-9)
    before, after = (load_file(Path(f) / "model.safetensors") for f in (start, train_here("clip", path).weights))
    assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in after.items())
