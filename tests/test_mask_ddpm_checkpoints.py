"""Checkpoints of paper 001's authors become weights folders: both forms, and what is refused instead of guessed."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import JobFactory, Refused, visible
from torch import Tensor
from traps import sprung, traps

from segdatagen.cli import main
from segdatagen.diffusion.mask_unet import MaskUNet, one_hot
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.errors import UsageError
from segdatagen.labels import load_label_set
from segdatagen.mask_ddpm_checkpoints import Conversion, Converted, convert_checkpoint, parse_size, read_labels
from segdatagen.weights import CARD_NAME, CONFIG_NAME, TENSORS_NAME, fingerprint_of, load_mask_ddpm

SCENES = MaskUNetConfig(num_classes=12, hidden=4, time_embedding=8)
Tensors = dict[str, Tensor]


def network(seed: int, config: MaskUNetConfig = SCENES) -> MaskUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskUNet(config).eval()


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def lightning(state_dict: Tensors, **more: Any) -> dict[str, Any]:
    """A checkpoint as Lightning writes one, with the hyper-parameters as the objects that they were."""
    return {
        "epoch": 549,
        "global_step": 77_000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state_dict,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 550}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "kth_value": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"model": network(9), "arguments": argparse.Namespace(lr=3e-4), **more},
    }


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Converted]:
    """`converted(content)`: saved as `last.ckpt`, and converted into `weights`."""

    def convert(content: Any, labels: str = "scenes", out: str = "weights") -> Converted:
        torch.save(content, tmp_path / "last.ckpt")
        conversion = Conversion(str(tmp_path / "last.ckpt"), str(tmp_path / out), load_label_set(labels), (64, 32))
        return convert_checkpoint(conversion, lambda done, total: None)

    return convert


def tensors_of(folder: Path, num_classes: int = 12) -> dict[str, Tensor]:
    return load_mask_ddpm(str(folder), num_classes)[0].state_dict()


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_both_forms_give_the_same_weights(tmp_path: Path, converted: Callable[..., Converted]) -> None:
    average = network(2).state_dict()
    (tmp_path / "traces").mkdir()
    both = prefixed("model", network(1).state_dict()) | prefixed("ema_model", average) | {"metric.sum": torch.zeros(2)}
    found = converted(lightning(both, **traps(tmp_path / "traces")), out="lightning")
    assert not sprung(tmp_path / "traces")
    assert found.taken.startswith("ema_model.*")
    assert found.left_out == len(average) + 1
    assert found.num_parameters == sum(tensor.numel() for tensor in average.values())
    assert converted(average, out="bare").left_out == 0
    assert equal(tensors_of(tmp_path / "lightning"), average)
    assert equal(tensors_of(tmp_path / "bare"), average)


@torch.inference_mode()
def test_converted_weights_predict_what_the_checkpoint_predicted(
    tmp_path: Path, converted: Callable[..., Converted]
) -> None:
    original = network(3)
    converted(lightning(prefixed("ema_model", original.state_dict())))
    model, config = load_mask_ddpm(str(tmp_path / "weights"), 12)
    assert (config.network, config.size, config.classes) == (SCENES, (64, 32), load_label_set("scenes").names)
    images, steps = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    masks = one_hot(torch.arange(256).reshape(2, 16, 8) % 12, 12)
    assert torch.equal(model(images, steps, model.mask_conv(masks)), original(images, steps, original.mask_conv(masks)))


@pytest.mark.parametrize(
    "config",
    [
        MaskUNetConfig(num_classes=12, hidden=2, time_embedding=6),
        MaskUNetConfig(num_classes=12, hidden=6, time_embedding=2, attention=False),
    ],
)
def test_network_follows_from_the_shapes(converted: Callable[..., Converted], config: MaskUNetConfig) -> None:
    assert converted(network(0, config).state_dict()).network == config.model_dump()


def test_checkpoint_without_average_says_so(tmp_path: Path, converted: Callable[..., Converted]) -> None:
    plain = network(1).state_dict()
    found = converted(lightning(prefixed("model", plain)))
    assert "no average" in found.taken
    assert "no average" in (tmp_path / "weights" / CARD_NAME).read_text()
    assert equal(tensors_of(tmp_path / "weights"), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_views_of_any_precision_come_whole(
    tmp_path: Path, converted: Callable[..., Converted], dtype: torch.dtype
) -> None:
    tensors = network(4).state_dict()
    pool = torch.cat([tensor.flatten() for tensor in tensors.values()]).to(dtype)  # one storage for all
    pieces = pool.split([tensor.numel() for tensor in tensors.values()])
    views = {n: piece.view(t.shape) for piece, (n, t) in zip(pieces, tensors.items(), strict=True)}
    views["outc.weight"] = views["outc.weight"].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    for content in (views, lightning(prefixed("ema_model", views))):
        converted(content, out=f"weights-{len(content)}")
        found = tensors_of(tmp_path / f"weights-{len(content)}")
        assert equal(found, {name: tensor.to(dtype).float() for name, tensor in tensors.items()})


def test_card_and_config_name_the_origin(tmp_path: Path, converted: Callable[..., Converted]) -> None:
    converted(lightning(prefixed("ema_model", network(1).state_dict())))
    training = json.loads((tmp_path / "weights" / CONFIG_NAME).read_text())["training"]
    assert (training["converted_from"], training["epoch"], training["global_step"]) == ("last.ckpt", 549, 77_000)
    card = (tmp_path / "weights" / CARD_NAME).read_text()
    for word in ("last.ckpt", training["blake2b"], "12: sky, building", "64 x 32", "549, 77000", "hidden 4"):
        assert word in card
    assert str(tmp_path) not in card


def test_second_conversion_changes_nothing_and_a_killed_one_goes_on(
    tmp_path: Path, converted: Callable[..., Converted]
) -> None:
    content, folder = network(1).state_dict(), tmp_path / "weights"
    assert not converted(content).unchanged
    before, stamp = visible(folder), (folder / TENSORS_NAME).stat().st_mtime_ns
    assert converted(content).unchanged
    assert (folder / TENSORS_NAME).stat().st_mtime_ns == stamp
    for names in ((CONFIG_NAME,), (CONFIG_NAME, TENSORS_NAME)):
        for name in names:
            (folder / name).unlink()
        assert not converted(content).unchanged
        assert visible(folder) == before


@pytest.mark.parametrize("name", ["notes.txt", CONFIG_NAME, TENSORS_NAME])
def test_folder_that_holds_something_else_is_refused(
    tmp_path: Path, converted: Callable[..., Converted], name: str
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds something else .{name}.: choose another --out"):
        converted(network(1).state_dict())
    assert set(visible(tmp_path / "weights")) == {name}


def test_folder_of_other_weights_is_refused(tmp_path: Path, converted: Callable[..., Converted]) -> None:
    converted(network(1).state_dict())
    before = fingerprint_of(str(tmp_path / "weights"))
    with pytest.raises(UsageError, match="holds something else"):
        converted(network(2).state_dict())
    assert fingerprint_of(str(tmp_path / "weights")) == before


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


GOOD = network(5).state_dict()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "no checkpoint of the mask-guided DDPM"),
        ([GOOD], "it holds no tensors by name"),
        ({"state_dict": 3}, "it holds no tensors by name"),
        ({"generator.weight": torch.ones(2), "epoch": 4}, "it holds generator.weight"),
        ({"\x1b[31mred": torch.ones(2)}, r"it holds '\x1b[31mred'"),
        (lightning(prefixed("student", GOOD)), "one of ema_model.outc.weight, outc.weight, model.outc.weight"),
        (without(GOOD, "mask_conv.double_conv.0.weight"), "mask_conv.double_conv.0.weight is missing"),
        (GOOD | {"outc.weight": torch.zeros(3)}, "outc.weight is missing, or of another shape"),
        (GOOD | {"outc.weight": torch.zeros(3, 3, 1, 1)}, "no mask-guided DDPM has hidden 3"),
        (without(GOOD, "up2.emb_layer.1.bias"), "with hidden 4: missing: up2.emb_layer.1.bias"),
        (without(GOOD, "sa3.ln.weight", "sa3.ln.bias"), "missing: sa3.ln.weight, sa3.ln.bias"),
        (without(GOOD, *(n for n in GOOD if n.startswith("sa3."))), "missing: sa3.mha.in_proj_weight, "),
        (GOOD | {"time_mlp.0.weight": torch.ones(2)}, "unexpected: time_mlp.0.weight"),
        (GOOD | {"inc.double_conv.1.bias": torch.zeros(5)}, "of another shape: inc.double_conv.1.bias"),
        (GOOD | {f"extra.{i}": torch.ones(1) for i in range(9)}, "extra.0, extra.1, extra.2 and 6 more"),
        (GOOD | {"outc.bias": torch.tensor([0.0, float("nan"), 0.0])}, "outc.bias holds NaN or infinity"),
        (GOOD | {"outc.bias": torch.tensor([1, 2, 3])}, "outc.bias holds int64"),
    ],
)
def test_what_is_no_checkpoint_of_this_network_is_refused(
    tmp_path: Path, converted: Callable[..., Converted], content: Any, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        converted(content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "weights").exists()


def test_numbers_that_the_file_cannot_hold_are_refused(converted: Callable[..., Converted]) -> None:
    """A tensor of strides 0 is as large as it says and takes four bytes in the file."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in MaskUNet(MaskUNetConfig(hidden=1024)).state_dict().items()}
    content = {name: torch.zeros([1] * len(shape)).expand(shape) for name, shape in shapes.items()}
    for form in (content, lightning(prefixed("ema_model", content))):
        with pytest.raises(UsageError, match="claims more numbers than a file of its size can hold"):
            converted(form, "colourbook_bdd")


def test_another_number_of_classes_is_refused(converted: Callable[..., Converted]) -> None:
    with pytest.raises(UsageError, match="knows 12 classes, label set camvid has 11"):
        converted(GOOD, "camvid")


def test_classes_may_come_from_the_colour_map(tmp_path: Path, shared: Path) -> None:
    assert read_labels("camvid") == load_label_set("camvid")
    labels = read_labels(str(shared / "data/samples/colourbook_bdd/colormap.json"))
    assert labels.names == load_label_set("colourbook_bdd").names
    with pytest.raises(UsageError, match=r"no colormap.json here"):
        read_labels(str(tmp_path / "colormap.json"))


def test_size_is_two_multiples_of_eight() -> None:
    assert parse_size("128x64") == (128, 64)
    for wrong in ("128", "128x", "60x64", "0x8", "-8x8", "8x8x8", "128 x 128"):
        with pytest.raises(UsageError, match="--size is WIDTHxHEIGHT in multiples of 8"):
            parse_size(wrong)


def test_command_converts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(lightning(prefixed("ema_model", GOOD)), tmp_path / "last.ckpt")
    words = ["weights", "convert", str(tmp_path / "last.ckpt"), "--labels", "scenes", "--out", str(tmp_path / "w")]
    assert main([*words, "--half", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["network"]["hidden"], found["unchanged"]) == (4, False)
    assert (tmp_path / "w" / TENSORS_NAME).stat().st_size < 3 * found["num_parameters"]
    assert main([*words, "--half"]) == 0
    assert "already there, unchanged" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["absent.ckpt", "--labels", "scenes"], "no weights at"),
        ([".", "--labels", "scenes"], "is a folder: name a checkpoint"),
        (["s3://bucket/last.ckpt", "--labels", "scenes"], "not on this machine"),
        (["last.ckpt", "--labels", "nothing"], "'nothing'"),
        (["last.ckpt", "--labels", "scenes", "--size", "100"], "--size is WIDTHxHEIGHT"),
        (["last.ckpt", "--labels", "scenes"], "no whole file of torch.save"),
    ],
)
def test_wrong_words_cost_a_line(refused_here: Refused, tmp_path: Path, words: list[str], sentence: str) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    place = words[0] if "://" in words[0] else tmp_path / words[0]
    assert sentence in refused_here("weights", "convert", place, *words[1:], "--out", tmp_path / "weights")


def test_job_that_names_a_checkpoint_learns_what_to_do(
    refused_here: Refused, make_job: JobFactory, tmp_path: Path
) -> None:
    torch.save(GOOD, tmp_path / "last.pt")
    line = refused_here("run", make_job(methods={"mask_ddpm": {"weights": str(tmp_path / "last.pt")}}))
    assert "is a file, not a weights folder: make one of it with `segdatagen weights convert`" in line
