"""Runs that have nothing to make: what real images already give is no mistake, and no run that never ends."""

from pathlib import Path
from typing import Any

from conftest import JobFactory
from test_faults import run
from test_publish import publish_quietly

from segdatagen.job import load_job
from segdatagen.report.write import ReportRequest, write_report
from segdatagen.run_folder import open_run
from segdatagen.sources import open_store
from segdatagen.status import status_of
from segdatagen.verify import verify_ledger


def test_goals_that_real_images_meet_alone_are_a_run_of_no_samples(
    ray_session: None, make_job: JobFactory, scenes_store: Path
) -> None:
    """It is complete, says so in status and report, is published, and goes on when a goal is raised."""
    plan: list[dict[str, Any]] = [{"method": "mask_ddpm", "strategy": "quotas", "quotas": {"road": 1}}]
    job = load_job(str(make_job(plan=plan)))
    outcome = run(job)
    assert (outcome.complete, outcome.goals_met, outcome.planned) == (True, True, 0)
    assert run(job).already_complete
    status = status_of(open_run(job.uri))
    assert (status.state, status.planned) == ("complete, goals met", 0)
    assert len(status.rounds) == 1
    assert verify_ledger(open_run(job.uri)).problems == ()
    assert write_report(open_run(job.uri), ReportRequest(), lambda _: None, lambda *_: None).num_samples == 0
    publish_quietly(open_run(job.uri))
    plan[0]["quotas"] = {"road": open_store(str(scenes_store)).info.num_sources + 2}
    raised = run(load_job(str(make_job(plan=plan))))
    assert raised.counts["ok"] == raised.planned == 2
