"""A report replaces an earlier one whole, leaves everything else alone, and says what it could not read."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from committed import commit, make_run, nothing_more, plan, sample_rows
from conftest import NUM_SCENES, REPOSITORY, Refused, child_environment, make_scenes_store, visible
from reported import (
    Made,
    arguments_of,
    data_of,
    decoded,
    made_samples,
    make_reported_run,
    named_files,
    put_made,
    report,
)

from segdatagen.cli import app, main
from segdatagen.colours import encode
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image, decode_mask
from segdatagen.labels import load_label_set
from segdatagen.lease import Lease
from segdatagen.planner import read_rounds
from segdatagen.publish import publish
from segdatagen.report.write import MAX_SAMPLES, ReportRequest, write_report
from segdatagen.run_folder import REPORT_NAME, Run, write_run
from segdatagen.samples import put_samples, read_ledger
from segdatagen.sources import open_store
from segdatagen.storage import Folder
from segdatagen.verify import read_manifest, verify_ledger, write_manifest


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    samples = made_samples()
    run = make_reported_run(tmp_path / "run", samples)
    first = Path(report(run).index)
    before = files_in(first.parent)
    assert before == named_files(first)
    assert Path(report(run).index) == first
    assert files_in(first.parent) == before, "the same run gives the same files"
    plan(run, [1], number=2)
    put_made(run, [Made(1)], number=2)
    report(run)
    after = files_in(first.parent)
    assert after == named_files(first)
    assert after - before
    assert before - after, "what the new page does not name is gone"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_before_or_after_its_index_a_report_is_whole(tmp_path: Path, moment: str) -> None:
    run = make_reported_run(tmp_path / "run", made_samples())
    index = Path(report(run).index)
    old = index.read_bytes()
    plan(run, [1], number=2)
    put_made(run, [Made(1)], number=2)
    environment = child_environment()
    environment["PYTHONPATH"] = f"{REPOSITORY / 'tests' / 'kill_switch'}:{environment['PYTHONPATH']}"
    environment["SEGDATAGEN_KILL"] = f"index.html|1|{moment}|{tmp_path / 'counter'}"
    words = [sys.executable, "-m", "segdatagen", "report", run.folder.uri]
    assert subprocess.run(words, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert named_files(index) <= files_in(index.parent)
    assert (index.read_bytes() == old) == (moment == "before")
    report(run)
    assert files_in(index.parent) == named_files(index)


def test_only_one_writes_a_report(tmp_path: Path) -> None:
    run = make_reported_run(tmp_path / "run", made_samples()[:8])
    waited = []
    with (
        Lease(run.folder.child(REPORT_NAME), lambda holder: None, duration=1.0),
        pytest.raises(SegdatagenError, match="report: is being worked on by process"),
    ):
        write_report(run, ReportRequest(), waited.append, lambda done, total: None)
    assert len(waited) == 1
    assert not list(tmp_path.glob("run/report/*"))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    run = make_reported_run(tmp_path / "run", made_samples()[:8])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<p>my page</p>")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("notes")
    before = visible(tmp_path)
    for out, word in (("mine", "index.html"), ("other", r"notes\.txt")):
        with pytest.raises(UsageError, match=f"holds {word}, which is no part of a report"):
            report(run, str(tmp_path / out))
    for out in ("run", "run/samples", "run/data", "run/attempts/report"):
        with pytest.raises(UsageError, match="lies in the run, which keeps its report in"):
            report(run, str(tmp_path / out))
    assert visible(tmp_path) == before
    assert report(run, str(tmp_path / "new")).index == str(tmp_path / "new" / "index.html")
    assert not (tmp_path / "run" / "report").exists()


def test_a_report_is_no_part_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    commit(run, [1, 2, 3])
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    published = publish(run, lambda holder: None, lambda done, total: None)
    report(run)
    assert verify_ledger(run).problems == ()
    assert read_manifest(run.folder) is not None
    assert publish(run, lambda holder: None, lambda done, total: None) == published
    half = tmp_path / "run" / "report" / ".pages-0123456789abcdef.js.abcdefgh"
    lost = tmp_path / "run" / "samples" / ".part.parquet.abcdefgh"
    for path in (half, lost):
        path.write_bytes(b"half")
    Folder(run.folder.uri).sweep(leave=REPORT_NAME)
    assert (half.exists(), lost.exists()) == (True, False), "a run that begins may meet a report that is being written"
    report(run)
    assert not half.exists()


def test_damaged_parts_and_pictures_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 7))
    whole, broken, blurred = (commit(run, ids) for ids in ([1, 2], [3, 4], [5, 6]))
    path = tmp_path / "run" / broken
    path.write_bytes(path.read_bytes()[:-9])
    table = pq.read_table(tmp_path / "run" / blurred)
    images = pa.array([b"not an image", table["image"][1].as_py()], pa.large_binary())
    pq.write_table(with_column(table, "image", images), tmp_path / "run" / blurred)
    result = report(run)
    data = data_of(result)
    assert sorted(data["columns"]["id"]) == ["1", "2", "5", "6"]
    page = Path(result.index).read_text()
    assert f"{broken}: not a readable Parquet file" in page
    assert "1 of the samples that are shown have a picture that cannot be decoded" in page
    assert whole not in page


def run_on(store: Path, folder: Path) -> Run:
    """A run of six samples, one for each scene of a store."""
    opened = open_store(str(store))
    recipes = {"mask_ddpm": {"seed": 0, "sources": opened.info.fingerprint}}
    run = write_run(str(folder), {"name": "scenes", "sources": str(store)}, recipes, load_label_set("scenes"))
    ids = range(1, NUM_SCENES + 1)
    plan(run, ids)
    names = pa.array(opened.index["source_id"].to_pylist())
    (part,) = (folder / "plan" / "round=00").glob("part-*.parquet")
    rows = with_column(pq.read_table(part), "source_row", pa.array(range(NUM_SCENES), pa.int32()))
    pq.write_table(with_column(rows, "source_id", names), part)
    put_samples(run.folder, with_column(sample_rows(ids, "ok", 1, 0), "source_id", names))
    return run


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)


def test_sources_are_shown_where_their_store_can_be_read(tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store")
    run = run_on(store, tmp_path / "run")
    rows = pq.read_table(store / "part-00000.parquet").to_pylist()
    result = report(run)
    data = data_of(result)
    assert data["sources"]["problem"] is None
    files = [arguments_of(Path(result.index).parent / name) for name in data["sources"]["files"]]
    assert len(data["sources"]["ids"]) == NUM_SCENES
    for place in data["sources"]["places"]:
        assert place is not None
        source = files[place[0]][place[1]]
        images = [np.array_equal(decoded(source["image"]), decode_image(row["image"])) for row in rows]
        assert sum(images) == 1
        mask = decode_mask(rows[images.index(True)]["mask"])
        assert np.array_equal(decoded(source["mask"]), encode(mask, load_label_set("scenes")))


def test_sources_that_are_gone_or_others_are_said(tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store")
    run = run_on(store, tmp_path / "run")
    (tmp_path / "hidden").mkdir()
    store.rename(tmp_path / "hidden" / "store")
    assert re.search(r"the source store is out of reach .*no source store here", str(data_of(report(run))["sources"]))
    make_scenes_store(store, num_scenes=3)
    data = data_of(report(run))
    assert data["sources"]["problem"] == f"{store} holds other sources than those of this run now"
    assert data["sources"]["places"] == [None] * len(data["sources"]["ids"])


def test_the_command_prints_where_the_page_lies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_reported_run(tmp_path / "run", made_samples())
    assert main(["report", run.folder.uri, "--max-samples", "10"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert re.fullmatch(rf"{run.folder.uri}/report/index\.html: 10 of 48 samples, \d+ files, [\d.]+ kB\n", out)
    assert main(["report", run.folder.uri, "--json", "--out", str(tmp_path / "other")]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["index"] == str(tmp_path / "other" / "index.html")
    sizes = [path.stat().st_size for path in (tmp_path / "other").iterdir() if not path.name.startswith(".")]
    assert (printed["num_files"], printed["num_bytes"]) == (len(sizes), sum(sizes))
    assert (printed["num_shown"], printed["num_samples"]) == (48, 48)


def test_the_command_and_the_library_show_as_many() -> None:
    (option,) = [p for p in typer.main.get_command(app).commands["report"].params if p.name == "max_samples"]
    assert option.default == MAX_SAMPLES == ReportRequest().max_samples


def test_wrong_use_is_one_line(tmp_path: Path, refused_here: Refused) -> None:
    assert "not a run folder (run.json is missing)" in refused_here("report", tmp_path)
    assert "--max-samples" in refused_here("report", tmp_path, "--max-samples", 0)
    make_run(tmp_path / "run")
    (tmp_path / "file").write_text("a file")
    assert "cannot write here" in refused_here("report", tmp_path / "run", "--out", tmp_path / "file" / "below")
