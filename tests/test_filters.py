"""Filters as options: what is content and what is a limit, how limits judge scores, and how mistakes are named."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from committed import sample_rows
from conftest import JobFactory, Refused, make_scenes_store
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_clip import make_clip
from tiny_segmenter import make_segmenter

from segdatagen.driver import SilentEvents
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.filtering import filter_context, filter_recipe, filter_stages, judges_of
from segdatagen.filters import LIMITS, Filters, columns_of, parse_limits, refusals
from segdatagen.job import load_job
from segdatagen.labels import load_label_set
from segdatagen.methods import content_recipes
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run import plan_job
from segdatagen.run_folder import Run, open_run
from segdatagen.samples import put_samples
from segdatagen.sources import open_store
from segdatagen.weights import fingerprint_of

SCORES = st.one_of(st.none(), st.floats(0, 1, width=32))
ROWS = st.lists(st.fixed_dictionaries({limit.column: SCORES for limit in LIMITS.values()}), min_size=1, max_size=8)
SOME_LIMITS = st.dictionaries(st.sampled_from(list(LIMITS)), st.floats(0, 1))


def arrays_of(rows: list[dict[str, float | None]], limits: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], np.float32)
        for name in columns_of(limits)
    }


def refused_by_hand(row: Mapping[str, float | None], limits: Mapping[str, float]) -> str | None:
    """The first limit, in the order of the filters, that a score does not keep."""
    for name, words in [
        ("blank.min_deviation", "deviation below"),
        ("adherence.min", "adherence below"),
        ("adherence.target_min", "target below"),
        ("duplicates.min_distance", "duplicate distance below"),
        ("ignore_noisy.max_ignored", "ignored above"),
    ]:
        score = row[LIMITS[name].column]
        if name not in limits or score is None:
            continue
        limit = float(np.float32(limits[name]))
        if score < limit if words.endswith("below") else score > limit:
            return f"{words} {limits[name]:g}"
    return None


@given(ROWS, SOME_LIMITS)
def test_limits_judge_as_written(rows: list[dict[str, float | None]], limits: dict[str, float]) -> None:
    found = refusals(arrays_of(rows, limits), limits) if limits else [None] * len(rows)
    assert list(found) == [refused_by_hand(row, limits) for row in rows]


@given(ROWS, st.sampled_from(list(LIMITS)), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_limit_refuses_at_least_the_same(
    rows: list[dict[str, float | None]], name: str, one: float, other: float
) -> None:
    mild, strict = sorted((one, other), reverse=LIMITS[name].refused == "above")
    refused = [refusals(arrays_of(rows, {name: value}), {name: value}) != np.array(None) for value in (mild, strict)]
    assert not (refused[0] & ~refused[1]).any()


def test_a_score_on_the_limit_keeps_it() -> None:
    for value in (0.1, 0.3, 0.7, 0.9):
        scores = {"score_adherence": np.array([value], np.float32), "score_ignored": np.array([value], np.float32)}
        limits = {"adherence.min": value, "ignore_noisy.max_ignored": value}
        assert refusals(scores, limits)[0] is None, f"{value} as float32 is not {value}"


def test_limits_are_read_from_words() -> None:
    assert parse_limits([]) == {}
    found = parse_limits(["adherence.min=0.6", "blank.min_deviation=3", "duplicates.min_distance=10"])
    assert found == {"adherence.min": 0.6, "blank.min_deviation": 3.0, "duplicates.min_distance": 10.0}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("adherence.min=1.5", "adherence.min: must be at most 1.0, not '1.5'"),
        ("adherence.min=much", "adherence.min: must be a number, not 'much'"),
        ("adherence.min=nan", "adherence.min: "),
        ("adherence.min", "'adherence.min' sets no limit: give NAME=VALUE, NAME one of blank.min_deviation, adherence"),
        ("adherence.segmenter=x", "sets no limit"),
        ("blank.redraws=3", "sets no limit"),
        ("blank.min_deviation=0", "blank.min_deviation: must be more than 0.0"),
        ("blank.min_deviation=128", "blank.min_deviation: must be at most 127.5"),
        ("clip_rank.keep=0", "clip_rank.keep: must be more than 0.0"),
        ("clip_rank.keep=1.01", "clip_rank.keep: must be at most 1.0"),
    ],
)
def test_words_that_set_no_limit_are_refused(word: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_limits([word])
    assert sentence in str(refused.value)


# What is content


def recipes(make_job: JobFactory, filters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    job = load_job(str(make_job(filters=filters)))
    return content_recipes(job, open_store(job.sources))


def test_scores_and_limits_are_no_content(make_job: JobFactory, tmp_path: Path) -> None:
    segmenter, clip = str(make_segmenter(tmp_path / "segmenter")), str(make_clip(tmp_path / "clip"))
    plain = recipes(make_job, {})
    assert "filters" not in plain["mask_ddpm"], "runs without filters keep their ids"
    for filters in (
        {"adherence": {"segmenter": segmenter}},
        {"adherence": {"segmenter": segmenter, "min": 0.9}, "duplicates": {"min_distance": 3}},
        {"blank": {"redraws": 0, "min_deviation": 9.0}},
        {"clip_rank": {"weights": clip, "keep": 0.5, "template": "{name}"}},
    ):
        assert recipes(make_job, filters) == plain


def test_what_changes_a_sample_is_content(make_job: JobFactory, tmp_path: Path) -> None:
    one, other = (str(make_segmenter(tmp_path / name, seed=n)) for n, name in enumerate(("one", "other")))
    cases: list[dict[str, Any]] = [
        {},
        {"blank": {}},
        {"blank": {"redraws": 3}},
        {"blank": {"redraw_below": 5.0}},
        {"ignore_noisy": {"segmenter": one}},
        {"ignore_noisy": {"segmenter": other}},
        {"ignore_noisy": {"segmenter": one, "factor": 1.5}},
    ]
    found = [recipes(make_job, filters) for filters in cases]
    assert all(a != b for place, a in enumerate(found) for b in found[:place])
    assert recipes(make_job, {"blank": {"min_deviation": 9.0}}) == recipes(make_job, {"blank": {}})
    loose = {"ignore_noisy": {"segmenter": one, "max_ignored": 0.2}}
    assert recipes(make_job, loose) == recipes(make_job, cases[4])
    moved = Path(str(make_segmenter(tmp_path / "elsewhere", seed=0)))
    assert recipes(make_job, {"ignore_noisy": {"segmenter": str(moved)}}) == recipes(make_job, cases[4])


def test_content_keeps_what_makes_a_sample_and_nothing_else() -> None:
    filters = Filters.model_validate(
        {
            "blank": {"redraws": 1},
            "adherence": {"segmenter": "builtin:none"},
            "duplicates": {},
            "ignore_noisy": {"segmenter": "builtin:none"},
            "clip_rank": {"weights": "builtin:none"},
        }
    )
    scoring = {"adherence": None, "duplicates": None, "clip_rank": None}
    assert filters.content() == filters.model_copy(update=scoring)
    without_redraws = Filters.model_validate({"blank": {"redraws": 0}})
    assert without_redraws.content() == without_redraws, "it alone keeps an image with NaN"
    assert filter_recipe(without_redraws) == {}
    assert (filter_recipe(Filters()), judges_of(Filters())) == ({}, {})


# Mistakes in a job file


@pytest.mark.parametrize(
    ("row", "filters"),
    [
        ("`filters: {blurry: {}}`", {"blurry": {}}),
        ("`adherence` without a segmenter", {"adherence": {}}),
        ("`adherence: {target_min: 2}`", {"adherence": {"segmenter": "x", "target_min": 2}}),
        ("`adherence: {min: 2}`", {"adherence": {"segmenter": "x", "min": 2}}),
        ("`blank: {redraws: -1}`", {"blank": {"redraws": -1}}),
        ("`duplicates: {min_distance: 65}`", {"duplicates": {"min_distance": 65}}),
        ("`ignore_noisy: {factor: 0}`", {"ignore_noisy": {"segmenter": "x", "factor": 0}}),
        ("a filter's segmenter that is not there", {"adherence": {"segmenter": "nowhere"}}),
        ("weights of another kind as a segmenter", {"ignore_noisy": {"segmenter": "builtin:scenes-mask-ddpm"}}),
        ("`clip_rank` without weights", {"clip_rank": {}}),
        ("`clip_rank: {keep: 0}`", {"clip_rank": {"weights": "x", "keep": 0}}),
        ("`clip_rank: {keep: 1.5}`", {"clip_rank": {"weights": "x", "keep": 1.5}}),
        ("`clip_rank: {min_pixels: 0}`", {"clip_rank": {"weights": "x", "min_pixels": 0}}),
        ("`clip_rank` by another measure", {"clip_rank": {"weights": "x", "measure": "beauty"}}),
        ("a template with an unknown field", {"clip_rank": {"weights": "x", "template": "a {colour} {name}"}}),
        ("a template without a class", {"clip_rank": {"weights": "x", "template": "a photo"}}),
        ("a CLIP model that is not there", {"clip_rank": {"weights": "nowhere"}}),
        ("weights of ours as CLIP", {"clip_rank": {"weights": "builtin:scenes-segmenter"}}),
    ],
)
def test_mistakes_cost_a_line(
    refused_here: Refused,
    make_job: JobFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: str,
    filters: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here("run", make_job(filters=filters), row=row)


def test_a_segmenter_of_other_classes_is_refused(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    segmenter = make_segmenter(tmp_path / "camvid", load_label_set("camvid"))
    job = make_job(filters={"adherence": {"segmenter": str(segmenter)}})
    refused_here("plan", job, row="a filter's segmenter of other classes")


def test_folders_that_are_no_clip_are_refused(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    """Each thing that a folder lacks is named; the folder is that of a CLIP of transformers without it."""
    clip = make_clip(tmp_path / "clip")

    def spoilt(name: str, change: Callable[[Path], object]) -> Path:
        folder = shutil.copytree(clip, tmp_path / name)
        change(folder)
        return folder

    def configured(folder: Path, **changes: str) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | changes))

    def without_a_tensor(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors["visual_projection.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    cases: dict[str, Path] = {
        "a folder without a config as CLIP": spoilt("bare", lambda folder: (folder / "config.json").unlink()),
        "a model of another kind as CLIP": spoilt("siglip", lambda folder: configured(folder, model_type="siglip")),
        "a CLIP model that brings code": spoilt("coded", lambda folder: configured(folder, auto_map="mine.Clip")),
        "a CLIP model without a tokenizer": spoilt("mute", lambda folder: (folder / "tokenizer.json").unlink()),
        "a CLIP model without a preprocessor": spoilt(
            "blind", lambda folder: (folder / "preprocessor_config.json").unlink()
        ),
        "a CLIP model that lacks a tensor": spoilt("poor", without_a_tensor),
        "a CLIP model that is cut off": spoilt("cut", lambda folder: (folder / "model.safetensors").write_bytes(b"x")),
    }
    for row, folder in cases.items():
        refused_here("run", make_job(filters={"clip_rank": {"weights": str(folder)}}), row=row)
    long = {"weights": str(clip), "template": "a photo of a {name} " + "and another one " * 9 + "at last"}
    refused_here("plan", make_job(filters={"clip_rank": long}), row="a template that CLIP does not see whole")


def test_ignoring_needs_an_ignore_id(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store")
    labels = store / "labels.yaml"
    labels.write_text(labels.read_text().replace("ignore_ids: [255]", "ignore_ids: []"))
    segmenter = make_segmenter(tmp_path / "segmenter")
    job = make_job(sources=str(store), filters={"ignore_noisy": {"segmenter": str(segmenter)}})
    refused_here("run", job, row="`ignore_noisy` of a label set without an ignore id")


def test_ignoring_needs_losses(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    none = [None] * load_label_set("scenes").num_classes
    segmenter = make_segmenter(tmp_path / "segmenter", class_losses=none)
    job = make_job(filters={"ignore_noisy": {"segmenter": str(segmenter)}})
    refused_here("run", job, row="`ignore_noisy` with a segmenter that was never validated")


def test_a_judge_may_be_replaced_until_it_has_scored_a_sample(make_job: JobFactory, tmp_path: Path) -> None:
    one, other = (make_segmenter(tmp_path / name, seed=n) for n, name in enumerate(("one", "other")))

    def planned(segmenter: Path) -> Run:
        job = load_job(str(make_job(filters={"adherence": {"segmenter": str(segmenter)}})))
        plan_job(job, SilentEvents(), dry_run=False)
        return open_run(job.uri)

    planned(one)
    run = planned(other)
    assert run.info.judges == {"adherence": fingerprint_of(str(other))}
    ids = read_plan(run.folder, read_rounds(run.folder), ["sample_id"])["sample_id"].to_pylist()
    put_samples(run.folder, sample_rows(ids[:2], "ok", 1, 0))
    for segmenter in (one, other):
        planned(segmenter)  # what was made before the filter has no score
    rows = sample_rows(ids[2:4], "ok", 1, 0)
    place = rows.column_names.index("score_adherence")
    put_samples(run.folder, rows.set_column(place, rows.schema.field(place), pa.array([None, 0.5], pa.float32())))
    planned(other)
    with pytest.raises(UsageError, match=r"made by another recipe \(filters.adherence.segmenter: "):
        planned(one)


def test_other_options_of_clip_are_another_judge(make_job: JobFactory, tmp_path: Path) -> None:
    """Once a sample has a score: until then all may change, and the ratio may at any time."""
    clip = str(make_clip(tmp_path / "clip"))

    def planned(**more: Any) -> Run:
        job = load_job(str(make_job(filters={"clip_rank": {"weights": clip, **more}})))
        plan_job(job, SilentEvents(), dry_run=False)
        return open_run(job.uri)

    planned(min_pixels=5)
    run = planned()
    assert run.info.judges["clip_rank.weights"] == fingerprint_of(clip)
    ids = read_plan(run.folder, read_rounds(run.folder), ["sample_id"])["sample_id"].to_pylist()
    rows = sample_rows(ids[:2], "ok", 1, 0)
    place = rows.column_names.index("score_clip")
    put_samples(run.folder, rows.set_column(place, rows.schema.field(place), pa.array([None, 0.5], pa.float32())))
    planned(keep=0.3)
    with pytest.raises(UsageError, match=r"\(filters.clip_rank.template: 'a photo of a {name}' -> '{name}'\)"):
        planned(template="{name}")


# The stages


def test_one_segmenter_serves_all_filters_of_a_process(make_job: JobFactory, tmp_path: Path) -> None:
    one, other = (str(make_segmenter(tmp_path / name, seed=n)) for n, name in enumerate(("one", "other")))

    def stages(judge: str, cleaner: str) -> list[Any]:
        filters = {"adherence": {"segmenter": judge}, "ignore_noisy": {"segmenter": cleaner}}
        job = load_job(str(make_job(filters=filters)))
        return [stage.build() for stage in filter_stages(filter_context(job, load_label_set("scenes")), set())]

    adherence, _, cleaner, limits = stages(one, one)
    assert adherence._segmenter is cleaner._segmenter
    assert stages(one, one)[0]._segmenter is adherence._segmenter, "another method uses it too"
    assert limits.reads == ("score_adherence", "score_ignored")
    assert stages(one, other)[2]._segmenter is not adherence._segmenter
    make_segmenter(tmp_path / "one", seed=7)
    assert stages(one, one)[0]._segmenter is not adherence._segmenter, "other weights at the same place are others"


def test_a_limit_without_its_score_judges_nothing(make_job: JobFactory) -> None:
    context = filter_context(load_job(str(make_job(filters={"blank": {}}))), load_label_set("scenes"))
    overridden = replace(context, limits={**context.limits, "adherence.min": 0.9})
    (only,) = filter_stages(overridden, {"image", "score_deviation"})
    assert only.build().reads == ("score_deviation",)
    assert filter_stages(replace(context, limits={"adherence.min": 0.9}), {"score_deviation"}) == []


def test_hashes_of_sources_that_are_gone_are_named(make_job: JobFactory) -> None:
    context = filter_context(load_job(str(make_job(filters={"duplicates": {}}))), load_label_set("scenes"))
    with pytest.raises(SegdatagenError, match="the hashes of the sources are gone: run the job again"):
        filter_stages(context, set())[0].build()
