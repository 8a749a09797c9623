"""Methods as chains of stages, and the guard that lets one bad row cost one row.

A method is a list of stages in METHODS. `Chain` runs it over plan rows and returns sample rows, with or without Ray.
Knows sources and stages; it does not know how rows are distributed or stored.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from segdatagen.best_of import best_of, check_best_of
from segdatagen.device_errors import raise_if_lost
from segdatagen.errors import UsageError, placed
from segdatagen.filtering import filter_recipe, filter_stages
from segdatagen.job import Job
from segdatagen.load_source import LoadSource
from segdatagen.method_context import MethodContext
from segdatagen.method_options import LatentOptions, MaskDDPMOptions
from segdatagen.peak_memory import peak_bytes, reset_peak
from segdatagen.records import SAMPLE_SCHEMA, bytes_hash
from segdatagen.segments import PANOPTIC
from segdatagen.sources import SourceStore, has_any, open_store
from segdatagen.stages.redraw import DRAWN_SCORES
from segdatagen.stages.stage import Batch, Stage, StageSpec, objects
from segdatagen.weights import check_mask_ddpm, fingerprint_of, map_weights

MAX_REASON = 300
"""Characters of a reason that a row keeps."""


def mask_ddpm_stages(context: MethodContext) -> list[StageSpec]:
    """Paper 001: the source's mask, and an image for it."""
    options, execution = context.options, context.execution
    assert isinstance(options, MaskDDPMOptions)

    def generate() -> Stage:
        from segdatagen.stages.mask_ddpm import MaskDDPMStage, MaskDDPMStageOptions

        stage = MaskDDPMStageOptions(
            weights=options.weights,
            label_set=context.label_set,
            sampler=options,
            dtype=options.dtype,
            image_format=context.image_format,
            redraws=context.redraws,
            microbatch=context.image_microbatch or execution.microbatch,
            torch_threads=execution.torch_threads,
            device=execution.device,
        )
        return MaskDDPMStage(stage, best_of(context))

    return [
        StageSpec("load", lambda: LoadSource(open_store(context.sources), context.geometry)),
        StageSpec("mask2img", generate, is_large=True, scores=DRAWN_SCORES),
    ]


def latent_stages(context: MethodContext) -> list[StageSpec]:
    """SegGen's MaskSyn and ImgSyn, SGA, inpainting: source, caption, priors, prompt, an image by latent diffusion."""
    from segdatagen.latent_methods import stages_of

    return stages_of(context)


METHODS: dict[str, Callable[[MethodContext], list[StageSpec]]] = {
    "mask_ddpm": mask_ddpm_stages,
    "masksyn": latent_stages,
    "imgsyn": latent_stages,
    "guided": latent_stages,
    "inpaint": latent_stages,
}


def stages_of(method: str, context: MethodContext) -> list[StageSpec]:
    """The stages of a method, and behind them those of the filters."""
    stages = METHODS[method](context)
    return [*stages, *filter_stages(context.filtering, {name for stage in stages for name in stage.scores})]


def build_chain(method: str, context: MethodContext) -> "Chain":
    """A whole method, every network loaded. Raises UsageError where one cannot be."""
    return Chain([stage.build() for stage in stages_of(method, context)])


def check_weights(context: MethodContext) -> None:
    """Raise UsageError unless weights exist, fit each other and the classes of the sources, and can do the steps."""
    check_best_of(context)
    if isinstance(context.options, LatentOptions):
        from segdatagen.latent_methods import check_latent

        check_latent(context)
    else:
        with placed("methods.mask_ddpm.weights"):
            most = _check_mask_ddpm(context, context.options)
        _check_steps(context.options, most)


def _check_mask_ddpm(context: MethodContext, options: MaskDDPMOptions) -> int:
    """Raise UsageError unless the weights are of the classes of the sources. Returns the steps of their diffusion."""
    config = check_mask_ddpm(options.weights, context.label_set.num_classes)
    for channel, (known, name) in enumerate(zip(config.classes, context.label_set.names, strict=True)):
        if known != name:
            raise UsageError(
                f"the weights {options.weights} were trained on {config.label_set}, whose class {channel} is {known}: "
                f"in {context.label_set.name} it is {name}; use weights of the same classes in the same order"
            )
    return config.network.diffusion_steps


def _check_steps(options: MaskDDPMOptions, most: int) -> None:
    if options.sampler == "ancestral" and options.steps != most:
        problem = f"the ancestral sampler visits every step: {most}, not {options.steps}"
        raise UsageError(f"methods.mask_ddpm.steps: {problem}")
    if options.steps > most:
        raise UsageError(f"methods.mask_ddpm.steps: the weights have {most} steps, fewer than {options.steps}")


def content_recipes(job: Job, store: SourceStore) -> dict[str, dict[str, Any]]:
    """What decides the samples of each method: pinned weights, options, geometry, seed, sources, labels, filters."""
    shared = job.shared_recipe() | {
        "sources": store.info.fingerprint,
        "labels": store.label_set.fingerprint(),
    }
    if filters := filter_recipe(job.filters):
        shared["filters"] = filters
    panoptic = has_any(store, "segment_map")
    return {
        name: shared
        | {"options": map_weights(options, fingerprint_of).content()}
        | ({"segments": "kept"} if panoptic and options.needs_mask else {})
        for name, options in job.methods.named().items()
    }


class Chain:
    """The stages of a method over plan rows: `run` returns one sample row per plan row, in the same order."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.seconds = dict.fromkeys((stage.name for stage in stages), 0.0)
        self.peak_bytes = dict.fromkeys(self.seconds, 0)

    def run(self, plan_rows: pa.Table, attempt: int) -> pa.Table:
        """Sample rows of SAMPLE_SCHEMA. Never raises for a row: it is marked, the others are made."""
        batch = begin(plan_rows)
        self.advance(batch)
        return finish(batch, attempt)

    def advance(self, batch: Batch) -> None:
        """Take a batch through these stages. Never raises for a row: it is marked, the others are made."""
        began = time.perf_counter()
        for stage in self.stages:
            entered = time.perf_counter()
            reset_peak()
            guard(stage, batch)
            self.seconds[stage.name] += time.perf_counter() - entered
            self.peak_bytes[stage.name] = max(self.peak_bytes[stage.name], peak_bytes())
        made = max(1, sum(status != "failed" for status in batch["status"]))  # what is rejected takes time, too
        batch["seconds"] = (batch["seconds"] + (time.perf_counter() - began) / made).astype(np.float32)


def begin(plan_rows: pa.Table) -> Batch:
    """Plan rows as a batch that no stage has seen."""
    count = plan_rows.num_rows
    batch: Batch = {name: objects(plan_rows[name].to_pylist()) for name in plan_rows.column_names}
    batch |= {"status": objects(["ok"] * count), "reason": objects([None] * count)}
    batch["seconds"] = np.zeros(count, np.float32)
    return batch


def finish(batch: Batch, attempt: int) -> pa.Table:
    """Rows of SAMPLE_SCHEMA of a batch that all stages have seen, made by this attempt."""
    batch["attempt"] = np.full(len(batch["status"]), attempt, np.int32)
    return sample_table(batch)


def guard(stage: Stage, batch: Batch) -> None:
    """Run a stage over the rows that are still `ok`, and put its columns and its failures into the batch.

    Rows that failed before are held back and join again afterwards. Where a stage raises, halves of the batch are
    tried until the rows that make it raise stand alone; each of those gets the exception as its reason. Raises
    DeviceLost where nothing else could work in this process either.
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
            raise_if_lost(error)
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
    for name in ("image", "mask", *PANOPTIC):
        columns[name] = [value if keep else None for value, keep in zip(columns[name], kept, strict=True)]
    for name in ("image", "mask"):
        columns[f"{name}_hash"] = [None if value is None else bytes_hash(value) for value in columns[name]]
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def failed_rows(plan_rows: pa.Table, attempt: int, reason: str) -> pa.Table:
    """Sample rows of plan rows that no chain could return."""
    count = plan_rows.num_rows
    batch: Batch = {name: objects(plan_rows[name].to_pylist()) for name in plan_rows.column_names}
    batch |= {"status": objects(["failed"] * count), "reason": objects([reason] * count)}
    batch["attempt"] = np.full(count, attempt, np.int32)
    return sample_table(batch)
