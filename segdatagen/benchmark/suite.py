"""The measurements that `segdatagen bench` knows, by name.

Each is declared beside its function. It does not know what they measure.
"""

from segdatagen.benchmark.codec import CODEC
from segdatagen.benchmark.flow import FLOW
from segdatagen.benchmark.kills import KILLS
from segdatagen.benchmark.measure import Benchmark
from segdatagen.benchmark.plan import PLAN
from segdatagen.benchmark.resume import RESUME
from segdatagen.benchmark.run import RUN
from segdatagen.benchmark.scenes import SCENES

BENCHMARKS: dict[str, Benchmark] = {
    "codec": CODEC,
    "flow": FLOW,
    "kills": KILLS,
    "plan": PLAN,
    "resume": RESUME,
    "run": RUN,
    "scenes": SCENES,
}
