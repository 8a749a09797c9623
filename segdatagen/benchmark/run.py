"""Orchestration efficiency: the same stages in a plain loop, and as a run on Ray, in one process and one command.

Efficiency is (samples x seconds per sample of a plain loop) / (actor-seconds from the first to the last block); what
comes before the first block is start-up and is reported apart. Runs with real scenes and a real network.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from segdatagen.benchmark.measure import Figures, no_progress
from segdatagen.cluster import connect
from segdatagen.dataflow import PartDone, rows_per_block
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import RunOptions
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import Job
from segdatagen.lease import Holder
from segdatagen.methods import METHODS, Chain, method_contexts
from segdatagen.planner import RoundSummary, read_plan, read_rounds
from segdatagen.run import run_job
from segdatagen.run_folder import open_run

SIZE = 64
NUM_SCENES = 32
STEPS = 20
MICROBATCH = 8
PLAIN_BLOCKS = 3
"""Blocks of the plain loop, before the run and again after it: a machine's speed drifts."""


@dataclass
class Clock:
    """Events of a run that keep nothing but times."""

    began: float = field(default_factory=time.time)
    finished: list[tuple[float, int]] = field(default_factory=list)

    def waiting(self, holder: Holder) -> None:
        """Not of interest."""

    def planned(self, summary: RoundSummary) -> None:
        """Not of interest."""

    def working(self, num_done: int, num_planned: int) -> None:
        """Not of interest."""

    def part(self, part: PartDone) -> None:
        """When a part was committed, and its rows."""
        self.finished.append((part.finished, part.ok + part.rejected + part.failed))

    def note(self, text: str) -> None:
        """Not of interest."""


def bench_run(seconds: float = 150.0, actors: int = 1, weights: str = "builtin:scenes-mask-ddpm") -> Figures:
    """Measure a run that takes about `seconds`, start-up apart. Figures are per sample of 64 x 64 at 20 DDIM steps."""
    with tempfile.TemporaryDirectory() as folder, connect():
        store = f"{folder}/sources"
        root = f"{NUM_SCENES}@{SIZE}x{SIZE}"
        request = IngestRequest("scenes", root, "train", store)
        ingest(request, open_reader("scenes", root, "train", Options()), no_progress)
        chain = _chain(_job(folder, store, weights, 1, actors))
        warm = _job(folder, store, weights, 1, actors).model_copy(update={"name": "warm"})
        run_job(warm, RunOptions(limit=MICROBATCH), Clock())
        plan = _plan_of(warm)
        _plain_seconds(chain, plan, 1)
        before = _plain_seconds(chain, plan, PLAIN_BLOCKS)
        per_source = max(2, round(seconds * actors / before / NUM_SCENES))
        job, clock = _job(folder, store, weights, per_source, actors), Clock()
        run_job(job, RunOptions(), clock)
        ended = time.time()
        after = _plain_seconds(chain, plan, PLAIN_BLOCKS)
    return _figures(clock, ended, (before, after), actors, rows_per_block(job.execution, per_source * NUM_SCENES))


def _figures(clock: Clock, ended: float, plain: tuple[float, float], actors: int, block_rows: int) -> Figures:
    finished = sorted(clock.finished)
    span = finished[-1][0] - finished[0][0]
    rows = sum(count for _, count in finished[1:])
    reference = sum(plain) / 2
    return {
        "actors": actors,
        "samples": rows + finished[0][1],
        "rows_per_block": block_rows,
        "seconds_first_to_last_block": round(span, 1),
        "seconds_before_first_block": round(finished[0][0] - clock.began, 1),
        "seconds_after_last_block": round(ended - finished[-1][0], 1),
        "plain_seconds_per_sample_before": round(plain[0], 4),
        "plain_seconds_per_sample_after": round(plain[1], 4),
        "seconds_per_sample": round(actors * span / rows, 4),
        "efficiency": round(rows * reference / (actors * span), 3),
    }


def _job(folder: str, store: str, weights: str, per_source: int, actors: int) -> Job:
    return Job.model_validate(
        {
            "name": "bench",
            "version": "v1",
            "sources": store,
            "geometry": {"size": [SIZE, SIZE], "fit": "resize"},
            "methods": {"mask_ddpm": {"weights": weights, "sampler": "ddim", "steps": STEPS, "guidance": 3.0}},
            "plan": [{"method": "mask_ddpm", "strategy": "uniform", "per_source": per_source}],
            "output": {"root": str(Path(folder) / "runs")},
            "execution": {"actors": actors, "cpus_per_actor": 0.5, "torch_threads": 1, "microbatch": MICROBATCH},
        }
    )


def _chain(job: Job) -> Chain:
    """The chain that an actor builds, here in this process, with the same torch threads."""
    from segdatagen.sources import open_store

    return Chain(METHODS["mask_ddpm"](method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]))


def _plan_of(job: Job) -> pa.Table:
    opened = open_run(job.uri)
    return read_plan(opened.folder, read_rounds(opened.folder))


def _plain_seconds(chain: Chain, plan: pa.Table, blocks: int) -> float:
    """Seconds per sample of the chain in a plain loop over blocks as a run has them."""
    size = 2 * MICROBATCH
    began = time.perf_counter()
    for number in range(blocks):
        chain.run(plan.slice(number * size % (plan.num_rows - size + 1), size), 1)
    return (time.perf_counter() - began) / (blocks * size)
