"""Ctrl-C and SIGTERM: one line that says what is kept, everything given back, and the same command goes on."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import JobFactory, child_environment

from segdatagen.benchmark.children import COMMAND, Child, end_of, processes_below, start, wait_until
from segdatagen.cli import STOPPED, main
from segdatagen.job import load_job
from segdatagen.lease import read_holder
from segdatagen.run_folder import read_attempts
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder
from segdatagen.verify import part_entries

NUM_SAMPLES = 400
EXECUTION = {"actors": 1, "cpus_per_actor": 0.3, "microbatch": 4, "rows_per_block": 4}
PLAN = [{"method": "mask_ddpm", "strategy": "random", "num_samples": NUM_SAMPLES}]
OURS = re.compile(r"[┏┃┡│└]|round 0:|\d+ of \d+ classes |entropy |run: |\d+ images, |time on |about |segdatagen: |$")
"""How a line of a run begins: the table of its round, its progress, and the sentence at its end."""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_any_command_that_is_told_to_stop_ends_in_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    fifo = tmp_path / "ids"
    os.mkfifo(fifo)
    child = start([*COMMAND, "exclude", tmp_path / "run", "--file", fifo], child_environment())
    opened: list[int] = []

    def waits_for_a_line() -> bool:
        with contextlib.suppress(OSError):  # nobody reads yet
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(waits_for_a_line, child, "a reader")
    child.send_signal(number)
    assert end_of(child) == (status, f"segdatagen: {STOPPED}\n")
    os.close(*opened)


def test_a_second_signal_leaves_the_cleanup_of_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def told_twice(uri: str) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(uri)

    monkeypatch.setattr("segdatagen.run_folder.open_run", told_twice)
    assert main(["status", "a-run"]) == 143
    assert cleaned == ["a-run"]


def test_what_sigterm_did_before_a_command_it_does_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["labels", "list"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def _signal_as_schedulers_do(child: Child, number: signal.Signals) -> None:
    """To the command, and to its whole process group again, as `timeout` does."""
    child.send_signal(number)
    os.killpg(child.pid, number)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_ends_in_one_line_and_goes_on(
    ray_address: str, make_job: JobFactory, number: signal.Signals, status: int
) -> None:
    job = make_job(plan=PLAN, execution=EXECUTION)
    folder = Folder(load_job(str(job)).uri)
    child = start([*COMMAND, "run", job], child_environment())
    wait_until(lambda: part_entries(folder), child, "the first part")
    _signal_as_schedulers_do(child, number)
    ended, output = end_of(child)
    lines = output.splitlines()
    assert (ended, lines[-1]) == (status, f"segdatagen: {STOPPED}"), output
    assert [line for line in lines if not OURS.match(line)] == [], "nothing of Ray's"
    kept = read_ledger(folder).num_rows
    assert 0 < kept < NUM_SAMPLES
    assert read_holder(folder) is None, "the lease was given back"
    assert [attempt.outcome for attempt in read_attempts(folder)] == ["stopped"]
    ended, output = end_of(start([*COMMAND, "run", job, "--limit", 4, "--address", ray_address], child_environment()))
    assert ended == 0, output
    assert read_ledger(folder).counts["ok"] == kept + 4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_while_ray_starts(
    make_job: JobFactory, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    job = make_job(plan=PLAN, execution=EXECUTION)
    child = start([*COMMAND, "run", job], child_environment())
    wait_until(lambda: "gcs_server" in " ".join(processes_below(child.pid).values()), child, "the start of Ray")
    _signal_as_schedulers_do(child, number)
    ended, output = end_of(child)
    assert (ended, output) == (status, f"segdatagen: {STOPPED}\n")
    assert not (tmp_path / "runs").exists(), "nothing was begun"
