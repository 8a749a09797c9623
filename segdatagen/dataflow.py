"""Plan rows through chains on Ray Data, committed part by part while they stream.

Actors hold a chain each, or a segment of one, and turn blocks of rows into blocks of rows; the last ones put what they
made before they take the next block; the driver sees one small row per part. Queues, back-pressure, spilling and
restarts are the engine's. What never came back is found by subtracting the ledger from the plan, which is the caller's
business.
"""

import contextlib
import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from segdatagen.cluster import deprecated_arguments, without_progress_limit
from segdatagen.device_errors import DeviceLost
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.job import Execution
from segdatagen.methods import Chain, begin, finish
from segdatagen.placement import Segment, Segments, pool_sizes
from segdatagen.samples import SAMPLES, part_name, put_samples, set_aside, split_parts
from segdatagen.storage import Folder, StorageError
from segdatagen.tables import UnreadablePart, read_part
from segdatagen.work import KEPT, folder_of, put_work, read_kept, read_rows, to_batch, to_table

SPLIT_CPUS = 1
"""What Ray takes for the task that splits the plan into blocks; it cannot be told otherwise, and waits for ever beside
actors that leave less."""
AUTO_MICROBATCHES = 2
"""A block is the unit of commit and of lost work: two forward batches unless that leaves actors idle."""
MIN_BLOCKS_PER_ACTOR = 4
BLOCKS_OF_ACTOR = 2
"""The one that it makes, and one that waits for it: a worker that dies takes both along."""


@dataclass(frozen=True)
class Flow:
    """Everything that one pass over plan rows needs. `stage_seconds`: by method, what its stages took so far."""

    run_uri: str
    segments: Segments
    execution: Execution
    attempt: int
    stage_seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PartDone:
    """One committed part, as the driver hears of it: of samples, or of rows that `stage` keeps for the next one.

    `kept` counts the latter. `stage_seconds` and `stage_peak_bytes` are by stage of its `method`, in their order.
    """

    name: str
    method: str
    ok: int
    rejected: int
    failed: int
    chain_seconds: float
    stage_seconds: dict[str, float]
    finished: float
    error: str | None = None
    stage_peak_bytes: dict[str, int] = field(default_factory=dict)
    stage: str | None = None
    kept: int = 0

    @property
    def num_rows(self) -> int:
        """Rows in the part; none: it was not put."""
        return self.ok + self.rejected + self.failed + self.kept


@dataclass(frozen=True)
class Step:
    """What an actor does of a flow: the segment of each method, and which columns it is given and leaves.

    `commits`: what it made is put, as samples if it `is_last`, else as rows that this `stage` keeps for the next one.
    `kept`: names of the parts in which the rows lie that it is given by their places.
    """

    segments: Mapping[str, Segment]
    is_first: bool = True
    is_last: bool = True
    commits: bool = True
    kept: tuple[str, ...] = ()

    @property
    def stage(self) -> str | None:
        """The stage that keeps its rows; None: they are samples."""
        return None if self.is_last else next(iter(self.segments.values())).name


class ChainActor:
    """A process that holds the chains of the methods that a step needs.

    They are built at the start, so that what cannot be built (a library that is missing, a GPU that is full) stops
    the run instead of failing its rows. A process that died is started again by Ray, and then builds what the first
    block needs: were it to die of the building, Ray would start it for ever, while a block is given up.
    """

    def __init__(self, flow: Flow, step: Step) -> None:
        self._flow, self._step = flow, step
        self._chains: dict[str, Chain] = {}
        if not ray.get_runtime_context().was_current_actor_reconstructed:
            for method in step.segments:
                self._chain(method)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Rows as the next step needs them; behind a step that commits, a report of each part that was put.

        Where the device is lost the process ends, and Ray starts another one: this one could only fail row after row.
        """
        parts = split_parts(block)
        try:
            if not self._step.commits:
                return pa.concat_tables([self._made(part) for part in parts])
            return pa.Table.from_pylist([self._put(part) for part in parts], schema=_REPORT_SCHEMA)
        except DeviceLost as error:
            logging.getLogger(__name__).error("%s", error)
            os._exit(1)

    def _put(self, part: pa.Table) -> dict[str, Any]:
        """Make and put a part, and report it.

        Where this attempt has put it already, whoever did died before it could say so: the part stays as it is. Ray
        Data drops a block whose task raises, so a store that refuses is reported too. Rows that the stage before kept
        in a part that is damaged are not reported, and come back: the part is set aside, and they are made from there.
        """
        run, stage, attempt = Folder(self._flow.run_uri), self._step.stage, self._flow.attempt
        name = part_name(SAMPLES if stage is None else folder_of(stage), part, attempt)
        try:
            if (found := _statuses(run, name)) is not None:
                return _report(part, name, _counts(found, stage))
            made = self._made(part)
            if stage is None:
                put_samples(run, made)
            else:
                put_work(run, stage, attempt, made.drop_columns([_COSTS]))
        except StorageError as error:
            return _report(part, name, {}, error=str(error))
        except UnreadablePart:
            if not self._step.kept:
                raise
            for number in pc.unique(part[KEPT[0]]).to_pylist():
                set_aside(run, self._step.kept[number], columns=None)
            return _report(part, name, {})
        return _report(part, name, _counts(made["status"], stage), _costs(made))

    def _made(self, part: pa.Table) -> pa.Table:
        chain, step = self._chain(part["method"][0].as_py()), self._step
        before = dict(chain.seconds)
        if step.is_first and step.is_last:
            rows = chain.run(part, self._flow.attempt)
        else:
            batch = self._batch(part)
            chain.advance(batch)
            rows = finish(batch, self._flow.attempt) if step.is_last else to_table(batch)
        spent = _costs(part) + [(s, after - before[s], chain.peak_bytes[s]) for s, after in chain.seconds.items()]
        return rows.append_column(_COSTS, pa.array([spent, *[None] * (rows.num_rows - 1)], _COSTS_TYPE))

    def _batch(self, part: pa.Table) -> Any:
        if self._step.is_first:
            return begin(part)
        if self._step.kept:
            return read_rows(Folder(self._flow.run_uri), self._step.kept, part)
        return to_batch(part.drop_columns([_COSTS]))

    def _chain(self, method: str) -> Chain:
        if method not in self._chains:
            self._chains[method] = self._step.segments[method].build()
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
    methods = pc.unique(plan_rows["method"]).to_pylist()
    if all(len(flow.segments[method]) == 1 for method in methods):
        step = Step({method: flow.segments[method][0] for method in methods})
        yield from _flow(flow, in_blocks(plan_rows, block_rows), block_rows, [(step, flow.execution.actors)])
        return
    passage = _staged if flow.execution.placement == "staged" else _streaming
    for method in methods:
        yield from passage(flow, method, plan_rows.filter(pc.field("method") == method), block_rows)


def in_blocks(plan_rows: pa.Table, block_rows: int) -> pa.Table:
    """The rows in an order in which each `block_rows` of them are of one method, while all methods go on side by side.

    A block is cut into parts of one method each, and a part that does not fill a microbatch costs as much as one that
    does: of rows as they are planned, source by source, most parts would hold one or two. Rows of a method keep their
    order; those that fill no block of their own stand at the end.
    """
    codes = pc.dictionary_encode(plan_rows["method"]).combine_chunks().indices.to_numpy()
    blocks, rest = [], []
    for code in np.unique(codes):
        places = np.flatnonzero(codes == code)
        whole = len(places) // block_rows * block_rows
        blocks.append(places[:whole].reshape(-1, block_rows))
        rest.append(places[whole:])
    filled = np.concatenate(blocks)
    return plan_rows.take(np.concatenate([filled[np.argsort(filled[:, 0])].ravel(), *rest]))


def _streaming(flow: Flow, method: str, rows: pa.Table, block_rows: int) -> Generator[PartDone, None, None]:
    """The segments of a method as pools of actors, each of which works while the others do."""
    segments = flow.segments[method]
    sizes = pool_sizes(flow.execution.actors, segments, flow.stage_seconds.get(method, {}))
    last = len(segments) - 1
    steps = [
        Step({method: segment}, number == 0, number == last, commits=number == last)
        for number, segment in enumerate(segments)
    ]
    yield from _flow(flow, rows, block_rows, list(zip(steps, sizes, strict=True)))


def _staged(flow: Flow, method: str, rows: pa.Table, block_rows: int) -> Generator[PartDone, None, None]:
    """The segments of a method one after the other, each with all actors, on what the one before it has committed."""
    run, segments = Folder(flow.run_uri), flow.segments[method]
    for number, segment in enumerate(segments):
        step = Step({method: segment}, number == 0, number == len(segments) - 1)
        given = rows
        if not step.is_first:
            kept = read_kept(run, segments[number - 1].name, method, flow.attempt)
            step, given = replace(step, kept=kept.names), kept.with_places(rows)
        if not step.is_last:
            made = read_kept(run, segment.name, method, flow.attempt).sample_ids
            given = given.filter(pc.invert(pc.is_in(given["sample_id"], pa.array(made))))
        if given.num_rows:
            yield from _flow(flow, given, block_rows, [(step, flow.execution.actors)])


def _flow(
    flow: Flow, rows: pa.Table, block_rows: int, steps: Sequence[tuple[Step, int]]
) -> Generator[PartDone, None, None]:
    """Rows through steps with so many actors each, and what the last one leaves into storage."""
    with _actor_names() as actor_names, contextlib.closing(_rows(flow, rows, block_rows, steps, actor_names)) as made:
        yield from made


@contextlib.contextmanager
def _actor_names() -> Iterator[Callable[[], dict[str, str]]]:
    """Names for actors, which end when this does.

    Ray Data lets go of its actors and leaves their end to reference counts. One that dies then and is started again
    stays (Ray 2.60), and its CPU or GPU is missing to the next flow, which would wait for it for ever.
    """
    prefix, numbers = f"segdatagen-{uuid.uuid4().hex}-", itertools.count()
    try:
        yield lambda: {"name": f"{prefix}{next(numbers)}"}
    finally:
        for name in ray.util.list_named_actors():
            if name.startswith(prefix):
                with contextlib.suppress(ValueError):  # it has ended by itself
                    ray.kill(ray.get_actor(name))


def _rows(
    flow: Flow,
    rows: pa.Table,
    block_rows: int,
    steps: Sequence[tuple[Step, int]],
    actor_names: Callable[[], dict[str, str]],
) -> Generator[PartDone, None, None]:
    execution, stage = flow.execution, steps[-1][0].stage
    flow = replace(flow, segments={})  # a step has what its actors build
    blocks = ray.data.from_arrow(rows).repartition(target_num_rows_per_block=block_rows)
    # A worker that dies takes the blocks that wait for it along: where each row stands alone, none may wait. Nor is a
    # row tried again there: the driver has more passes, and each try may cost the start of an actor.
    in_flight, retries = (1, 0) if block_rows == 1 else (BLOCKS_OF_ACTOR, 1)
    for step, size in steps:
        with deprecated_arguments():
            blocks = blocks.map_batches(
                ChainActor,
                fn_constructor_args=(flow, step),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=in_flight),
                num_cpus=execution.cpus_per_actor,
                num_gpus=execution.gpus_per_actor or None,
                max_restarts=-1,
                max_task_retries=retries,
                ray_remote_args_fn=actor_names,
            )
    blocks.set_name(f"segdatagen-{os.path.basename(os.path.dirname(flow.run_uri))}")
    # A block whose worker died costs its rows, which are found missing later, and not the run.
    blocks.context.max_errored_blocks = -1
    without_progress_limit(blocks)
    try:
        for row in blocks.iter_rows():
            seconds: dict[str, float] = {}
            peaks: dict[str, int] = {}
            for cost in row.pop(_COSTS):
                seconds[cost["stage"]] = seconds.get(cost["stage"], 0.0) + cost["seconds"]
                peaks[cost["stage"]] = max(peaks.get(cost["stage"], 0), cost["peak_bytes"])
            yield PartDone(**row, stage=stage, stage_seconds=seconds, stage_peak_bytes=peaks)
    except ray.exceptions.ActorDiedError as error:  # that of a block is among the errors which cost only rows
        raise cannot_start(flow.run_uri, error) from error


def cannot_start(run_uri: str, error: ray.exceptions.ActorDiedError) -> SegdatagenError:
    """What to say of an actor that cannot be built: a UsageError where its input is wrong, which stays so."""
    reason = str(error).strip().splitlines()[-1]
    if reason.startswith(_WRONG_INPUT):
        sentence = reason.removeprefix(_WRONG_INPUT)
        return UsageError(f"{run_uri}: a worker cannot start: {sentence} (what is done is kept)")
    return SegdatagenError(
        f"{run_uri}: a worker cannot start ({reason}); what is done is kept, and the same command goes on"
    )


_WRONG_INPUT = f"{UsageError.__module__}.{UsageError.__qualname__}: "
"""How the last line of a traceback begins."""


_COSTS = "stage_costs"
"""A column that travels beside the rows, in the first of them, and is not stored: what each stage took."""
_COSTS_TYPE = pa.list_(pa.struct([("stage", pa.string()), ("seconds", pa.float64()), ("peak_bytes", pa.int64())]))


def _costs(part: pa.Table) -> list[tuple[str, float, int]]:
    """What the stages before this step took."""
    found = part[_COSTS].drop_null().to_pylist() if _COSTS in part.column_names else []
    return [tuple(cost.values()) for costs in found for cost in costs]


def _statuses(run: Folder, name: str) -> pa.ChunkedArray | None:
    """The statuses of a part, None where it is not there or cannot be read: then it is made."""
    if not run.exists(name):
        return None
    try:
        return read_part(run, name, ["status"])["status"]
    except UnreadablePart:
        return None


def _counts(statuses: pa.ChunkedArray, stage: str | None) -> dict[str, int]:
    """Rows of a part that was put, by status; those that a `stage` keeps for the next one by `kept` alone."""
    if stage is not None:
        return {"kept": len(statuses)}
    return {row["values"]: row["counts"] for row in pc.value_counts(statuses).to_pylist()}


def _report(
    part: pa.Table,
    name: str,
    counts: Mapping[str, int],
    costs: Sequence[tuple[str, float, int]] = (),
    error: str | None = None,
) -> dict[str, Any]:
    """A row of _REPORT_SCHEMA; no counts: nothing was put."""
    return {
        "name": name,
        "method": part["method"][0].as_py(),
        **{kind: counts.get(kind, 0) for kind in ("ok", "rejected", "failed", "kept")},
        "chain_seconds": sum(seconds for _, seconds, _ in costs),
        _COSTS: list(costs),
        "finished": time.time(),
        "error": error,
    }


_REPORT_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("method", pa.string()),
        ("ok", pa.int64()),
        ("rejected", pa.int64()),
        ("failed", pa.int64()),
        ("kept", pa.int64()),
        ("chain_seconds", pa.float64()),
        (_COSTS, _COSTS_TYPE),
        ("finished", pa.float64()),
        ("error", pa.string()),
    ]
)
