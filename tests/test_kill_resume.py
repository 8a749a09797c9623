"""SIGKILL at named and at random moments, the same command again: the same ids, nothing lost, nothing twice.

The command runs in a child process with its own Ray; victims are the driver, a worker, and all processes at once.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
from conftest import REPOSITORY, JobFactory, child_environment

from segdatagen.job import load_job
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run_folder import SUCCESS_NAME, open_run
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder
from segdatagen.verify import verify_ledger

ROWS_PER_BLOCK = 4
BLOCKS_IN_FLIGHT = 2 * 2
"""Two actors with two tasks each."""
EXECUTION = {"actors": 2, "cpus_per_actor": 0.3, "microbatch": 4, "rows_per_block": ROWS_PER_BLOCK}
PATIENCE = 240.0


def start(*arguments: object, kill: str | None = None) -> subprocess.Popen[str]:
    """The real command in a session of its own."""
    environment = child_environment()
    if kill:
        switch = str(REPOSITORY / "tests" / "kill_switch")
        environment |= {"SEGDATAGEN_KILL": kill, "PYTHONPATH": f"{switch}{os.pathsep}{environment['PYTHONPATH']}"}
    words = [sys.executable, "-m", "segdatagen", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, text=True, env=environment, start_new_session=True, **streams)


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a command; a failure other than a kill is shown."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, with their command lines."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: names[child] for child in found - {pid}}


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def part_names(run: Path) -> dict[str, bytes]:
    """Every committed part with its bytes."""
    return {str(path): path.read_bytes() for path in (run / "samples").rglob("*.parquet") if path.name[0] != "."}


def assert_whole(run: Path, num_planned: int) -> None:
    """Every planned id has one outcome that counts, and `data/` holds each once."""
    opened = open_run(str(run))
    verdict = verify_ledger(opened)
    assert verdict.problems == ()
    assert verdict.counts == {"ok": num_planned, "rejected": 0, "failed": 0}
    published = pyarrow.dataset.dataset(run / "data", format="parquet").to_table(columns=["sample_id"])
    ids = published["sample_id"].to_numpy()
    assert len(ids) == num_planned
    assert len(np.unique(ids)) == num_planned


MOMENTS = [
    ("plan", "run.json$", "before"),
    ("plan", "plan/.*part", "after"),
    ("plan", "plan/.*summary", "before"),
    ("run", "lease.json$", "after"),
    ("run", "attempts/", "after"),
    ("run", "manifest.json$", "before"),
    ("run", "_SUCCESS$", "before"),
]
"""What a run writes once, in its order; `plan` writes the first three as `run` does, and needs no Ray."""
SHARD, INDEX = "data/[0-9a-f]+.parquet", "data/_index"
PUBLISH_MOMENTS = [(SHARD, "before"), (SHARD, "after"), (INDEX, "before"), (INDEX, "after")]


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_inside_every_write(make_job: JobFactory, tmp_path: Path) -> None:
    job = make_job(execution=EXECUTION)
    run = Path(load_job(str(job)).uri)
    for place, (verb, pattern, moment) in enumerate(MOMENTS):
        kill = f"{pattern}|1|{moment}|{tmp_path / f'count-{place}'}"
        assert finish(start(verb, job, kill=kill)) == -signal.SIGKILL, f"killed {moment} {pattern}"
        assert not (run / SUCCESS_NAME).exists()
    assert finish(start("run", job)) == 0
    for place, (pattern, moment) in enumerate(PUBLISH_MOMENTS):
        kill = f"{pattern}|1|{moment}|{tmp_path / f'count-publish-{place}'}"
        assert finish(start("publish", run, kill=kill)) == -signal.SIGKILL, f"killed {moment} {pattern}"
    assert finish(start("publish", run)) == 0
    assert_whole(run, 12)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_inside_a_commit(make_job: JobFactory, tmp_path: Path, moment: str) -> None:
    """The part is there or not, never half; the run ends without anybody's help."""
    job = make_job(execution=EXECUTION)
    run = Path(load_job(str(job)).uri)
    assert finish(start("run", job, kill=f"samples/.*parquet|2|{moment}|{tmp_path / 'count'}")) == 0
    assert (tmp_path / "count").stat().st_size >= 2, "the switch was reached"
    ledger = read_ledger(Folder(str(run)))
    assert ledger.unreadable == {}
    assert finish(start("publish", run)) == 0
    assert_whole(run, 12)


@pytest.mark.ray
@pytest.mark.slow
def test_ten_random_kills(make_job: JobFactory) -> None:
    """Driver, worker or everything, at a seeded random moment, ten times over one run."""
    chance = random.Random(20261121)
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 40}]
    methods = job_methods(make_job, steps=12)
    job = make_job(plan=plan, execution=EXECUTION | {"actors": 1}, methods=methods)
    run = Path(load_job(str(job)).uri)
    victims = ["driver", "worker", "all"] * 3 + ["worker"]
    chance.shuffle(victims)
    process = start("run", job)
    for victim in victims:
        before = part_names(run)
        wait_for_parts(process, run, len(before) + chance.randint(0, 3))
        time.sleep(chance.random())
        committed = part_names(run)
        below = wait_for_workers(process) if victim == "worker" else descendants(process.pid)
        assert process.poll() is None, "the command still runs when it is killed"
        if victim == "worker":
            kill_all(list(below)[:1])
        else:
            kill_all([process.pid, *(below if victim == "all" else ())])
            process.communicate(timeout=PATIENCE)
            process = start("run", job)
        after = part_names(run)
        assert all(after[name] == data for name, data in committed.items()), "committed parts stay as they are"
    assert finish(process) == 0
    ledger = read_ledger(Folder(str(run)))
    made_twice = ledger.num_rows - len(ledger.sample_ids)
    assert made_twice <= len(victims) * BLOCKS_IN_FLIGHT * ROWS_PER_BLOCK
    assert finish(start("publish", run)) == 0
    plan_ids = read_plan(Folder(str(run)), read_rounds(Folder(str(run))))["sample_id"].to_numpy()
    assert np.array_equal(np.sort(plan_ids), ledger.sample_ids)
    assert_whole(run, 240)


def wait_for_parts(process: subprocess.Popen[str], run: Path, count: int) -> None:
    """Until so many parts are committed, or the command has ended."""
    deadline = time.monotonic() + PATIENCE
    while len(list((run / "samples").rglob("[!.]*.parquet"))) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_workers(process: subprocess.Popen[str]) -> dict[int, str]:
    """The processes that hold the chains, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        found = {pid: name for pid, name in descendants(process.pid).items() if "MapWorker" in name}
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("no worker to kill")


def job_methods(make_job: JobFactory, steps: int) -> dict[str, Any]:
    """The methods of the usual job at another number of steps."""
    options = load_job(str(make_job())).methods.mask_ddpm
    assert options is not None
    return {"mask_ddpm": options.model_dump() | {"steps": steps}}


@pytest.mark.ray
@pytest.mark.slow
def test_second_live_run_is_refused(make_job: JobFactory) -> None:
    """The lease of a live driver is renewed, so a second one gives up and says who runs it."""
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 200}]
    job = make_job(plan=plan, execution=EXECUTION, methods=job_methods(make_job, steps=200))
    run = Path(load_job(str(job)).uri)
    first = start("run", job)
    try:
        wait_for_parts(first, run, 1)
        second = start("run", job)
        output, _ = second.communicate(timeout=PATIENCE)
        assert second.returncode == 1
        assert f"is being worked on by process {first.pid} on " in output.splitlines()[-1]
        assert first.poll() is None
    finally:
        below = descendants(first.pid)
        kill_all([first.pid, *below])
        first.communicate()
