"""Trainings on Ray whose workers die: what starts again, what is given up, and what the weights are in the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
import torch
from conftest import child_environment
from test_training import KILLED_CHILD
from tiny_training import STEPS, Configure, assert_same_weights, configurer, log_of, silent, train_here, weights_of

from segdatagen.benchmark.children import COMMAND, end_of, start, wait_until
from segdatagen.cli import STOPPED
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.lease import LeaseError, read_holder
from segdatagen.storage import Folder, NoSpaceError, StorageError
from segdatagen.training import ray_train
from segdatagen.training.kind import TrainingProgress
from segdatagen.training.ray_train import MAX_RESTARTS, Attempts
from segdatagen.training.run import read_options, train


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


class KillsWorker:
    """Kills the worker that writes, each time at the first report at or behind the next of `steps`."""

    def __init__(self, out: Path, steps: Sequence[int]) -> None:
        self.out, self.steps = Folder(str(out)), list(steps)
        self.killed: set[int] = set()
        self.reports: list[TrainingProgress] = []

    def __call__(self, found: TrainingProgress) -> None:
        self.reports.append(found)
        holder = read_holder(self.out)
        if self.steps and found.step >= self.steps[0] and holder is not None and holder.pid not in self.killed:
            self.steps.pop(0)
            self.killed.add(holder.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGKILL)


@pytest.mark.usefixtures("ray_session")
def test_workers_that_die_are_started_again_and_cost_nothing(configure: Configure, tmp_path: Path) -> None:
    """More often than is allowed in a row: there are new checkpoints between."""
    kills = KillsWorker(tmp_path / "killed", [10, 100, 200])
    killed = train("mask_ddpm", str(configure("killed", steps=STEPS * 20)), False, None, kills)
    assert killed.restarts == 3 > MAX_RESTARTS
    assert {report.restarts for report in kills.reports} == {0, 1, 2, 3}
    assert_same_weights(killed, train_here(configure("whole", steps=STEPS * 20)))
    curves = [[(row["step"], row["loss"]) for row in log_of(tmp_path / name)] for name in ("killed", "whole")]
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("ray_session")
def test_one_of_two_workers_that_dies_takes_the_other_along(configure: Configure, tmp_path: Path) -> None:
    changes = {"num_workers": 2, "steps": STEPS * 4, "batch_size": 4}
    kills = KillsWorker(tmp_path / "killed", [10])
    killed = train("mask_ddpm", str(configure("killed", **changes)), False, None, kills)
    assert (killed.restarts, killed.step) == (1, STEPS * 4)
    alone = weights_of(train_here(configure("alone", **changes)))
    for name, tensor in weights_of(killed).items():
        torch.testing.assert_close(tensor, alone[name], atol=2e-3, rtol=1e-2, msg=name)


@pytest.mark.usefixtures("ray_session")
def test_workers_that_die_again_and_again_are_given_up(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "MAX_RESTARTS", 1)
    config = configure("out", steps=STEPS * 1000, checkpoint_every=STEPS * 1000)
    with pytest.raises(SegdatagenError, match=r"failed 2 times without a new checkpoint .*: the same command goes on"):
        train("mask_ddpm", str(config), False, None, KillsWorker(tmp_path / "out", [10] * 9))
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.usefixtures("ray_session")
def test_workers_without_room_are_given_up_in_one_line(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "MAX_STARTS", 1)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")

    @ray.remote(num_cpus=2)
    class HoldsAll:
        def ready(self) -> bool:
            return True

    holder = HoldsAll.remote()
    assert ray.get(holder.ready.remote())
    try:
        with pytest.raises(SegdatagenError, match=r"^the workers of the training could not be started \(.*\)$"):
            train("mask_ddpm", str(configure("out")), False, None, silent)
    finally:
        ray.kill(holder)


@pytest.mark.ray
def test_a_killed_driver_takes_its_workers_along_and_the_same_command_goes_on(
    configure: Configure, tmp_path: Path
) -> None:
    changes = {"learning_rate_schedule": "constant"}  # so that steps to come change nothing
    child = [sys.executable, "-c", KILLED_CHILD, str(configure("killed", steps=STEPS * 10000, **changes)), "10", "ray"]
    assert subprocess.run(child, env=child_environment()).returncode == -signal.SIGKILL
    holder = read_holder(Folder(str(tmp_path / "killed")))
    assert holder is not None, "its worker had the lease, and did not give it back"
    deadline = time.monotonic() + 120  # two seconds, on cores that are free
    while not holder.is_dead_here():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    newest = max((tmp_path / "killed" / "checkpoints").iterdir()).stem.removeprefix("step-")
    steps = int(newest) + STEPS
    assert_same_weights(
        train_here(configure("killed", steps=steps, **changes)), train_here(configure("whole", steps=steps, **changes))
    )


@pytest.mark.ray
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_on_ray_that_is_told_to_stop_ends_in_one_line(
    configure: Configure, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    config = configure("out", steps=STEPS * 10000)
    child = start([*COMMAND, "train", "mask_ddpm", config], child_environment())
    wait_until(lambda: (tmp_path / "out" / "checkpoints").exists(), child, "the first checkpoint")
    child.send_signal(number)
    ended, output = end_of(child)
    assert (ended, output.splitlines()[-1]) == (status, f"segdatagen: {STOPPED}"), output
    assert [line for line in output.splitlines()[:-1] if not line.startswith("train: ")] == [], "nothing of Ray's"


def test_hours_are_those_of_all_attempts(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(ray_train.time, "monotonic", lambda: now)
    attempts = Attempts(read_options("mask_ddpm", str(configure("out", max_hours=8))), silent)
    for hours, left in ((0.0, 8.0), (7.0, 1.0), (9.0, 1e-9)):
        now = 1000.0 + hours * 3600
        assert attempts.options().max_hours == pytest.approx(left)
    free = read_options("mask_ddpm", str(configure("free")))
    assert Attempts(free, silent).options() == free


def test_what_may_pass_is_tried_again_and_what_a_user_has_to_change_is_not(configure: Configure) -> None:
    def failed(attempts: Attempts, said: Exception) -> None:
        attempts.failed(ray.train.WorkerGroupError("a worker failed", {0: said}))

    options = read_options("mask_ddpm", str(configure("out")))
    for said in (
        *(UsageError("too few"), SegdatagenError("the loss of step 3 is nan"), LeaseError("another is here")),
        NoSpaceError("no space left, free some"),
    ):
        with pytest.raises(type(said), match=str(said)):
            failed(Attempts(options, silent), said)
    attempts = Attempts(options, silent)
    failed(attempts, StorageError("no answer"))
    failed(attempts, LeaseError("of the worker before"))
    assert attempts.restarts == 2
    with pytest.raises(StorageError, match="no answer"):
        failed(attempts, StorageError("no answer"))
