"""Training: the same weights however often it is killed and wherever it runs, and refusals that name their reason."""

import csv
import dataclasses
import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import child_environment, make_scenes_store
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image
from segdatagen.sources import read_arrays
from segdatagen.storage import Folder
from segdatagen.training.checkpoints import Checkpoint, load_newest, save_checkpoint
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step, sources_of_step
from segdatagen.training.kind import TrainingProgress, TrainingResult
from segdatagen.training.loop import build_network, learning_rate_at, update_average
from segdatagen.training.mask_ddpm import MaskDDPMTraining, MaskDDPMTrainingOptions
from segdatagen.training.run import train
from segdatagen.weights import TENSORS_NAME, load_mask_ddpm

STEPS = 24
CPU = torch.device("cpu")
Configure = Callable[..., Path]


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    """`configure("out", steps=5)`: a configuration file of a training that takes a second, into `tmp_path/out`."""

    def make(name: str, **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields(scenes_store, tmp_path / name) | changes))
        return path

    return make


def fields(store: Path, out: Path) -> dict[str, Any]:
    return {
        "sources": str(store),
        "out": str(out),
        "size": [32, 32],
        "hidden": 4,
        "time_embedding": 8,
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "cosine",
        "warmup_steps": 3,
        "ema_decay": 0.9,
        "ema_start": 8,
        "drop_probability": 0.3,
        "torch_threads": 1,
        "checkpoint_every": 8,
        "sample_every": 1000,
        "sample_masks": 2,
        "sampler": {"steps": 2},
    }


def silent(progress: TrainingProgress) -> None:
    """What a program gives that shows no progress."""


def train_here(config: Path) -> TrainingResult:
    return train("mask_ddpm", str(config), True, None, silent)


def weights_of(result: TrainingResult) -> dict[str, Tensor]:
    assert result.weights is not None
    return dict(load_file(Path(result.weights) / TENSORS_NAME))


def assert_same_weights(found: TrainingResult, expected: TrainingResult) -> None:
    tensors, others = weights_of(found), weights_of(expected)
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / "loss.csv").open() as file:
        return list(csv.DictReader(file))


def kind_of(configuration: dict[str, Any]) -> MaskDDPMTraining:
    options = MaskDDPMTrainingOptions.model_validate(configuration)
    return MaskDDPMTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))


def test_training_leaves_weights_log_and_pictures(configure: Configure, tmp_path: Path) -> None:
    reports: list[TrainingProgress] = []
    result = train("mask_ddpm", str(configure("out")), True, None, reports.append)
    out = tmp_path / "out"
    assert (result.step, result.weights) == (STEPS, str(out / "weights"))
    load_mask_ddpm(str(out / "weights"), 12)
    assert [int(row["step"]) for row in log_of(out)] == list(range(1, STEPS + 1))
    assert float(log_of(out)[-1]["learning_rate"]) == pytest.approx(0, abs=1e-9)
    assert reports[-1].step == STEPS
    assert reports[-1].loss == pytest.approx(np.mean([float(row["loss"]) for row in log_of(out)[20:]]))
    card = (out / "weights" / "README.md").read_text()
    for words in (f"{STEPS} of batch 2", "6 images", "--local", "fingerprint"):
        assert words in card
    assert decode_image((out / "loss.png").read_bytes()).ndim == 3
    picture = decode_image((out / "samples" / f"step-{STEPS:08d}.png").read_bytes())
    assert picture.shape == (2 * (128 + 4) + 4, 5 * (128 + 4) + 4, 3)


def test_loss_falls_on_a_picture_that_it_has_seen_often(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out", steps=120, ema_start=1000, learning_rate=5e-3, learning_rate_schedule="constant"))
    losses = [float(row["loss"]) for row in log_of(tmp_path / "out")]
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:10])


KILLED_CHILD = """
import os, signal, sys
from segdatagen.training.run import train

def die(progress):
    if progress.step >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train("mask_ddpm", sys.argv[1], True, None, die)
"""


def test_killed_and_resumed_training_ends_in_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    config = configure("killed")
    for step in (10, 20):  # checkpoints are at 8 and 16: both times, steps are lost and done again
        child = [sys.executable, "-c", KILLED_CHILD, str(config), str(step)]
        assert subprocess.run(child, env=child_environment()).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights").exists()
    assert_same_weights(train_here(config), train_here(configure("whole")))
    killed, whole = log_of(tmp_path / "killed"), log_of(tmp_path / "whole")
    assert [(row["step"], row["loss"]) for row in killed] == [(row["step"], row["loss"]) for row in whole]


def test_stopped_training_goes_on_and_finished_training_does_nothing(configure: Configure, tmp_path: Path) -> None:
    path = configure("out", max_hours=1e-9)
    stops = [train_here(path) for _ in range(2)]
    assert [(stop.step, stop.weights) for stop in stops] == [(8, None), (10, None)]  # at the first report of each
    path = configure("out")
    finished = train_here(path)
    assert_same_weights(finished, train_here(configure("whole")))
    before = (tmp_path / "out" / "weights" / "config.json").read_bytes()
    assert train_here(path).step == STEPS
    assert (tmp_path / "out" / "weights" / "config.json").read_bytes() == before
    assert_same_weights(finished, train_here(configure("whole")))


@pytest.mark.usefixtures("ray_session")
def test_ray_train_with_one_worker_gives_the_weights_of_the_local_loop(configure: Configure) -> None:
    reports: list[TrainingProgress] = []
    on_ray = train("mask_ddpm", str(configure("ray")), False, None, reports.append)
    assert_same_weights(on_ray, train_here(configure("here")))
    assert [report.step for report in reports] == [8, 10, 16, 20, 24]


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_what_one_trains(configure: Configure, tmp_path: Path) -> None:
    changes = {"num_workers": 2, "steps": 12, "batch_size": 4}
    together = train("mask_ddpm", str(configure("two", **changes)), False, None, silent)
    alone = train_here(configure("one", **changes))
    for name, tensor in weights_of(alone).items():
        torch.testing.assert_close(weights_of(together)[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    losses = [[float(row["loss"]) for row in log_of(tmp_path / name)] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.usefixtures("ray_session")
def test_refusals_of_workers_reach_the_user_in_one_line(configure: Configure) -> None:
    train_here(configure("out"))
    with pytest.raises(UsageError, match="its batch_size is 2, not 4"):
        train("mask_ddpm", str(configure("out", batch_size=4)), False, None, silent)
    with pytest.raises(UsageError, match="3 workers need 3 CPU but the cluster has 2: lower num_workers"):
        train("mask_ddpm", str(configure("many", num_workers=3, batch_size=3)), False, None, silent)


def test_changed_training_is_refused_and_named(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out"))
    for change, words in (
        ({"batch_size": 4}, "its batch_size is 2, not 4"),
        ({"hidden": 6, "seed": 5}, "its hidden is 4, not 6; its seed is 0, not 5"),
        ({"size": [40, 32]}, "its images, masks or captions are others"),
        ({"sources": str(make_scenes_store(tmp_path / "other", 7))}, "its images, masks or captions are others"),
        ({"steps": STEPS - 1}, f"has done {STEPS} steps already"),
    ):
        with pytest.raises(UsageError, match=words):
            train_here(configure("out", **change))
    assert train_here(configure("out", steps=STEPS + 2, learning_rate=1e-4)).step == STEPS + 2


def test_training_goes_on_from_weights_of_the_same_network(configure: Configure) -> None:
    first = train_here(configure("first"))
    loss_of_first = first.loss
    second = train_here(configure("second", init_weights=first.weights, steps=2, learning_rate=1e-9))
    kept = weights_of(first)
    assert all(torch.allclose(tensor, kept[name], atol=1e-6) for name, tensor in weights_of(second).items())
    card = (Path(str(first.weights)).parents[1] / "second" / "weights" / "README.md").read_text()
    assert f"| starts from | `{first.weights}` |" in card
    assert train_here(configure("third", init_weights=first.weights, seed=3)).loss < loss_of_first
    with pytest.raises(UsageError, match=r"of another network .*hidden=4.* not of .*hidden=6"):
        train_here(configure("other", init_weights=first.weights, hidden=6))
    with pytest.raises(UsageError, match="there are no weights builtin:nothing"):
        train_here(configure("missing", init_weights="builtin:nothing"))


def test_loss_that_is_no_number_stops_the_training(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(SegdatagenError, match=r"the loss of step \d+ is (nan|inf): lower learning_rate"):
        train_here(configure("out", learning_rate=1e30, warmup_steps=0))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_wrong_use_is_refused(configure: Configure) -> None:
    with pytest.raises(UsageError, match="unknown kind of training 'gan': choose one of vae"):
        train("gan", str(configure("out")), True, None, silent)
    with pytest.raises(UsageError, match="stepz: unknown key"):
        train_here(configure("out", stepz=3))
    with pytest.raises(UsageError, match="no source store here"):
        train_here(configure("out", sources="/nowhere"))
    with pytest.raises(UsageError, match="size: must be positive multiples of 8, not 30 x 32"):
        train_here(configure("out", size=[30, 32]))
    with pytest.raises(UsageError, match="batch_size 2 is not a multiple of num_workers 3"):
        train_here(configure("out", num_workers=3))
    with pytest.raises(UsageError, match="set steps to 1000, not 50"):
        train_here(configure("out", sampler={"sampler": "ancestral"}))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch finds no GPU here"):
            train_here(configure("out", use_gpu=True))


def test_average_of_weights_has_its_closed_form() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    first, constant = average.weight.detach().clone(), network.weight.detach().clone()
    for _ in range(7):
        update_average(average, network, 0.9)
    torch.testing.assert_close(average.weight, 0.9**7 * first + (1 - 0.9**7) * constant)
    update_average(average, network, 0.0)
    assert torch.equal(average.weight, constant)


def test_average_is_a_copy_until_it_starts(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("copied", ema_start=STEPS, learning_rate_schedule="constant"))
    train_here(configure("averaged", ema_start=STEPS - 1, learning_rate_schedule="constant"))
    for name, same in (("copied", True), ("averaged", False)):
        newest = load_newest(Folder(str(tmp_path / name / "checkpoints")))
        assert newest is not None
        assert torch.equal(newest.tensors["average.outc.weight"], newest.tensors["model.outc.weight"]) is same


def test_learning_rate_warms_up_and_falls_to_zero(scenes_store: Path, tmp_path: Path) -> None:
    options = MaskDDPMTrainingOptions.model_validate(fields(scenes_store, tmp_path) | {"steps": 103})
    rates = [learning_rate_at(options, step) for step in range(103)]
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[3 + 99 // 2] == pytest.approx(0.5e-3, rel=0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    constant = options.model_copy(update={"learning_rate_schedule": "constant"})
    assert learning_rate_at(constant, 102) == 1e-3


def test_labels_are_dropped_for_the_whole_batch_of_all_workers(scenes_store: Path, tmp_path: Path) -> None:
    kind = kind_of(fields(scenes_store, tmp_path))
    network = build_network(kind, CPU)
    mask_weight = network.get_submodule("mask_conv.double_conv.0").get_parameter("weight")
    dropped = []
    for step in range(20):
        seen = []
        for rank in (0, 1):
            network.zero_grad(set_to_none=True)
            kind.loss(network, batch_of_step(kind.arrays, Order(0, 2, True), step, Share(rank, 2), CPU)).backward()
            seen.append(mask_weight.grad is None)
        assert seen[0] == seen[1]
        dropped.append(seen[0])
    assert 1 <= sum(dropped) <= 14  # 6 of 20 are expected, 4 standard deviations around them


def test_captions_tell_two_trainings_apart_only_where_they_are_read(scenes_store: Path, tmp_path: Path) -> None:
    arrays = kind_of(fields(scenes_store, tmp_path)).arrays
    assert len(arrays.captions) == 6
    assert all(arrays.captions)
    other = dataclasses.replace(arrays, captions=(None, *arrays.captions[1:]))
    assert other.fingerprint() == arrays.fingerprint()
    assert other.fingerprint(with_captions=True) != arrays.fingerprint(with_captions=True)
    with pytest.raises(UsageError, match="5 captions do not belong to 6 images"):
        dataclasses.replace(arrays, captions=arrays.captions[1:])


def test_loss_is_one_where_nothing_is_predicted(scenes_store: Path, tmp_path: Path) -> None:
    kind = kind_of(fields(scenes_store, tmp_path))
    network = build_network(kind, CPU)
    for name in ("weight", "bias"):
        nn.init.zeros_(network.get_submodule("outc").get_parameter(name))
    with torch.inference_mode():
        batches = [batch_of_step(kind.arrays, Order(0, 4, False), step, Share(), CPU) for step in range(5)]
        losses = [float(kind.loss(network, batch)) for batch in batches]
    assert np.mean(losses) == pytest.approx(1, abs=0.02)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_every_epoch_is_a_permutation(num_sources: int, batch_size: int, seed: int) -> None:
    steps = 3 * num_sources // batch_size + 1
    order = np.concatenate([sources_of_step(num_sources, seed, step, batch_size) for step in range(steps)])
    for epoch in range(len(order) // num_sources):
        part = order[epoch * num_sources : (epoch + 1) * num_sources]
        assert sorted(part.tolist()) == list(range(num_sources))


def test_shares_of_workers_make_up_the_batch(scenes_store: Path, tmp_path: Path) -> None:
    arrays = kind_of(fields(scenes_store, tmp_path)).arrays
    before = arrays.fingerprint()
    order = Order(seed=5, batch_size=8, flip=True)
    whole = batch_of_step(arrays, order, 3, Share(), CPU)
    shares = [batch_of_step(arrays, order, 3, Share(rank, 4), CPU) for rank in range(4)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(torch.cat([share.channels for share in shares]), whole.channels)
    generators = [generator for share in shares for generator in share.row_chance]
    for found, expected in zip(generators, whole.row_chance, strict=True):
        assert torch.equal(found.get_state(), expected.get_state())
    chosen = sources_of_step(len(arrays.images), 5, 3, 8)
    flipped = 0
    for row, source in enumerate(chosen):
        mirrored = not np.array_equal(whole.images[row].numpy(), arrays.images[source])
        flipped += mirrored
        side = slice(None, None, -1 if mirrored else 1)
        assert np.array_equal(whole.images[row].numpy(), arrays.images[source][:, side])
        assert np.array_equal(whole.channels[row].numpy(), arrays.channels[source][:, side])
    assert 0 < flipped < 8
    assert arrays.fingerprint() == before  # the store in memory is not what is mirrored
    with pytest.raises(UsageError, match="batch_size 8 is not a multiple of num_workers 3"):
        batch_of_step(arrays, order, 3, Share(0, 3), CPU)


def test_last_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "checkpoints"))
    assert load_newest(folder) is None
    for step in (5, 10, 15):
        save_checkpoint(folder, Checkpoint(step, {"model.a": torch.full((3,), float(step))}, {"seconds": step / 2}), 2)
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert len(files) == 2
    newest = load_newest(folder)
    assert newest is not None
    assert (newest.step, newest.facts) == (15, {"seconds": 7.5})
    assert newest.tensors["model.a"].tolist() == [15, 15, 15]
    for torn in (files[1].read_bytes()[:-2], b"", b"\xff" * 40):
        files[1].write_bytes(torn)
        newest = load_newest(folder)
        assert newest is not None
        assert newest.step == 10
    files[0].write_bytes(b"torn")
    with pytest.raises(SegdatagenError, match="none of the checkpoints"):
        load_newest(folder)


def test_training_resumes_behind_a_torn_checkpoint(configure: Configure, tmp_path: Path) -> None:
    whole = train_here(configure("whole"))
    train_here(configure("out"))
    newest = max((tmp_path / "out" / "checkpoints").iterdir())
    os.truncate(newest, newest.stat().st_size // 2)
    assert_same_weights(train_here(configure("out")), whole)


def test_parts_of_a_batch_make_the_step_of_the_whole(configure: Configure) -> None:
    whole = weights_of(train_here(configure("whole", batch_size=4, steps=6)))
    parts = weights_of(train_here(configure("parts", batch_size=4, steps=6, accumulate=4)))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    with pytest.raises(UsageError, match="batch_size 4 is not a multiple of num_workers x accumulate, 1 x 3"):
        train_here(configure("uneven", batch_size=4, accumulate=3))


def test_gradients_are_shortened(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train_here(configure("free", steps=4))
    free = lengths.copy()
    lengths.clear()
    train_here(configure("held", steps=4, max_grad_norm=0.01))
    assert min(free) > 0.02
    assert lengths == pytest.approx([0.01] * 4, rel=1e-3)


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
    with pytest.raises(SegdatagenError, match=r"after step 16 the weights .* are no numbers: lower learning_rate and"):
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


def test_as_many_checkpoints_are_kept_as_asked_for(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out", keep_checkpoints=1))
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000024.safetensors"]


def test_tensorboard_has_the_losses_of_the_log(configure: Configure, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(configure("out"))
    board = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    board.Reload()
    rows = {int(row["step"]): row for row in log_of(tmp_path / "out")}
    assert [event.step for event in board.Scalars("loss")] == [8, 10, 16, 20, 24]
    for event in board.Scalars("loss"):
        assert event.value == pytest.approx(float(rows[event.step]["loss"]), rel=1e-5)
    assert all(float(row["images_per_second"]) > 0 and float(row["peak_gib"]) > 0.05 for row in rows.values())
    assert " images/s on the CPU; " in (tmp_path / "out" / "weights" / "README.md").read_text()
