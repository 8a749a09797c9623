"""The measurements that `segdatagen bench` knows, by name.

Each is declared beside its function. It does not know what they measure.
"""

from segdatagen.benchmark.codec import CODEC
from segdatagen.benchmark.flow import FLOW
from segdatagen.benchmark.ingest import INGEST
from segdatagen.benchmark.kills import KILLS
from segdatagen.benchmark.mask_ddpm import MASK_DDPM
from segdatagen.benchmark.measure import Benchmark
from segdatagen.benchmark.plan import PLAN
from segdatagen.benchmark.render import RENDER
from segdatagen.benchmark.resume import RESUME
from segdatagen.benchmark.run import RUN
from segdatagen.benchmark.scenes import SCENES
from segdatagen.benchmark.scenes_suite import SCENES_SUITE

BENCHMARKS: dict[str, Benchmark] = {
    "codec": CODEC,
    "flow": FLOW,
    "ingest": INGEST,
    "kills": KILLS,
    "mask_ddpm": MASK_DDPM,
    "plan": PLAN,
    "render": RENDER,
    "resume": RESUME,
    "run": RUN,
    "scenes": SCENES,
    "scenes_suite": SCENES_SUITE,
}
