"""What a planned round says of itself, counted again from its rows, and the picture beside it."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from committed import METHOD, commit, make_run, plan, sample_rows
from conftest import JobFactory
from test_decisions import nobody_waits

from segdatagen.balance import Presence
from segdatagen.cli import main
from segdatagen.cli.run_screen import print_round
from segdatagen.exclude import exclude
from segdatagen.geometry import Geometry
from segdatagen.job import load_job
from segdatagen.methods import Chain
from segdatagen.planner import RoundSummary, picture_of, presence_of, read_plan, read_rounds
from segdatagen.progress import RECENT_PARTS, PerClass, accepted_per_class, measured_cost, state_of
from segdatagen.samples import put_samples, read_ledger
from segdatagen.sources import open_store, transformed_counts
from segdatagen.stages.limits import LimitsStage
from segdatagen.stages.stage import Batch
from segdatagen.storage import Folder

GOALS = [
    {"method": "mask_ddpm", "strategy": "cover", "n_balance": 9},
    {"method": "mask_ddpm", "strategy": "balance_pixels", "n_pixels": 3000},
    {"method": "mask_ddpm", "strategy": "random", "num_samples": 40},
]
MIN_PIXELS = 5
SIZE = [40, 32]


@pytest.fixture
def folder(make_job: JobFactory, capfd: pytest.CaptureFixture[str]) -> Folder:
    """A planned run of all three goals at another size than that of the sources."""
    job = make_job(plan=[*GOALS, {"min_pixels": MIN_PIXELS}], geometry={"size": SIZE, "fit": "resize"})
    assert main(["plan", str(job)]) == 0
    return Folder(load_job(str(job)).uri)


def test_images_and_pixels_are_those_of_the_rows(folder: Folder, scenes_store: Path) -> None:
    (summary,) = read_rounds(folder)
    rows = read_plan(folder, [summary])
    store = open_store(str(scenes_store))
    pixels = transformed_counts(store, Geometry(size=(SIZE[0], SIZE[1])))
    pixels[pixels < MIN_PIXELS] = 0
    place = {source: row for row, source in enumerate(store.index["source_id"].to_pylist())}
    copies = np.array([place[source] for source in rows["source_id"].to_pylist()])
    channels = {name: channel for channel, name in enumerate(store.label_set.names)}
    for found in summary.classes:
        of_class = pixels[:, channels[found.name]]
        assert found.pixels is not None
        assert (found.real, found.planned) == ((of_class > 0).sum(), (of_class[copies] > 0).sum())
        assert (found.pixels.real, found.pixels.planned) == (of_class.sum(), of_class[copies].sum())
        assert (found.pixels.accepted, found.pixels.wanted) == (0, 3000)
        if found.real:
            assert found.total >= 9
            assert found.pixels.real + found.pixels.planned >= 3000


def test_a_goal_in_pixels_can_be_followed(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    (summary,) = read_rounds(folder)
    sky = next(found for found in summary.classes if found.name == "sky")
    assert sky.pixels is not None
    capfd.readouterr()
    assert main(["status", folder.uri]) == 0
    table = capfd.readouterr().out.split("pixels\n", 1)[1]
    (row,) = re.findall(r"│ sky .*│", table)
    assert [cell.strip() for cell in row.split("│")[2:6]] == [str(sky.pixels.real), "0", str(sky.pixels.real), "3000"]
    print_round(summary)
    table = capfd.readouterr().out.split("pixels\n", 1)[1]
    (row,) = re.findall(r"│ sky .*│", table)
    before, after = (
        100 * getattr(sky.pixels, name) / sum(getattr(found.pixels, name) for found in summary.classes)
        for name in ("real", "total")
    )
    expected = [str(sky.pixels.total), f"{before:.1f}%", f"{after:.1f}%"]
    assert [cell.strip() for cell in row.split("│")[6:9]] == expected
    assert main(["report", folder.uri]) == 0
    page = folder.read("report/index.html").decode().split('id="pixels"')[1]
    cells = "".join(f"<td>{number:,}</td>" for number in (sky.pixels.real, 0, sky.pixels.real, 3000))
    assert f'<th scope="row">sky</th>{cells}' in page


def test_classes_that_nothing_shows_and_nobody_wants_are_only_counted(
    folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    (summary,) = read_rounds(folder)
    absent = summary.classes[0].model_copy(
        update={"name": "unicorn", "real": 0, "planned": 0, "wanted": 0, "total": 0, "pixels": None}
    )
    print_round(summary.model_copy(update={"classes": (*summary.classes, absent)}))
    printed = capfd.readouterr().out
    assert "unicorn" not in printed
    assert f"1 of {len(summary.classes) + 1} classes are left out: no image shows them, no goal wants them" in printed
    print_round(summary, is_running=True)
    printed = capfd.readouterr().out
    assert "left out" not in printed
    assert "time on 1 actor: not measured yet\n" in printed, "how to measure it is no news to a run"


def test_every_goal_says_what_it_adds(folder: Folder) -> None:
    (summary,) = read_rounds(folder)
    cover, by_pixels, at_random = summary.goals
    assert sum(goal.planned for goal in summary.goals) == summary.num_rows >= 40
    assert [goal.strategy for goal in summary.goals] == ["cover", "balance_pixels", "random"]
    assert (cover.at_least, cover.algorithm_1) != (None, None)
    assert 0 < (cover.at_least or 0) <= cover.planned <= (cover.algorithm_1 or 0)
    assert (by_pixels.at_least, at_random.algorithm_1) == (None, None)


def test_the_picture_lies_beside_the_summary(folder: Folder) -> None:
    (summary,) = read_rounds(folder)
    picture = folder.read("plan/round=00/classes.svg").decode()
    assert picture == picture_of(summary)
    for found in summary.classes:
        assert f">{found.name}<" in picture


@pytest.mark.parametrize(
    ("currency", "unit", "behind"), [(None, " (in the currency of `prices`)", ""), ("EUR", "", " EUR")]
)
def test_the_plan_command_prints_bounds_pixels_and_what_is_not_measured(
    make_job: JobFactory, capfd: pytest.CaptureFixture[str], currency: str | None, unit: str, behind: str
) -> None:
    prices = {"per_gb_month": 0.02, "per_1000_puts": 0.005, **({"currency": currency} if currency else {})}
    assert main(["plan", str(make_job(plan=[*GOALS, {"min_pixels": MIN_PIXELS}], prices=prices)), "--dry-run"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    for words in (
        "no choice of sources takes fewer than",
        "balance would take",
        "time on 1 actor: not measured yet, `segdatagen run JOB.yaml --limit 32` measures it",
        "PUT requests without lease renewals",
        f"cost{unit}: less than 0.01{behind} for requests, less than 0.01{behind} a month for storage",
        f"cost of a million samples{unit}: ",
    ):
        assert words in out


def test_a_summary_from_before_estimates_is_still_read(folder: Folder) -> None:
    stored: dict[str, Any] = json.loads(folder.read("plan/round=00/summary.json"))
    for name in ("goals", "estimate"):
        del stored[name]
    for found in stored["classes"]:
        del found["pixels"]
    assert RoundSummary.model_validate(stored).num_rows >= 40


def test_accepted_pixels_are_those_of_good_samples(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(12))
    commit(run, [0, 1, 2, 3])
    commit(run, [4, 5], "rejected")
    commit(run, [6], "failed")
    commit(run, [7, 8])
    ledger = read_ledger(run.folder)
    found = accepted_per_class(run.folder, ledger, run.label_set, min_pixels=1)
    ids = run.label_set.ids.tolist()
    expected = [sum(id_ % 3 == class_id for id_ in (0, 1, 2, 3, 7, 8)) for class_id in ids]
    assert found.images.tolist() == expected
    assert found.pixels.tolist() == [256 * count for count in expected]
    exactly = accepted_per_class(run.folder, ledger, run.label_set, min_pixels=256)
    assert (exactly.images.tolist(), exactly.pixels.tolist()) == (found.images.tolist(), found.pixels.tolist())
    none = accepted_per_class(run.folder, ledger, run.label_set, min_pixels=257)
    assert not none.images.any()
    assert not none.pixels.any()


def test_a_class_of_exactly_min_pixels_is_one_of_its_source(scenes_store: Path) -> None:
    store = open_store(str(scenes_store))
    counts = transformed_counts(store, Geometry(size=(SIZE[0], SIZE[1])))
    source = 2
    for channel in np.flatnonzero(counts[source]):
        pixels = int(counts[source, channel])
        shown = presence_of(store, counts, pixels)
        place = int(shown.indptr[source]) + shown.classes_of(np.array([source])).tolist().index(channel)
        assert shown.pixels is not None
        assert shown.pixels[place] == pixels
        assert channel not in presence_of(store, counts, pixels + 1).classes_of(np.array([source]))


@pytest.mark.parametrize("others", ["ok", "rejected", "excluded", "failed"])
def test_a_source_that_made_any_sample_does_not_only_fail(tmp_path: Path, others: str) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    rows = read_plan(run.folder, read_rounds(run.folder))
    same_source = pa.array(["a", "a", "b"])
    rows = rows.set_column(rows.column_names.index("source_id"), "source_id", same_source)
    commit(run, [1, 3], "failed")
    commit(run, [2], "ok" if others == "excluded" else others)
    if others == "excluded":
        exclude(run, [2], "ugly", nobody_waits)
    names, none = run.label_set.names, np.zeros(0, np.int64)
    presence = Presence.from_pairs(["a", "b", "c"], names, none, none, [])
    counts = np.zeros(len(names), np.int64)
    state = state_of(presence, {}, rows, read_ledger(run.folder), PerClass(counts, counts))
    assert state.available.tolist() == [others != "failed", False, True]


def test_seconds_are_those_of_the_methods_that_a_round_has(tmp_path: Path) -> None:
    """A method whose name comes last, and has more parts than are looked at, does not stand for all of them."""
    run = make_run(tmp_path / "run")
    for method, seconds, number in (("imgsyn", 8.0, 0), ("mask_ddpm", 9.0, 0), ("mask_ddpm", 0.5, 1)):
        for part in range(RECENT_PARTS):
            rows = sample_rows([len(method) * 1000 + number * 100 + part], "ok", 1, number)
            for name, value in (("method", method), ("seconds", seconds)):
                place, field = rows.column_names.index(name), rows.schema.field(name)
                rows = rows.set_column(place, field, pa.array([value], field.type))
            put_samples(run.folder, rows)
    cost = measured_cost(run.folder, read_ledger(run.folder), Geometry(size=(16, 16)))
    assert cost.seconds_per_sample == {"imgsyn": 8.0, "mask_ddpm": 0.5}, "of the newest parts of each"
    assert cost.seconds_of({"imgsyn": 3, "mask_ddpm": 10}) == 29.0
    assert cost.seconds_of({"mask_ddpm": 10, "guided": 0}) == 5.0
    assert cost.seconds_of({"mask_ddpm": 10, "guided": 1}) is None, "nothing is known of it yet"


class Scores:
    """A stage that gives scores from 0 on."""

    name, reads, writes, verdict = "scores", ("seed",), ("score_adherence",), "failed"

    def __call__(self, batch: Batch) -> Batch:
        return {"score_adherence": np.arange(len(batch["seed"])) / 10}


def test_what_is_rejected_takes_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 9))
    clock = itertools.count(10.0, 2.0)
    monkeypatch.setattr("segdatagen.methods.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    chain = Chain([Scores(), LimitsStage({"adherence.min": 0.35})])
    rows = chain.run(read_plan(run.folder, read_rounds(run.folder)), attempt=1)
    assert rows["status"].to_pylist().count("rejected") == 4
    put_samples(run.folder, rows)
    cost = measured_cost(run.folder, read_ledger(run.folder), Geometry(size=(16, 16)))
    assert cost.seconds_of({METHOD: 8}) == next(clock) - 2 - 10, "and not twice of it"
