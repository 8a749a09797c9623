"""Folders of weights that trainings put: in place of earlier ones, and never of two trainings at once."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_latent import make_vae

from segdatagen.labels import load_label_set
from segdatagen.storage import Folder, StorageError
from segdatagen.training.latent_weights import load_vae, put_model
from segdatagen.training_record import TrainingRecord
from segdatagen.weights import put_weights

RECORD = TrainingRecord(kind="vae", label_set="scenes", classes=load_label_set("scenes").names, size=(16, 16))


class Full(Folder):
    """A folder in which there is no space for tensors."""

    def put_file(self, name: str, source: Path) -> None:
        if name.endswith(".safetensors"):
            raise StorageError(f"{self.uri_of(name)}: no space left")
        super().put_file(name, source)


def drawn_vae(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return make_vae()


def test_weights_take_the_place_of_shards_and_leave_what_is_not_theirs(tmp_path: Path) -> None:
    first, second = drawn_vae(1), drawn_vae(2)
    first.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "notes.md").write_text("mine")
    put_model(Folder(str(tmp_path)), second, "card", RECORD, "float32")
    for found in (load_vae(str(tmp_path)), AutoencoderKL.from_pretrained(tmp_path)):
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name
    names = {"README.md", "config.json", "diffusion_pytorch_model.safetensors", "training.json", "notes.md"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_folder_that_is_written_again_is_no_model_until_it_is_whole(tmp_path: Path) -> None:
    put_model(Folder(str(tmp_path)), drawn_vae(1), "card", RECORD, "float32")
    with pytest.raises(StorageError):
        put_model(Full(str(tmp_path)), drawn_vae(2), "card", RECORD, "float32")
    assert not (tmp_path / "config.json").exists()


def test_weights_of_our_own_are_no_weights_until_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_weights(str(tmp_path), RECORD, {"a": torch.ones(3)})
    monkeypatch.setattr("segdatagen.weights.Folder", Full)
    with pytest.raises(StorageError):
        put_weights(str(tmp_path), RECORD, {"a": torch.zeros(3)})
    assert not (tmp_path / "config.json").exists()
