"""What the driver hears of committed parts: the seconds of every stage, over all actors, reach the attempt."""

import sys
import time

import pyarrow as pa
import pytest
import ray
from conftest import JobFactory
from hypothesis import given
from hypothesis import strategies as st
from kept_events import Events
from ray import cloudpickle
from test_faults import run

from segdatagen.dataflow import cannot_start, in_blocks, rows_per_block
from segdatagen.job import Execution, Job, load_job
from segdatagen.method_context import method_contexts
from segdatagen.methods import METHODS, Chain
from segdatagen.placement import ChainFactory
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.run_folder import open_run, read_attempts
from segdatagen.samples import read_ledger
from segdatagen.sources import open_store
from segdatagen.stages.stage import Batch, objects
from segdatagen.tables import read_part

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SECONDS_PER_ROW = 0.05


class Slow:
    """A stage that waits for each row, and fails every second one."""

    name = "slow"
    reads = ("variant",)
    writes = ("reason",)
    verdict = "failed"
    seconds_per_row = SECONDS_PER_ROW

    def __call__(self, batch: Batch) -> Batch:
        time.sleep(self.seconds_per_row * len(batch["variant"]))
        return {"reason": objects(["odd" if variant % 2 else None for variant in batch["variant"]])}


def test_what_keeps_a_worker_from_starting_is_said_in_one_line() -> None:
    """A library that is missing may be there next time."""
    from ray.exceptions import ActorDiedError, RayTaskError

    traceback = "ray::ChainActor.__init__()\n  File a.py, line 1\nImportError: no module named 'xformers'"
    error = cannot_start("runs/a", ActorDiedError(RayTaskError("__init__", traceback, ImportError("xformers"))))
    assert str(error) == (
        "runs/a: a worker cannot start (ImportError: no module named 'xformers'); what is done is kept, and the same "
        "command goes on"
    )
    assert error.exit_status == 1


@given(st.lists(st.sampled_from(["imgsyn", "guided", "mask_ddpm"]), min_size=1, max_size=60), st.integers(1, 9))
def test_blocks_are_of_one_method_and_methods_go_on_side_by_side(methods: list[str], block_rows: int) -> None:
    rows = pa.table({"method": methods, "sample_id": range(len(methods))})
    found = in_blocks(rows, block_rows).to_pylist()
    assert sorted(row["sample_id"] for row in found) == list(range(len(methods)))
    for method in methods:
        ids = [row["sample_id"] for row in found if row["method"] == method]
        assert ids == sorted(ids), "rows of a method keep their order"
    whole = sum(methods.count(method) // block_rows for method in set(methods))
    blocks = [found[start : start + block_rows] for start in range(0, whole * block_rows, block_rows)]
    assert all(len({row["method"] for row in block}) == 1 for block in blocks)
    begins = [block[0]["sample_id"] for block in blocks]
    assert begins == sorted(begins), "no method waits for the end of another"


@pytest.mark.parametrize(
    ("num_rows", "actors", "microbatch", "expected"),
    [
        *((1_000_000, 1, 8, 16), (1_000, 1, 8, 16), (1_000, 1, 64, 128)),  # two forward passes, however many rows
        *((64, 1, 8, 16), (63, 1, 8, 8), (3, 1, 8, 8), (0, 1, 8, 8)),  # four blocks for the actor, never half a pass
        *((1_024, 16, 8, 16), (1_023, 16, 8, 8), (50, 16, 8, 8), (50, 2, 1, 2), (7, 2, 1, 1)),
    ],
)
def test_a_block_is_two_microbatches_or_one_where_actors_would_wait(
    num_rows: int, actors: int, microbatch: int, expected: int
) -> None:
    assert rows_per_block(Execution(actors=actors, microbatch=microbatch), num_rows) == expected
    asked = Execution(actors=actors, microbatch=microbatch, rows_per_block=5)
    assert rows_per_block(asked, num_rows) == 5


def with_slow_stage(job: Job) -> dict[str, ChainFactory]:
    context = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]

    def build() -> Chain:
        load, generate = (stage.build() for stage in METHODS["mask_ddpm"](context))
        return Chain([load, Slow(), generate])

    return {"mask_ddpm": build}


def test_a_block_may_take_longer_than_ray_data_waits_for_progress(
    ray_session: None, make_job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many slow images: the start of the actor alone takes longer than the second that Ray would wait here."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 1.0)
    monkeypatch.setattr(Slow, "seconds_per_row", 0.5)
    job = load_job(str(make_job(plan=[{"method": "mask_ddpm", "strategy": "uniform", "per_source": 1}])))
    assert run(job, Events(), factories=with_slow_stage(job)).counts["failed"] == 0


def test_seconds_of_every_stage_reach_the_attempt(ray_session: None, make_job: JobFactory) -> None:
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 2}, {"max_rounds": 1}]
    job = load_job(str(make_job(plan=plan, execution={"microbatch": 4, "max_failed_fraction": 1.0})))
    events = Events()
    outcome = run(job, events, factories=with_slow_stage(job))
    assert outcome.counts == {"ok": 6, "rejected": 0, "failed": 6}
    (attempt,) = read_attempts(open_run(job.uri).folder)
    (stages,) = attempt.stage_seconds.values()
    assert list(attempt.stage_seconds) == ["mask_ddpm"]
    assert list(stages) == ["load", "slow", "mask2img"], "in the order of the chain"
    assert 12 * SECONDS_PER_ROW <= stages["slow"] < 12 * SECONDS_PER_ROW + 1
    assert len(events.parts) > 1
    assert all(min(part.stage_seconds.values()) > 0 for part in events.parts)
    for stage, seconds in stages.items():
        assert seconds == pytest.approx(sum(part.stage_seconds[stage] for part in events.parts))


def test_stage_seconds_are_not_stored_with_the_samples(ray_session: None, make_job: JobFactory) -> None:
    job = load_job(str(make_job()))
    run(job)
    folder = open_run(job.uri).folder
    for part in read_ledger(folder).parts:
        assert read_part(folder, part.name).column_names == SAMPLE_SCHEMA.names
