"""Status tells what is stored: counts, reasons, rounds, attempts, holder; verify on Ray finds damage."""

from dataclasses import replace
from pathlib import Path

import pytest
from committed import commit, make_run, nothing_more, plan, sample_rows

from segdatagen.cli import main
from segdatagen.deep_verify import choose_parts, verify_parts
from segdatagen.errors import UsageError
from segdatagen.exclude import exclude
from segdatagen.lease import Lease
from segdatagen.missing import Shortfall
from segdatagen.planner import read_rounds
from segdatagen.publish import publish
from segdatagen.report.write import ReportRequest, write_report
from segdatagen.run_folder import begin_attempt, end_attempt
from segdatagen.samples import read_ledger
from segdatagen.status import status_of
from segdatagen.storage import Entry
from segdatagen.tables import put_table
from segdatagen.verify import write_manifest


def test_status_of_a_run_on_its_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 11))
    attempt = begin_attempt(run.folder, {"actors": 2})
    commit(run, [1, 2, 3])
    commit(run, [4], "failed")
    commit(run, [5, 6], "rejected")
    publish(run, lambda holder: None, lambda done, total: None)
    with Lease(run.folder, lambda holder: None):
        found = status_of(run)
        assert found.held_by is not None
        assert "dead" not in found.held_by
    assert (found.complete, found.planned, found.missing) == (False, 10, 4)
    assert found.counts == {"ok": 3, "rejected": 2, "failed": 1}
    sky, building, road = list(found.accepted)[:3]
    assert {name: count for name, count in found.accepted.items() if count} == {sky: 1, building: 1, road: 1}
    assert found.accepted_pixels == {name: 256 * count for name, count in found.accepted.items()}
    assert list(found.reasons.items()) == [("rejected for a reason", 2), ("failed for a reason", 1)]
    assert [(a.number, a.ended) for a in found.attempts] == [(1, None)]
    assert found.published == 3
    end_attempt(run.folder, attempt, "stopped", {})
    later = status_of(run)
    assert (later.held_by, later.attempts[0].outcome) == (None, "stopped")


def test_status_is_complete_only_with_the_parts_of_the_manifest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    name = commit(run, [1, 2])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert status_of(run).complete
    run.folder.delete([name])
    assert not status_of(run).complete
    commit(run, [1, 2])
    assert status_of(run).complete
    plan(run, [3], number=1)
    assert not status_of(run).complete


def test_status_says_whether_the_goals_of_a_complete_run_are_met(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    assert status_of(run).state == "not complete"
    commit(run, [1, 2])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert status_of(run).state == "complete, goals met"
    short = replace(nothing_more(run), goals_met=False, unmet=(Shortfall("bicycle", 40, 100, "images"),))
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), short)
    found = status_of(run)
    assert (found.complete, found.goals_met, found.unmet) == (True, False, short.unmet)
    words = "complete, 1 goal not met (bicycle 40 of 100)"
    assert found.state == words
    capfd.readouterr()
    assert main(["status", run.folder.uri]) == 0
    assert f"{run.folder.uri}: {words}: 1 round planned, " in capfd.readouterr().out
    write_report(run, ReportRequest(str(tmp_path / "report")), lambda holder: None, lambda done, total: None)
    assert f'<p class="state open">{words}</p>' in (tmp_path / "report" / "index.html").read_text()


def test_what_is_excluded_may_ask_for_a_further_round(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert main(["exclude", run.folder.uri, "1"]) == 0
    assert "if its goals miss samples now, it plans a further round" in capfd.readouterr().out
    assert main(["status", run.folder.uri]) == 0
    printed = capfd.readouterr().out
    assert "all that is planned is made; the next run plans a further round if the goals miss samples: " in printed
    assert "not complete" not in printed


def test_status_says_when_publishing_is_due(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])

    def printed() -> str:
        capfd.readouterr()
        assert main(["status", run.folder.uri]) == 0
        return capfd.readouterr().out.splitlines()[-1]

    how = f"`segdatagen publish {run.folder.uri}`"
    assert printed() == "nothing is published yet"
    commit(run, [1])
    assert printed() == f"nothing is published yet: {how}"
    assert main(["publish", run.folder.uri]) == 0
    assert printed() == "1 sample published"
    commit(run, [2])
    assert printed() == f"1 sample published, not the 2 that are good now: {how}"
    exclude(run, [1], "ugly", lambda holder: None)
    assert printed() == f"1 sample published, not the 1 that is good now: {how}"
    assert main(["publish", run.folder.uri]) == 0
    assert printed() == "1 sample published"


def test_deep_verify_finds_damage_on_ray(ray_session: None, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 5))
    commit(run, [1, 2])
    name = commit(run, [3, 4])
    assert verify_parts(run, 1.0, None, lambda done, total: None) == (2, ())
    rows = sample_rows([3, 4], "ok", 1, 0)
    wrong = rows.set_column(rows.column_names.index("mask"), "mask", rows["mask"].take([1, 0]))
    put_table(run.folder, name, wrong.cast(rows.schema))
    checked, problems = verify_parts(run, 1.0, None, lambda done, total: None)
    assert checked == 2
    assert [text.split(": ")[1] for text in problems] == ["sample 3", "sample 4"]


def test_a_fraction_is_the_same_parts_every_time(tmp_path: Path) -> None:
    parts = [Entry(f"part-{number}", 1) for number in range(40)]
    chosen = choose_parts(parts, 0.25)
    assert len(chosen) == 10
    assert choose_parts(parts[::-1], 0.25) == chosen
    assert len(choose_parts(parts, 0.001)) == 1
    assert choose_parts([], 0.5) == []
    with pytest.raises(UsageError, match="--fraction is 0"):
        verify_parts(make_run(tmp_path / "run"), 0, None, lambda done, total: None)
