"""The kinds `captioner` and `clip`: what they learn, losses by hand, the same weights after a kill, and refusals."""

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Refused, child_environment, make_scenes_store
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_captioner import save_blip2
from tiny_clip import COLOURS, colour_labels, make_clip

from segdatagen.captioners import Captioner, CaptionerOptions
from segdatagen.clip_scores import ClipOptions, ClipScorer
from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import decode_image, encode_image, encode_mask
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.regions import regions_of
from segdatagen.sources import read_arrays
from segdatagen.training.captioner import (
    NOT_LEARNED,
    CaptionerTraining,
    CaptionerTrainingOptions,
    caption_loss,
    patch_loss,
)
from segdatagen.training.clip import ClipTraining, ClipTrainingOptions, contrastive_loss
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.latent_weights import read_record
from segdatagen.training.loop import build_network
from segdatagen.training.run import train
from segdatagen.training.text_data import decoder_tokenizer

CPU = torch.device("cpu")
SIDE = 32
LABELS = colour_labels()
CAPTIONER = {
    "patch": 16,
    "vision_hidden": 32,
    "vision_layers": 1,
    "queries": 4,
    "qformer_hidden": 32,
    "qformer_layers": 1,
    "decoder_hidden": 32,
    "decoder_layers": 1,
    "heads": 2,
}
CLIP = {
    "patch": 16,
    "vision_hidden": 16,
    "vision_layers": 1,
    "text_hidden": 16,
    "text_layers": 1,
    "projection": 16,
    "heads": 2,
}
SIZES = {"captioner": CAPTIONER, "clip": CLIP}
Configure = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def put_store(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A source store of the squares, by way of a Parquet file."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "squares.parquet")
    (folder / "squares.yaml").write_text(LABELS.to_yaml())
    reader = open_reader(
        "parquet", str(folder / "squares.parquet"), "train", Options(labels=str(folder / "squares.yaml"))
    )
    request = IngestRequest("parquet", str(folder), "train", str(folder / "store"))
    shard = ingest_shard(reader.list_items().items, "part-00000.parquet", reader, request, keep=True)
    assert shard.part is not None
    seal_store(request, reader, [shard.part], shard.bad)
    return folder / "store"


def square_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Images with a square of one of three colours on grey, its mask and a caption; all three take turns."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(count):
        name = list(COLOURS)[number % 3]
        image, mask = np.full((SIDE, SIDE, 3), 128.0), np.full((SIDE, SIDE), 9, np.uint8)
        top, left, side = *chance.integers(0, 8, 2), int(chance.integers(14, 24))
        image[top : top + side, left : left + side] = COLOURS[name]
        mask[top : top + side, left : left + side] = 5 - list(COLOURS).index(name)
        noisy = np.clip(image + chance.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
        caption = f"a {name} square on grey ground"
        rows.append({"image": encode_image(noisy, "png"), "mask": encode_mask(mask), "caption": caption})
    return rows


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 squares. Only to be read."""
    return put_store(tmp_path_factory.mktemp("squares") / "data", square_rows(24))


@pytest.fixture(scope="module")
def four_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four scenes, each with a caption of its own. Only to be read."""
    return make_scenes_store(tmp_path_factory.mktemp("four") / "store", 4)


def fields(kind: str, store: Path, out: Path) -> dict[str, Any]:
    return {
        "sources": str(store),
        "validation": str(store),
        "out": str(out),
        "size": [SIDE, SIDE],
        "network": SIZES[kind],
        "steps": 24,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "ema_start": 8,
        "torch_threads": 1,
        "checkpoint_every": 8,
    }


@pytest.fixture
def configure(tmp_path: Path, squares: Path) -> Configure:
    """`configure("clip", "out", steps=5)`: a configuration file of a training on squares, into `tmp_path/out`."""

    def make(kind: str, name: str, store: Path = squares, **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        chosen = fields(kind, store, tmp_path / name) | changes
        path.write_text(yaml.safe_dump({key: value for key, value in chosen.items() if value is not None}))
        return path

    return make


def train_here(kind: str, config: Path) -> Any:
    return train(kind, str(config), True, None, lambda _: None)


def kind_of(kind: str, store: Path, **changes: Any) -> Any:
    options_type, made = {
        "captioner": (CaptionerTrainingOptions, CaptionerTraining),
        "clip": (ClipTrainingOptions, ClipTraining),
    }[kind]
    options: Any = options_type.model_validate(fields(kind, store, store / "out") | changes)
    return made(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))


def losses_of(out: Path) -> list[str]:
    return [line.split(",")[1] for line in (out / "loss.csv").read_text().splitlines()[1:]]


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
    assert decode_image((Path(result.out) / "samples" / "step-00000150.png").read_bytes()).shape[0] > 4 * 128


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
    batch = batch_of_step(kind.arrays, Order(0, 4, False), 0, Share(), CPU)
    captioner = Captioner.of_model(CaptionerOptions(kind="blip2", weights="x"), network.model, kind._processor)
    asked = captioner._inputs(list(batch.images.numpy()), [captioner._options.asked] * 4)
    tokens, mask, labels = kind._padded([0, 1, 2, 3])
    tokenizer = kind._processor.tokenizer
    for row in range(4):
        given = tokens[row][mask[row].bool() & (labels[row] == NOT_LEARNED)]
        assert torch.equal(given, asked["input_ids"][row])
        said = labels[row][labels[row] != NOT_LEARNED]
        assert torch.equal(tokens[row][-len(said) :], said)
        assert tokenizer.decode(said[:-1]).strip() == kind.arrays.captions[row]
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


def test_clip_is_trained_on_crops_as_they_are_scored(squares: Path) -> None:
    kind = kind_of("clip", squares, flip=False)
    images, channels = kind.arrays.images, kind.arrays.channels
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


# Losses by hand


def test_the_loss_of_captions_by_hand() -> None:
    logits = torch.zeros(2, 4, 5)
    labels = torch.tensor([[NOT_LEARNED, NOT_LEARNED, 3, 4], [NOT_LEARNED, NOT_LEARNED, NOT_LEARNED, 1]])
    assert float(caption_loss(logits, labels)) == pytest.approx(3 * math.log(5) / 2)
    logits[0, 1, 3] = logits[0, 2, 4] = logits[1, 2, 1] = math.log(16)  # 16 / (16 + 4) for the right one
    assert float(caption_loss(logits, labels)) == pytest.approx(-3 * math.log(16 / 20) / 2)
    assert float(caption_loss(logits.roll(1, dims=1), labels)) > float(caption_loss(logits, labels))


def test_the_loss_of_patches_by_hand() -> None:
    channels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, -1], [0, 1, 2, 2], [1, 1, 2, 2]]])
    shares = torch.tensor([[[1.0, 0, 0], [0, 0.75, 0], [0.25, 0.75, 0], [0, 0, 1.0]]])
    assert float(patch_loss(torch.zeros(1, 4, 3), channels)) == pytest.approx(float(shares.sum()) * math.log(3) / 4)
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = -(shares * logits.log_softmax(-1)).sum() / 4
    assert float(patch_loss(logits, channels)) == pytest.approx(float(expected))


def test_the_contrastive_loss_by_hand() -> None:
    distinct = torch.arange(3)
    assert float(contrastive_loss(torch.zeros(3, 3), distinct)) == pytest.approx(math.log(3))
    assert float(contrastive_loss(100 * torch.eye(3), distinct)) == pytest.approx(0, abs=1e-6)
    twice = torch.tensor([0, 0, 1])
    same = (twice[:, None] == twice[None, :]).float()
    assert float(contrastive_loss(100 * same, twice)) == pytest.approx(2 * math.log(2) / 3, abs=1e-6)
    assert float(contrastive_loss(100 * torch.eye(3), twice)) > 30, "the twin of a row is no wrong answer"


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 2**31))
def test_the_contrastive_loss_is_lowest_where_texts_agree(which: list[int], seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(which)
    logits = torch.randn(len(which), len(which), generator=chance)
    same = (numbers[:, None] == numbers[None, :]).float()
    entropy = float(same.sum(1).log().mean())
    assert float(contrastive_loss(logits, numbers)) >= entropy - 1e-5
    assert float(contrastive_loss(50 * same, numbers)) == pytest.approx(entropy, abs=1e-5)
    order = torch.randperm(len(which), generator=chance)
    turned = contrastive_loss(logits[order][:, order], numbers[order])
    assert float(turned) == pytest.approx(float(contrastive_loss(logits, numbers)), rel=1e-5)


@settings(max_examples=20)
@given(st.text(max_size=30))
def test_tokenizers_say_any_text(text: str) -> None:
    taught = ["a red square on grey ground", "two blue squares"]
    tokenizer = decoder_tokenizer(taught, 600)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    clip = train_tokenizer(taught, 1024)
    assert clip.unk_token_id not in clip(text, add_special_tokens=False).input_ids
    assert len(clip("red square").input_ids) == 4, "a frequent word is one token"


def test_tokenizers_follow_from_the_texts() -> None:
    """Ties between merges are frequent in few words: trained often, the order of a hash table would show."""
    words = ["a red square on grey ground", "a blue square", "two green squares on brown sand"]
    made = [(decoder_tokenizer(words, 600), train_tokenizer(words[::-1], 1024)) for _ in range(12)]
    for one, two in made[1:]:
        assert one.backend_tokenizer.to_str() == made[0][0].backend_tokenizer.to_str()
        assert two.backend_tokenizer.to_str() == made[0][1].backend_tokenizer.to_str()


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


# Wrong input


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("`train captioner` on sources without captions", "captioner"),
        ("`train clip` on sources without captions", "clip"),
    ],
)
def test_no_captions(row: str, kind: str, refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    rows = square_rows(6)
    rows[2]["caption"] = rows[4]["caption"] = None
    path = configure(kind, "out", put_store(tmp_path / "data", rows))
    refused_here("train", kind, path, "--local", row=row)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("`train captioner` on fewer sources than a batch", "captioner"),
        ("`train clip` on fewer sources than a batch", "clip"),
    ],
)
def test_too_few_sources(row: str, kind: str, refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    path = configure(kind, "out", put_store(tmp_path / "data", square_rows(3)))
    refused_here("train", kind, path, "--local", row=row)


@pytest.mark.parametrize(
    ("row", "kind", "changes"),
    [
        ("`train captioner` with captions that are too long", "captioner", {"max_caption_tokens": 4}),
        ("`freeze_vision` without `init_weights`", "captioner", {"freeze_vision": True}),
        ("`network` beside `init_weights`", "captioner", {"init_weights": "blip2"}),
        ("a patch that does not divide the size", "captioner", {"network": {"patch": 5}}),
        ("a template of `train clip` without a class", "clip", {"template": "a photo"}),
        ("`train clip` on regions that are all too small", "clip", {"min_pixels": 900}),
        (
            "`init_weights` of `train clip` that are no CLIP",
            "clip",
            {"init_weights": "builtin:scenes-segmenter", "network": None},
        ),
        (
            "`init_weights` of `train captioner` that are no BLIP-2",
            "captioner",
            {"init_weights": "builtin:scenes-segmenter", "network": None},
        ),
    ],
)
def test_wrong_options(
    row: str, kind: str, changes: dict[str, Any], refused_here: Refused, configure: Configure
) -> None:
    refused_here("train", kind, configure(kind, "out", **changes), "--local", row=row)


def test_validation_that_cannot_judge(refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    few = put_store(tmp_path / "few", square_rows(6))
    scenes = make_scenes_store(tmp_path / "scenes", 2)
    refused_here(
        "train",
        "clip",
        configure("clip", "a", validation=str(few)),
        "--local",
        row="a validation store too small to rank",
    )
    refused_here(
        "train",
        "captioner",
        configure("captioner", "b", validation=str(scenes)),
        "--local",
        row="a validation store of other labels",
    )
