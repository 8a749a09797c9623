"""The scores that a report sums up: every sample that has a figure, by method and by class, against NumPy."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from committed import make_run, plan
from reported import FIRST_ID, Made, made_samples, make_reported_run, put_made, report
from test_decisions import nobody_waits

from segdatagen.exclude import exclude
from segdatagen.judged import PERCENTILES, IouSummary, JudgedSources, keep_judged
from segdatagen.labels import load_label_set
from segdatagen.report.outcomes import Outcomes, read_outcomes
from segdatagen.report.scores import Summary, by_class, by_method
from segdatagen.run_folder import Run, open_run, write_run
from segdatagen.samples import read_ledger
from segdatagen.tables import put_table, read_part

NAMES = load_label_set("scenes").names


def outcomes_of(run: Run) -> Outcomes:
    """Every sample of a run."""
    return read_outcomes(run, read_ledger(run.folder), 1)


def expected(score: str, group: str, samples: list[Made]) -> Summary:
    """The summary of samples that have a figure, from their figures alone."""
    values = [np.float64(np.float32(one.score)) for one in samples if one.score is not None]
    accepted = [np.float64(np.float32(one.score)) for one in samples if one.score is not None and one.status == "ok"]
    tenths = tuple(np.quantile(values, [0.1, 0.5, 0.9]).tolist())
    return Summary(
        score, group, len(values), float(np.mean(values)), tenths, float(np.mean(accepted)) if accepted else None
    )


def rounded(rows: list[Summary]) -> set[tuple[object, ...]]:
    """What rows say, but for their last digits and their order."""
    return {
        (one.score, one.group, one.count, *np.round([one.mean, *one.percentiles, one.accepted or -1.0], 6).tolist())
        for one in rows
    }


def test_scores_are_those_of_all_samples_by_method_and_by_class(tmp_path: Path) -> None:
    samples = made_samples()
    found = outcomes_of(make_reported_run(tmp_path / "run", samples))
    methods = [
        expected("clip", name, [one for one in samples if one.method == name]) for name in ("inpaint", "mask_ddpm")
    ]
    assert rounded(by_method(found)) == rounded(methods)
    scored = [one for one in samples if one.score is not None]
    channels = sorted({one.channels[0] for one in scored})
    classes = [expected("clip", NAMES[c], [one for one in scored if one.channels[0] == c]) for c in channels]
    rows = by_class(found, load_label_set("scenes"))
    assert rounded(rows) == rounded(classes)
    assert sum(one.count for one in rows) == len(scored)
    assert [one.mean for one in rows] == sorted(one.mean for one in rows), "what is found worst stands first"


def test_what_was_excluded_is_in_the_mean_of_all_and_not_of_the_accepted(tmp_path: Path) -> None:
    samples = [Made(FIRST_ID + n, score=score, channels=(2, 3)) for n, score in enumerate((0.25, 0.5, 1.0))]
    run = make_reported_run(tmp_path / "run", samples)
    exclude(run, [FIRST_ID + 2], "the car floats", nobody_waits)
    (row,) = by_method(outcomes_of(run))
    assert (row.count, row.mean, row.accepted) == (3, 7 / 12, 0.375)
    exclude(run, [FIRST_ID, FIRST_ID + 1], "these too", nobody_waits)
    (row,) = by_class(outcomes_of(run), run.label_set)
    assert (row.group, row.count, row.accepted) == (NAMES[2], 3, None)


def test_what_is_not_finite_or_of_an_unknown_class_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    samples = [Made(FIRST_ID + n, score=score) for n, score in enumerate((0.25, float("nan"), float("inf"), None))]
    plan(run, [one.sample_id for one in samples], 0, "mask_ddpm")
    put_made(run, samples)
    (name,) = [entry.name for entry in run.folder.entries(".parquet") if entry.name.startswith("samples/")]
    table = read_part(run.folder, name)
    scores = [[{"class_id": 200, "score": "clip", "value": 0.1}, {"class_id": 0, "score": "clip", "value": None}]] * 4
    place = table.schema.get_field_index("scores_per_class")
    put_table(
        run.folder,
        name,
        table.set_column(place, table.schema.field(place), pa.array(scores, table.schema.field(place).type)),
    )
    found = outcomes_of(run)
    assert [(row.count, row.mean) for row in by_method(found)] == [(1, 0.25)]
    assert by_class(found, run.label_set) == []


def test_parts_of_a_version_without_a_score_have_none(tmp_path: Path) -> None:
    samples = [replace(one, method="mask_ddpm") for one in made_samples()[:16]]
    run = make_reported_run(tmp_path / "run", samples)
    whole = next(entry.name for entry in run.folder.entries(".parquet") if entry.name.startswith("samples/"))
    put_table(run.folder, whole, read_part(run.folder, whole).drop_columns(["score_clip", "scores_per_class"]))
    (row,) = by_method(outcomes_of(run))
    assert rounded([row]) == rounded([expected("clip", "mask_ddpm", samples[8:])])


def test_the_page_says_them_and_no_score_is_no_section(tmp_path: Path) -> None:
    page = Path(report(make_reported_run(tmp_path / "run", made_samples())).index).read_text()
    cells = cells_of(page, "method-scores")
    wanted = expected("clip", "inpaint", [one for one in made_samples() if one.method == "inpaint"])
    figures = [wanted.mean, *wanted.percentiles, wanted.accepted]
    assert cells[0] == ["method", "score", "samples", "mean", "10 %", "median", "90 %", "mean of accepted"]
    assert cells[1] == ["inpaint", "clip", str(wanted.count), *(f"{value:.3f}" for value in figures)]
    assert 'id="class-scores"' in page
    assert "segdatagen judge" not in page, "that is for adherence"
    bare = Path(report(make_reported_run(tmp_path / "bare", [Made(FIRST_ID)])).index).read_text()
    assert "scores-title" not in bare


def test_the_page_sets_real_images_beside_adherence(tmp_path: Path) -> None:
    run = make_reported_run(tmp_path / "run", [Made(FIRST_ID, score=0.5, channels=(2, 3))])
    (name,) = [entry.name for entry in run.folder.entries(".parquet") if entry.name.startswith("samples/")]
    table = read_part(run.folder, name)
    own = {"class_id": 2, "score": "adherence", "value": 0.25}, {"class_id": 3, "score": "adherence", "value": 0.75}
    for column, values in (("score_adherence", table["score_clip"]), ("scores_per_class", pa.array([list(own)]))):
        place = table.schema.get_field_index(column)
        field = table.schema.field(place)
        table = table.set_column(place, field, values.cast(field.type))
    put_table(run.folder, name, table)
    page = Path(report(run).index).read_text()
    assert "segdatagen judge JOB.yaml --sources STORE --keep" in page
    assert "mean of real images" not in page
    whole, chance, road = (
        IouSummary(images=9, iou=0, mean=mean, percentiles=(0,) * len(PERCENTILES)) for mean in (0.875, 0.125, 0.625)
    )
    names = run.label_set.names
    found = JudgedSources(
        sources="held/out",
        segmenter="its",
        fingerprint="of its weights",
        masks=whole,
        other_masks=chance,
        classes={names[3]: road},
    )
    keep_judged(run.folder, found)
    page = Path(report(run).index).read_text()
    assert "mean of real images" not in page, "another segmenter, or none, has scored the samples"
    write_run(run.folder.uri, run.info.job, run.info.recipes, run.label_set, {"adherence": found.fingerprint})
    run = open_run(run.folder.uri)
    page = Path(report(run).index).read_text()
    assert "segdatagen judge" not in page
    assert "9 of <code>held/out</code>" in page
    assert "their mean adherence is 0.125" in page
    assert {(row[1], row[-1]) for row in cells_of(page, "method-scores")[1:]} == {("clip", "–"), ("adherence", "0.875")}
    rows = cells_of(page, "class-scores")
    assert rows[0][-1] == "mean of real images"
    assert [(row[0], row[3], row[-1]) for row in rows[1:]] == [(names[2], "0.250", "–"), (names[3], "0.750", "0.625")]


def cells_of(page: str, table: str) -> list[list[str]]:
    """What stands in the cells of a table."""
    rows = re.findall(r"<tr>.*?</tr>", page.split(f'id="{table}"')[1].split("</table>")[0])
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
