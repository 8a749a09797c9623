"""Limits moved after the fact: every status follows from the stored scores, without Ray and torch, any way round."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed import METHOD, commit, make_run, nothing_more, plan, sample_rows
from conftest import Command, Refused, child_environment, visible
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_decisions import nobody_waits, statuses
from test_publish import publish_quietly, published_ids

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.exclude import exclude, include
from segdatagen.filters import Filters
from segdatagen.labels import load_label_set
from segdatagen.lease import Lease, LeaseError
from segdatagen.planner import read_rounds
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.refilter import Change, bring_in_line, is_judged, limits_in_force, refilter
from segdatagen.run_folder import Run, open_run, write_run
from segdatagen.samples import put_samples, read_ledger
from segdatagen.status import status_of
from segdatagen.storage import Folder
from segdatagen.verify import read_manifest, verify_ledger, write_manifest

ADHERENCE = {"adherence": {"segmenter": "builtin:any", "min": 0.5}}


def make_scored(folder: Path, scores: Mapping[int, float | None], limit: float | None = 0.5) -> Run:
    """A run whose samples have these adherences, judged by `limit` when they were made."""
    filters = {} if limit is None else {"adherence": {"segmenter": "builtin:any", "min": limit}}
    make_run(folder)
    run = write_run(str(folder), {"name": "scored", "filters": filters}, {METHOD: {}}, load_label_set("scenes"))
    plan(run, sorted(scores))
    rows = sample_rows(sorted(scores), "ok", 1, 0).to_pylist()
    for row in rows:
        score = scores[row["sample_id"]]
        row["score_adherence"] = score
        if score is not None and limit is not None and np.float32(score) < np.float32(limit):
            row |= {"status": "rejected", "reason": f"filter: adherence below {limit:g}"}
    put_samples(run.folder, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    return run


def move(run: Run, *, dry_run: bool = False, **limits: float) -> Change:
    """Refilter with `adherence_min=0.6` and the like."""
    named = {".".join(name.rsplit("_", 1)): value for name, value in limits.items()}
    return refilter(run, Filters.model_validate(run.info.job["filters"]), named, nobody_waits, dry_run=dry_run)


def test_a_moved_limit_moves_status_plan_and_data_both_ways(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.4, 3: 0.55, 4: 0.7, 5: None})
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [3, 4, 5]
    change = move(run, adherence_min=0.6)
    assert (change.rejected, change.accepted, change.stored) == (1, 0, True)
    assert change.before == {"ok": 3, "rejected": 2, "failed": 0}
    assert change.after == {"ok": 2, "rejected": 3, "failed": 0}
    assert change.reasons == {"filter: adherence below 0.6": 3}
    assert change.without_score == {"score_adherence": 1}
    assert statuses(run) == {1: "rejected", 2: "rejected", 3: "rejected", 4: "ok", 5: "ok"}
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [4, 5], "what became rejected vanishes"
    assert status_of(run).reasons == {"filter: adherence below 0.6": 3}
    change = move(run, adherence_min=0.3)
    assert (change.rejected, change.accepted) == (0, 2)
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [2, 3, 4, 5], "what became good is published"
    assert verify_ledger(run).problems == ()


RANKED = {"clip_rank": {"weights": "builtin:any", "keep": 0.5}, **ADHERENCE}


def make_ranked(folder: Path, scores: Mapping[int, Mapping[int, float]], adherence: Mapping[int, float]) -> Run:
    """A run whose samples have these CLIP scores by class, in two parts, and some an adherence, judged by 0.5."""
    make_run(folder)
    run = write_run(str(folder), {"name": "ranked", "filters": RANKED}, {METHOD: {}}, load_label_set("scenes"))
    plan(run, sorted(scores))
    rows = sample_rows(sorted(scores), "ok", 1, 0).to_pylist()
    for row in rows:
        found, row["score_adherence"] = scores[row["sample_id"]], adherence.get(row["sample_id"])
        entries = [{"class_id": class_id, "score": "clip", "value": value} for class_id, value in found.items()]
        others = [{"class_id": class_id, "score": "adherence", "value": 1 - value} for class_id, value in found.items()]
        row["scores_per_class"] = [*others, *entries]
        row["score_clip"] = float(np.mean(list(found.values()))) if found else None
        if row["sample_id"] in adherence and adherence[row["sample_id"]] < 0.5:
            row |= {"status": "rejected", "reason": "filter: adherence below 0.5"}
    for part in (rows[::2], rows[1::2]):
        put_samples(run.folder, pa.Table.from_pylist(part, schema=SAMPLE_SCHEMA))
    return run


def test_ranks_are_within_each_class_over_the_whole_set(tmp_path: Path) -> None:
    """Class 1 scores low and class 2 high; sample 8 is refused for its adherence, and takes nobody's place."""
    scores = {id_: {1: id_ / 100} for id_ in range(1, 5)} | {id_: {2: 0.9 - id_ / 100} for id_ in range(5, 9)}
    run = make_ranked(tmp_path / "run", {**scores, 9: {}}, {8: 0.1})
    assert set(statuses(run).values()) == {"ok", "rejected"}
    change = refilter(run, Filters.model_validate(RANKED), {}, nobody_waits, dry_run=False)
    names = {label.id: label.name for label in run.label_set.classes}
    assert change.reasons == {
        "filter: adherence below 0.5": 1,
        f"filter: clip rank 3 of 4 for {names[1]}, past the first 2 (keep 0.5)": 1,
        f"filter: clip rank 4 of 4 for {names[1]}, past the first 2 (keep 0.5)": 1,
        f"filter: clip rank 3 of 3 for {names[2]}, past the first 2 (keep 0.5)": 1,
    }
    assert {id_ for id_, status in statuses(run).items() if status == "rejected"} == {1, 2, 7, 8}
    assert change.without_score["score_clip"] == 1, "9 shows nothing that was scored, and passes"
    publish_quietly(run)
    assert published_ids(tmp_path / "run") == [3, 4, 5, 6, 9]
    assert not refilter(run, Filters.model_validate(RANKED), {}, nobody_waits, dry_run=False).stored
    assert move(run, clip_rank_keep=1.0).after["rejected"] == 1
    assert statuses(run)[1] == "ok"


def test_samples_of_another_round_are_ranked_with_the_others(tmp_path: Path) -> None:
    run = make_ranked(tmp_path / "run", {id_: {1: id_ / 10} for id_ in range(1, 5)}, {})
    filters = Filters.model_validate(RANKED)
    refilter(run, filters, {}, nobody_waits, dry_run=False)
    assert [id_ for id_, status in statuses(run).items() if status == "ok"] == [3, 4]
    plan(run, [11, 12], number=1)
    rows = sample_rows([11, 12], "ok", 2, 1).to_pylist()
    for row, value in zip(rows, (0.35, 0.05), strict=True):
        row |= {"score_clip": value, "scores_per_class": [{"class_id": 1, "score": "clip", "value": value}]}
    put_samples(run.folder, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    assert is_judged(run.folder, filters.limits()), "a run goes on; ranks are moved by refilter alone"
    assert statuses(run)[12] == "ok"
    exclude(run, [4], "by hand", nobody_waits)
    refilter(run, filters, {}, nobody_waits, dry_run=False)
    assert [id_ for id_, status in statuses(run).items() if status == "ok"] == [3, 11], "4 keeps its place"


def test_counts_per_class_are_those_of_the_accepted_masks(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {id_: id_ / 10 for id_ in range(1, 10)})
    change = move(run, adherence_min=0.7)
    names = run.label_set.names
    for channel in range(3):  # the mask of sample n shows the class of id n % 3
        expected = tuple(sum(id_ % 3 == channel for id_ in range(low, 10)) for low in (5, 7))
        assert change.classes[names[channel]] == expected
    assert set(change.classes) == set(names)


def test_twice_is_once(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    first = move(run, adherence_min=0.6)
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    before = visible(tmp_path / "run")
    second = move(run, adherence_min=0.6)
    assert (second.stored, second.rejected, second.accepted) == (False, 0, 0)
    assert second.after == first.after
    assert visible(tmp_path / "run") == before
    assert read_manifest(run.folder) is not None


def test_the_old_limit_restores_everything(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55, 3: 0.9})
    before, reasons = statuses(run), status_of(run).reasons
    assert not move(run).stored, "nothing was moved yet"
    assert not (tmp_path / "run" / "decisions").exists()
    move(run, adherence_min=0.95)
    assert set(statuses(run).values()) == {"rejected"}
    move(run)
    assert (statuses(run), status_of(run).reasons) == (before, reasons)
    move(run, adherence_min=0.1)
    move(run, adherence_min=0.5)
    assert (statuses(run), status_of(run).reasons) == (before, reasons)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1, width=32)), min_size=1, max_size=6),
    st.one_of(st.none(), st.floats(0, 1)),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_status_depends_on_the_last_limit_alone(
    tmp_path_factory: pytest.TempPathFactory,
    scores: list[float | None],
    made_with: float | None,
    limits: list[float],
) -> None:
    by_id = dict(enumerate(scores, start=1))
    run = make_scored(tmp_path_factory.mktemp("refilter") / "run", by_id, made_with)
    if all(score is None for score in scores):
        with pytest.raises(UsageError, match=r"no sample of .* has a score_adherence: the filter adherence was not"):
            move(run, adherence_min=limits[0])
        return
    for limit in limits:
        move(run, adherence_min=limit)
    last = np.float32(limits[-1])
    expected = {id_: "rejected" if s is not None and np.float32(s) < last else "ok" for id_, s in by_id.items()}
    assert statuses(run) == expected


def test_a_stricter_limit_accepts_nothing_more(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    run = make_scored(tmp_path / "run", {id_: float(chance.random()) for id_ in range(1, 40)})
    accepted = []
    for limit in np.linspace(0, 1, 6):
        move(run, adherence_min=float(limit))
        accepted.append(set(read_ledger(run.folder).ids_with("ok").tolist()))
    assert all(later <= earlier for earlier, later in itertools.pairwise(accepted))
    assert (len(accepted[0]), len(accepted[-1])) == (39, 0)


def test_what_no_limit_rejected_stays(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.9})
    plan(run, [2, 3, 4], number=1)
    commit(run, [2], "rejected", number=1)
    commit(run, [3], "failed", number=1)
    commit(run, [4], number=1)
    exclude(run, [4], "ugly", nobody_waits)
    move(run, adherence_min=0.0)
    assert statuses(run) == {1: "ok", 2: "rejected", 3: "failed", 4: "rejected"}


def test_an_exclusion_outlives_a_refilter(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.9})
    exclude(run, [1, 2], "ugly", nobody_waits)
    move(run, adherence_min=0.1)
    assert statuses(run) == {1: "rejected", 2: "rejected"}
    include(run, [1, 2], nobody_waits)
    assert statuses(run) == {1: "ok", 2: "ok"}


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    before = visible(tmp_path / "run")
    shown = move(run, adherence_min=0.6, dry_run=True)
    assert visible(tmp_path / "run") == before
    done = move(run, adherence_min=0.6)
    assert (shown.after, shown.classes, shown.reasons) == (done.after, done.classes, done.reasons)


def test_an_override_holds_until_the_next_refilter(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    filters = Filters.model_validate(ADHERENCE)
    assert is_judged(run.folder, {"adherence.min": 0.5})
    move(run, adherence_min=0.6)
    assert limits_in_force(run.folder, filters) == ({"adherence.min": 0.6}, {"adherence.min": 0.6})
    assert is_judged(run.folder, {"adherence.min": 0.6})
    assert not is_judged(run.folder, {"adherence.min": 0.5})
    move(run)
    assert limits_in_force(run.folder, filters) == ({"adherence.min": 0.5}, {})
    assert is_judged(run.folder, {"adherence.min": 0.5})


def test_limits_are_brought_in_line_in_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.4, 3: 0.55, 4: 0.9})
    exclude(run, [3, 4], "ugly", nobody_waits)
    readings: list[Folder] = []
    monkeypatch.setattr("segdatagen.refilter.read_ledger", lambda run: readings.append(run) or read_ledger(run))
    with Lease(run.folder, nobody_waits) as lease:
        said = [bring_in_line(run.folder, {"adherence.min": limit}, {}, lease) for limit in (0.3, 0.6)]
    assert "0 samples are rejected now, 1 accepted again" in said[0]
    assert "1 samples are rejected now, 0 accepted again" in said[1], "what a person refused does not move"
    assert len(readings) == 2


def test_nothing_is_decided_while_a_part_is_unreadable(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2})
    plan(run, [2], number=1)
    name = commit(run, [2], number=1)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SegdatagenError, match=r"not a readable Parquet file.*then refilter"):
        move(run, adherence_min=0.6)
    assert not (tmp_path / "run" / "decisions").exists()


def test_samples_of_a_version_without_scores_are_read_and_published(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.7})
    plan(run, [2], number=1)
    path = tmp_path / "run" / commit(run, [2], number=1)
    table = pq.read_table(path)
    new = [name for name in table.column_names if name.startswith("score") or name == "candidates"]
    pq.write_table(table.drop_columns(new), path)
    change = move(run, adherence_min=0.8)
    assert statuses(run) == {1: "rejected", 2: "ok"}
    assert change.without_score == {"score_adherence": 1}
    publish_quietly(run)
    (shard,) = (tmp_path / "run" / "data").glob("*.parquet")
    published = pq.read_table(shard)
    assert published.schema.equals(SAMPLE_SCHEMA)
    assert published["score_adherence"].to_pylist() == [None]


# The commands


def test_the_command_prints_counts_and_one_object(command: Command, tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55, 3: None})
    uri = run.folder.uri
    dry = command("refilter", uri, "--set", "adherence.min=0.6", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    for words in ("accepted before", "1 x filter", "dry run: nothing was written", "without score_adherence"):
        assert words.replace("1 x", "2 x") in dry.stdout
    done = command("refilter", uri, "--set", "adherence.min=0.6", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["rejected"], found["accepted"], found["stored"], found["dry_run"]) == (1, 0, True, False)
    assert found["limits"] == {"adherence.min": 0.6}
    again = command("refilter", uri, "--set", "adherence.min=0.6")
    assert "nothing changed" in again.stdout
    assert statuses(open_run(uri)) == {1: "rejected", 2: "rejected", 3: "ok"}


def test_limits_of_another_job_file(command: Command, tmp_path: Path, make_job: object) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    job = make_job(filters={"adherence": {"segmenter": "builtin:any", "min": 0.1}})  # type: ignore[operator]
    done = command("refilter", run.folder.uri, "--job", job, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limits"] == {"adherence.min": 0.1}
    assert statuses(run) == {1: "ok", 2: "ok"}


def test_exclude_takes_ids_from_words_and_from_a_file(command: Command, tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.9, 2: 0.9, 3: 0.9})
    listed = tmp_path / "ids.txt"
    listed.write_text("2\n\n 3 \n")
    done = command("exclude", run.folder.uri, "1", "--file", listed, "--reason", "ugly")
    assert "3 samples excluded, 3 excluded in all" in done.stdout
    undone = command("exclude", run.folder.uri, "1", "--undo", "--json")
    assert json.loads(undone.stdout) == {"uri": run.folder.uri, "changed": 1, "excluded": 2}
    assert statuses(run) == {1: "ok", 2: "rejected", 3: "rejected"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("`refilter` of a run that is not there", ["refilter", "{tmp}/nowhere"]),
        ("`refilter --set adherence.min=2`", ["refilter", "{run}", "--set", "adherence.min=2"]),
        ("`refilter --set adherence.min=nan`", ["refilter", "{run}", "--set", "adherence.min=nan"]),
        ("`refilter --set mood=2`", ["refilter", "{run}", "--set", "mood=2"]),
        ("`refilter` by a score that no sample has", ["refilter", "{run}", "--set", "blank.min_deviation=9"]),
        ("`refilter --job` of a file that is not there", ["refilter", "{run}", "--job", "{tmp}/nothing.yaml"]),
        ("`exclude` without an id", ["exclude", "{run}"]),
        ("`exclude` of an id that the run does not have", ["exclude", "{run}", "77"]),
        ("`exclude` of a number below 0", ["exclude", "{run}", "-5"]),
        ("`exclude --file` of a file that is not there", ["exclude", "{run}", "--file", "{tmp}/absent.txt"]),
        ("`exclude --file` of a file of something else", ["exclude", "{run}", "--file", "{run}/run.json"]),
    ],
)
def test_mistakes_cost_a_line(refused_here: Refused, tmp_path: Path, row: str, words: list[str]) -> None:
    run = make_scored(tmp_path / "run", {1: 0.9})
    refused_here(*(word.replace("{run}", run.folder.uri).replace("{tmp}", str(tmp_path)) for word in words), row=row)


def test_refilter_imports_neither_ray_nor_torch(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    code = (
        "import json, sys; from segdatagen.cli import main\n"
        f"status = main(['refilter', {run.folder.uri!r}, '--set', 'adherence.min=0.6'])\n"
        f"status += main(['exclude', {run.folder.uri!r}, '1'])\n"
        "print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    assert not {"torch", "ray", "transformers", "diffusers"} & set(modules)


@pytest.mark.slow
def test_nobody_decides_while_another_process_runs_the_run(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.55})
    waited: list[object] = []
    with Lease(run.folder, nobody_waits), pytest.raises(LeaseError, match="is being worked on by"):
        refilter(run, Filters(), {"adherence.min": 0.6}, waited.append, dry_run=False)
    assert waited
    assert statuses(run) == {1: "rejected", 2: "ok"}
