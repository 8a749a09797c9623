"""The measurements that `segdatagen bench` knows, by name.

Each runs with its own defaults, which are those of the rows in `benchmarks/`.
"""

from collections.abc import Callable

from segdatagen.benchmark.codec import bench_codec
from segdatagen.benchmark.flow import bench_flow
from segdatagen.benchmark.ingest import bench_ingest
from segdatagen.benchmark.mask_ddpm import bench_mask_ddpm
from segdatagen.benchmark.measure import Figures
from segdatagen.benchmark.plan import bench_plan
from segdatagen.benchmark.resume import bench_resume
from segdatagen.benchmark.run import bench_run
from segdatagen.benchmark.scenes import bench_scenes

BENCHMARKS: dict[str, Callable[[], Figures]] = {
    "codec": bench_codec,
    "flow": bench_flow,
    "ingest": bench_ingest,
    "mask_ddpm": bench_mask_ddpm,
    "plan": bench_plan,
    "resume": bench_resume,
    "run": bench_run,
    "scenes": bench_scenes,
}
