"""Bad rows cost themselves and nothing else: unreadable, wrong, raising, NaN, and those that kill their process."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from conftest import JobFactory, make_scenes_store, make_weights
from kept_events import Events
from ray import cloudpickle
from safetensors.numpy import load_file, save_file

from segdatagen.dataflow import Flow, PartDone, stream
from segdatagen.driver import Outcome, RunOptions
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image, encode_mask
from segdatagen.job import Job, load_job
from segdatagen.method_context import method_contexts
from segdatagen.methods import METHODS, Chain, build_chain
from segdatagen.placement import ChainFactory
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run import plan_job, run_job
from segdatagen.run_folder import SUCCESS_NAME, open_run
from segdatagen.samples import read_ledger
from segdatagen.sources import ROW_GROUP_SIZE, open_store
from segdatagen.stages.stage import Batch, objects
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.verify import read_manifest, verify_ledger

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Fault:
    """A stage that does one bad thing to the variant 1 of some sources."""

    name = "fault"
    reads = ("source_id", "variant")
    writes = ("reason",)
    verdict = "failed"

    def __init__(self, bad: set[str], kind: str) -> None:
        self._bad = bad
        self._kind = kind

    def __call__(self, batch: Batch) -> Batch:
        hit = [s in self._bad and v == 1 for s, v in zip(batch["source_id"], batch["variant"], strict=True)]
        if any(hit) and self._kind == "exit":
            os._exit(1)
        if any(hit) and self._kind == "raise":
            raise KeyError("a defect in a stage")
        return {"reason": objects(["refused" if bad and self._kind == "mark" else None for bad in hit])}


def with_fault(job: Job, bad: set[str], kind: str) -> dict[str, ChainFactory]:
    """The chain of the job with a faulty stage after the source was loaded."""
    context = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]

    def build() -> Chain:
        load, generate = (stage.build() for stage in METHODS["mask_ddpm"](context))
        return Chain([load, Fault(bad, kind), generate])

    return {"mask_ddpm": build}


def run(job: Job, events: Events | None = None, **how: object) -> Outcome:
    factories = how.pop("factories", None)
    return run_job(job, RunOptions(**how), events or Events(), factories)


def rows_of(job: Job) -> list[dict[str, object]]:
    """The rows that count, one per id, without pixels."""
    folder = open_run(job.uri).folder
    ledger = read_ledger(folder)
    columns = ["sample_id", "source_id", "variant", "status", "reason", "seed", "mask_hash", "image_hash"]
    found = []
    for number, part in enumerate(ledger.parts):
        found += read_part(folder, part.name, columns).take(ledger.row[ledger.part == number]).to_pylist()
    return sorted(found, key=lambda row: row["sample_id"])


def images_of(job: Job) -> np.ndarray:
    """The generated images in order of their ids, uint8 [N, H, W, 3]."""
    folder = open_run(job.uri).folder
    tables = [read_part(folder, part.name, ["sample_id", "image"]) for part in read_ledger(folder).parts]
    return np.stack([decode_image(row["image"]) for row in pa.concat_tables(tables).sort_by("sample_id").to_pylist()])


def actors_left() -> list[str]:
    """Those that flows have started. One that Ray starts again while its flow ends would hold its CPU for ever."""
    return [name for name in ray.util.list_named_actors() if name.startswith("segdatagen-")]


def source_ids(store: Path) -> list[str]:
    return open_store(str(store)).index["source_id"].to_pylist()


def damage(store: Path, masks: dict[int, bytes]) -> None:
    """Put other bytes in the place of some masks."""
    path = store / "part-00000.parquet"
    table = pq.read_table(path)
    column = table["mask"].to_pylist()
    for row, data in masks.items():
        column[row] = data
    place = table.column_names.index("mask")
    table = table.set_column(place, table.schema.field("mask"), pa.array(column, pa.large_binary()))
    pq.write_table(table, path, row_group_size=ROW_GROUP_SIZE)


def test_a_chain_that_cannot_be_built_stops_the_run_and_fails_no_row(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job()))

    def build() -> Chain:
        raise UsageError(f"weights: {'they do not fit ' * 30}; use others")

    with pytest.raises(UsageError) as caught:
        run(job, factories={"mask_ddpm": build})
    sentence = f"weights: {'they do not fit ' * 30}; use others"
    assert str(caught.value) == f"{job.uri}: a worker cannot start: {sentence} (what is done is kept)"
    assert read_ledger(open_run(job.uri).folder).num_rows == 0
    assert run(job).counts["ok"] == read_plan(open_run(job.uri).folder, read_rounds(Folder(job.uri))).num_rows


def test_a_chain_that_kills_its_process_ends_in_failed_rows(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job(execution={"max_failed_fraction": 1.0})))
    outcome = run(job, limit=1, factories={"mask_ddpm": lambda: os._exit(1)})
    assert outcome.counts == {"ok": 0, "rejected": 0, "failed": 1}
    assert {row["reason"] for row in rows_of(job)} == {"worker died"}
    assert not actors_left()


@pytest.mark.parametrize("kind", ["mark", "raise", "exit"])
def test_a_bad_row_fails_alone(ray_session: None, make_job: JobFactory, scenes_store: Path, kind: str) -> None:
    job = load_job(str(make_job(execution={"microbatch": 4, "max_failed_fraction": 0.5})))
    bad = {source_ids(scenes_store)[2]}
    outcome = run(job, factories=with_fault(job, bad, kind))
    rows = rows_of(job)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["source_id"], row["variant"]) for row in failed] == [(bad.copy().pop(), 1)]
    expected = {"mark": "fault: refused", "raise": "fault: KeyError: 'a defect in a stage'", "exit": "worker died"}
    assert failed[0]["reason"] == expected[kind]
    assert outcome.counts == {"ok": 12, "rejected": 0, "failed": 1}, "the next round replaces what failed"
    assert len(rows) == 13
    assert not actors_left()


def test_retry_failed_makes_the_same_sample(ray_session: None, make_job: JobFactory, scenes_store: Path) -> None:
    job = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 1}], execution={"max_failed_fraction": 0.5})))
    outcome = run(job, factories=with_fault(job, {source_ids(scenes_store)[0]}, "raise"))
    assert (outcome.counts["failed"], outcome.goals_met, outcome.complete) == (1, False, True)
    before = rows_of(job)
    success = Path(job.uri) / SUCCESS_NAME
    assert success.exists()
    whole_at: list[bool] = []
    events = Events(at_part=lambda part: whole_at.append(success.exists()))
    events.working = lambda num_done, num_after: whole_at.append(success.exists())  # before the first row
    outcome = run(job, events, retry_failed=True)
    assert whole_at == [False, False], "a run that makes rows is not whole"
    assert success.exists()
    assert outcome.counts == {"ok": 12, "rejected": 0, "failed": 0}
    after = rows_of(job)
    assert [(row["sample_id"], row["seed"]) for row in before] == [(row["sample_id"], row["seed"]) for row in after]
    assert outcome.goals_met


def test_unreadable_and_wrong_masks_fail_alone(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "damaged")
    whole = pq.read_table(store / "part-00000.parquet")["mask"].to_pylist()
    strange = np.full((32, 32), 200, np.uint8)
    damage(store, {1: whole[1][: len(whole[1]) // 2], 4: encode_mask(strange)})
    job = load_job(str(make_job(sources=str(store), execution={"max_failed_fraction": 0.5})))
    events = Events()
    outcome = run(job, events)
    rows = rows_of(job)
    ids = source_ids(store)
    reasons = {row["source_id"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert set(reasons) == {ids[1], ids[4]}
    assert "unreadable source" in reasons[ids[1]]
    assert "ids that the label set does not have: 200" in reasons[ids[4]]
    assert outcome.counts["ok"] == 8
    assert not outcome.goals_met
    assert len(events.rounds) == 1, "sources that only fail are not asked again"
    assert run(job).already_complete, "nor looked for"


def test_an_image_with_nan_fails_alone(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    tensors = load_file(weights / "model.safetensors")
    labels = open_store(str(make_scenes_store(tmp_path / "few"))).label_set
    channel = labels.channel_of("truck")
    tensors["mask_conv.double_conv.0.weight"][:, channel] = 1e38
    save_file(tensors, weights / "model.safetensors")
    fields = {
        "methods": {"mask_ddpm": {"weights": str(weights), "steps": 2}},
        "execution": {"max_failed_fraction": 1.0},
    }
    job = load_job(str(make_job(plan=[uniform(1), {"max_rounds": 1}], **fields)))
    run(job)
    index = open_store(job.sources).index.to_pylist()
    shows = {row["source_id"]: labels.channel_of("truck") in row["class_ids"] for row in index}
    assert len(set(shows.values())) == 2, "some sources show a truck and others do not"
    for row in rows_of(job):
        expected = ("failed", "mask2img: the image holds NaN or infinity") if shows[row["source_id"]] else ("ok", None)
        assert (row["status"], row["reason"]) == expected


def test_too_many_failures_stop_the_run_and_lose_nothing(
    ray_session: None, make_job: JobFactory, scenes_store: Path
) -> None:
    execution = {"microbatch": 1, "rows_per_block": 1, "max_failed_fraction": 0.1}
    job = load_job(str(make_job(plan=[uniform(4), {"max_rounds": 1}], execution=execution)))
    with pytest.raises(SegdatagenError, match=r"more than max_failed_fraction 0.1.*segdatagen status"):
        run(job, factories=with_fault(job, set(source_ids(scenes_store)), "mark"))
    kept = rows_of(job)
    assert kept
    assert not (Path(job.uri) / SUCCESS_NAME).exists()
    outcome = run(job, retry_failed=True)
    assert outcome.counts == {"ok": 24, "rejected": 0, "failed": 0}
    stored = {row["sample_id"]: row for row in rows_of(job)}
    assert all(stored[row["sample_id"]] == row for row in kept if row["status"] == "ok"), "nothing was made again"


def test_same_rows_whatever_the_actors_blocks_batches_and_flows(
    ray_session: None, make_job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise the same at an equal batch shape; at another one, masks bitwise and images within 2 of 255."""
    made, images = {}, {}
    flows: list[int] = []

    def count(flow: Flow, rows: pa.Table, block_rows: int) -> Generator[PartDone, None, None]:
        flows.append(rows.num_rows)
        return stream(flow, rows, block_rows)

    monkeypatch.setattr("segdatagen.driver.BLOCKS_PER_FLOW", 8)
    monkeypatch.setattr("segdatagen.driver.stream", count)
    for name, actors, block, batch in [("a", 1, 4, 2), ("b", 3, 4, 2), ("c", 1, 1, 2), ("d", 2, 6, 3)]:
        execution = {"actors": actors, "cpus_per_actor": 0.3, "rows_per_block": block, "microbatch": batch}
        output = {"root": str(make_job().parent / "runs"), "image_format": "png"}
        job = load_job(str(make_job(name=name, execution=execution, output=output)))
        run(job)
        made[name] = rows_of(job)
        images[name] = images_of(job)
    assert flows == [12, 12, 8, 4, 12]
    assert made["a"] == made["b"] == made["c"]
    without_images = [[{k: v for k, v in row.items() if k != "image_hash"} for row in made[name]] for name in "ad"]
    assert without_images[0] == without_images[1]
    difference = np.abs(images["a"].astype(int) - images["d"].astype(int))
    assert images["a"].shape == (12, 32, 32, 3)
    assert difference.max() <= 2


def test_the_chain_without_ray_gives_the_same_rows(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job()))
    run(job)
    stored = rows_of(job)
    opened = open_run(job.uri)
    plan = read_plan(opened.folder, read_rounds(opened.folder))
    context = method_contexts(job, opened.label_set)["mask_ddpm"]
    plain = build_chain("mask_ddpm", context).run(plan, 1).sort_by("sample_id").to_pylist()
    assert [{name: row[name] for name in stored[0]} for row in plain] == stored


def test_limit_keeps_a_stratified_first_part(ray_session: None, make_job: JobFactory) -> None:
    path = make_job(plan=[{"method": "mask_ddpm", "strategy": "balance", "n_balance": 9}])
    job = load_job(str(path))
    events = Events()
    outcome = run(job, events, limit=5)
    assert events.flows == [(0, 5)]
    assert (outcome.complete, outcome.counts["ok"]) == (False, 5)
    opened = open_run(job.uri)
    plan = read_plan(opened.folder, read_rounds(opened.folder))
    first = {row["sample_id"] for row in rows_of(job)}
    targets = plan.filter(pa.array(np.isin(plan["sample_id"].to_numpy(), list(first))))["target_class"].to_pylist()
    assert len(set(targets)) == min(5, len(set(plan["target_class"].to_pylist()))), "every class has its turn"
    outcome = run(job)
    assert outcome.complete
    assert first <= {row["sample_id"] for row in rows_of(job)}
    assert verify_ledger(opened).duplicates == 0


def test_raised_quota_adds_a_round_and_remakes_nothing(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job(plan=[uniform(1)])))
    run(job)
    before = rows_of(job)
    again = load_job(str(make_job(plan=[uniform(3)])))
    outcome = run(again)
    after = {row["sample_id"]: row for row in rows_of(again)}
    assert outcome.counts["ok"] == 18
    assert all(after[row["sample_id"]] == row for row in before)
    assert run(again).already_complete
    fewer = load_job(str(make_job(plan=[uniform(2)])))
    assert not run(fewer).already_complete, "goals that no round had are looked at once"
    assert run(fewer).already_complete


def test_more_rounds_are_planned_only_as_max_rounds_allows(
    ray_session: None, make_job: JobFactory, scenes_store: Path
) -> None:
    execution = {"max_failed_fraction": 0.5}
    once = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 1}], execution=execution)))
    outcome = run(once, factories=with_fault(once, {source_ids(scenes_store)[0]}, "mark"))
    assert (outcome.goals_met, outcome.counts["ok"]) == (False, 11)
    assert run(once).already_complete
    planned = plan_job(once, Events(), dry_run=False)
    assert (planned.is_new, planned.is_allowed, planned.summary.num_rows) == (True, False, 1)
    assert len(read_rounds(Folder(once.uri))) == 1, "what may not be made is not stored"
    more = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 2}], execution=execution)))
    outcome = run(more)
    assert (outcome.goals_met, outcome.counts["ok"], outcome.already_complete) == (True, 12, False)


def test_a_planned_round_makes_a_run_incomplete(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job(plan=[uniform(1)])))
    run(job)
    assert plan_job(load_job(str(make_job(plan=[uniform(2)]))), Events(), dry_run=False).summary.num_rows == 6
    assert not (Path(job.uri) / SUCCESS_NAME).exists()
    assert read_manifest(Folder(job.uri)) is None
    outcome = run(job)
    assert (outcome.already_complete, outcome.counts["ok"]) == (False, 12)


def test_an_unreadable_part_is_reported_and_made_again(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job()))
    run(job)
    before = rows_of(job)
    part = next((Path(job.uri) / "samples").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    events = Events()
    outcome = run(job, events)
    assert any("not a readable Parquet file" in text and part.name in text for text in events.notes)
    assert outcome.complete
    assert part.with_name(f"{part.name}.damaged").exists(), "its bytes are kept"
    assert run(job).already_complete
    assert rows_of(job) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_no_space_left_stops_the_run_and_keeps_what_was_committed(
    ray_session: None, make_job: JobFactory, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        execution = {"microbatch": 4, "rows_per_block": 4}
        job = load_job(str(make_job(plan=[uniform(20)], output={"root": str(small)}, execution=execution)))
        with pytest.raises(SegdatagenError, match="no space left"):
            run(job)
        kept = rows_of(job)
        assert kept
        assert all(row["status"] == "ok" for row in kept)
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        assert run(job).counts["ok"] == 120
        stored = {row["sample_id"]: row for row in rows_of(job)}
        assert all(stored[row["sample_id"]] == row for row in kept)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_too_few_resources_are_named_before_anything_starts(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job(execution={"actors": 3, "cpus_per_actor": 1})))
    with pytest.raises(SegdatagenError, match=r"needs 4 CPU .* but the cluster has 2"):
        run(job)
    assert not Folder(job.output.root).exists()


def uniform(per_source: int) -> dict[str, object]:
    return {"method": "mask_ddpm", "strategy": "uniform", "per_source": per_source}


def test_job_dump_round_trips(make_job: JobFactory) -> None:
    job = load_job(str(make_job(plan=[uniform(2), {"max_rounds": 7}])))
    assert Job.model_validate(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json")))) == job
