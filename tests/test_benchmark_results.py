"""The benchmarks as the command offers them, and the table of their newest rows."""

import csv
import dataclasses
import functools
import json
import shutil
import string
from pathlib import Path

import pytest
from conftest import REPOSITORY

from segdatagen.benchmark.kills import KILLS
from segdatagen.benchmark.measure import Benchmark, record
from segdatagen.benchmark.results import RESULTS_NAME, headline, results
from segdatagen.benchmark.scenes import SCENES, bench_scenes
from segdatagen.benchmark.suite import BENCHMARKS
from segdatagen.cli import main

ROWS = REPOSITORY / "benchmarks"


def test_the_table_of_results_is_up_to_date() -> None:
    assert (ROWS / RESULTS_NAME).read_text() == results(ROWS, BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_rows_with_its_headline(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name
    with (ROWS / f"{name}.csv").open(newline="") as file:
        newest = list(csv.DictReader(file))[-1]
    assert newest["command"].startswith(f"segdatagen bench {name}")
    for template in (benchmark.figure, benchmark.ratio):
        assert [field for _, field, _, _ in string.Formatter().parse(template) if field]
        assert "not measured" not in headline(template, newest)


def test_every_file_of_rows_belongs_to_a_benchmark() -> None:
    assert {path.stem for path in ROWS.glob("*.csv")} == set(BENCHMARKS)


def test_the_list_and_the_help_name_every_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json"]) == 0
    assert [row["name"] for row in json.loads(capfd.readouterr().out)["benchmarks"]] == list(BENCHMARKS)
    assert main(["bench"]) == 0
    listed = capfd.readouterr().out
    assert main(["bench", "--help"]) == 0
    helped = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert all(f"│ {name} " in listed for name in BENCHMARKS)
    assert ", ".join(BENCHMARKS) in helped


def test_a_measurement_adds_a_row_and_writes_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(SCENES, run=functools.partial(bench_scenes, size=32, count=10))
    monkeypatch.setitem(BENCHMARKS, "scenes", small)
    shutil.copy(ROWS / "scenes.csv", tmp_path)
    before = (tmp_path / "scenes.csv").read_text()
    assert main(["bench", "scenes", "--out", str(tmp_path), "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    after = (tmp_path / "scenes.csv").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    (row,) = [line for line in (tmp_path / RESULTS_NAME).read_text().splitlines() if line.startswith("| [")]
    assert f"{figures['scenes_per_second']:.0f} scenes/s of 32 x 32" in row
    assert f"{figures['ratio_to_reading']:.2f} of the speed" in row


def test_a_result_says_which_settings_are_not_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["segdatagen", "bench", "kills", "--kills", "25"])
    record(tmp_path, "kills", {"kills": 25})
    assert "`segdatagen bench kills --kills 25` (kills is 100 by default)" in results(tmp_path, {"kills": KILLS})
    monkeypatch.setattr("sys.argv", ["segdatagen", "bench", "kills", "--kills", "100"])
    record(tmp_path, "kills", {"kills": 100})
    assert "`segdatagen bench kills --kills 100` |" in results(tmp_path, {"kills": KILLS})


def test_a_headline_of_a_row_that_is_older_than_its_figure() -> None:
    template = "{rows:,} rows in {seconds:.1f} s"
    assert headline(template, {"rows": "1000000", "seconds": "5.59"}) == "1,000,000 rows in 5.6 s"
    assert headline(template, {"rows": "1000000", "seconds": ""}) == "not measured then"
    assert headline(template, {"rows": "1000000"}) == "not measured then"


def test_a_benchmark_without_rows_has_no_result(tmp_path: Path) -> None:
    unmeasured = Benchmark("a", dict, "m", "r", "{x}", "{y}", 1)
    assert results(tmp_path, {"a": unmeasured}).endswith("|\n| " + " | ".join(["---"] * 8) + " |\n")
