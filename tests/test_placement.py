"""Placement: which stages share an actor, how pools are sized, and that rows are the same wherever their stages ran."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import JobFactory, Refused, make_scenes_store
from hypothesis import given
from hypothesis import strategies as st
from kept_events import Events
from test_faults import damage, run
from tiny_captioner import save_blip2
from tiny_latent import save_models

from segdatagen.dataflow import PartDone
from segdatagen.errors import SegdatagenError
from segdatagen.job import Execution, Job, load_job
from segdatagen.method_context import method_contexts
from segdatagen.methods import Chain, begin, finish, guard, stages_of
from segdatagen.placement import Segment, pool_sizes, segments_of
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run import prepare, segments
from segdatagen.run_folder import open_run, read_attempts
from segdatagen.samples import read_ledger
from segdatagen.sources import open_store
from segdatagen.stages.stage import StageSpec
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.work import KEPT, STAGE, WORK, put_work, read_kept, read_rows, to_batch, to_table, type_of

CAPTION = "caption"
ALONE = {"placement": "staged", "actors": 1, "cpus_per_actor": 0.4, "microbatch": 4, "rows_per_block": 4}
ALONE |= {"max_failed_fraction": 0.5}


def spec(name: str, is_large: bool = False) -> StageSpec:
    def build() -> Any:
        raise AssertionError("nothing is built to tell segments apart")

    return StageSpec(name, build, is_large)


# ----------------------------------------------------------------------------------------------------------------------
# Segments and pools


@pytest.mark.parametrize(
    ("stages", "names", "groups"),
    [
        (["load", "mask2img*"], ["mask2img"], [["load", "mask2img"]]),
        (["load", "prompt"], ["chain"], [["load", "prompt"]]),
        (
            ["load", "caption*", "prior", "prompt", "mask2img*", "filter"],
            ["caption", "mask2img"],
            [["load", "caption", "prior", "prompt"], ["mask2img", "filter"]],
        ),
        (["prior*", "prior*"], ["prior-0", "prior-1"], [["prior"], ["prior"]]),
    ],
)
def test_each_large_network_is_a_segment_with_what_is_small_behind_it(
    stages: list[str], names: list[str], groups: list[list[str]]
) -> None:
    found = segments_of([spec(name.rstrip("*"), name.endswith("*")) for name in stages])
    assert [segment.name for segment in found] == names
    assert [list(segment.stages) for segment in found] == groups


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=4), st.integers(0, 5))
def test_no_other_pools_are_faster(seconds: list[float], more: int) -> None:
    segments = [Segment(str(n), (f"s{n}",), lambda: None) for n in range(len(seconds))]  # type: ignore[arg-type, return-value]
    actors = len(seconds) + more
    sizes = pool_sizes(actors, segments, {f"s{n}": value for n, value in enumerate(seconds)})
    assert sum(sizes) == actors
    assert min(sizes) >= 1

    def slowest(pools: Any) -> float:
        return max(value / size for value, size in zip(seconds, pools, strict=True))

    every = itertools.product(range(1, actors + 1), repeat=len(seconds))
    assert slowest(sizes) == pytest.approx(min(slowest(pools) for pools in every if sum(pools) == actors))


def test_a_segment_that_was_never_measured_counts_like_the_slowest() -> None:
    segments = [Segment(name, (name,), lambda: None) for name in ("a", "b", "c")]  # type: ignore[arg-type, return-value]
    assert pool_sizes(9, segments, {}) == [3, 3, 3]
    assert pool_sizes(9, segments, {"a": 1.0, "b": 8.0}) == [1, 4, 4]


# ----------------------------------------------------------------------------------------------------------------------
# Rows on their way


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner, a base, a ControlNet and a T2I-Adapter."""
    folder = save_models(tmp_path_factory.mktemp("placement"))
    save_blip2(folder / "captioner")
    return folder


def job_of(make_job: JobFactory, models: Path, placement: str, **changes: Any) -> Job:
    """Two large networks; the filters give every row scores."""
    guided = {
        "base": str(models / "base"),
        "controls": [{"kind": "t2i_adapter", "weights": str(models / "adapter"), "prior": {"name": "canny"}}],
        "caption": {"kind": "blip2", "weights": str(models / "captioner")},
        "sampler": {"scheduler": "euler", "steps": 2, "guidance": 3.0},
    }
    plan = [{"method": "guided", "strategy": "uniform", "per_source": 2}, {"max_rounds": 1}]
    execution = ALONE | {"placement": placement, "actors": 2 if placement == "streaming" else 1}
    filters = {"blank": {}, "duplicates": {"min_distance": 0}}
    fields: dict[str, Any] = {"name": placement, "methods": {"guided": guided}, "plan": plan, "execution": execution}
    fields["filters"] = filters
    return load_job(str(make_job(**fields | changes)))


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The rows that count, but for the attempt and the time that they took."""
    folder = open_run(job.uri).folder
    ledger = read_ledger(folder)
    tables = [read_part(folder, p.name).take(ledger.row[ledger.part == n]) for n, p in enumerate(ledger.parts)]
    rows = [row for table in tables for row in table.to_pylist()]
    kept = [{key: value for key, value in row.items() if key not in ("attempt", "seconds")} for row in rows]
    return sorted(kept, key=lambda row: row["sample_id"])


def kept_parts(job: Job) -> list[str]:
    """The parts that stages have committed for the next one, below `work/`."""
    names = [entry.name for entry in Folder(job.uri).child(WORK).entries()]
    return [name for name in names if name.startswith(STAGE)]


def test_every_column_of_a_batch_travels(make_job: JobFactory, models: Path) -> None:
    """Each column that a stage writes has a type, and comes back as it went: also those of several priors."""
    job = job_of(make_job, models, "fused", filters={"blank": {}})
    guided = job.methods.named()["guided"].model_dump(mode="json", exclude_none=True)
    guided["controls"] += [guided["controls"][0] | {"prior": {"name": "colour_map", "of": "mask"}}]
    job = job_of(make_job, models, "fused", filters={"blank": {}}, methods={"guided": guided})
    store = open_store(job.sources)
    context = method_contexts(job, store.label_set)["guided"]
    stages = [stage.build() for stage in stages_of("guided", context)]
    assert all(type_of(name) for stage in stages for name in stage.writes)
    for stage, built in zip(stages_of("guided", context), stages, strict=True):
        assert stage.name == built.name
        assert set(stage.scores) == {name for name in built.writes if name.startswith("score_")}
    plan = store.index.slice(0, 2).select(["source_id", "source_file", "source_row"])
    batch = begin(plan.append_column("seed", [[3, 4]]))
    for stage in stages:
        guard(stage, batch)
    assert batch["status"].tolist() == ["ok", "ok"]
    assert {"prior_0", "prior_1"} <= set(batch)
    assert all(batch["segments"]), "scenes are panoptic"
    again = to_batch(to_table(batch))
    assert again.keys() == batch.keys()
    for name, values in batch.items():
        assert again[name].tolist() == values.tolist(), name
        assert again[name].dtype == values.dtype, name
    with pytest.raises(KeyError, match="nobody"):
        to_table({"nobody": np.zeros(1)})


@pytest.mark.parametrize("method", ["imgsyn", "inpaint", "masksyn"])
def test_rows_are_the_same_whatever_segments_they_have_passed(make_job: JobFactory, models: Path, method: str) -> None:
    """Without Ray: what one segment leaves travels as a table to the next one."""
    control = {"kind": "controlnet", "weights": str(models / "controlnet")}
    options = {
        "base": str(models / "base"),
        "controls": [] if method == "inpaint" else [control | {"prior": {"name": "colour_map", "of": "mask"}}],
        "caption": {"kind": "blip2", "weights": str(models / "captioner"), "max_new_tokens": 5},
        "sampler": {"steps": 2},
    }
    if method == "masksyn":
        layout = {"min_classes_found": 0, "max_off_palette": 1, "max_speckle": 1, "min_distance": 0}
        options |= {"text2mask": {"weights": str(models / "base"), "sampler": {"steps": 2}}, "layout": layout}
    plan = [{"method": method, "strategy": "uniform", "per_source": 2}, {"max_rounds": 1}]
    job = job_of(make_job, models, "fused", filters=None, methods={method: options}, plan=plan)
    store = open_store(job.sources)
    stages = stages_of(method, method_contexts(job, store.label_set)[method])
    index = store.index.slice(0, 2).select(["source_id", "source_file", "source_row"])
    plan_rows = pa.concat_tables([index, index])
    for name, values in {"sample_id": range(4), "seed": range(4), "variant": [0, 0, 1, 1], "round": [0] * 4}.items():
        plan_rows = plan_rows.append_column(name, pa.array(values, pa.int64()))
    plan_rows = plan_rows.append_column("method", pa.array([method] * 4))
    parts = segments_of(stages)
    assert [part.name for part in parts][-1] == "mask2img"
    assert len(parts) == 3 if method == "masksyn" else 2
    batch = begin(plan_rows)
    for part in parts:
        batch = to_batch(to_table(batch))
        part.build().advance(batch)
    whole = Chain([stage.build() for stage in stages]).run(plan_rows, 1).drop_columns("seconds")
    assert set(whole["status"].to_pylist()) == {"ok"}
    assert finish(batch, 1).drop_columns("seconds").equals(whole)


def test_fused_streaming_and_staged_give_the_same_rows(
    ray_session: None, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    """Those of a source that cannot be read, too; once it can be, `--retry-failed` makes them from their start."""
    store = make_scenes_store(tmp_path / "store")
    part = store / "part-00000.parquet"
    whole = part.read_bytes()
    damage(store, {0: b"no PNG"})
    jobs = {name: job_of(make_job, models, name, sources=str(store)) for name in ("fused", "streaming", "staged")}
    for job in jobs.values():
        assert run(job).counts == {"ok": 10, "rejected": 0, "failed": 2}
        (attempt,) = read_attempts(open_run(job.uri).folder)
        assert list(attempt.stage_seconds["guided"]) == [
            *("load", CAPTION, "prior", "prompt", "mask2img"),
            *("duplicates", "filter"),
        ]
        assert attempt.stage_peak_bytes["guided"].keys() == attempt.stage_seconds["guided"].keys()
        assert min(attempt.stage_peak_bytes["guided"].values()) > 2**20
    fused = rows_of(jobs["fused"])
    assert fused == rows_of(jobs["streaming"]) == rows_of(jobs["staged"])
    made = [row for row in fused if row["status"] == "ok"]
    assert {row["caption_from"] for row in made} == {"model"}
    assert all(row["segments"] and row["segment_map"] for row in made)
    assert not kept_parts(jobs["staged"]), "what stages kept goes at the end"
    assert Folder(jobs["staged"].uri).child(WORK).exists("source_hashes.parquet"), "and nothing else"
    part.write_bytes(whole)
    assert run(jobs["staged"], retry_failed=True).counts == {"ok": 12, "rejected": 0, "failed": 0}
    plan = read_plan(Folder(jobs["staged"].uri), read_rounds(Folder(jobs["staged"].uri)))
    assert {row["sample_id"] for row in rows_of(jobs["staged"])} == set(plan["sample_id"].to_pylist())


def test_a_stage_makes_what_it_had_not_kept(ray_session: None, make_job: JobFactory, models: Path) -> None:
    """Stopped while captions are made, with a part damaged since, stopped at the first images, and gone on again."""
    job = job_of(make_job, models, "staged", execution=ALONE)

    def stop(part: PartDone) -> None:
        raise SegdatagenError("stopped by the test")

    def stop_at_images(part: PartDone) -> None:
        if part.stage is None:
            stop(part)

    first, second, third = Events(stop), Events(stop_at_images), Events()
    with pytest.raises(SegdatagenError, match="stopped by the test"):
        run(job, first)
    kept = kept_parts(job)
    Folder(job.uri).child(WORK).put(kept[0], b"PAR1 and nothing of it")
    with pytest.raises(SegdatagenError, match="stopped by the test"):
        run(job, second)
    assert sum(part.kept for part in second.parts if part.stage == CAPTION) == 12 - 4 * (len(kept) - 1)
    made = read_ledger(open_run(job.uri).folder).num_rows
    assert 0 < made <= 12
    assert run(job, third).counts["ok"] == 12
    assert not [part for part in third.parts if part.stage == CAPTION], "no caption is made again"
    assert sum(part.ok for part in third.parts) == 12 - made, "and no image"
    assert not kept_parts(job)
    session = prepare(job)
    (whole,) = segments(session.job.model_copy(update={"execution": Execution()}), session.store.label_set, {}).values()
    plan = read_plan(open_run(job.uri).folder, read_rounds(open_run(job.uri).folder))
    plain = {row["sample_id"]: row for row in whole[0].build().run(plan, 1).to_pylist()}
    for row in rows_of(job):
        assert (row["caption"], row["prompt"]) == tuple(plain[row["sample_id"]][name] for name in ("caption", "prompt"))
        assert row["mask_hash"] == plain[row["sample_id"]]["mask_hash"]


def test_a_row_that_a_stage_kept_costs_the_driver_sixteen_bytes(tmp_path: Path) -> None:
    run_folder, tables = Folder(str(tmp_path)), []
    for first in (0, 7, 14):
        ids = pa.array(range(first, first + 7), pa.int64())
        columns = {"sample_id": ids, "method": ["guided"] * 7, "round": [0] * 7, "status": ["ok"] * 7}
        tables.append(pa.table(columns | {"seconds": [float(first)] * 7}))
        put_work(run_folder, CAPTION, 1, tables[-1])
    kept = read_kept(run_folder, CAPTION, "guided", 1)
    assert sum(array.nbytes for array in (kept.sample_ids, kept.parts, kept.rows)) == 16 * 21
    plan = pa.table({"sample_id": pa.array([20, 3, 99, 8], pa.int64())})
    places = kept.with_places(plan)
    assert [places.schema.field(name).type for name in KEPT] == [pa.int32(), pa.int32()]
    found = read_rows(run_folder, kept.names, places)
    assert [(row, seconds) for row, seconds in zip(found["sample_id"], found["seconds"], strict=True)] == [
        *((20, 14.0), (3, 0.0), (8, 7.0))
    ]


def test_what_a_stage_kept_in_a_part_that_is_damaged_is_made_again(
    ray_session: None, make_job: JobFactory, models: Path
) -> None:
    """Its ids can be read, so that its rows are given to the next stage, and its captions cannot."""
    job = job_of(make_job, models, "staged", execution=ALONE)
    folder, damaged = Folder(job.uri), list[str]()

    def damage_first(part: PartDone) -> None:
        if part.stage == CAPTION and len(kept_parts(job)) == 3 and not damaged:
            damaged.append(kept_parts(job)[0])
            path = Path(folder.child(WORK).uri, damaged[0])
            group = pq.read_metadata(path).row_group(0)
            column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "caption")
            with path.open("r+b") as file:
                file.seek(column.dictionary_page_offset or column.data_page_offset)
                file.write(b"\xff" * 32)

    events = Events(damage_first)
    assert run(job, events).counts == {"ok": 12, "rejected": 0, "failed": 0}
    assert damaged
    assert sum(part.kept for part in events.parts if part.stage == CAPTION) == 12 + 4
    assert not kept_parts(job)


def test_streaming_needs_an_actor_for_each_segment(refused_here: Refused, make_job: JobFactory, models: Path) -> None:
    path = make_job(
        methods=job_of(make_job, models, "streaming").methods.model_dump(mode="json", exclude_none=True),
        plan=[{"method": "guided", "strategy": "uniform", "per_source": 1}],
        execution={"placement": "streaming", "actors": 1},
    )
    line = refused_here("run", path)
    assert "execution.actors is 1" in line
    assert "caption, mask2img of guided: 2 actors at least" in line
