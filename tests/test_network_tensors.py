"""Tensors of networks against their configs: one too few, one too many or a cut file costs a line before a run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import child_environment
from safetensors.torch import load_file, save_file
from tiny_latent import make_vae, save_models

from segdatagen.diffusion.latent_models import load_controlnet, load_vae
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.errors import UsageError
from segdatagen.latent_folders import check_base, check_controlnet
from segdatagen.network_tensors import check_network, tensor_files

STEM = "diffusion_pytorch_model"
FLOAT32 = Numerics()
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDATAGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks_that_fit"


def changed(models: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    """The ControlNet with other tensors."""
    tensors = load_file(models / "controlnet" / f"{STEM}.safetensors")
    change(tensors)
    folder.mkdir()
    (folder / "config.json").write_bytes((models / "controlnet" / "config.json").read_bytes())
    save_file(tensors, folder / f"{STEM}.safetensors")
    return folder


def transpose(tensors: Tensors) -> None:
    tensors["time_embedding.linear_1.weight"] = tensors["time_embedding.linear_1.weight"].T.contiguous()


CHANGES = [
    lambda tensors: tensors.pop("conv_in.bias"),
    lambda tensors: tensors.update(extra=torch.zeros(2)),
    transpose,
]


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_are_not_those_of_the_config_are_refused(
    models: Path, tmp_path: Path, change: Callable[[Tensors], object]
) -> None:
    """Also after the whole one has been looked at; and by whoever loads without a look before."""
    shape = check_base(str(models / "base"))
    check_controlnet(str(models / "controlnet"), shape)
    broken = changed(models, tmp_path / "broken", change)
    for _ in range(2):
        with pytest.raises(UsageError, match="1 tensors are missing, unexpected or of another shape") as refused:
            check_controlnet(str(broken), shape)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=r"lacks 1 |no place for 1 |cannot be loaded as ControlNetModel: ") as refused:
        load_controlnet(str(broken), FLOAT32, "cpu")
    assert "\n" not in str(refused.value)


def test_a_config_of_another_network_is_refused(models: Path) -> None:
    folder = models / "base" / "unet"
    config = json.loads((folder / "config.json").read_text())
    check_network(folder, "UNet2DConditionModel", config)
    for name, value, sentence in (
        ("layers_per_block", 2, "tensors are missing"),
        ("norm_num_groups", 7, "describes no UNet2DConditionModel: "),
        ("down_block_types", ["NoBlock", "NoBlock"], "describes no UNet2DConditionModel: "),
    ):
        with pytest.raises(UsageError, match=sentence) as refused:
            check_network(folder, "UNet2DConditionModel", config | {name: value})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_file_that_is_cut_off_is_refused(models: Path, part: str) -> None:
    (path,) = (models / "base" / part).glob("*.safetensors")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1])
        with pytest.raises(UsageError, match=r"cannot be read .*: fetch them again"):
            check_base(str(models / "base"))
    finally:
        path.write_bytes(whole)
    check_base(str(models / "base"))


def test_what_fitted_is_looked_at_without_torch(models: Path, cache: Path) -> None:
    code = (
        "import sys; from segdatagen.latent_folders import check_base, check_controlnet; "
        f"check_controlnet({str(models / 'controlnet')!r}, check_base({str(models / 'base')!r})); "
        "print(*{'torch', 'diffusers'} & sys.modules.keys())"
    )

    def seen() -> set[str]:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=child_environment(), check=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    assert seen() == {"torch", "diffusers"}
    assert len(list(cache.iterdir())) == 5
    assert seen() == set()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_tensors_in_several_files_are_one_network(tmp_path: Path, variant: str | None) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path / "vae", max_shard_size="100kB", variant=variant)
    found, paths = tensor_files(tmp_path / "vae", "AutoencoderKL")
    assert found == variant
    assert len(paths) > 1
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    check_network(tmp_path / "vae", "AutoencoderKL", config)
    loaded = load_vae(str(tmp_path / "vae"), FLOAT32, "cpu").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in vae.state_dict().items())
    paths[1].unlink()
    with pytest.raises(UsageError, match=r"cannot be read .*fetch them again"):
        check_network(tmp_path / "vae", "AutoencoderKL", config)
    next((tmp_path / "vae").glob("*.index*json")).write_text("[]")
    with pytest.raises(UsageError, match="names no files of tensors"):
        check_network(tmp_path / "vae", "AutoencoderKL", config)


def test_old_names_of_attention_are_those_that_diffusers_reads(tmp_path: Path) -> None:
    """As VAEs of 2022 have them."""
    vae = make_vae()
    vae.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / f"{STEM}.safetensors"
    old: dict[str, Any] = {}
    for name, tensor in load_file(path).items():
        for new, was in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            name = name.replace(new, was)
        old[name] = tensor
    assert old.keys() != vae.state_dict().keys()
    save_file(old, path, metadata={"format": "pt"})
    check_network(tmp_path / "vae", "AutoencoderKL", json.loads((tmp_path / "vae" / "config.json").read_text()))
    loaded = load_vae(str(tmp_path / "vae"), FLOAT32, "cpu").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in vae.state_dict().items())


def test_a_damaged_cache_costs_another_look(models: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    check_base(str(models / "base"))
