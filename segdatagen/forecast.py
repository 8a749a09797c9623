"""What a planned round will take on the pool of its job: hours, bytes, requests, money.

It counts what a run writes; arithmetic and prices are those of `costs`. It measures nothing and plans nothing.
"""

import math

from segdatagen.costs import Estimate, Pool, Work, estimate
from segdatagen.dataflow import rows_per_block
from segdatagen.job import Execution, Job
from segdatagen.lease import RENEWAL
from segdatagen.planner import ROWS_PER_PART, RoundSummary
from segdatagen.publish import TARGET_BYTES

MULTIPART_BYTES = 50 * 2**20
"""s3fs puts an object of 100 MiB or more in pieces of this size, with a request before and one after them."""
FILES_OF_ROUND = 2
"""Summary and picture."""
FILES_OF_RUN = 8
"""run.json, the attempt twice, the lease, manifest.json, _SUCCESS, and of `publish` the lease and the index."""


def forecast(job: Job, summary: RoundSummary) -> Estimate:
    """The estimate of a round: made in one attempt, then published."""
    execution, num_rows = job.execution, summary.num_rows
    pool = Pool(execution.actors, execution.gpus_per_actor, execution.cpus_per_actor)
    wall = None if summary.estimated_seconds is None else summary.estimated_seconds / execution.actors
    puts = num_puts(execution, summary, wall or 0.0) if num_rows else 0
    return estimate(Work(num_rows, summary.estimated_seconds, 2 * summary.estimated_bytes, puts), pool, job.prices)


def num_puts(execution: Execution, summary: RoundSummary, wall_seconds: float) -> int:
    """Requests that store something: parts, shards, the plan, small files, and what is renewed while time goes on.

    A block that holds samples of several methods is stored as a part for each.
    """
    blocks = math.ceil(summary.num_rows / rows_per_block(execution, summary.num_rows))
    parts = blocks * sum(rows > 0 for rows in summary.rows_per_method.values())
    plan = math.ceil(summary.num_rows / ROWS_PER_PART) + FILES_OF_ROUND
    shards = math.ceil(summary.estimated_bytes / TARGET_BYTES)
    multipart = min(summary.estimated_bytes, TARGET_BYTES) >= 2 * MULTIPART_BYTES
    pieces = math.ceil(summary.estimated_bytes / MULTIPART_BYTES) + 2 * shards if multipart else shards
    return parts + plan + pieces + FILES_OF_RUN + round(wall_seconds / RENEWAL)
