"""Wrong input that a run meets late: in judges, in its own `run.json`, in images of sources. See `test_wrong_input`."""

import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import JobFactory, Refused, make_scenes_store, the_line
from kept_events import Events
from test_faults import damage
from test_latent_methods import options_of, plan_of
from tiny_latent import save_models
from tiny_segmenter import make_segmenter
from wrong_inputs import require_row

from segdatagen import missing
from segdatagen.cli import main
from segdatagen.driver import RunOptions, SilentEvents
from segdatagen.job import load_job
from segdatagen.run import run_job
from segdatagen.run_folder import SUCCESS_NAME
from segdatagen.samples import method_of, read_ledger
from segdatagen.storage import Folder
from segdatagen.tables import read_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_a_segmenter_that_is_cut_off(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    segmenter = make_segmenter(tmp_path / "segmenter")
    tensors = segmenter / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    job = make_job(filters={"adherence": {"segmenter": str(segmenter)}})
    refused_here("run", job, row="a filter's segmenter that is cut off")


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("a price in `run.json` that somebody changed", {"prices": {"per_cpu_hour": "much"}}),
        ("a key in `run.json` that there is not", {"prices": {"per_day": 1}}),
    ],
)
def test_a_job_in_a_run_that_somebody_changed(
    refused_here: Refused, make_job: JobFactory, tmp_path: Path, row: str, changes: dict[str, object]
) -> None:
    assert main(["plan", str(make_job())]) == 0
    path = tmp_path / "runs" / "tiny" / "v1" / "run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"job": info["job"] | changes}))
    refused_here("status", path.parent, row=row)


def test_sources_that_cannot_be_hashed(
    ray_session: None, make_job: JobFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ids and classes of a part can be read, its images cannot: that shows when they are hashed, on Ray."""
    part = make_scenes_store(tmp_path / "store") / "part-00000.parquet"
    group = pq.read_metadata(part).row_group(0)
    images = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image")
    with part.open("r+b") as file:
        file.seek(images.data_page_offset)
        file.write(b"\xff" * 64)
    job = make_job(sources=str(tmp_path / "store"), filters={"duplicates": {"min_distance": 8}})
    capfd.readouterr()
    status = main(["run", str(job), "--json"])
    require_row("sources that cannot be hashed", the_line(status, *capfd.readouterr()), status, tmp_path.parent)
    run = tmp_path / "runs" / "tiny" / "v1"
    assert not (run / SUCCESS_NAME).exists()
    assert not (run / "samples").exists()


@pytest.fixture
def another_method(tmp_path: Path) -> dict[str, Any]:
    """The fields of a job whose only method is another one."""
    options = options_of(save_models(tmp_path / "models"), "inpaint")
    return {"methods": {"inpaint": options}, "plan": plan_of("inpaint")}


def test_a_method_that_leaves_before_its_samples_are_made(
    refused_here: Refused, make_job: JobFactory, another_method: dict[str, Any]
) -> None:
    assert main(["plan", str(make_job())]) == 0
    row = "a method left out of the job before all of its samples are made"
    for verb in ("plan", "run"):
        refused_here(verb, make_job(**another_method), row=row)
    refused_here("run", make_job(seed=7, **another_method), row="another seed and another method at the same address")


def test_a_method_that_leaves_afterwards(
    refused_here: Refused, make_job: JobFactory, another_method: dict[str, Any], ray_session: None, tmp_path: Path
) -> None:
    """What it made stays; of what it failed to make nothing is tried again; and what is made of it needs it back."""
    damage(make_scenes_store(tmp_path / "damaged"), {0: b"not a mask"})
    fields = {"sources": str(tmp_path / "damaged"), "execution": {"max_failed_fraction": 0.9}}
    run_job(load_job(str(make_job(**fields))), RunOptions(), SilentEvents())
    job = load_job(str(make_job(**fields, **another_method)))
    noted = Events()
    outcome = run_job(job, RunOptions(retry_failed=True), noted)
    assert (outcome.counts["failed"], outcome.planned) == (2, 22), "a source that only ever failed is not asked again"
    assert "2 samples that failed stay as they are: the job has their method no more" in noted.notes
    folder = Folder(job.uri)
    part = next(part.name for part in read_ledger(folder).parts if method_of(part.name) == "mask_ddpm")
    sample = read_part(folder, part).filter(pc.field("status") == "ok")["sample_id"][0].as_py()
    row = "`regenerate` of a sample whose method was left out of the job"
    refused_here("regenerate", job.uri, sample, "--out", tmp_path / "again", row=row)


def test_a_round_that_memory_could_not_hold_ends_the_run_with_what_there_is(
    make_job: JobFactory,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The source with most pixels of a rare class fails: the others would have to be copied more often than before."""
    damage(make_scenes_store(tmp_path / "damaged", num_scenes=3), {0: b"not a mask"})
    monkeypatch.setattr(missing, "MAX_PLANNED_ROWS", 360)
    plan = [{"method": "mask_ddpm", "strategy": "balance_pixels", "n_pixels": 3000}]
    path = make_job(sources=str(tmp_path / "damaged"), plan=plan, execution={"max_failed_fraction": 1.0})
    noted = Events()
    outcome = run_job(load_job(str(path)), RunOptions(), noted)
    assert (outcome.counts["ok"], outcome.counts["failed"], outcome.planned) == (78, 272, 350)
    assert outcome.complete
    assert not outcome.goals_met
    assert any("the goals still miss 370 samples, more than one run can plan" in note for note in noted.notes)
    run = tmp_path / "runs" / "tiny" / "v1"
    assert (run / SUCCESS_NAME).exists()
    assert [folder.name for folder in (run / "plan").iterdir()] == ["round=00"]
    capfd.readouterr()
    assert main(["plan", str(path)]) == 2
    assert "the plan asks for 370 samples, more than one run can plan (360)" in capfd.readouterr().err
