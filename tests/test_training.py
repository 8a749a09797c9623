"""Training: the same weights however often it is killed and wherever it runs, and refusals that name their reason."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import child_environment, make_scenes_store
from tiny_training import (
    STEPS,
    Configure,
    assert_same_weights,
    configurer,
    log_of,
    newest_of,
    silent,
    train_here,
    weights_of,
)

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image
from segdatagen.training.kind import TrainingProgress
from segdatagen.training.mask_ddpm import MaskDDPMTrainingOptions
from segdatagen.training.run import read_options, train
from segdatagen.weights import load_mask_ddpm


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


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
    for words in (f"{STEPS} of batch 2", "6 images", "--local", "fingerprint", "| precision | fp32 |", "| seed | 0; "):
        assert words in card
    told = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert MaskDDPMTrainingOptions.model_validate(told) == read_options("mask_ddpm", str(tmp_path / "out.yaml"))
    assert decode_image((out / "loss.png").read_bytes()).ndim == 3
    picture = decode_image((out / "samples" / f"step-{STEPS:08d}.png").read_bytes())
    assert picture.shape == (2 * (128 + 4) + 4, 5 * (128 + 4) + 4, 3)


def test_weights_are_saved_in_the_type_asked_for(configure: Configure, tmp_path: Path) -> None:
    found = weights_of(train_here(configure("out", steps=2, store_dtype="float16")))
    average = newest_of(tmp_path / "out" / "checkpoints").tensors
    assert all(torch.equal(tensor, average[f"average.{name}"].half()) for name, tensor in found.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    load_mask_ddpm(str(tmp_path / "out" / "weights"), 12)


def test_loss_falls_on_a_picture_that_it_has_seen_often(configure: Configure, tmp_path: Path) -> None:
    train_here(configure("out", steps=120, ema_start=1000, learning_rate=5e-3, learning_rate_schedule="constant"))
    losses = [float(row["loss"]) for row in log_of(tmp_path / "out")]
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:10])


KILLED_CHILD = """
import os, signal, sys
from segdatagen.training.mask_ddpm import MaskDDPMTrainingOptions
from segdatagen.training.run import read_options, train

def die(progress):
    if progress.step >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train("mask_ddpm", sys.argv[1], sys.argv[3] == "local", None, die)
"""


def test_killed_and_resumed_training_ends_in_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    config = configure("killed")
    for step in (10, 20):  # checkpoints are at 8 and 16: both times, steps are lost and done again
        child = [sys.executable, "-c", KILLED_CHILD, str(config), str(step), "local"]
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
    weights = tmp_path / "out" / "weights"
    before = {name: (weights / name).read_bytes() for name in ("config.json", "README.md")}
    assert b"images/s on the CPU" in before["README.md"]
    assert train_here(path).step == STEPS
    assert {name: (weights / name).read_bytes() for name in before} == before
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
        ({"drop_probability": 0.2}, "its drop_probability is 0.3, not 0.2"),
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
    with pytest.raises(UsageError, match=r"of another network: its hidden is 4, not 6"):
        train_here(configure("other", init_weights=first.weights, hidden=6))
    with pytest.raises(UsageError, match="there are no weights builtin:nothing"):
        train_here(configure("missing", init_weights="builtin:nothing"))


def test_loss_that_is_no_number_stops_the_training(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(SegdatagenError, match=r"the loss of step \d+ is (nan|inf): lower learning_rate"):
        train_here(configure("out", learning_rate=1e30, warmup_steps=0))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_what_diverges_says_where_to_go_on_and_keeps_its_losses(configure: Configure, tmp_path: Path) -> None:
    """Also at a step at which a picture is due and no report is: nothing is drawn by weights that are no numbers."""
    train_here(configure("out", steps=8))
    with pytest.raises(SegdatagenError, match=r"the same command goes on from step 8 of .*out$"):
        train_here(configure("out", learning_rate=1e30, sample_every=1))
    rows, drawn = log_of(tmp_path / "out"), sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 8
    assert int(drawn[-1].removeprefix("step-").removesuffix(".png")) <= len(rows)
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    with pytest.raises(SegdatagenError, match=r"the same command starts anew in .*fresh$"):
        train_here(configure("fresh", learning_rate=1e30, warmup_steps=0, sample_every=1))
    assert train_here(configure("out")).step == STEPS, "with the learning rate that it had"


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
