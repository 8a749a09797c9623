"""Weights folders: what is refused before a run, what is kept, and what their fingerprint stands for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import child_environment, make_weights

from segdatagen.errors import UsageError
from segdatagen.weights import (
    CONFIG_NAME,
    TENSORS_NAME,
    MaskDDPMWeights,
    check_mask_ddpm,
    fingerprint_of,
    load_mask_ddpm,
    local_weights,
    read_tensors,
    read_weights,
    save_mask_ddpm,
)

NUM_CLASSES = 12


@pytest.fixture
def weights(tmp_path: Path, scenes_weights: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(scenes_weights, tmp_path / "weights"))


def refused(uri: Path | str, num_classes: int = NUM_CLASSES) -> str:
    """What both the check and the load say: they refuse the same, in the same words."""
    with pytest.raises(UsageError) as checked:
        check_mask_ddpm(str(uri), num_classes)
    with pytest.raises(UsageError):
        load_mask_ddpm(str(uri), num_classes)
    assert "\n" not in str(checked.value)
    return str(checked.value)


def test_good_weights_pass_the_check_and_load(weights: Path) -> None:
    check_mask_ddpm(str(weights), NUM_CLASSES)
    model, config = load_mask_ddpm(f"file://{weights}", NUM_CLASSES)
    assert not model.training
    assert config.label_set == "scenes"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_check_needs_no_torch(weights: Path) -> None:
    program = (
        f"import sys; from segdatagen.weights import check_mask_ddpm; "
        f"check_mask_ddpm({str(weights)!r}, {NUM_CLASSES}); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_weights_name_what_is_there(weights: Path) -> None:
    assert f"{weights.parent} holds weights" in refused(weights.parent / "absent")
    for name in (".hidden", *"abcdef"):
        (weights.parent / name).touch()
    assert refused(weights.parent / "absent").endswith("holds a, b, c, d, e, ...")
    assert "there are no weights builtin:absent" in refused("builtin:absent")
    assert "not on this machine" in refused("s3://bucket/weights")


def test_weights_of_another_number_of_classes_are_refused(weights: Path) -> None:
    message = refused(weights, num_classes=19)
    assert "12 classes of scenes" in message
    assert "19" in message


def test_folder_without_config_is_refused(weights: Path) -> None:
    (weights / CONFIG_NAME).unlink()
    assert f"no readable {CONFIG_NAME}" in refused(weights)


def test_config_that_is_not_a_network_is_refused(weights: Path) -> None:
    path = weights / CONFIG_NAME
    whole = json.loads(path.read_text())
    for broken, problem in (
        ("not json", "no JSON, expected ident at line 1 column 2"),
        (json.dumps({name: value for name, value in whole.items() if name != "network"}), "network: missing"),
        (
            json.dumps(whole | {"network": whole["network"] | {"hidden": 3}}),
            "network.hidden: must be a multiple of 2, not 3",
        ),
        (json.dumps(whole | {"surprise": 1}), "surprise: unknown key; allowed are kind, network"),
    ):
        path.write_text(broken)
        assert f"{path}: not as segdatagen writes it ({problem}" in refused(weights)


def test_weights_of_another_kind_are_named(weights: Path) -> None:
    path = weights / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "text2mask"}))
    assert f"{weights} holds weights of the kind text2mask, and mask_ddpm is needed here" in refused(weights)


def test_broken_tensors_are_refused(weights: Path) -> None:
    path = weights / TENSORS_NAME
    whole = path.read_bytes()
    for broken in (b"", b"garbage" * 20, whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(broken)
        assert "cannot be read" in refused(weights)
    path.unlink()
    assert "cannot be read" in refused(weights)


def test_tensors_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    larger = make_weights(tmp_path / "larger", hidden=8)
    shutil.copy(larger / TENSORS_NAME, weights / TENSORS_NAME)
    with pytest.raises(UsageError, match=r"do not fit their config.json: \d+ tensors"):
        load_mask_ddpm(str(weights), NUM_CLASSES)


def test_half_precision_halves_the_file_and_loads_as_float32(weights: Path, tmp_path: Path) -> None:
    model, config = load_mask_ddpm(str(weights), NUM_CLASSES)
    save_mask_ddpm(str(tmp_path / "half"), config, model.state_dict(), "float16")
    half, found = load_mask_ddpm(str(tmp_path / "half"), NUM_CLASSES)
    assert found == config == read_weights(weights, MaskDDPMWeights)
    sizes = [(folder / TENSORS_NAME).stat().st_size for folder in (weights, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor.half().float())
    assert all(tensor.dtype == torch.float32 for tensor in read_tensors(tmp_path / "half" / TENSORS_NAME).values())


def test_fingerprint_is_of_content_and_not_of_the_model_card(weights: Path) -> None:
    before = fingerprint_of(str(weights))
    (weights / "README.md").write_text("other words")
    assert fingerprint_of(str(weights)) == before
    data = bytearray((weights / TENSORS_NAME).read_bytes())
    data[-1] ^= 1
    (weights / TENSORS_NAME).write_bytes(data)
    assert fingerprint_of(str(weights)) != before


def test_single_file_is_found(weights: Path) -> None:
    assert local_weights(str(weights / TENSORS_NAME)) == weights / TENSORS_NAME
