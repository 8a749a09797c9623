"""Paths that no file can have: links to themselves, names too long, control characters. See `test_wrong_input`."""

from pathlib import Path

import pytest
from conftest import JobFactory, Refused

TOO_LONG = "a" * 300

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """A link to itself."""
    link = tmp_path / "loop"
    link.symlink_to("loop")
    return link


@pytest.mark.parametrize("verb", ["status", "verify", "report"])
def test_a_run_behind_a_link_to_itself(
    refused_here: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Path, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here(verb, loop, row="a run behind a link to itself")


@pytest.mark.parametrize(
    "words",
    [
        ["status", TOO_LONG],
        ["sources", TOO_LONG],
        ["labels", "show", TOO_LONG],
        ["ingest", "camvid", TOO_LONG, "--split", "train", "--out", "store"],
        ["ingest", "id_masks", "data", "--labels", TOO_LONG, "--split", "train", "--out", "store"],
    ],
)
def test_a_name_that_is_too_long(
    refused_here: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here(*words, row="a name that is too long for the disk")


def test_an_output_whose_name_is_too_long(
    refused_here: Refused, make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = "an output whose name is too long for the disk"
    refused_here("ingest", "scenes", "2@32x32", "--split", "train", "--out", f"new/{TOO_LONG}", row=row)
    refused_here("plan", make_job(output={"root": f"new/{TOO_LONG}"}), row=row)


@pytest.mark.parametrize("fields", [{"sources": TOO_LONG}, {"methods": {"mask_ddpm": {"weights": TOO_LONG}}}])
def test_a_job_with_a_name_that_is_too_long(
    refused_here: Refused, make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here("plan", make_job(**fields), row="a name that is too long for the disk")


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ("`root` with a control character", {"output": {"root": "ru\0ns"}}),
        ("`sources` with a control character", {"sources": "st\x1bore"}),
        ("`weights` with a control character", {"methods": {"mask_ddpm": {"weights": "mi\0ne"}}}),
        ("`root: s3://`", {"output": {"root": "s3://"}}),
        ("`root: file://`", {"output": {"root": "file://"}}),
    ],
)
def test_a_place_that_no_path_can_be(refused_here: Refused, make_job: JobFactory, row: str, fields: dict) -> None:
    refused_here("plan", make_job(**fields), row=row)


@pytest.mark.parametrize(
    ("row", "field"), [("a `name` of 101 characters", "name"), ("a `version` of 101 characters", "version")]
)
def test_a_name_of_a_job_that_is_too_long(refused_here: Refused, make_job: JobFactory, row: str, field: str) -> None:
    refused_here("plan", make_job(**{field: "a" * 101}), row=row)


def test_a_control_character_on_the_command_line(refused_here: Refused) -> None:
    refused_here("status", "ru\x1bns", row="`status` of a name with a control character")


def test_an_empty_name_on_the_command_line(refused_here: Refused) -> None:
    refused_here("status", "", row='`status ""`')
