"""Checkpoints of trainings: which are kept, which are passed over, and what no checkpoint may hold."""

import errno
import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_lease import put_holder
from tiny_training import STEPS, Configure, assert_same_weights, configurer, newest_of, train_here, weights_of

from segdatagen.cli import main
from segdatagen.errors import SegdatagenError
from segdatagen.lease import LEASE_NAME, Holder, Lease, LeaseError, read_holder
from segdatagen.storage import Folder
from segdatagen.training import loop
from segdatagen.training.checkpoints import Checkpoint, open_newest, save_checkpoint
from segdatagen.training.kind import TrainingProgress
from segdatagen.training.mask_ddpm import MaskDDPMTraining
from segdatagen.training.run import train


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


def test_last_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "checkpoints"))
    with open_newest(folder) as nothing:
        assert nothing is None
    for step in (5, 10, 15):
        save_checkpoint(folder, Checkpoint(step, {"model.a": torch.full((3,), float(step))}, {"seconds": step / 2}), 2)
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert len(files) == 2
    newest = newest_of(tmp_path / "checkpoints")
    assert (newest.step, newest.facts) == (15, {"seconds": 7.5})
    assert newest.tensors["model.a"].tolist() == [15, 15, 15]
    for torn in (files[1].read_bytes()[:-2], b"", b"\xff" * 40):
        files[1].write_bytes(torn)
        assert newest_of(tmp_path / "checkpoints").step == 10
    files[0].write_bytes(b"torn")
    with pytest.raises(SegdatagenError, match="none of the checkpoints"), open_newest(folder):
        pass


def test_a_checkpoint_is_a_safetensors_file_of_what_was_given(tmp_path: Path) -> None:
    tensors = {
        "model.steps": torch.tensor(7),
        "model.flags": torch.tensor([True, False, True]),
        "model.empty": torch.zeros(0, 3),
        "model.half": torch.arange(3, dtype=torch.bfloat16),
        "model.image": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "model.turned": torch.rand(3, 4).T,
        "optimizer.step.a": torch.tensor(3.0),
    }
    save_checkpoint(Folder(str(tmp_path)), Checkpoint(3, tensors, {"kind": "caf\u00e9"}), 1)
    for found in (load_file(tmp_path / "step-00000003.safetensors"), newest_of(tmp_path).tensors):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found[name], tensor), name
    assert newest_of(tmp_path).facts == {"kind": "caf\u00e9"}


def test_training_resumes_behind_a_torn_checkpoint(configure: Configure, tmp_path: Path) -> None:
    whole = train_here(configure("whole"))
    train_here(configure("out"))
    newest = max((tmp_path / "out" / "checkpoints").iterdir())
    os.truncate(newest, newest.stat().st_size // 2)
    assert_same_weights(train_here(configure("out")), whole)


def test_weights_that_are_no_numbers_are_no_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 16 is a number, what it leaves is not: the checkpoint of step 8 stays the newest."""
    step, done = torch.optim.AdamW.step, [0]

    def spoil(self: torch.optim.AdamW, *arguments: Any) -> Any:
        step(self, *arguments)
        done[0] += 1
        if done[0] == 16:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(
        SegdatagenError, match=r"after step 16 the weights .* are no numbers: lower learning_rate, and .* step 8 of"
    ):
        train_here(configure("out"))
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000008.safetensors"]
    monkeypatch.undo()
    assert_same_weights(train_here(configure("out")), train_here(configure("whole")))


def test_no_space_for_a_checkpoint_is_one_line_and_the_last_one_stays(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, checkpoints = os.fsync, tmp_path / "out" / "checkpoints"

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{checkpoints}/.step-00000016"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SegdatagenError, match=r"step-00000016.safetensors: no space left, free some and run the same"):
        train_here(configure("out"))
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000008.safetensors"]
    monkeypatch.undo()
    assert train_here(configure("out")).step == STEPS


def test_a_checkpoint_that_cannot_be_read_is_passed_over_and_said(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure("out")
    whole = train_here(config)
    before, newest = weights_of(whole), tmp_path / "out" / "checkpoints" / "step-00000024.safetensors"
    assert whole.passed_over == ()
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["train", "mask_ddpm", str(config), "--local"]) == 0
    assert "step 24 of 24, from step 16 (the checkpoint of step 24 cannot be read), loss" in capsys.readouterr().out
    assert main(["train", "mask_ddpm", str(config), "--local"]) == 0
    assert "step 24 of 24, as it was, loss" in capsys.readouterr().out
    again = weights_of(whole)
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())
    newest.write_bytes(b"torn")
    reports: list[TrainingProgress] = []
    assert train("mask_ddpm", str(config), True, None, reports.append).passed_over == (24,)
    assert {report.passed_over for report in reports} == {(24,)}


def test_as_many_checkpoints_are_kept_as_asked_for(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out", keep_checkpoints=1))
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000024.safetensors"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_checkpoint_gives_way_to_the_next_that_is_put(tmp_path: Path, keep: int) -> None:
    folder = Folder(str(tmp_path))
    for step in (5, 10):
        save_checkpoint(folder, Checkpoint(step, {"model.a": torch.ones(3)}, {}), 2)
    (tmp_path / "step-00000015.safetensors").write_bytes(b"torn")
    save_checkpoint(folder, Checkpoint(12, {"model.a": torch.ones(3)}, {}), keep)
    kept = ["step-00000010.safetensors", "step-00000012.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept[-keep:]


def test_a_picture_that_ends_a_training_twice_is_passed_over(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that takes more memory than there is, each time alike: at steps with and without a checkpoint."""
    picture, reports = MaskDDPMTraining.picture, [TrainingProgress(0, STEPS, 0.0, 0.0)]

    def draw(self: MaskDDPMTraining, average: torch.nn.Module) -> Any:
        if reports[-1].step in (10, 16):
            raise MemoryError
        return picture(self, average)

    monkeypatch.setattr(MaskDDPMTraining, "picture", draw)
    for newest in (8, 8, 16, 16):
        with pytest.raises(MemoryError):
            train("mask_ddpm", str(configure("out", sample_every=2)), True, None, reports.append)
        assert newest_of(tmp_path / "out" / "checkpoints").step == newest
    again = train("mask_ddpm", str(configure("out", sample_every=2)), True, None, reports.append)
    drawn = {int(path.name[len("step-") : -len(".png")]) for path in (tmp_path / "out" / "samples").glob("*.png")}
    assert drawn == {*range(2, STEPS + 1, 2)} - {10, 16}
    assert_same_weights(again, train_here(configure("whole")))


@pytest.mark.parametrize("step", [10, 16, STEPS])
def test_a_picture_over_which_a_training_was_killed_is_drawn_by_the_next(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At a step without a checkpoint, at one with, and at the last."""
    config, reports = str(configure("out", sample_every=2)), [TrainingProgress(0, STEPS, 0.0, 0.0)]
    picture = MaskDDPMTraining.picture

    def killed(self: MaskDDPMTraining, average: torch.nn.Module) -> Any:
        if reports[-1].step == step:
            raise KeyboardInterrupt
        return picture(self, average)

    with monkeypatch.context() as patched:
        patched.setattr(MaskDDPMTraining, "picture", killed)
        with pytest.raises(KeyboardInterrupt):
            train("mask_ddpm", config, True, None, reports.append)
    again = train_here(Path(config))
    assert again.first_step == step // 8 * 8
    names = sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert names == [f"step-{drawn:08d}.png" for drawn in range(2, STEPS + 1, 2)]
    whole = train_here(configure("whole", sample_every=2))
    for name in names:
        assert (tmp_path / "out" / "samples" / name).read_bytes() == (
            tmp_path / "whole" / "samples" / name
        ).read_bytes()
    assert_same_weights(again, whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pictures_are_drawn_in_the_precision_of_the_training(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    picture, seen = MaskDDPMTraining.picture, []

    def look(self: MaskDDPMTraining, average: torch.nn.Module) -> Any:
        average.get_submodule("outc").register_forward_hook(lambda *called: seen.append(called[2].dtype))
        return picture(self, average)

    monkeypatch.setattr(MaskDDPMTraining, "picture", look)
    train_here(configure("out", precision=precision))
    assert set(seen) == {torch.float32 if precision == "fp32" else torch.bfloat16}


def test_two_trainings_do_not_write_one_folder(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out", steps=8))
    kept = {path.name for path in (tmp_path / "out").rglob("*")}
    with (
        Lease(Folder(str(tmp_path / "out")), lambda holder: None, duration=1.0),
        pytest.raises(LeaseError, match=r"out: is being worked on by process \d+ on "),
    ):
        train_here(configure("out"))
    assert {path.name for path in (tmp_path / "out").rglob("*")} == kept
    assert train_here(configure("out")).step == STEPS
    assert not (tmp_path / "out" / LEASE_NAME).exists()


def test_a_training_that_lost_its_folder_puts_no_checkpoint_there(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after hours of suspension, in which another host took over."""
    monkeypatch.setattr(loop, "Lease", functools.partial(Lease, duration=0.3))
    folder, other = Folder(str(tmp_path / "out")), Holder("elsewhere", 7, "1", "token")

    def take(progress: TrainingProgress) -> None:
        if progress.step == 10:
            put_holder(folder, other)
            time.sleep(1)

    with pytest.raises(LeaseError, match="the lease was taken over by process 7 on elsewhere"):
        train("mask_ddpm", str(configure("out")), True, None, take)
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000008.safetensors"]
    assert read_holder(folder) == other, "it is not given back by who lost it"
