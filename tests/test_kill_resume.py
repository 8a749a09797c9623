"""SIGKILL at named and at random moments, the same command again: the same ids, nothing lost, nothing twice.

The command runs in a child process with its own Ray; victims are the driver, a worker, and all processes at once.
"""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from committed import commit, make_run, plan
from conftest import REPOSITORY, JobFactory, child_environment

from segdatagen.benchmark import siege
from segdatagen.benchmark.children import (
    COMMAND,
    Child,
    end_of,
    kill,
    processes_below,
    ray_was_slow,
    start,
    wait_until,
    workers_below,
)
from segdatagen.benchmark.kills import ROWS_IN_FLIGHT, Committed, bench_kills, check_whole, cost_of
from segdatagen.benchmark.noted_run import Begun
from segdatagen.benchmark.run import Setup
from segdatagen.errors import SegdatagenError
from segdatagen.job import load_job
from segdatagen.publish import publish
from segdatagen.run_folder import SUCCESS_NAME, Run, open_run
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder
from segdatagen.verify import part_entries

EXECUTION = {"actors": 2, "cpus_per_actor": 0.3, "microbatch": 4, "rows_per_block": 4}


def started(*words: object, switch: str | None = None) -> Child:
    """The real command; `switch` is for `kill_switch`."""
    environment = child_environment()
    if switch:
        folder = str(REPOSITORY / "tests" / "kill_switch")
        environment |= {"SEGDATAGEN_KILL": switch, "PYTHONPATH": f"{folder}{os.pathsep}{environment['PYTHONPATH']}"}
    return start([*COMMAND, *words], environment)


def status_of(child: Child) -> int:
    """Wait for a command; a failure other than a kill is shown."""
    status, output = end_of(child)
    assert status in (0, -signal.SIGKILL), output
    return status


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
SHARD, INDEX = "data/[0-9a-f]+.parquet", "published/index"
PUBLISH_MOMENTS = [(SHARD, "before"), (SHARD, "after"), (INDEX, "before"), (INDEX, "after")]


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_inside_every_write(ray_address: str, make_job: JobFactory, tmp_path: Path) -> None:
    """On a Ray that goes on, as that of a cluster does."""
    job = make_job(execution=EXECUTION)
    where = {"plan": [], "run": ["--address", ray_address]}
    run = Path(load_job(str(job)).uri)
    for place, (verb, pattern, moment) in enumerate(MOMENTS):
        switch = f"{pattern}|1|{moment}|{tmp_path / f'count-{place}'}"
        status = status_of(started(verb, job, *where[verb], switch=switch))
        assert status == -signal.SIGKILL, f"killed {moment} {pattern}"
        assert not (run / SUCCESS_NAME).exists()
    assert status_of(started("run", job, *where["run"])) == 0
    for place, (pattern, moment) in enumerate(PUBLISH_MOMENTS):
        switch = f"{pattern}|1|{moment}|{tmp_path / f'count-publish-{place}'}"
        assert status_of(started("publish", run, switch=switch)) == -signal.SIGKILL, f"killed {moment} {pattern}"
    assert status_of(started("publish", run)) == 0
    assert check_whole(open_run(str(run))) == 12


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_inside_a_commit(make_job: JobFactory, tmp_path: Path, moment: str) -> None:
    """The part is there or not, never half; the run ends without anybody's help, and makes no row of a part again."""
    job = make_job(execution=EXECUTION)
    run = Path(load_job(str(job)).uri)
    assert status_of(started("run", job, switch=f"samples/.*parquet|2|{moment}|{tmp_path / 'count'}")) == 0
    puts = (tmp_path / "count").stat().st_size
    assert puts == len(part_entries(Folder(str(run)))) + (moment == "before"), "what was put is put once"
    ledger = read_ledger(Folder(str(run)))
    assert ledger.unreadable == {}
    assert status_of(started("publish", run)) == 0
    assert check_whole(open_run(str(run))) == 12


@pytest.mark.ray
@pytest.mark.slow
def test_ten_random_kills() -> None:
    """`bench kills`, smaller: it raises where anything is lost, twice in `data/`, changed, or made again when done."""
    figures = bench_kills(kills=10)
    assert [figures[f"kills_of_{victim}"] for victim in siege.VICTIMS] == [4, 3, 3]
    assert int(figures["starts"]) >= 8  # 7 kills end a start
    assert int(figures["rows"]) >= 320
    assert int(figures["rows_of_the_worst_kill"]) <= ROWS_IN_FLIGHT
    assert int(figures["rows_committed_twice"]) <= int(figures["rows_made_twice"]) <= 10 * ROWS_IN_FLIGHT


def noted(tmp_path: Path, *begun: Begun, before: tuple[str, ...] = (), killed: tuple[int, ...] = ()) -> siege.Start:
    """A start whose chains began these."""
    journal = tmp_path / f"journal-{len(list(tmp_path.iterdir()))}"
    journal.write_text("".join(f"[{b.attempt}, {b.pid}, {list(b.sample_ids)}]\n" for b in begun))
    return siege.Start(journal, before, set(killed))


def test_what_a_kill_cost_is_what_was_begun_and_never_committed(tmp_path: Path) -> None:
    starts = [
        noted(tmp_path, Begun(1, 50, (1, 2)), Begun(1, 50, (3, 4)), Begun(1, 50, (5, 6))),  # 3 to 6 are lost
        noted(tmp_path, before=("a",)),  # killed before its first row
        noted(
            tmp_path,
            Begun(2, 60, (3, 4)),
            Begun(2, 60, (5, 6)),  # lost with worker 60
            Begun(2, 61, (5, 6)),
            Begun(2, 61, (7,)),  # lost at the end
            before=("a",),
            killed=(60,),
        ),
        noted(tmp_path, Begun(3, 70, (7,)), before=("a", "b", "c")),
    ]
    parts = {
        "a": Committed(1, frozenset({1, 2})),
        "b": Committed(2, frozenset({3, 4})),
        "c": Committed(2, frozenset({5, 6})),
        "d": Committed(3, frozenset({7})),
    }
    cost = cost_of(starts, parts)
    assert (cost.rows_begun, cost.worst_kill) == (14, 4)


def test_a_row_that_is_made_again_when_done_is_found(tmp_path: Path) -> None:
    starts = [noted(tmp_path, Begun(1, 50, (1, 2))), noted(tmp_path, Begun(2, 60, (2, 3)), before=("a",))]
    with pytest.raises(SegdatagenError, match="start 2 made 1 samples again"):
        cost_of(starts, {"a": Committed(1, frozenset({1, 2}))})


@pytest.fixture
def published(tmp_path: Path) -> Run:
    """Ten samples in two parts, all good and published."""
    run = make_run(tmp_path / "run")
    plan(run, range(1, 11))
    commit(run, range(1, 6))
    commit(run, range(6, 11))
    publish(run, lambda holder: None, lambda done, total: None)
    return run


def test_a_whole_run_is_found_whole(published: Run) -> None:
    assert check_whole(published) == 10
    commit(published, [3, 4], attempt=2)  # committed twice: `data/` has them once
    assert check_whole(published) == 10


def test_a_run_that_is_not_whole_is_found(published: Run) -> None:
    folder = published.folder
    commit(published, [4], attempt=2, status="failed")  # ok counts before failed
    assert check_whole(published) == 10
    (shard,) = folder.child("data").entries(".parquet")
    data = folder.read(f"data/{shard.name}")
    folder.put("data/again.parquet", data)
    with pytest.raises(SegdatagenError, match="20 rows are published, and are not the 10"):
        check_whole(published)
    folder.delete(["data/again.parquet", part_entries(folder)[0].name])
    with pytest.raises(SegdatagenError, match="5 of 10 planned samples are missing"):
        check_whole(published)
    commit(published, range(1, 11), status="rejected", attempt=2)
    with pytest.raises(SegdatagenError, match="of 10 planned samples there are"):
        check_whole(published)


def test_a_part_that_changed_or_went_is_found(tmp_path: Path) -> None:
    setup = Setup(str(tmp_path), "builtin:scenes-mask-ddpm", 1, 32)
    for remove in (False, True):
        besieged = siege.Siege(setup, 1, random.Random(0))
        folder = Folder(besieged.job.uri)
        folder.put("samples/a.parquet", b"one")
        besieged.look()
        besieged.look()
        folder.delete(["samples/a.parquet"]) if remove else folder.put("samples/a.parquet", b"two")
        with pytest.raises(SegdatagenError, match=r"a\.parquet was committed, and (is gone|has changed)"):
            besieged.look()


def test_children_are_found_and_killed_with_what_they_started() -> None:
    sleep = "import time; time.sleep(60)"
    parent = start(["-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"])
    wait_until(lambda: any(sleep in words for words in processes_below(parent.pid).values()), parent, "a child")
    below = processes_below(parent.pid)
    assert len(below) == 1
    assert workers_below(parent.pid) == []
    kill([parent.pid, *below])
    assert end_of(parent) == (-signal.SIGKILL, "")
    kill([parent.pid])  # gone: nothing to do
    assert not set(below) & set(processes_below(os.getpid()))


def test_a_ray_that_was_slow_is_told_from_a_run_that_failed() -> None:
    assert ray_was_slow(1, "Traceback\nException: The current node timed out during startup. This could happen")
    assert not ray_was_slow(1, "KeyError: 'a defect'")
    assert not ray_was_slow(-signal.SIGKILL, "The current node timed out during startup.")
    assert not ray_was_slow(0, "The current node timed out during startup.")


def job_methods(make_job: JobFactory, steps: int) -> dict[str, Any]:
    """The methods of the usual job at another number of steps."""
    options = load_job(str(make_job())).methods.mask_ddpm
    assert options is not None
    return {"mask_ddpm": options.model_dump() | {"steps": steps}}


@pytest.mark.ray
@pytest.mark.slow
def test_second_live_run_is_refused(ray_address: str, make_job: JobFactory) -> None:
    """The lease of a live driver is renewed, so a second one gives up and says who runs it."""
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 200}]
    job = make_job(plan=plan, execution=EXECUTION, methods=job_methods(make_job, steps=200))
    run = Path(load_job(str(job)).uri)
    first = started("run", job, "--address", ray_address)
    try:
        wait_until(lambda: list((run / "samples").rglob("[!.]*.parquet")), first, "a part")
        status, output = end_of(started("run", job, "--address", ray_address))
        assert status == 1
        assert f"is being worked on by process {first.pid} on " in output.splitlines()[-1]
        assert first.poll() is None
    finally:
        kill([first.pid, *processes_below(first.pid)])
        first.communicate()
