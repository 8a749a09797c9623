"""max_hours and max_cost on real Ray: a run stops cleanly, says why, and the same command goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import JobFactory

from segdatagen.benchmark.run import Clock
from segdatagen.cli import main
from segdatagen.driver import RunOptions
from segdatagen.job import load_job
from segdatagen.planner import read_plan, read_rounds
from segdatagen.publish import DATA, publish
from segdatagen.run import run_job
from segdatagen.run_folder import SUCCESS_NAME, open_run, read_attempts
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder
from segdatagen.verify import verify_ledger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

EXECUTION = {"actors": 1, "microbatch": 4, "rows_per_block": 4}
PLAN = [{"method": "mask_ddpm", "strategy": "random", "num_samples": 40}]


def run(job: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What a run prints; its exit status is 0."""
    capfd.readouterr()
    status = main(["run", str(job), *words])
    out, err = capfd.readouterr()
    assert status == 0, err
    # Ray may still report a worker that a test before this one killed, on the standard output of this process.
    return "".join(line for line in out.splitlines(keepends=True) if "(raylet)" not in line)


def made(job: Path) -> np.ndarray:
    return read_ledger(Folder(load_job(str(job)).uri)).sample_ids


def test_a_run_stops_when_its_hours_are_over_and_the_same_command_goes_on(
    ray_session: None, make_job: JobFactory, scenes_weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of blocks that take long: a driver that is kept waiting must not find all of them made."""
    slow = {"mask_ddpm": {"weights": str(scenes_weights), "sampler": "ddim", "steps": 60, "guidance": 3.0}}
    job = make_job(plan=PLAN, methods=slow, execution=EXECUTION | {"max_hours": 1e-6})
    folder = Folder(load_job(str(job)).uri)
    before = np.empty(0, np.int64)
    for _ in range(2):
        text = " ".join(run(job, capfd).split())
        assert "time limit reached" in text
        assert "max_hours 1e-06 are over, the same command goes on" in text
        after = made(job)
        assert set(before) < set(after), "every attempt gets on, and nothing is lost"
        before = after
    assert len(before) < 40
    assert [attempt.outcome for attempt in read_attempts(folder)] == ["time limit reached"] * 2
    assert all(attempt.seconds["wall"] > 0 for attempt in read_attempts(folder))
    assert not folder.exists(SUCCESS_NAME)

    job = make_job(plan=PLAN, methods=slow, execution=EXECUTION)
    assert json.loads(run(job, capfd, "--json"))["ended"] == "complete"

    ledger = read_ledger(folder)
    assert set(before) < set(ledger.sample_ids)
    assert ledger.num_rows - len(ledger.sample_ids) <= 3 * 4, "only what was in flight is made twice"
    verdict = verify_ledger(open_run(folder.uri))
    assert verdict.problems == ()
    assert verdict.counts == {"ok": 40, "rejected": 0, "failed": 0}


def test_a_run_that_has_spent_its_money_makes_nothing_more(
    ray_session: None, make_job: JobFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    prices = {"per_cpu_hour": 3600.0}  # 1 for a second of the one actor: its start alone costs more than the limit

    def limited_to(max_cost: float) -> Path:
        return make_job(plan=PLAN, prices=prices, execution=EXECUTION | {"max_cost": max_cost})

    job = limited_to(2.0)
    folder = Folder(load_job(str(job)).uri)
    assert json.loads(run(job, capfd, "--json"))["ended"] == "cost limit reached"
    assert 0 < len(made(job)) < 40
    assert read_attempts(folder)[0].seconds["wall"] > 2.0
    text = " ".join(run(job, capfd).split())
    assert "cost limit reached" in text
    assert "max_cost 2 is spent, raise it to go on" in text
    assert np.unique(read_ledger(folder).attempt).tolist() == [1], "an actor that is ended may have put one part more"
    assert [attempt.outcome for attempt in read_attempts(folder)] == ["cost limit reached"] * 2
    assert json.loads(run(limited_to(1e6), capfd, "--json"))["counts"]["ok"] == 40


def test_an_attempt_records_what_it_spends_while_it_runs(
    ray_session: None, make_job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the cost of an attempt that is killed counts."""
    monkeypatch.setattr("segdatagen.driver.RECORD_SECONDS", 0.0)
    job = load_job(str(make_job(execution=EXECUTION)))
    recorded: list[dict[str, float]] = []
    clock = Clock()
    monkeypatch.setattr(clock, "part", lambda part: recorded.append(read_attempts(Folder(job.uri))[0].seconds))
    run_job(job, RunOptions(), clock)
    assert recorded[0] == {}
    walls = [seconds["wall"] for seconds in recorded[1:]]
    assert walls == sorted(walls)
    assert 0 < walls[0] < read_attempts(Folder(job.uri))[0].seconds["wall"]


def test_limits_and_prices_change_nothing_that_is_made(make_job: JobFactory, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(make_job())]) == 0
    uri = load_job(str(make_job())).uri
    plan = read_plan(Folder(uri), read_rounds(Folder(uri)))
    limits = {"max_hours": 2.0, "max_cost": 3.0}
    assert main(["plan", str(make_job(execution=limits, prices={"per_cpu_hour": 0.1}))]) == 0
    assert len(read_rounds(Folder(uri))) == 1
    assert read_plan(Folder(uri), read_rounds(Folder(uri))).equals(plan)


def test_the_estimate_counts_what_a_run_and_its_publishing_put(
    ray_session: None, make_job: JobFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(plan=PLAN, execution=EXECUTION, prices={"per_1000_puts": 0.005, "per_gb_month": 0.02})
    run(job, capfd)
    opened = open_run(load_job(str(job)).uri)
    publish(opened, lambda holder: None, lambda done, total: None)
    (summary,) = read_rounds(opened.folder)
    assert summary.estimate is not None
    assert summary.estimate.actor_hours is None, "nothing was measured when the round was planned"
    files = [path for path in Path(opened.folder.uri).rglob("*") if path.is_file() and path.name[0] != "."]
    assert (Path(opened.folder.uri) / DATA).is_dir()
    ended, leases = 1, 2
    assert summary.estimate.put_requests == len(files) + ended + leases
    assert summary.estimate.cost.requests == pytest.approx(summary.estimate.put_requests * 0.005 / 1000)

    job = make_job(plan=[{**PLAN[0], "num_samples": 60}], execution=EXECUTION | {"actors": 2})
    capfd.readouterr()
    assert main(["plan", str(job), "--json"]) == 0
    second = json.loads(capfd.readouterr().out)
    assert second["num_rows"] == 20
    hours = second["estimate"]["actor_hours"]
    assert hours == pytest.approx(20 * second["seconds_per_sample"] / 3600)
    assert second["estimate"]["wall_hours"] == pytest.approx(hours / 2)
    assert second["estimate"]["cost"] == {"actors": None, "requests": None, "storage_per_month": None}
