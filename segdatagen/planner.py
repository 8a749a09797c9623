"""Rounds of a plan: goals minus what was accepted, as rows with ids and seeds, and the summary that seals a round.

A round exists once its summary does. Rows are sorted by source, method and variant. This module does not know how
samples are made; what is there of them `progress` says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from segdatagen.balance import BoolArray, Presence, cir, entropy
from segdatagen.class_bars import ClassBar, class_bars
from segdatagen.config_files import read_stored
from segdatagen.costs import Estimate
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.goals import AnyGoal
from segdatagen.labels import LabelSet
from segdatagen.method_options import Methods
from segdatagen.missing import (
    NO_TARGET,
    PlannedCopies,
    PlanRows,
    Shortfall,
    State,
    expand,
    is_plannable,
    missing_rows,
    shortfalls_of,
)
from segdatagen.progress import CostModel
from segdatagen.records import PLAN_SCHEMA, derive_seeds, sample_ids_of
from segdatagen.run_folder import SUCCESS_NAME
from segdatagen.sources import SourceStore
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part

ROWS_PER_PART = 131_072
EVALUATION_SPLIT = re.compile(r"val|test", re.IGNORECASE)


class ClassPixels(BaseModel):
    """Pixels of one class in a round, for a goal that counts them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    real: int
    accepted: int
    planned: int
    wanted: int

    @property
    def total(self) -> int:
        """Once what is planned is accepted."""
        return self.real + self.accepted + self.planned


class ClassSummary(BaseModel):
    """One class in a round: images that show it, and pixels of it where a goal counts them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    real: int
    accepted: int
    planned: int
    wanted: int
    total: int
    share_before: float
    share_after: float
    pixels: ClassPixels | None = None


class GoalSummary(BaseModel):
    """One goal in a round: the rows that it adds; of a cover, what its quotas take `at_least`, and by Algorithm 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    strategy: str
    planned: int
    at_least: int | None
    algorithm_1: int | None


class RoundSummary(BaseModel):
    """`summary.json` of a round: what was asked for, what the round adds, and the balance before and after.

    `estimate` is of the pool that the job had when the round was planned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    round: int
    settings: dict[str, Any]
    num_rows: int
    rows_per_method: dict[str, int]
    classes: tuple[ClassSummary, ...]
    entropy_before: float
    entropy_after: float
    cir_before: float
    cir_after: float
    unreachable: tuple[str, ...]
    seconds_per_sample: float | None
    estimated_seconds: float | None
    estimated_bytes: int
    goals: tuple[GoalSummary, ...] = ()
    estimate: Estimate | None = None
    rejected: dict[str, int] = {}
    """Samples that were rejected so far, by reason."""


@dataclass(frozen=True)
class PlannedRound:
    """A round that is not stored yet, whether the goals were met without it, and what they missed.

    Where memory could not hold its rows it has none, only its summary counts them: such a round is never stored.
    """

    rows: pa.Table
    summary: RoundSummary
    goals_met: bool
    unmet: tuple[Shortfall, ...] = ()

    @property
    def is_plannable(self) -> bool:
        """Whether memory holds its rows. Where sources failed, others are copied more often than the check foresaw."""
        return is_plannable(self.summary.num_rows)


@dataclass(frozen=True)
class PlanRequest:
    """What round `number` is planned from. `fingerprints` names the content recipe of each method.

    `first_variants`: the first variant of new rows, by method int64 [num_sources]; None: the number of rows so far.
    """

    number: int
    goals: Sequence[AnyGoal]
    settings: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    seed: int
    min_pixels: int
    first_variants: Mapping[str, np.ndarray] | None = None


def refuse_evaluation_splits(store: SourceStore, allowed: Sequence[str]) -> None:
    """Raise UsageError if sources come from a validation or test split that the job does not allow by name."""
    splits = pc.unique(store.index["split"]).to_pylist()
    refused = [split for split in splits if EVALUATION_SPLIT.search(split) and split not in allowed]
    if refused:
        raise UsageError(
            f"{store.folder.uri}: split {', '.join(refused)} is for evaluation and what is generated from it spoils "
            f"the figures; if you mean it, add `allow_splits: [{', '.join(refused)}]` to the settings of the plan"
        )


def refuse_sources_without_masks(store: SourceStore, methods: Sequence[str]) -> None:
    """Raise UsageError if a source is a caption alone, which none of these methods can start from."""
    if not methods:
        return
    index = store.index
    alone = index.filter(pc.is_null(index["height"]))["source_id"].to_pylist()
    if alone:
        raise UsageError(
            f"{store.folder.uri}: {len(alone)} of {index.num_rows} sources are captions without a mask "
            f"({', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''}), and {', '.join(methods)} starts from masks: "
            "name a store of masks in `sources`, or make masks of captions with masksyn"
        )


def presence_of(store: SourceStore, counts: np.ndarray, min_pixels: int) -> Presence:
    """Which classes each source shows with at least `min_pixels` pixels, and with how many; background never counts.

    `counts` are those of `transformed_counts`.
    """
    labels = store.label_set
    background = [channel for channel, id_ in enumerate(labels.ids) if id_ in labels.background_ids]
    source, channel = np.nonzero(counts >= min_pixels)
    counted = ~np.isin(channel, background)
    source, channel = source[counted], channel[counted]
    presence = Presence.from_pairs(store.index["source_id"].to_pylist(), labels.names, source, channel, background)
    return replace(presence, pixels=counts[source, channel])


def usable_sources(methods: Methods, labels: LabelSet, counts: np.ndarray) -> dict[str, BoolArray]:
    """Sources that a method can start from, bool [S], of methods that cannot from all: `inpaint` needs pixels to draw.

    `counts` are those of `transformed_counts`. Raises UsageError for a method that can start from none.
    """
    if methods.inpaint is None:
        return {}
    redrawn = [channel for channel, id_ in enumerate(labels.ids) if id_ in methods.inpaint.redrawn(labels)]
    usable: BoolArray = counts[:, redrawn].sum(axis=1) > 0
    if not usable.any():
        names = ", ".join(methods.inpaint.classes or ("but background",))
        raise UsageError(f"methods.inpaint: no source shows a pixel of a class that it is to draw anew ({names})")
    return {"inpaint": usable}


def plan_round(request: PlanRequest, store: SourceStore, state: State, cost: CostModel) -> PlannedRound:
    """The rows that the goals still miss. No rows: the goals are met, or cannot be, or memory could not hold them."""
    planned = missing_rows(request.goals, state, request.seed)
    variants = state.planned_per_source if request.first_variants is None else request.first_variants
    rows = PLAN_SCHEMA.empty_table()
    if is_plannable(planned.num_rows):
        rows = _rows_table(expand(planned, variants), planned, request, store)
    plans = zip(request.goals, planned.goals, strict=True)
    unmet = dict.fromkeys(
        short for goal, plan in plans for short in shortfalls_of(goal, state, request.seed, wanted=plan.wanted)
    )
    return PlannedRound(rows, _summarise(request, planned, state, cost), not unmet, tuple(unmet))


def put_round(run: Folder, planned: PlannedRound) -> None:
    """Store rows, then the summary that makes the round exist. The run is no longer complete from the first row on."""
    run.delete([SUCCESS_NAME])
    folder = run.child(_folder(planned.summary.round))
    folder.delete([entry.name for entry in folder.entries()])
    for part, start in enumerate(range(0, planned.rows.num_rows, ROWS_PER_PART)):
        put_table(folder, f"part-{part:05d}.parquet", planned.rows.slice(start, ROWS_PER_PART))
    folder.put("classes.svg", picture_of(planned.summary).encode())
    folder.put("summary.json", planned.summary.model_dump_json(indent=1).encode())


def picture_of(summary: RoundSummary) -> str:
    """Class counts before and after a round as SVG text."""
    bars = [ClassBar(c.name, c.real, c.accepted, c.planned, c.wanted) for c in summary.classes]
    noun = "image" if summary.num_rows == 1 else "images"
    figures = (
        f"entropy {summary.entropy_before:.3f} \u2192 {summary.entropy_after:.3f}, "
        f"CIR {summary.cir_before:.3f} \u2192 {summary.cir_after:.3f}, {summary.num_rows:,} {noun} planned"
    )
    return class_bars(bars, f"round {summary.round}: images that show each class", figures)


def read_rounds(run: Folder) -> list[RoundSummary]:
    """Summaries of the rounds that exist, in order."""
    found = [entry.name for entry in run.child("plan").entries("/summary.json")]
    return sorted(
        (read_stored(run, f"plan/{name}", RoundSummary) for name in found),
        key=lambda summary: summary.round,
    )


def read_plan(run: Folder, rounds: Sequence[RoundSummary], columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of the rounds, in order. Raises UnreadablePart: a plan that lost rows is not a plan."""
    tables = []
    for summary in rounds:
        folder = run.child(_folder(summary.round))
        parts = [read_part(folder, entry.name, columns) for entry in folder.entries(".parquet")]
        if sum(part.num_rows for part in parts) != summary.num_rows:
            raise SegdatagenError(f"{folder.uri}: the plan lost rows: its summary says {summary.num_rows}")
        tables += parts
    return pa.concat_tables(tables) if tables else PLAN_SCHEMA.empty_table().select(columns or PLAN_SCHEMA.names)


def _rows_table(rows: PlanRows, planned: PlannedCopies, request: PlanRequest, store: SourceStore) -> pa.Table:
    index = store.index
    source_ids = index["source_id"].combine_chunks().take(pa.array(rows.source_index))
    ids = np.empty(len(rows.variant), np.int64)
    for place, method in enumerate(planned.methods):
        own = np.flatnonzero(rows.method_index == place)
        names = source_ids.take(pa.array(own)).to_pylist()
        ids[own] = sample_ids_of(request.fingerprints[method], method, names, rows.variant[own].tolist())
    if not np.diff(np.sort(ids)).all():
        raise SegdatagenError("two samples of the plan have the same id: give the job another seed")
    names = pa.array([*store.label_set.names, None], pa.string())
    target = np.where(rows.target_channel == NO_TARGET, store.label_set.num_classes, rows.target_channel)
    columns = {
        "sample_id": ids,
        "round": np.full(len(ids), request.number, np.int32),
        "method": pa.array(planned.methods, pa.string()).take(pa.array(rows.method_index)),
        "source_id": source_ids,
        "source_file": index["source_file"].combine_chunks().take(pa.array(rows.source_index)),
        "source_row": index["source_row"].combine_chunks().take(pa.array(rows.source_index)),
        "variant": rows.variant.astype(np.int32),
        "seed": derive_seeds(request.seed, ids),
        "target_class": names.take(pa.array(target)),
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def _summarise(request: PlanRequest, planned: PlannedCopies, state: State, cost: CostModel) -> RoundSummary:
    before, after = state.class_counts, state.class_counts + planned.planned_class_counts
    counted = np.bincount(planned.method_index, weights=planned.copies, minlength=len(planned.methods))
    per_method = {method: int(rows) for method, rows in zip(planned.methods, counted, strict=True)}
    seconds = cost.seconds_of(per_method)
    return RoundSummary(
        round=request.number,
        settings=dict(request.settings),
        num_rows=planned.num_rows,
        rows_per_method=per_method,
        classes=_class_summaries(planned, state),
        entropy_before=entropy(before),
        entropy_after=entropy(after),
        cir_before=cir(before),
        cir_after=cir(after),
        unreachable=tuple(sorted({name for goal in planned.goals for name in goal.unreachable})),
        seconds_per_sample=None if seconds is None or not planned.num_rows else seconds / planned.num_rows,
        estimated_seconds=seconds,
        estimated_bytes=round(cost.bytes_per_sample * planned.num_rows),
        goals=tuple(
            GoalSummary(
                method=goal.method,
                strategy=goal.strategy,
                planned=plan.num_planned,
                at_least=plan.at_least,
                algorithm_1=plan.algorithm_1,
            )
            for goal, plan in zip(request.goals, planned.goals, strict=True)
        ),
    )


def _class_summaries(planned: PlannedCopies, state: State) -> tuple[ClassSummary, ...]:
    presence, before = state.presence, state.class_counts
    after = before + planned.planned_class_counts
    pixels = _class_pixels(planned, state) if any(goal.in_pixels for goal in planned.goals) else {}
    return tuple(
        ClassSummary(
            name=name,
            real=int(presence.counts[channel]),
            accepted=int(state.accepted_class_counts[channel]),
            planned=int(planned.planned_class_counts[channel]),
            wanted=int(planned.wanted[channel]),
            total=int(after[channel]),
            share_before=float(before[channel] / max(1, before.sum())),
            share_after=float(after[channel] / max(1, after.sum())),
            pixels=pixels.get(channel),
        )
        for channel, name in enumerate(presence.class_names)
        if presence.counted[channel]
    )


def _class_pixels(planned: PlannedCopies, state: State) -> dict[int, ClassPixels]:
    in_pixels = state.presence.in_pixels
    copies = np.bincount(planned.source_index, weights=planned.copies, minlength=in_pixels.num_sources)
    added = in_pixels.counts_of_copies(copies.astype(np.int64))
    columns = (in_pixels.counts, state.accepted_class_pixels, added, planned.wanted_pixels)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    names = ClassPixels.model_fields
    return {channel: ClassPixels(**dict(zip(names, row, strict=True))) for channel, row in enumerate(rows)}


def _folder(number: int) -> str:
    return f"plan/round={number:02d}"
