"""Decisions: what was decided after a sample was made goes before what its row says, in a fixed order."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed import commit, make_run, nothing_more, plan
from conftest import JobFactory, Refused
from kept_events import Events
from test_publish import publish_quietly, published_ids

from segdatagen.budget import Budget
from segdatagen.decisions import put_decisions, read_decisions, read_own
from segdatagen.driver import Driver, RunOptions, SilentEvents
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.exclude import exclude, include
from segdatagen.job import load_job
from segdatagen.lease import Lease
from segdatagen.planner import read_plan, read_rounds
from segdatagen.records import DECISION_SCHEMA
from segdatagen.run import plan_job, prepare
from segdatagen.run_folder import Run, begin_attempt, open_run
from segdatagen.samples import read_ledger, reasons_of
from segdatagen.status import status_of
from segdatagen.tables import put_table
from segdatagen.verify import read_manifest, verify_ledger, write_manifest


def nobody_waits(holder: object) -> None:
    raise AssertionError(f"{holder} holds the lease")


def decide(run: Run, name: str, status: str, ids: Sequence[int], reason: str | None = None) -> None:
    rows = {"sample_id": ids, "status": [status] * len(ids), "reason": [reason] * len(ids)}
    put_decisions(run.folder, name, pa.table(rows, schema=DECISION_SCHEMA), {})


def statuses(run: Run) -> dict[int, str]:
    ledger = read_ledger(run.folder)
    return {id_: status for status in ("ok", "rejected", "failed") for id_ in ledger.ids_with(status).tolist()}


def test_a_decision_goes_before_the_row_but_for_what_failed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 7))
    commit(run, [1, 2])
    commit(run, [3, 4], "rejected")
    commit(run, [5], "failed")
    decide(run, "mine", "rejected", [1, 5, 6], "ugly")
    decide(run, "theirs", "ok", [3])
    assert statuses(run) == {1: "rejected", 2: "ok", 3: "ok", 4: "rejected", 5: "failed"}
    ledger = read_ledger(run.folder)
    assert ledger.counts == {"ok": 2, "rejected": 2, "failed": 1}
    assert reasons_of(run.folder, ledger, "rejected") == {"ugly": 1, "rejected for a reason": 1}
    assert reasons_of(run.folder, ledger, "rejected", "failed")["failed for a reason"] == 1
    assert status_of(run).missing == 1, "a decision on a sample that is not made yet makes nothing"


def test_refilter_is_overruled_and_later_names_overrule_earlier_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 5))
    commit(run, [1, 2, 3, 4])
    decide(run, "refilter", "rejected", [1, 2, 3])
    decide(run, "a", "ok", [1, 2])
    decide(run, "b", "rejected", [2, 4], "no")
    assert statuses(run) == {1: "ok", 2: "rejected", 3: "rejected", 4: "rejected"}
    assert read_decisions(run.folder)["file"].to_pylist().count("b.parquet") == 2


def test_the_last_row_of_an_id_in_a_file_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1])
    commit(run, [1])
    folder = tmp_path / "run" / "decisions"
    folder.mkdir()
    table = {"sample_id": [1, 1], "status": ["ok", "rejected"], "reason": ["", "changed my mind"]}
    pq.write_table(pa.table(table), folder / "mine.parquet")
    assert statuses(run) == {1: "rejected"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a table", "not a readable Parquet file"),
        ({"sample_id": [1], "status": ["rejected"]}, "decisions have the columns sample_id, status, reason"),
        ({"sample_id": ["one"], "status": ["rejected"], "reason": ["x"]}, "decisions have the columns"),
        ({"sample_id": [1], "status": ["failed"], "reason": ["x"]}, "decides 'failed' on sample 1: a decision is one"),
        ({"sample_id": [1], "status": [None], "reason": ["x"]}, "mine.parquet: "),
    ],
)
def test_damaged_decisions_are_never_left_out(tmp_path: Path, content: object, sentence: str) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1])
    commit(run, [1])
    folder = tmp_path / "run" / "decisions"
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / "mine.parquet").write_bytes(content)
    else:
        pq.write_table(pa.table(content), folder / "mine.parquet")
    with pytest.raises(SegdatagenError) as refused:
        publish_quietly(run)
    assert sentence in str(refused.value)
    assert "decisions/mine.parquet" in str(refused.value)
    assert not (tmp_path / "run" / "data").exists()


def test_ids_that_no_plan_has_are_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    decide(run, "mine", "rejected", [2, 8, 9])
    mine = tmp_path / "run" / "decisions" / "mine.parquet"
    sentence = f"{mine}: 2 of its sample_ids are in no plan, 8 first: correct or delete it"
    assert verify_ledger(run).problems == (sentence,)


def test_mistaken_ids_are_refused_before_anything_is_made(
    refused_here: Refused, make_job: JobFactory, tmp_path: Path
) -> None:
    job = make_job()
    plan_job(load_job(str(job)), SilentEvents(), dry_run=False)
    decide(open_run(str(tmp_path / "runs" / "tiny" / "v1")), "mine", "rejected", [8])
    for command in ("plan", "run"):
        refused_here(command, job, row="a decision on a sample that no plan has")


def test_mistaken_ids_that_come_later_do_not_cost_the_run(make_job: JobFactory) -> None:
    job = load_job(str(make_job()))
    plan_job(job, SilentEvents(), dry_run=False)
    session, run = prepare(job), open_run(job.uri)
    ids = read_plan(run.folder, read_rounds(run.folder), ["sample_id"])["sample_id"].to_pylist()
    commit(run, ids)
    decide(run, "mine", "rejected", [8])
    attempt, budget, events = begin_attempt(run.folder, {}), Budget(None, None, 0.0, 0.0), Events()
    with Lease(run.folder, nobody_waits) as lease:
        assert Driver(session, run, lease, attempt, RunOptions(), events, {}, budget).run().complete
    assert "1 of its sample_ids are in no plan" in events.notes[0]
    assert read_manifest(run.folder) is not None


def test_published_data_follows_decisions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 5))
    commit(run, [1, 2, 3, 4])
    publish_quietly(run)
    exclude(run, [2, 3], "blurred", nobody_waits)
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1, 4]
    include(run, [3], nobody_waits)
    index = publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1, 3, 4]
    assert index.num_rows == 3


def test_what_was_rejected_and_is_accepted_is_published_as_good(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1])
    name = commit(run, [2])
    table = pq.read_table(tmp_path / "run" / name)
    for column, value in (("status", "rejected"), ("reason", "filter: adherence below 0.5")):
        table = table.set_column(table.column_names.index(column), table.schema.field(column), pa.array([value]))
    pq.write_table(table, tmp_path / "run" / name)
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1]
    decide(run, "mine", "ok", [2])
    publish_quietly(run)
    (shard,) = (tmp_path / "run" / "data").glob("*.parquet")
    rows = pq.read_table(shard, columns=["sample_id", "status", "reason"]).to_pylist()
    assert rows == [{"sample_id": id_, "status": "ok", "reason": None} for id_ in (1, 2)]


def test_a_decision_makes_a_run_incomplete_and_the_same_one_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert exclude(run, [1], "ugly", nobody_waits) == (1, 1)
    assert read_manifest(run.folder) is None
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert exclude(run, [1], "ugly", nobody_waits) == (0, 1)
    assert include(run, [2], nobody_waits) == (0, 1), "it was not excluded"
    assert read_manifest(run.folder) is not None
    (tmp_path / "run" / "decisions" / "mine.parquet").write_bytes(b"by hand")
    assert read_manifest(run.folder) is None, "also where somebody put a file there"


def test_an_id_exchanged_for_another_makes_a_run_incomplete(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    decide(run, "mine", "rejected", [1])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    assert read_manifest(run.folder) is not None
    mine = tmp_path / "run" / "decisions" / "mine.parquet"
    size, table = mine.stat().st_size, pq.read_table(mine)
    put_table(run.folder, "decisions/mine.parquet", table.set_column(0, table.schema.field(0), pa.array([2])))
    assert mine.stat().st_size == size
    assert read_manifest(run.folder) is None


def test_excluded_samples_have_their_reason_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    commit(run, [1, 2])
    assert exclude(run, [1, 2], "the car floats", nobody_waits) == (2, 2)
    assert status_of(run).reasons == {"excluded: the car floats": 2}
    assert exclude(run, [2], "it sinks", nobody_waits) == (0, 2), "a second reason replaces the first"
    assert exclude(run, [1, 2], None, nobody_waits) == (0, 2), "no reason leaves it"
    assert status_of(run).reasons == {"excluded: the car floats": 1, "excluded: it sinks": 1}
    for unknown in (3, 10**30):
        with pytest.raises(UsageError, match=f"has no sample {unknown}: ids are in the column sample_id"):
            exclude(run, [1, unknown], "x", nobody_waits)
    assert include(run, [1, 2], nobody_waits) == (2, 0)
    assert statuses(run) == {1: "ok", 2: "ok"}
    assert read_own(run.folder, "exclude")[0].num_rows == 0


def test_an_exclusion_that_somebody_wrote_is_taken_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    (tmp_path / "run" / "decisions").mkdir()
    table = {"sample_id": [1, 2], "status": ["rejected"] * 2, "reason": ["ugly"] * 2}
    pq.write_table(pa.table(table), tmp_path / "run" / "decisions" / "exclude.parquet")
    assert statuses(run) == {1: "rejected", 2: "rejected"}
    assert include(run, [1, 2], nobody_waits) == (2, 0)
    assert statuses(run) == {1: "ok", 2: "ok"}
