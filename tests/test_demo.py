"""The demo ends with a report that is there, finds everything done the second time, and bears samples that are bad."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from committed import commit, make_run, plan
from test_decisions import nobody_waits

from segdatagen import demo
from segdatagen.cli import main
from segdatagen.publish import publish
from segdatagen.storage import Folder

NUM_SCENES = 6
SAMPLES = 2


@pytest.mark.slow
def test_the_demo_ends_with_a_report_and_is_done_the_second_time(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_SCENES", NUM_SCENES)
    monkeypatch.setattr(demo, "SAMPLES", SAMPLES)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    (report,) = re.findall(r"open (.*) in a browser", " ".join(capfd.readouterr().out.split()))
    assert Path(report).is_file()
    assert (tmp_path / "pairs.png").is_file()
    assert not re.search(r"[&*]id\d", (tmp_path / "job.yaml").read_text()), "each method can be read by itself"
    samples = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/*.parquet") if "report" not in path.parts}
    assert samples
    statuses = {
        (row["method"], row["status"])
        for path in tmp_path.glob("runs/**/samples/**/*.parquet")
        for row in pq.read_table(path, columns=["method", "status"]).to_pylist()
    }
    assert {method for method, _ in statuses} == {"mask_ddpm", "imgsyn", "masksyn", "guided", "inpaint"}
    assert "failed" not in {status for _, status in statuses}
    assert "mean of real images" in Path(report).read_text()
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert samples == {path: path.stat().st_mtime_ns for path in samples}


def test_a_demo_without_a_good_sample_has_no_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2], "rejected")
    index = publish(run, nobody_waits, lambda done, total: None).index
    assert demo.put_pairs(run, index, Folder(str(tmp_path))) is None
    assert not (tmp_path / "pairs.png").exists()
