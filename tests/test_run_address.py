"""A run says where its inputs lie so that any folder finds them; the same job by other paths is the same run."""

import json
from pathlib import Path

import pytest
from conftest import JobFactory, make_scenes_store, make_weights
from tiny_segmenter import make_segmenter

from segdatagen.cli import main
from segdatagen.job import load_job
from segdatagen.run_folder import recipe_fingerprint
from segdatagen.storage import Folder

FROZEN = "6bded46ce0ae22e7bd7cf8a8e2672714"
"""Fingerprint of the recipe of the tiny job with names in the place of its hashes."""

METHODS = {"mask_ddpm": {"weights": "weights", "steps": 2}}


def filters_of(segmenter: str) -> dict[str, dict[str, str]]:
    return {"adherence": {"segmenter": segmenter}, "ignore_noisy": {"segmenter": segmenter}}


@pytest.fixture
def relative_job(make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job whose paths are all relative to `tmp_path`, which is the working folder."""
    make_scenes_store(tmp_path / "sources")
    make_weights(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    make_segmenter(tmp_path / "segmenter")
    return make_job(sources="sources", methods=METHODS, filters=filters_of("segmenter"), output={"root": "runs"})


def stored_run(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "runs" / "tiny" / "v1" / "run.json").read_text())


def test_a_run_stores_absolute_paths(relative_job: Path, tmp_path: Path) -> None:
    assert main(["plan", "job.yaml", "--json"]) == 0
    job = stored_run(tmp_path)["job"]
    assert job["sources"] == str(tmp_path / "sources")
    assert job["methods"]["mask_ddpm"]["weights"] == str(tmp_path / "weights")
    for name in ("adherence", "ignore_noisy"):
        assert job["filters"][name]["segmenter"] == str(tmp_path / "segmenter")
    assert job["output"]["root"] == str(tmp_path / "runs")


def test_the_same_job_by_absolute_paths_is_the_same_run(
    relative_job: Path, make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", "job.yaml", "--json"]) == 0
    before = stored_run(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    methods = {"mask_ddpm": {"weights": str(tmp_path / "weights"), "steps": 2}}
    filters = filters_of(str(tmp_path / "segmenter"))
    job = make_job(sources=f"file://{tmp_path}/sources", methods=methods, filters=filters)
    assert main(["plan", str(job), "--json"]) == 0
    assert stored_run(tmp_path) == before


def test_a_run_that_was_stored_with_relative_paths_goes_on_and_gets_absolute_ones(
    relative_job: Path, tmp_path: Path
) -> None:
    assert main(["plan", "job.yaml", "--json"]) == 0
    info = tmp_path / "runs" / "tiny" / "v1" / "run.json"
    before = stored_run(tmp_path)
    info.write_text(json.dumps(before | {"job": load_job("job.yaml").model_dump(mode="json")}))
    assert stored_run(tmp_path)["job"]["sources"] == "sources"
    assert main(["plan", "job.yaml", "--json"]) == 0
    assert stored_run(tmp_path) == before


def test_names_and_places_elsewhere_stay_as_they_are(make_job: JobFactory, tmp_path: Path) -> None:
    methods = {"mask_ddpm": {"weights": "builtin:scenes-mask-ddpm"}}
    filters = filters_of("builtin:any")
    path = make_job(
        sources="s3://bucket/sources", methods=methods, filters=filters, output={"root": "s3://bucket/runs"}
    )
    job = load_job(str(path))
    assert job.from_anywhere() == job
    assert job.from_anywhere().uri == "s3://bucket/runs/tiny/v1"


def test_what_decides_the_samples_is_as_it_was_in_earlier_versions(
    relative_job: Path, make_job: JobFactory, tmp_path: Path
) -> None:
    """Ids follow from this fingerprint: another one would refuse every run that exists."""
    make_job(sources="sources", methods=METHODS, output={"root": "runs"})
    assert main(["plan", "job.yaml", "--json"]) == 0
    found = stored_run(tmp_path)
    recipe = found["recipes"]["mask_ddpm"]
    assert found["fingerprints"]["mask_ddpm"] == recipe_fingerprint(recipe)
    frozen = recipe | {"sources": "s", "labels": "l", "options": recipe["options"] | {"weights": "w"}}
    assert frozen.pop("segments") == "kept", "scenes have segments"
    assert recipe_fingerprint(frozen) == FROZEN
    assert str(tmp_path) not in json.dumps(recipe)


def test_a_folder_knows_its_place_whatever_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("b/").absolute_uri == str(tmp_path / "b")
    assert Folder(f"file://{tmp_path}/b").absolute_uri == str(tmp_path / "b")
    assert Folder("/").absolute_uri == "/"
    assert Folder("s3://bucket/x/").absolute_uri == "s3://bucket/x"
