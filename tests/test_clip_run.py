"""CLIP rank and best of N from job file to published data: real Ray, the shipped mask-DDPM, a CLIP of scenes."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE, JobFactory, make_scenes_store
from kept_events import Events
from reported import data_of, report
from test_decisions import nobody_waits, statuses
from test_faults import run, uniform
from test_filtered_run import table_of
from test_publish import publish_quietly, published_ids
from tiny_clip import teach_clip

from segdatagen.filters import Filters
from segdatagen.geometry import Geometry
from segdatagen.job import Job, load_job
from segdatagen.labels import load_label_set
from segdatagen.method_context import method_contexts
from segdatagen.methods import build_chain
from segdatagen.planner import read_plan, read_rounds
from segdatagen.prompts import named_classes
from segdatagen.records import derive_seed
from segdatagen.refilter import refilter
from segdatagen.regenerate import regenerate
from segdatagen.regions import regions_of
from segdatagen.run_folder import open_run
from segdatagen.sources import read_arrays

LABELS = load_label_set("scenes")
KEEP = 0.5
MIN_PIXELS = 20


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP that was taught what the regions of real scenes show."""
    folder = tmp_path_factory.mktemp("clip")
    images, channels, *_ = read_arrays(str(make_scenes_store(folder / "store", 24)), Geometry(size=(SIZE, SIZE)))
    named = {label.id for label in named_classes(LABELS)}
    crops, ids = [], []
    for image, mask in zip(images, channels, strict=True):
        for channel, id_ in enumerate(LABELS.ids.tolist()):
            if id_ in named:
                found = regions_of(mask, channel, MIN_PIXELS, 3)
                crops += [region.crop(image) for region in found]
                ids += [id_] * len(found)
    return str(teach_clip(folder / "weights", LABELS, crops, ids))


def make_clip_job(make_job: JobFactory, clip: str) -> Job:
    scoring = {"weights": clip, "min_pixels": MIN_PIXELS}
    best_of = {"candidates": 2, "clip": scoring}
    methods = {"mask_ddpm": {"weights": "builtin:scenes-mask-ddpm", "steps": 3, "best_of": best_of}}
    filters = {"clip_rank": {**scoring, "keep": KEEP}}
    return load_job(str(make_job(methods=methods, filters=filters, plan=[uniform(2), {"max_rounds": 2}])))


def clip_scores(row: dict[str, Any]) -> dict[int, float]:
    return {entry["class_id"]: entry["value"] for entry in row["scores_per_class"] if entry["score"] == "clip"}


def test_ranked_samples_are_rejected_afterwards_and_replaced(
    ray_session: None, make_job: JobFactory, clip: str, tmp_path: Path
) -> None:
    job, events = make_clip_job(make_job, clip), Events()
    assert run(job, events).counts == {"ok": 12, "rejected": 0, "failed": 0}, "no stage ranks"
    assert any("segdatagen refilter" in note for note in events.notes)
    opened, stored = open_run(job.uri), table_of(job)
    rows = stored.to_pylist()
    for row in rows:
        scores = clip_scores(row)
        assert row["score_clip"] == pytest.approx(np.mean(list(scores.values())), rel=1e-6)
        assert set(scores) <= set(row["class_ids"]) & {label.id for label in named_classes(LABELS)}
        ((loser,),) = [row["candidates"]]
        assert loser["seed"] in {derive_seed(row["seed"], "mask2img"), derive_seed(row["seed"], "mask2img", 1)}
        assert loser["score"] == "clip"
        assert loser["value"] <= row["score_clip"]
    plan = read_plan(opened.folder, read_rounds(opened.folder))
    plain = build_chain("mask_ddpm", method_contexts(job, opened.label_set)["mask_ddpm"]).run(plan, 1)
    assert plain.sort_by("sample_id").drop_columns("seconds").equals(stored.drop_columns("seconds"))
    assert regenerate(opened, rows[0]["sample_id"], str(tmp_path / "again")).identical

    change = refilter(opened, job.filters, {}, nobody_waits, dry_run=False)
    assert 0 < change.rejected <= 6, "a half of 12 stays at least"
    assert all(reason.startswith("filter: clip rank ") for reason in change.reasons)
    status = statuses(opened)
    kept, all_ = defaultdict[int, int](int), defaultdict[int, int](int)
    for row in rows:
        for class_id in clip_scores(row):
            all_[class_id] += 1
            kept[class_id] += status[row["sample_id"]] == "ok"
    assert all(kept[class_id] >= KEEP * count for class_id, count in all_.items())
    publish_quietly(opened)
    accepted = [id_ for id_, outcome in status.items() if outcome == "ok"]
    assert published_ids(Path(job.uri)) == accepted
    assert (data_of(report(opened))["scores"][0][0], len(accepted)) == ("score_clip", 12 - change.rejected)

    outcome = run(job)
    assert outcome.counts == {"ok": 12, "rejected": change.rejected, "failed": 0}, "what was rejected is replaced"
    assert read_rounds(opened.folder)[-1].num_rows == change.rejected
    milder = refilter(opened, job.filters, {"clip_rank.keep": 1.0}, nobody_waits, dry_run=False)
    assert milder.after == {"ok": 12 + change.rejected, "rejected": 0, "failed": 0}


def test_a_run_that_judges_anew_ranks_too(ray_session: None, make_job: JobFactory, clip: str) -> None:
    """Limits of the job that move: their decisions are those of refilter."""
    filters = {"clip_rank": {"weights": clip, "min_pixels": MIN_PIXELS, "keep": 1.0}}
    plan = [uniform(2), {"max_rounds": 1}]
    run(load_job(str(make_job(filters=filters, plan=plan))))
    filters["clip_rank"]["keep"] = 0.5
    job, events = load_job(str(make_job(filters=filters, plan=plan))), Events()
    run(job, events)
    assert any("limits have moved" in note for note in events.notes)
    opened = open_run(job.uri)
    moved = refilter(opened, Filters.model_validate(filters), {}, nobody_waits, dry_run=True)
    assert moved.after["rejected"] > 0
    assert read_rounds(opened.folder)[-1].num_rows > 0
