"""What a planned round will take on the pool of its job: hours, bytes, requests, money.

It counts what a run writes; arithmetic and prices are those of `costs`. It measures nothing and plans nothing.
"""

import math

from segdatagen.budget import RECORD_SECONDS
from segdatagen.costs import Estimate, Pool, Work, estimate
from segdatagen.dataflow import rows_per_block
from segdatagen.job import Execution, Job
from segdatagen.lease import RENEWAL
from segdatagen.planner import ROWS_PER_PART, RoundSummary
from segdatagen.publish import TARGET_BYTES

MULTIPART_BYTES = 50 * 2**20
"""s3fs puts an object of 100 MiB or more in pieces of this size, with a request before and one after them."""
MILLION = 1_000_000
FILES_OF_ROUND = 2
"""Summary and picture."""
FILES_OF_RUN = 8
"""run.json, the attempt twice, the lease, manifest.json, _SUCCESS, and of `publish` the lease and the index."""


def forecast(job: Job, summary: RoundSummary) -> Estimate:
    """The estimate of a round: made in one attempt, then published."""
    execution, num_rows = job.execution, summary.num_rows
    pool = Pool(execution.actors, execution.gpus_per_actor, execution.cpus_per_actor)
    if not num_rows:
        return estimate(Work(0, summary.estimated_seconds, 0, 0), None, pool, job.prices)
    million = _work(execution, summary, MILLION / num_rows)
    return estimate(_work(execution, summary, 1), million, pool, job.prices)


def _work(execution: Execution, summary: RoundSummary, times: float) -> Work:
    """A round of so many times the rows, of the same methods.

    What `staged` puts under work/ is not counted. A lease is renewed and an attempt recorded as long as it takes:
    without measured seconds neither is counted.
    """
    rows, num_bytes = round(summary.num_rows * times), round(summary.estimated_bytes * times)
    seconds = None if summary.estimated_seconds is None else summary.estimated_seconds * times
    block = rows_per_block(execution, rows)  # of one method, but for the last rows of each (`in_blocks`)
    parts = sum(math.ceil(of * times / block) for of in summary.rows_per_method.values())
    puts = parts + math.ceil(rows / ROWS_PER_PART) + puts_of_shards(num_bytes) + FILES_OF_ROUND + FILES_OF_RUN
    if seconds is not None:
        wall = seconds / execution.actors
        puts += round(wall / RENEWAL) + round(wall / RECORD_SECONDS)
    return Work(rows, seconds, 2 * num_bytes, puts)


def puts_of_shards(num_bytes: int) -> int:
    """Requests that publish so many bytes: one a shard, or one for each piece of it, one before and one after them."""
    shards = math.ceil(num_bytes / TARGET_BYTES)
    multipart = min(num_bytes, TARGET_BYTES) >= 2 * MULTIPART_BYTES
    return math.ceil(num_bytes / MULTIPART_BYTES) + 2 * shards if multipart else shards
