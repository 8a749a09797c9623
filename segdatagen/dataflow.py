"""Plan rows through chains on Ray Data, committed part by part while they stream.

Actors hold a chain each and turn blocks of plan rows into sample rows; tasks put them; the driver sees one small row
per part. Queues, back-pressure, spilling and restarts are the engine's. What never came back is found by subtracting
the ledger from the plan, which is the caller's business.
"""

import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from segdatagen.cluster import deprecated_arguments
from segdatagen.errors import SegdatagenError
from segdatagen.job import Execution
from segdatagen.methods import Chain
from segdatagen.samples import put_samples, split_parts
from segdatagen.storage import Folder, StorageError

SPLIT_CPUS = 1
"""What Ray takes for the task that splits the plan into blocks; it cannot be told otherwise, and waits for ever beside
actors that leave less."""
AUTO_MICROBATCHES = 2
"""A block is the unit of commit and of lost work: two forward batches unless that leaves actors idle."""
MIN_BLOCKS_PER_ACTOR = 4

ChainFactory = Callable[[], Chain]
"""Builds a chain inside an actor. Travels to it by pickling, so it holds options, never weights."""


@dataclass(frozen=True)
class Flow:
    """Everything that one pass over plan rows needs."""

    run_uri: str
    factories: Mapping[str, ChainFactory]
    execution: Execution
    attempt: int


@dataclass(frozen=True)
class PartDone:
    """One committed part, as the driver hears of it. `stage_seconds` is by stage of its `method`, in their order."""

    name: str
    method: str
    ok: int
    rejected: int
    failed: int
    chain_seconds: float
    stage_seconds: dict[str, float]
    finished: float
    error: str | None = None


class ChainActor:
    """A process that holds the chains of the methods that a flow needs.

    They are built at the start, so that what cannot be built (a library that is missing, a GPU that is full) stops
    the run instead of failing its rows. A process that died is started again by Ray, and then builds what the first
    block needs: were it to die of the building, Ray would start it for ever, while a block is given up.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._chains: dict[str, Chain] = {}
        if not ray.get_runtime_context().was_current_actor_reconstructed:
            for method in flow.factories:
                self._chain(method)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Sample rows of a block of plan rows."""
        made = []
        for part in split_parts(block):
            chain = self._chain(part["method"][0].as_py())
            before = dict(chain.seconds)
            rows = chain.run(part, self._flow.attempt)
            made.append(_with_stage_seconds(rows, {s: after - before[s] for s, after in chain.seconds.items()}))
        return pa.concat_tables(made)

    def _chain(self, method: str) -> Chain:
        if method not in self._chains:
            self._chains[method] = self._flow.factories[method]()
        return self._chains[method]


def rows_per_block(execution: Execution, num_rows: int) -> int:
    """Rows of one block: as asked for, or two microbatches, fewer where that would leave actors without work."""
    if execution.rows_per_block != "auto":
        return execution.rows_per_block
    even = num_rows // (execution.actors * MIN_BLOCKS_PER_ACTOR)
    in_batches = max(1, even // execution.microbatch) * execution.microbatch
    return min(AUTO_MICROBATCHES * execution.microbatch, in_batches)


def stream(flow: Flow, plan_rows: pa.Table, block_rows: int) -> Generator[PartDone, None, None]:
    """Run plan rows and yield each part once it is committed. A block whose worker died is silently missing.

    Closing the iterator stops the flow; what was committed stays. Raises SegdatagenError where a chain cannot be built.
    """
    run = Folder(flow.run_uri)
    flow = replace(flow, factories={m: flow.factories[m] for m in pc.unique(plan_rows["method"]).to_pylist()})
    execution = flow.execution

    def commit(block: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([_commit(run, part) for part in split_parts(block)], schema=_REPORT_SCHEMA)

    blocks = ray.data.from_arrow(plan_rows).repartition(target_num_rows_per_block=block_rows)
    # A worker that dies takes the blocks that wait for it along: where each row stands alone, none may wait. Nor is a
    # row tried again there: the driver has more passes, and each try may cost the start of an actor.
    in_flight, retries = (1, 0) if block_rows == 1 else (2, 1)
    with deprecated_arguments():
        made = blocks.map_batches(
            ChainActor,
            fn_constructor_args=(flow,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=execution.actors, max_tasks_in_flight_per_actor=in_flight),
            num_cpus=execution.cpus_per_actor,
            num_gpus=execution.gpus_per_actor or None,
            max_restarts=-1,
            max_task_retries=retries,
        )
    # Writing waits for storage: it asks for no CPU, so that it runs however little the actors and the split leave.
    writers = TaskPoolStrategy(size=min(execution.actors + 1, -(-plan_rows.num_rows // block_rows)))
    committed = made.map_batches(commit, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=writers)
    committed.set_name(f"segdatagen-{os.path.basename(os.path.dirname(flow.run_uri))}")
    # A block whose worker died costs its rows, which are found missing later, and not the run.
    committed.context.max_errored_blocks = -1
    try:
        for row in committed.iter_rows():
            yield PartDone(**row | {"stage_seconds": dict(row["stage_seconds"])})
    except ray.exceptions.ActorDiedError as error:  # that of a block is among the errors which cost only rows
        reason = str(error).strip().splitlines()[-1]
        raise SegdatagenError(
            f"{flow.run_uri}: a worker cannot start ({reason}); what is done is kept, and the same command goes on"
        ) from error


def _with_stage_seconds(rows: pa.Table, spent: Mapping[str, float]) -> pa.Table:
    """Sample rows with what their stages took beside the first of them: it travels to the commit and is not stored."""
    column = pa.array([list(spent.items()), *[None] * (rows.num_rows - 1)], _STAGE_SECONDS)
    return rows.append_column("stage_seconds", column)


def _commit(run: Folder, part: pa.Table) -> dict[str, Any]:
    """Put a part and report it. Ray Data drops a block whose task raises, so a store that refuses is reported too."""
    counts = {row["values"]: row["counts"] for row in pc.value_counts(part["status"]).to_pylist()}
    name, problem = "", None
    try:
        name = put_samples(run, part)
    except StorageError as error:
        problem = str(error)
    return {
        "name": name,
        "method": part["method"][0].as_py(),
        "ok": counts.get("ok", 0),
        "rejected": counts.get("rejected", 0),
        "failed": counts.get("failed", 0),
        "chain_seconds": pc.sum(part["seconds"]).as_py() or 0.0,
        "stage_seconds": [item for spent in part["stage_seconds"].drop_null().to_pylist() for item in spent],
        "finished": time.time(),
        "error": problem,
    }


_STAGE_SECONDS = pa.map_(pa.string(), pa.float64())
_REPORT_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("method", pa.string()),
        ("ok", pa.int64()),
        ("rejected", pa.int64()),
        ("failed", pa.int64()),
        ("chain_seconds", pa.float64()),
        ("stage_seconds", _STAGE_SECONDS),
        ("finished", pa.float64()),
        ("error", pa.string()),
    ]
)
