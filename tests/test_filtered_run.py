"""Runs with filters on Ray: every score is stored, what is refused is replaced, and limits move without another run."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import JobFactory, make_scenes_store, make_weights
from kept_events import Events
from ray import cloudpickle
from safetensors.torch import load_file, save_file
from test_decisions import nobody_waits
from test_faults import rows_of, run, uniform
from test_publish import publish_quietly, published_ids
from tiny_clip import make_clip
from tiny_segmenter import make_segmenter

from segdatagen.errors import UsageError
from segdatagen.exclude import exclude
from segdatagen.filters import FILTER_STAGE, Filters
from segdatagen.images import class_pixels, decode_image, decode_mask, encode_image
from segdatagen.job import Job, load_job
from segdatagen.layouts import LAYOUT_LIMITS
from segdatagen.method_context import method_contexts
from segdatagen.methods import Chain, build_chain
from segdatagen.placement import ChainFactory
from segdatagen.planner import read_plan, read_rounds
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.refilter import refilter
from segdatagen.regenerate import regenerate
from segdatagen.run import plan_job
from segdatagen.run_folder import open_run
from segdatagen.samples import read_ledger
from segdatagen.source_hashes import INDEX_NAME
from segdatagen.sources import open_store
from segdatagen.stages.redraw import deviation, draw_with_retries
from segdatagen.stages.stage import Batch, objects
from segdatagen.status import status_of
from segdatagen.tables import read_part

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_segmenter(tmp_path_factory.mktemp("segmenter") / "weights"))


def all_filters(segmenter: str, **limits: float) -> dict[str, Any]:
    return {
        "blank": {"redraws": 1, "min_deviation": limits.get("deviation", 0.5)},
        "adherence": {"segmenter": segmenter, "min": limits.get("adherence", 0.0)},
        "duplicates": {"min_distance": limits.get("distance", 0)},
        "ignore_noisy": {"segmenter": segmenter, "max_ignored": 1.0},
    }


def table_of(job: Job) -> pa.Table:
    """All rows of a run, each id once, by id."""
    folder = open_run(job.uri).folder
    parts = [read_part(folder, part.name) for part in read_ledger(folder).parts]
    return pa.concat_tables(parts).sort_by("sample_id")


def test_all_filters_score_every_row_and_the_plain_chain_gives_the_same(
    ray_session: None, make_job: JobFactory, segmenter: str, tmp_path: Path
) -> None:
    clip_rank = {"weights": str(make_clip(tmp_path / "clip")), "min_pixels": 1}
    job = load_job(str(make_job(filters=all_filters(segmenter) | {"clip_rank": clip_rank})))
    outcome = run(job)
    assert outcome.counts == {"ok": 12, "rejected": 0, "failed": 0}
    stored = table_of(job)
    rows = stored.to_pylist()
    for name in stored.column_names:
        if name.startswith("score_"):
            has_none = name.removeprefix("score_") in {*LAYOUT_LIMITS, "target"}
            assert stored[name].null_count == (len(rows) if has_none else 0), name
    store = open_store(job.sources)
    sources = {row["source_id"]: row for row in store.index.to_pylist()}
    for row in rows:
        assert row["score_deviation"] == pytest.approx(deviation(decode_image(row["image"])), abs=3), "JPEG"
        assert row["score_source_distance"] >= row["score_duplicate_distance"]
        for score in ("adherence", "clip"):
            entries = [entry for entry in row["scores_per_class"] if entry["score"] == score]
            per_class = {entry["class_id"]: entry["value"] for entry in entries}
            assert row[f"score_{score}"] == pytest.approx(np.mean(list(per_class.values())), rel=1e-5)
            assert set(per_class) == set(sources[row["source_id"]]["class_ids"])
        ids, pixels = class_pixels(decode_mask(row["mask"]))
        assert row["class_ids"] == ids[ids != 255].tolist()
        assert row["class_pixels"] == pixels[ids != 255].tolist()
        labelled = sum(sources[row["source_id"]]["class_pixels"])
        assert row["score_ignored"] == pytest.approx(1 - sum(row["class_pixels"]) / labelled)
    opened = open_run(job.uri)
    plan = read_plan(opened.folder, read_rounds(opened.folder))
    plain = build_chain("mask_ddpm", method_contexts(job, opened.label_set)["mask_ddpm"]).run(plan, 1)
    assert plain.sort_by("sample_id").drop_columns("seconds").equals(stored.drop_columns("seconds"))
    assert run(job).already_complete
    sample = rows[0]["sample_id"]
    assert regenerate(opened, sample, str(Path(job.output.root) / "again")).identical
    publish_quietly(opened)
    (shard,) = (Path(job.uri) / "data").glob("*.parquet")
    assert pq.read_table(shard).schema.equals(SAMPLE_SCHEMA)


def test_a_moved_limit_is_no_other_run_and_what_it_rejects_is_replaced(
    ray_session: None, make_job: JobFactory, segmenter: str
) -> None:
    filters = all_filters(segmenter)
    job = load_job(str(make_job(plan=[uniform(1), {"max_rounds": 1}], filters=filters)))
    run(job)
    opened = open_run(job.uri)
    publish_quietly(opened)
    before = table_of(job)
    limit = float(np.sort(before["score_adherence"].to_numpy())[2]) + 1e-6
    expected = set(before.filter(pa.array(before["score_adherence"].to_numpy() < limit))["sample_id"].to_pylist())
    assert len(expected) == 3
    filters["adherence"]["min"] = limit
    moved = load_job(str(make_job(plan=[uniform(1), {"max_rounds": 1}], filters=filters)))
    shown = plan_job(moved, Events(), dry_run=True)
    assert (shown.is_new, shown.summary.num_rows) == (True, 3)
    assert not (Path(job.uri) / "decisions").exists()
    events = Events()
    outcome = run(moved, events)
    assert events.notes[0] == "limits have moved: 3 samples are rejected now, 0 accepted again"
    assert events.rounds[0].rejected == {f"{FILTER_STAGE}: adherence below {limit:g}": 3}
    after = table_of(moved)
    new = set(after["sample_id"].to_pylist()) - set(before["sample_id"].to_pylist())
    assert len(new) == 3, "replaced by new ids"
    ledger = read_ledger(opened.folder)
    good = {row["sample_id"] for row in after.to_pylist() if row["score_adherence"] >= np.float32(limit)}
    assert set(ledger.ids_with("ok").tolist()) == good, "old and new samples are judged alike"
    assert not expected & good
    assert outcome.counts["ok"] == len(good)
    publish_quietly(opened)
    assert set(published_ids(Path(job.uri))) == good
    assert run(moved).already_complete
    back = load_job(str(make_job(plan=[uniform(1), {"max_rounds": 1}], filters=all_filters(segmenter))))
    assert run(back).counts == {"ok": 9, "rejected": 0, "failed": 0}
    assert run(back).already_complete, "though its limits were those of no round that was planned last"


def test_a_sample_that_lacks_the_class_it_was_made_for_is_refused_and_replaced(
    ray_session: None, make_job: JobFactory, segmenter: str
) -> None:
    """The mean over its classes lets it through; the class that asked for it does not."""
    filters: dict[str, Any] = {"adherence": {"segmenter": segmenter, "min": 0.0}}
    goals = [{"method": "mask_ddpm", "strategy": "quotas", "quotas": {"sky": 9, "road": 9}}, {"max_rounds": 1}]
    job = load_job(str(make_job(plan=goals, filters=filters)))
    run(job)
    opened = open_run(job.uri)
    plan = read_plan(opened.folder, read_rounds(opened.folder), ["sample_id", "target_class"]).to_pylist()
    targets = {row["sample_id"]: row["target_class"] for row in plan}
    assert set(targets.values()) <= {"sky", "road"}
    for row in table_of(job).to_pylist():
        per_class = {entry["class_id"]: entry["value"] for entry in row["scores_per_class"]}
        target = opened.label_set.channel_of(targets[row["sample_id"]])
        assert row["score_target"] == per_class[int(opened.label_set.ids[target])]
    scores = {row["sample_id"]: row["score_target"] for row in table_of(job).to_pylist()}
    limit = float(np.sort(list(scores.values()))[1]) + 1e-6
    refused = {id_ for id_, score in scores.items() if score < np.float32(limit)}
    change = refilter(
        opened, Filters.model_validate(filters), {"adherence.target_min": limit}, nobody_waits, dry_run=True
    )
    assert (change.rejected, change.limits) == (len(refused), {"adherence.min": 0.0, "adherence.target_min": limit})
    filters["adherence"]["target_min"] = limit
    events = Events()
    run(load_job(str(make_job(plan=goals, filters=filters))), events)
    assert events.rounds[0].rejected == {f"{FILTER_STAGE}: target below {limit:g}": len(refused)}
    after = {row["sample_id"]: row for row in table_of(job).to_pylist()}
    assert len(after) > len(scores)
    good = {id_ for id_, row in after.items() if row["score_target"] >= np.float32(limit)}
    assert set(read_ledger(opened.folder).ids_with("ok").tolist()) == good


def test_run_replaces_what_refilter_and_a_person_rejected(
    ray_session: None, make_job: JobFactory, segmenter: str
) -> None:
    filters = {"adherence": {"segmenter": segmenter, "min": 0.0}}
    job = load_job(str(make_job(plan=[uniform(1)], filters=filters)))
    run(job)
    opened = open_run(job.uri)
    scores = {row["sample_id"]: row["score_adherence"] for row in table_of(job).to_pylist()}
    limit = sorted(scores.values())[1] + 1e-6
    refilter(opened, Filters.model_validate(filters), {"adherence.min": limit}, nobody_waits, dry_run=False)
    best = max(scores, key=lambda id_: scores[id_])
    exclude(opened, [best], "the car floats", nobody_waits)
    asked = Events()
    assert plan_job(job, asked, dry_run=True).summary.num_rows == 3
    events = Events()
    outcome = run(job, events)
    assert not outcome.already_complete
    assert asked.notes == events.notes[:1]
    assert f"adherence.min is {limit:g} here, as refilter set it" in events.notes[0]
    assert events.rounds[0].num_rows == 3
    after = {row["sample_id"]: row for row in table_of(job).to_pylist()}
    for id_ in after.keys() - scores.keys():
        refused = after[id_]["score_adherence"] < np.float32(limit)
        assert after[id_]["status"] == ("rejected" if refused else "ok"), "new samples are judged by the same limit"
    accepted = set(read_ledger(opened.folder).ids_with("ok").tolist())
    assert best not in accepted
    assert all(after[id_]["score_adherence"] >= np.float32(limit) for id_ in accepted)
    reasons = status_of(opened).reasons
    assert reasons["excluded: the car floats"] == 1


def test_a_filter_that_rejects_everything_ends_with_the_rounds(
    ray_session: None, make_job: JobFactory, segmenter: str
) -> None:
    filters = {"adherence": {"segmenter": segmenter, "min": 1.0}}
    execution = {"max_failed_fraction": 0.0}
    job = load_job(str(make_job(plan=[uniform(1), {"max_rounds": 2}], filters=filters, execution=execution)))
    events = Events()
    outcome = run(job, events)
    assert outcome.counts == {"ok": 0, "rejected": 12, "failed": 0}
    assert (outcome.complete, outcome.goals_met) == (True, False)
    assert len(events.rounds) == 2
    (note,) = events.notes
    assert "the goals still miss 6 samples: 12 were rejected, 12 of them for 'filter: adherence below 1'" in note
    assert "refilter" in note
    assert run(job).already_complete
    assert {row["reason"] for row in rows_of(job)} == {"filter: adherence below 1"}
    publish_quietly(open_run(job.uri))
    assert not list((Path(job.uri) / "data").glob("*.parquet"))


# Blank images


def blank_weights(folder: Path) -> Path:
    """A network that makes every image black, whatever its mask and noise."""
    weights = make_weights(folder)
    tensors = load_file(weights / "model.safetensors")
    tensors["outc.bias"] = torch.full_like(tensors["outc.bias"], 1e3)
    save_file(tensors, weights / "model.safetensors")
    return weights


def test_black_images_are_drawn_again_and_then_rejected(
    ray_session: None, make_job: JobFactory, tmp_path: Path
) -> None:
    fields = {
        "methods": {
            "mask_ddpm": {"weights": str(blank_weights(tmp_path / "black")), "steps": 2, "thresholding": "static"}
        },
        "plan": [uniform(1), {"max_rounds": 1}],
    }
    job = load_job(str(make_job(filters={"blank": {"redraws": 2}}, **fields)))
    assert run(job).counts == {"ok": 0, "rejected": 6, "failed": 0}
    for row in table_of(job).to_pylist():
        assert (row["score_deviation"], row["reason"]) == (0.0, "filter: deviation below 4")
        assert [entry["value"] for entry in row["candidates"]] == [0.0, 0.0]
        assert len({row["seed"], *(entry["seed"] for entry in row["candidates"])}) == 3
        assert decode_image(row["image"]).max() <= 2, "what was refused is kept"


def nan_weights(folder: Path) -> str:
    """A network that makes NaN of every image."""
    weights = make_weights(folder)
    tensors = load_file(weights / "model.safetensors")
    tensors["outc.bias"][0] = float("nan")
    save_file(tensors, weights / "model.safetensors")
    return str(weights)


def test_nan_is_rejected_where_it_is_drawn_again(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    """And made again by `regenerate` as it was."""
    fields = {
        "methods": {"mask_ddpm": {"weights": nan_weights(tmp_path / "nan"), "steps": 2}},
        "plan": [uniform(1), {"max_rounds": 1}],
        "filters": {"blank": {"redraws": 1}},
    }
    job = load_job(str(make_job(**fields)))
    assert run(job).counts == {"ok": 0, "rejected": 6, "failed": 0}
    for row in table_of(job).to_pylist():
        assert (row["score_deviation"], row["reason"]) == (None, "mask2img: the image holds NaN or infinity")
        assert [entry["value"] for entry in row["candidates"]] == [None]
    change = refilter(open_run(job.uri), Filters(), {}, nobody_waits, dry_run=False)
    assert change.accepted == 0, "no limit made it bad, and none makes it good"
    sample = table_of(job)["sample_id"][0].as_py()
    assert regenerate(open_run(job.uri), sample, str(tmp_path / "again")).identical


class SometimesBlack:
    """Makes a black image for some draws and noise for others, through what every such stage draws with."""

    name = "mask2img"
    reads = ("mask", "seed")
    writes = ("image", "microbatch", "score_deviation", "candidates")
    verdict = "failed"

    def __init__(self, job: Job) -> None:
        self._redraws = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"].redraws

    def __call__(self, batch: Batch) -> Batch:
        size = decode_mask(batch["mask"][0]).shape

        def draw(rows: np.ndarray, seeds: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            noise = [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed in seeds]
            black = [seed % 3 < 2 for seed in seeds]
            images = np.stack([n * (not b) for n, b in zip(noise, black, strict=True)]).astype(np.uint8)
            return images, np.ones(len(seeds), bool), np.ones(len(seeds), np.int32)

        drawn = draw_with_retries(draw, batch["seed"].tolist(), self.name, self._redraws)
        return {
            "image": objects([encode_image(image, "png") for image in drawn.images]),
            "microbatch": drawn.microbatch,
            "score_deviation": objects(drawn.deviations),
            "candidates": objects(drawn.candidates),
        }


def with_black_images(job: Job) -> dict[str, ChainFactory]:
    context = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]

    def build() -> Chain:
        load, _, *filters = build_chain("mask_ddpm", context).stages
        return Chain([load, SometimesBlack(job), *filters])

    return {"mask_ddpm": build}


def test_redrawing_saves_most_samples_and_the_losers_are_recorded(ray_session: None, make_job: JobFactory) -> None:
    rows: dict[int, list[dict[str, Any]]] = {}
    for redraws in (0, 4):
        fields = {"plan": [uniform(4), {"max_rounds": 1}], "filters": {"blank": {"redraws": redraws}}}
        job = load_job(str(make_job(name=f"black{redraws}", **fields)))
        outcome = run(job, factories=with_black_images(job))
        rows[redraws] = table_of(job).to_pylist()
        blank = sum(row["score_deviation"] == 0 for row in rows[redraws])
        assert (outcome.counts["rejected"], outcome.counts["ok"]) == (blank, 24 - blank)
    rejected = {redraws: sum(row["status"] == "rejected" for row in found) for redraws, found in rows.items()}
    assert rejected[0] > 24 / 3
    assert rejected[4] < rejected[0] / 2
    for row in rows[4]:
        losers = row["candidates"] or []
        assert {(entry["score"], entry["value"]) for entry in losers} <= {("deviation", 0.0)}
        assert len(losers) == 4 if row["status"] == "rejected" else len(losers) <= 4
    assert any(row["candidates"] and row["status"] == "ok" for row in rows[4])


# Filters that come later


def test_a_scoring_filter_may_be_added_and_older_rows_pass(
    ray_session: None, make_job: JobFactory, segmenter: str, tmp_path: Path
) -> None:
    run(load_job(str(make_job(plan=[uniform(1)]))))
    filters = {"adherence": {"segmenter": segmenter, "min": 0.9}, "duplicates": {}}
    job = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 1}], filters=filters)))
    events = Events()
    outcome = run(job, events)
    assert "6 have no score_adherence and pass" in events.notes[0]
    rows = table_of(job).to_pylist()
    assert sum(row["score_adherence"] is None and row["status"] == "ok" for row in rows) == 6
    assert outcome.counts["ok"] == 6 + sum((row["score_adherence"] or 0) >= 0.9 for row in rows)
    other = make_segmenter(tmp_path / "other", seed=1)
    filters["adherence"] = {"segmenter": str(other)}
    swapped = load_job(str(make_job(plan=[uniform(2)], filters=filters)))
    with pytest.raises(UsageError, match=r"made by another recipe \(filters.adherence.segmenter: "):
        run(swapped)
    removed = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 1}])))
    assert run(removed).counts["rejected"] == 0, "without the filter nothing is rejected by it"


def test_filters_that_change_samples_are_another_recipe(
    ray_session: None, make_job: JobFactory, segmenter: str
) -> None:
    run(load_job(str(make_job(plan=[uniform(1)]))), limit=1)
    for filters, field in (
        ({"ignore_noisy": {"segmenter": segmenter}}, "filters.ignore_noisy.factor: None -> 1.25"),
        ({"blank": {"redraws": 1}}, "filters.blank.redraws: None -> 1"),
    ):
        with pytest.raises(UsageError, match="made by another recipe") as refused:
            run(load_job(str(make_job(plan=[uniform(1)], filters=filters))))
        assert f"mask_ddpm.{field}" in str(refused.value)


def test_sources_without_images_pass_and_are_named(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "masks")
    path = store / "part-00000.parquet"
    table = pq.read_table(path)
    images = [None, None, *table["image"].to_pylist()[2:]]
    column = pa.array(images, pa.large_binary())
    pq.write_table(table.set_column(table.column_names.index("image"), "image", column), path, row_group_size=8)
    job = load_job(str(make_job(sources=str(store), plan=[uniform(1)], filters={"duplicates": {}})))
    events = Events()
    run(job, events)
    assert "2 of 6 sources have no readable image: their duplicates are not found" in events.notes
    rows = table_of(job)
    assert rows["score_source_distance"].null_count == 2
    assert rows["score_duplicate_distance"].null_count == 0
    assert pq.read_table(Path(job.uri) / INDEX_NAME)["hash"].null_count == 2
