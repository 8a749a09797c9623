"""How long a finished run takes to say that it is finished, and how long a run without manifest takes to find out.

The run is as large as asked, with real parts of rows without pixels: reading a ledger never touches pixels.
"""

import resource
import tempfile
import time

import numpy as np
import pyarrow as pa

from segdatagen.benchmark.measure import Benchmark, Figures, no_progress
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import RunOptions, SilentEvents
from segdatagen.errors import SegdatagenError
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import Job
from segdatagen.planner import read_plan, read_rounds
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.run import plan_job, run_job
from segdatagen.run_folder import open_run
from segdatagen.samples import put_samples, read_ledger
from segdatagen.storage import Folder

NUM_SCENES = 256


def bench_resume(
    num_rows: int = 1_000_000, rows_per_part: int = 64, weights: str = "builtin:scenes-mask-ddpm"
) -> Figures:
    """Commit `num_rows` rows, then measure a rerun without and with the manifest."""
    with tempfile.TemporaryDirectory() as folder:
        job = _job(folder, num_rows // NUM_SCENES, weights)
        root = f"{NUM_SCENES}@32x32"
        ingest(
            IngestRequest("scenes", root, "train", job.sources),
            open_reader("scenes", root, "train", Options()),
            no_progress,
            SilentEvents().waiting,
        )
        plan_job(job, SilentEvents(), dry_run=False)
        began = time.perf_counter()
        parts = _commit_all(Folder(job.uri), rows_per_part)
        committed = time.perf_counter() - began
        began = time.perf_counter()
        read_ledger(Folder(job.uri))
        ledger_seconds = time.perf_counter() - began
        began = time.perf_counter()
        run_job(job, RunOptions(), SilentEvents())
        first = time.perf_counter() - began
        began = time.perf_counter()
        outcome = run_job(job, RunOptions(), SilentEvents())
        second = time.perf_counter() - began
        if not outcome.already_complete:
            raise SegdatagenError(f"{job.uri}: the second run did not find the first one complete")
    return {
        "rows": num_rows,
        "parts": parts,
        "seconds_to_commit": round(committed, 1),
        "seconds_to_read_ledger": round(ledger_seconds, 1),
        "seconds_rerun_without_manifest": round(first, 1),
        "seconds_rerun": round(second, 3),
        "ratio_to_no_manifest": round(first / second, 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


RESUME = Benchmark(
    "resume",
    bench_resume,
    measures="how long a run of a million finished rows takes to say so",
    reference="the same run without its manifest",
    figure="{rows:,} rows in {seconds_rerun:.1f} s; {seconds_rerun_without_manifest:.0f} s without the manifest",
    ratio="{ratio_to_no_manifest:.0f} times as fast",
    minutes=3,
)


def _commit_all(run: Folder, rows_per_part: int) -> int:
    """Put a sample row for every plan row; returns the number of parts."""
    opened = open_run(run.uri)
    plan = read_plan(run, read_rounds(run))
    background = opened.label_set.ids[:1].tolist()
    starts = range(0, plan.num_rows, rows_per_part)
    for start in starts:
        rows = plan.slice(start, rows_per_part)
        count = rows.num_rows
        known = {name: rows[name] for name in rows.column_names if name in SAMPLE_SCHEMA.names}
        known |= {"attempt": np.ones(count, np.int32), "status": pa.array(["ok"] * count)}
        known |= {"class_ids": pa.array([background] * count), "class_pixels": pa.array([[1024]] * count)}
        table = pa.table({f.name: known.get(f.name, pa.nulls(count)) for f in SAMPLE_SCHEMA})
        put_samples(run, table)
    return len(starts)


def _job(folder: str, per_source: int, weights: str) -> Job:
    return Job.model_validate(
        {
            "name": "bench",
            "version": "v1",
            "sources": f"{folder}/sources",
            "geometry": {"size": [32, 32], "fit": "resize"},
            "methods": {"mask_ddpm": {"weights": weights}},
            "plan": [{"method": "mask_ddpm", "strategy": "uniform", "per_source": per_source}],
            "output": {"root": f"{folder}/runs"},
        }
    )
