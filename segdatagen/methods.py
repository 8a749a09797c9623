"""Methods as chains of stages, and the guard that lets one bad row cost one row.

A method is a list of stages in METHODS. `Chain` runs it over plan rows and returns sample rows, with or without Ray.
Knows sources and stages; it does not know how rows are distributed or stored.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from segdatagen.diffusion.mask_ddpm_options import MaskDDPMOptions, require_steps
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError, class_pixels, decode_mask, encode_mask
from segdatagen.job import Execution, Job
from segdatagen.labels import UNKNOWN_CHANNEL, LabelSet
from segdatagen.records import SAMPLE_SCHEMA, bytes_hash
from segdatagen.sources import SourceStore, ignore_id_of, open_store
from segdatagen.stages.stage import Batch, Stage, objects
from segdatagen.tables import UnreadablePart
from segdatagen.weights import check_mask_ddpm, fingerprint_of

MAX_REASON = 300
"""Characters of a reason that a row keeps."""


class LoadSource:
    """The first stage of every method that starts from a mask: the source's mask at the size of the samples.

    A mask that cannot be read, or that holds ids which the label set does not have, gives its rows a reason.
    """

    name = "load"
    reads = ("source_file", "source_row")
    writes = ("mask", "caption", "class_ids", "class_pixels", "height", "width", "reason")
    verdict: Literal["failed"] = "failed"

    def __init__(self, store: SourceStore, geometry: Geometry) -> None:
        self._store = store
        self._geometry = geometry
        self._channels = store.label_set.channel_table()

    def __call__(self, batch: Batch) -> Batch:
        """Read each source once, whatever number of its variants the batch holds."""
        keys = list(zip(batch["source_file"].tolist(), batch["source_row"].tolist(), strict=True))
        loaded: dict[tuple[str, int], dict[str, Any]] = {}
        for file_name in dict.fromkeys(file for file, _ in keys):
            rows = sorted({row for file, row in keys if file == file_name})
            loaded |= {(file_name, row): found for row, found in zip(rows, self._read(file_name, rows), strict=True)}
        return {name: objects([loaded[key].get(name) for key in keys]) for name in self.writes}

    def _read(self, file_name: str, rows: list[int]) -> list[dict[str, Any]]:
        try:
            table = self._store.read_rows(file_name, rows, ["mask", "caption"])
        except UnreadablePart as error:
            return [{"reason": str(error)} for _ in rows]
        return [self._transform(row["mask"], row["caption"]) for row in table.to_pylist()]

    def _transform(self, data: bytes, caption: str | None) -> dict[str, Any]:
        try:
            stored = decode_mask(data)
        except DecodeError as error:
            return {"reason": f"unreadable source: {error}"}
        mask = self._geometry.apply_mask(stored, ignore_id_of(self._store.label_set))
        ids, pixels = class_pixels(mask)
        channels = self._channels[ids]
        if (channels == UNKNOWN_CHANNEL).any():
            unknown = ", ".join(map(str, ids[channels == UNKNOWN_CHANNEL]))
            return {"reason": f"the source holds ids that the label set does not have: {unknown}"}
        return {
            "mask": encode_mask(mask),
            "caption": caption,
            "class_ids": ids[channels >= 0].tolist(),
            "class_pixels": pixels[channels >= 0].tolist(),
            "height": mask.shape[0],
            "width": mask.shape[1],
        }


@dataclass(frozen=True)
class MethodContext:
    """What the stages of a method are built from, small enough to travel to every actor."""

    sources: str
    geometry: Geometry
    label_set: LabelSet
    image_format: Literal["jpeg95", "png"]
    execution: Execution
    options: MaskDDPMOptions


def mask_ddpm_stages(context: MethodContext) -> list[Stage]:
    """Paper 001: the source's mask, and an image for it."""
    from segdatagen.stages.mask_ddpm import MaskDDPMStage, MaskDDPMStageOptions

    execution = context.execution
    stage = MaskDDPMStageOptions(
        method=context.options,
        label_set=context.label_set,
        image_format=context.image_format,
        microbatch=execution.microbatch,
        torch_threads=execution.torch_threads,
        device="cuda" if execution.gpus_per_actor > 0 else "cpu",
    )
    return [LoadSource(open_store(context.sources), context.geometry), MaskDDPMStage(stage)]


METHODS: dict[str, Callable[[MethodContext], list[Stage]]] = {"mask_ddpm": mask_ddpm_stages}


def method_contexts(job: Job, label_set: LabelSet) -> dict[str, MethodContext]:
    """The context of every method of a job."""
    return {
        name: MethodContext(job.sources, job.geometry, label_set, job.output.image_format, job.execution, options)
        for name, options in job.methods.named().items()
    }


def check_weights(context: MethodContext) -> None:
    """Raise UsageError unless weights exist, have the classes of the sources, and can do the steps of the job."""
    options = context.options
    config = check_mask_ddpm(options.weights, context.label_set.num_classes)
    for channel, (known, name) in enumerate(zip(config.classes, context.label_set.names, strict=True)):
        if known != name:
            raise UsageError(
                f"the weights {options.weights} were trained on {config.label_set}, whose class {channel} is {known}: "
                f"in {context.label_set.name} it is {name}; use weights of the same classes in the same order"
            )
    require_steps(options, config.network.diffusion_steps, "methods.mask_ddpm.steps")


def content_recipes(job: Job, store: SourceStore) -> dict[str, dict[str, Any]]:
    """What decides the samples of each method: pinned weights, options, geometry, seed, sources and labels."""
    shared = job.shared_recipe() | {
        "sources": store.info.fingerprint,
        "labels": store.label_set.fingerprint(),
    }
    return {
        name: shared | {"options": options.model_dump(mode="json") | {"weights": fingerprint_of(options.weights)}}
        for name, options in job.methods.named().items()
    }


class Chain:
    """The stages of a method over plan rows: `run` returns one sample row per plan row, in the same order."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.seconds = dict.fromkeys((stage.name for stage in stages), 0.0)

    def run(self, plan_rows: pa.Table, attempt: int) -> pa.Table:
        """Sample rows of SAMPLE_SCHEMA. Never raises for a row: it is marked, the others are made."""
        began = time.perf_counter()
        count = plan_rows.num_rows
        batch: Batch = {name: objects(plan_rows[name].to_pylist()) for name in plan_rows.column_names}
        batch["status"] = objects(["ok"] * count)
        batch["reason"] = objects([None] * count)
        for stage in self.stages:
            entered = time.perf_counter()
            guard(stage, batch)
            self.seconds[stage.name] += time.perf_counter() - entered
        made = max(1, sum(status == "ok" for status in batch["status"]))
        batch["seconds"] = np.full(count, (time.perf_counter() - began) / made, np.float32)
        batch["attempt"] = np.full(count, attempt, np.int32)
        return sample_table(batch)


def guard(stage: Stage, batch: Batch) -> None:
    """Run a stage over the rows that are still `ok`, and put its columns and its failures into the batch.

    Rows that failed before are held back and join again afterwards. Where a stage raises, halves of the batch are
    tried until the rows that make it raise stand alone; each of those gets the exception as its reason.
    """
    count = len(batch["status"])
    for name in stage.writes:
        batch.setdefault(name, objects([None] * count))
    rows = np.flatnonzero(batch["status"] == "ok")
    pending = [rows] if len(rows) else []
    while pending:
        rows = pending.pop()
        try:
            written = stage({name: batch[name][rows] for name in stage.reads})
        except Exception as error:  # the one broad except: whatever a stage raises costs rows, never the run
            if len(rows) > 1:
                middle = len(rows) // 2
                pending += [rows[middle:], rows[:middle]]
                continue
            batch["status"][rows] = "failed"
            batch["reason"][rows] = f"{stage.name}: {type(error).__name__}: {error}"[:MAX_REASON]
            continue
        for name in stage.writes:
            batch[name][rows] = written[name]
        bad = rows[[reason is not None for reason in batch["reason"][rows]]]
        batch["status"][bad] = stage.verdict
        batch["reason"][bad] = [f"{stage.name}: {reason}"[:MAX_REASON] for reason in batch["reason"][bad]]


def sample_table(batch: Batch) -> pa.Table:
    """Rows of SAMPLE_SCHEMA from the columns that a chain left; what failed keeps no image and no mask."""
    count = len(batch["status"])
    kept = batch["status"] != "failed"
    columns: dict[str, list[Any]] = {
        name: list(batch[name]) if name in batch else [None] * count for name in SAMPLE_SCHEMA.names
    }
    for name in ("image", "mask"):
        columns[name] = [value if keep else None for value, keep in zip(columns[name], kept, strict=True)]
        columns[f"{name}_hash"] = [None if value is None else bytes_hash(value) for value in columns[name]]
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def failed_rows(plan_rows: pa.Table, attempt: int, reason: str) -> pa.Table:
    """Sample rows of plan rows that no chain could return."""
    count = plan_rows.num_rows
    batch: Batch = {name: objects(plan_rows[name].to_pylist()) for name in plan_rows.column_names}
    batch |= {"status": objects(["failed"] * count), "reason": objects([reason] * count)}
    batch["attempt"] = np.full(count, attempt, np.int32)
    return sample_table(batch)
