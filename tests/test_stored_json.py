"""Documents that segdatagen wrote and that somebody changed: one line with file, field and value, in our own words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from committed import commit, make_run, nothing_more, plan
from conftest import make_scenes_store, make_weights

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.planner import read_rounds
from segdatagen.publish import publish, read_index
from segdatagen.refilter import filters_of
from segdatagen.regenerate import regenerate
from segdatagen.run_folder import Run, begin_attempt, open_run, read_attempts
from segdatagen.samples import read_ledger
from segdatagen.sources import open_store
from segdatagen.status import status_of
from segdatagen.storage import Folder
from segdatagen.verify import read_manifest, write_manifest
from segdatagen.weights import MaskDDPMWeights, read_weights

READERS: dict[str, Callable[[Path], object]] = {
    "run/run.json": lambda folder: open_run(str(folder / "run")),
    "run/attempts/0001.json": lambda folder: read_attempts(Folder(str(folder / "run"))),
    "run/plan/round=00/summary.json": lambda folder: read_rounds(Folder(str(folder / "run"))),
    "run/published/index-0.json": lambda folder: read_index(Folder(str(folder / "run"))),
    "store/source.json": lambda folder: open_store(str(folder / "store")),
    "weights/config.json": lambda folder: read_weights(folder / "weights", MaskDDPMWeights),
}
INPUTS = {"run/run.json", "store/source.json", "weights/config.json"}
"""What a user names on the command line or in a job file: a wrong one is wrong use."""
WORDS_OF_PYDANTIC = ("Input should", "Field required", "validation error", "Extra inputs", "Invalid JSON", "\n")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """One of each."""
    run = make_run(tmp_path / "run")
    begin_attempt(run.folder, {})
    plan(run, [1, 2])
    commit(run, [1, 2])
    publish(run, lambda holder: None, lambda done, total: None)
    write_manifest(run, read_ledger(run.folder), read_rounds(run.folder), nothing_more(run))
    make_scenes_store(tmp_path / "store", num_scenes=1)
    make_weights(tmp_path / "weights")
    return tmp_path


def said(stored: Path, name: str) -> str:
    with pytest.raises(SegdatagenError) as caught:
        READERS[name](stored)
    assert type(caught.value) is (UsageError if name in INPUTS else SegdatagenError)
    line = str(caught.value)
    assert line.startswith(f"{stored / name}: not as segdatagen writes it (")
    assert not [words for words in WORDS_OF_PYDANTIC if words in line]
    return line


@pytest.mark.parametrize("name", READERS)
def test_what_was_written_is_read(stored: Path, name: str) -> None:
    READERS[name](stored)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", ["", "not JSON", '{"a": 1', "\xff"])
def test_what_is_no_json(stored: Path, name: str, text: str) -> None:
    (stored / name).write_bytes(text.encode("latin-1"))
    assert "(no JSON, " in said(stored, name)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("value", [[], 7, None, "text"])
def test_json_that_is_no_object(stored: Path, name: str, value: object) -> None:
    (stored / name).write_text(json.dumps(value))
    assert f"must be a mapping of fields, not {value!r}" in said(stored, name)


@pytest.mark.parametrize("name", READERS)
def test_each_field_that_is_missing_or_of_another_type_is_named_with_its_value(stored: Path, name: str) -> None:
    path = stored / name
    whole: dict[str, Any] = json.loads(path.read_text())
    for field, value in whole.items():
        wrong = [7] if isinstance(value, str) or value is None else "a word"
        path.write_text(json.dumps(whole | {field: wrong}))
        line = said(stored, name)
        assert f"({field}: " in line, "and no other field"
        assert f"not {wrong!r}" in line
    path.write_text(json.dumps(whole | {"surprise": 1}))
    assert "(surprise: unknown key; allowed are " in said(stored, name)


@pytest.mark.parametrize("name", ["run/run.json", "run/published/index-0.json", "store/source.json"])
def test_of_another_format_nothing_else_is_said(stored: Path, name: str) -> None:
    (stored / name).write_text(json.dumps({"format_version": "99", "fields": "of another time"}))
    assert said(stored, name).endswith("(format_version: must be '1', not '99': use the version that wrote it)")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": {}, "rounds": 0}'])
def test_a_damaged_manifest_says_nothing(stored: Path, text: str) -> None:
    run = Folder(str(stored / "run"))
    manifest = read_manifest(run)
    assert manifest is not None
    assert (manifest.counts["ok"], manifest.rounds, manifest.goals_met) == (2, 1, True)
    run.put("manifest.json", text.encode())
    assert read_manifest(run) is None


def test_labels_of_a_store_that_are_gone_or_no_text(stored: Path) -> None:
    labels = stored / "store" / "labels.yaml"
    labels.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=f"{labels}: no text .*: delete source.json there and ingest again"):
        open_store(str(stored / "store"))
    labels.unlink()
    with pytest.raises(UsageError, match=f"{labels}: missing: delete source.json there and ingest again"):
        open_store(str(stored / "store"))


@pytest.mark.parametrize(
    ("job", "reader", "problem"),
    [
        ({"filters": {"blurry": {}}}, filters_of, "(job.filters: blurry: unknown key; allowed are blank, "),
        ({"filters": []}, filters_of, "(job.filters: must be a mapping of fields, not []"),
        ({"prices": {"per_cpu_hour": "much"}}, status_of, "(job.prices: per_cpu_hour: must be a number, not 'much'"),
        ({"plan": 7}, lambda run: regenerate(run, 1, "nowhere"), "; plan: must be a list, not 7; "),
        (
            {"plan": [7]},
            lambda run: regenerate(run, 1, "nowhere"),
            "(job: plan: each entry has a method and a strategy",
        ),
    ],
)
def test_a_job_in_a_run_that_somebody_changed(
    stored: Path, job: dict[str, Any], reader: Callable[[Run], object], problem: str
) -> None:
    path = stored / "run" / "run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"job": info["job"] | job}))
    with pytest.raises(UsageError) as caught:
        reader(open_run(str(stored / "run")))
    line = str(caught.value)
    assert line.startswith(f"{path}: not as segdatagen writes it (job")
    assert problem in line
    assert not [words for words in WORDS_OF_PYDANTIC if words in line]
