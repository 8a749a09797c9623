"""Orchestration efficiency: the same stages in a plain loop, and as a run on Ray, in one process and one command.

Efficiency is (samples x seconds per sample of a plain loop) / (actor-seconds from the first to the last block); what
comes before the first block is start-up and is reported apart. The speed of a machine drifts by more than what is
measured, so the run is made in segments, with the plain loop between them. Real scenes and a real network.
"""

import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pyarrow as pa

from segdatagen.benchmark.measure import Benchmark, Figures, no_progress
from segdatagen.cluster import connect
from segdatagen.dataflow import PartDone
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import RunOptions, SilentEvents
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import Job
from segdatagen.method_context import method_contexts
from segdatagen.methods import Chain, build_chain
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run import run_job
from segdatagen.run_folder import open_run
from segdatagen.sources import open_store

NUM_SCENES = 32
STEPS = 20
MICROBATCH = 8
BLOCK_ROWS = 2 * MICROBATCH
PLAIN_BLOCKS = 3
"""Blocks of the plain loop before, between and after the segments of the run."""


@dataclass
class Clock(SilentEvents):
    """When each part of a run was committed, and how many rows it has."""

    began: float = field(default_factory=time.time)
    finished: list[tuple[float, int]] = field(default_factory=list)

    def part(self, part: PartDone) -> None:
        """A part was committed."""
        self.finished.append((part.finished, part.ok + part.rejected + part.failed))


@dataclass(frozen=True)
class Setup:
    """What all runs of one measurement share; `folder` holds the sources and the runs."""

    folder: str
    weights: str
    actors: int
    size: int
    steps: int = STEPS
    microbatch: int = MICROBATCH
    rows_per_block: int = BLOCK_ROWS

    def put_sources(self) -> None:
        """Ingest the scenes."""
        root = f"{NUM_SCENES}@{self.size}x{self.size}"
        request = IngestRequest("scenes", root, "train", f"{self.folder}/sources")
        ingest(request, open_reader("scenes", root, "train", Options()), no_progress, SilentEvents().waiting)

    def job(self, name: str, per_source: int) -> Job:
        """A run of `per_source` samples of every scene."""
        method = {"weights": self.weights, "sampler": "ddim", "steps": self.steps, "guidance": 3.0}
        return Job.model_validate(
            {
                "name": name,
                "version": "v1",
                "sources": f"{self.folder}/sources",
                "geometry": {"size": [self.size, self.size], "fit": "resize"},
                "methods": {"mask_ddpm": method},
                "plan": [{"method": "mask_ddpm", "strategy": "uniform", "per_source": per_source}],
                "output": {"root": f"{self.folder}/runs"},
                "execution": {
                    "actors": self.actors,
                    "cpus_per_actor": 0.5,
                    "torch_threads": 1,
                    "microbatch": self.microbatch,
                    "rows_per_block": self.rows_per_block,
                },
            }
        )


def bench_run(
    seconds: float = 150.0,
    actors: int = 1,
    weights: str = "builtin:scenes-mask-ddpm",
    segments: int = 3,
    size: int = 64,
) -> Figures:
    """Measure a run that works for about `seconds`, in `segments` attempts with the plain loop before and after each.

    Figures are per sample of `size` x `size` at 20 DDIM steps.
    """
    with tempfile.TemporaryDirectory() as folder, connect():
        setup = Setup(folder, weights, actors, size)
        setup.put_sources()
        warm = setup.job("warm", 1)
        run_job(warm, RunOptions(limit=MICROBATCH), SilentEvents())
        chain, plan = _chain(warm), plan_of(warm)
        plain_seconds(chain, plan, 1)
        plain = [plain_seconds(chain, plan, PLAIN_BLOCKS)]
        # At least one block per actor after its first.
        rows = BLOCK_ROWS * max(2 * actors, 1 + round(seconds * actors / segments / plain[0] / BLOCK_ROWS))
        job = setup.job("bench", -(-rows * segments // NUM_SCENES))
        measured = []
        for _ in range(segments):
            clock = Clock()
            run_job(job, RunOptions(limit=rows), clock)
            measured.append(_Segment.of(clock, time.time(), actors))
            plain.append(plain_seconds(chain, plan, PLAIN_BLOCKS))
    return _figures(measured, plain, actors)


RUN = Benchmark(
    "run",
    bench_run,
    measures="a run on Ray that works for two and a half minutes",
    reference="the same stages in a plain loop",
    figure="{seconds_per_sample:.2f} s per sample of 64 x 64 at 20 steps",
    ratio="{efficiency:.2f} of the speed ({efficiency_lowest_segment:.2f} to {efficiency_highest_segment:.2f})",
    minutes=5,
)


@dataclass(frozen=True)
class _Segment:
    """One attempt: rows and seconds from the block at which all actors had one to the last, and the seconds around."""

    rows: int
    span: float
    start_up: float
    ending: float

    @classmethod
    def of(cls, clock: Clock, ended: float, actors: int) -> "_Segment":
        # With several actors the first block of each is started before the first of all ends: none of them counts.
        finished = sorted(clock.finished)
        first, last = finished[actors - 1][0], finished[-1][0]
        rows = sum(count for _, count in finished[actors:])
        return cls(rows, last - first, finished[0][0] - clock.began, ended - last)


def _figures(segments: list[_Segment], plain: list[float], actors: int) -> Figures:
    """Every segment is held against the plain loop just before and just after it."""
    references = [(before + after) / 2 for before, after in pairwise(plain)]
    ratios = [s.rows * reference / (actors * s.span) for s, reference in zip(segments, references, strict=True)]
    span, rows = sum(s.span for s in segments), sum(s.rows for s in segments)
    worth = sum(s.rows * reference for s, reference in zip(segments, references, strict=True))
    return {
        "actors": actors,
        "segments": len(segments),
        "samples": rows,
        "rows_per_block": BLOCK_ROWS,
        "seconds_first_to_last_block": round(span, 1),
        "seconds_before_first_block": round(sum(s.start_up for s in segments) / len(segments), 1),
        "seconds_after_last_block": round(sum(s.ending for s in segments) / len(segments), 1),
        "plain_seconds_per_sample": round(sum(plain) / len(plain), 4),
        "plain_slowest_to_fastest": round(max(plain) / min(plain), 3),
        "seconds_per_sample": round(actors * span / rows, 4),
        "efficiency": round(worth / (actors * span), 3),
        "efficiency_lowest_segment": round(min(ratios), 3),
        "efficiency_highest_segment": round(max(ratios), 3),
    }


def _chain(job: Job) -> Chain:
    """The chain that an actor builds, here in this process, with the same torch threads."""
    return build_chain("mask_ddpm", method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"])


def plan_of(job: Job) -> pa.Table:
    """Every row that is planned for a run."""
    opened = open_run(job.uri)
    return read_plan(opened.folder, read_rounds(opened.folder))


def plain_seconds(chain: Chain, plan: pa.Table, blocks: int) -> float:
    """Seconds per sample of the chain in a plain loop over blocks as a run has them."""
    began = time.perf_counter()
    for number in range(blocks):
        chain.run(plan.slice(number * BLOCK_ROWS % plan.num_rows, BLOCK_ROWS), 1)
    return (time.perf_counter() - began) / (blocks * BLOCK_ROWS)
