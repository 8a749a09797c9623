"""Limits moved after the fact: the stored scores are judged again, and what changes becomes a decision.

Reads scores, never an image, so that it needs neither a GPU nor Ray. It does not know how scores are made, nor what
people decide.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.class_ranks import ClassScores, behind
from segdatagen.decisions import REFILTER, put_decisions, read_decisions, read_own
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.filters import CLIP_SCORE, FILTER_STAGE, LIMITS, Filters, Limits, columns_of, refusals
from segdatagen.lease import Holder, Lease
from segdatagen.planner import read_rounds
from segdatagen.progress import accepted_per_class
from segdatagen.records import DECISION_SCHEMA
from segdatagen.run_folder import RUN_NAME, Run, open_run
from segdatagen.samples import STATUSES, Ledger, decided, read_columns, read_ledger, reasons_of
from segdatagen.storage import Folder

BY_FILTER = f"{FILTER_STAGE}: "
RANK = "clip_rank.keep"
"""The limit that is a ratio of the samples of each class."""


@dataclass(frozen=True)
class Judgement:
    """What limits say of all rows: decisions where a row says something else of itself.

    `judged` rows were compared; `without_score` counts those that have no score, by column: a score that is missing
    refuses nothing.
    """

    decisions: pa.Table
    judged: int
    without_score: dict[str, int]


@dataclass(frozen=True)
class Change:
    """What moved limits change: samples by status, and accepted ones by class that they show, before and after.

    `rejected` and `accepted` samples change; `reasons` are those of all that are rejected then.
    """

    limits: Limits
    overrides: Limits
    stored: bool
    rejected: int
    accepted: int
    before: dict[str, int]
    after: dict[str, int]
    classes: dict[str, tuple[int, int]]
    reasons: dict[str, int]
    without_score: dict[str, int]


def limits_in_force(run: Folder, filters: Filters) -> tuple[Limits, Limits]:
    """The limits of a job at this address, and those among them that `refilter` set instead of the job."""
    _, note = read_own(run, REFILTER)
    overrides: Limits = {} if note is None else note["overrides"]
    return filters.limits() | overrides, overrides


def is_judged(run: Folder, limits: Mapping[str, float]) -> bool:
    """Whether every sample of a run has the status that these limits give it. True where there is no run yet."""
    _, note = read_own(run, REFILTER)
    if note is not None:
        return bool(note["limits"] == limits)
    return not run.exists(RUN_NAME) or filters_of(open_run(run.uri)).limits() == limits


def filters_of(run: Run) -> Filters:
    """The filters of the job that this run was last planned or run with. Raises UsageError where they are damaged."""
    return run.job_as(Filters, "filters")


def judge(run: Folder, ledger: Ledger, limits: Mapping[str, float]) -> Judgement:
    """Compare the scores of all rows with limits; a decision where a row says something else of itself.

    What failed, and what a stage refused for something other than a score, stays as it is. The rank sees what the
    other limits leave, of all methods and rounds, whatever was decided by hand. Raises UnreadablePart.
    """
    columns = columns_of(limits)
    rows = read_columns(run, ledger, ["status", "reason", *columns])
    scores = {name: rows[name].to_numpy().astype(np.float32) for name in columns}
    refused = refusals(scores, limits) if scores else np.full(rows.num_rows, None, dtype=object)
    own = pc.equal(rows["status"], "ok").to_numpy()
    by_filter = pc.fill_null(pc.starts_with(rows["reason"], BY_FILTER), False).to_numpy()
    judged = own | (pc.equal(rows["status"], "rejected").to_numpy() & by_filter)
    if (keep := limits.get(RANK, 1.0)) < 1:
        refused[judged] = _with_ranks(run, ledger, judged, refused[judged], keep)
    wanted = np.array([None if why is None else f"{BY_FILTER}{why}" for why in refused], dtype=object)
    changed = np.flatnonzero(judged & (wanted != rows["reason"].to_numpy(zero_copy_only=False)))
    decisions = pa.table(
        {
            "sample_id": ledger.sample_ids[changed],
            "status": ["ok" if why is None else "rejected" for why in wanted[changed]],
            "reason": pa.array(wanted[changed].tolist(), pa.string()),
        },
        schema=DECISION_SCHEMA,
    )
    without_score = {name: int(np.isnan(values[judged]).sum()) for name, values in scores.items()}
    return Judgement(decisions, int(judged.sum()), without_score)


def _with_ranks(run: Folder, ledger: Ledger, judged: np.ndarray, refused: np.ndarray, keep: float) -> np.ndarray:
    """Why each of the rows `judged`, bool [N], is refused: `refused` of them, or for standing behind in all classes."""
    ids, found = ledger.sample_ids[judged], refused.copy()
    left = pa.array(ids[[why is None for why in refused]], pa.int64())
    scores = read_columns(run, ledger, ["scores_per_class"])["scores_per_class"].combine_chunks()
    named = pa.table(
        {
            "sample_id": pa.array(ledger.sample_ids).take(pc.list_parent_indices(scores)),
            **{field: pc.struct_field(pc.list_flatten(scores), field) for field in ("class_id", "score", "value")},
        }
    )
    named = named.filter(
        (pc.field("score") == CLIP_SCORE) & pc.field("value").is_valid() & pc.field("sample_id").isin(left)
    )
    columns = [named[name].to_numpy() for name in ("sample_id", "class_id", "value")]
    names = {label.id: label.name for label in open_run(run.uri).label_set.classes}
    for one in behind(ClassScores(*columns), keep):
        place = f"{one.place} of {one.among} for {names[one.class_id]}"
        found[np.searchsorted(ids, one.sample_id)] = f"clip rank {place}, past the first {one.kept} (keep {keep:g})"
    return found


def bring_in_line(run: Folder, limits: Limits, overrides: Limits, lease: Lease) -> str:
    """Judge every row by these limits and store what changes, under the lease; returns a sentence about it.

    Where parts are unreadable, their rows are judged with the others the next time.
    """
    before = read_ledger(run)
    found = judge(run, before, limits)
    _put(run, found, None if before.unreadable else limits, overrides, lease)
    rejected, accepted = _moved(before, decided(before, read_decisions(run, found.decisions)))
    lacking = [f"; {count} have no {column} and pass" for column, count in found.without_score.items() if count]
    return f"limits have moved: {rejected} samples are rejected now, {accepted} accepted again{''.join(lacking)}"


def refilter(
    run: Run, filters: Filters, overrides: Limits, waiting: Callable[[Holder], None], *, dry_run: bool
) -> Change:
    """Move the limits of a run: those of `filters`, and `overrides` instead of them.

    Holds the lease meanwhile, unless it is a dry run. Raises UsageError where no sample has the score of an override,
    and SegdatagenError where parts are unreadable: the decisions on their samples would be lost.
    """
    limits = filters.limits() | overrides
    with contextlib.nullcontext() if dry_run else Lease(run.folder, waiting) as lease:
        before = read_ledger(run.folder)
        for sentence in before.unreadable.values():
            raise SegdatagenError(f"{sentence}: make its samples again with `segdatagen run`, then refilter")
        found = judge(run.folder, before, limits)
        for name in overrides:
            column = LIMITS[name].column
            if found.judged and found.without_score[column] == found.judged:
                filter_name = name.split(".")[0]
                raise UsageError(
                    f"{name}: no sample of {run.folder.uri} has a {column}: the filter {filter_name} was not in the "
                    "job when they were made, had nothing to score, or is of a newer version than they are"
                )
        after = decided(before, read_decisions(run.folder, found.decisions))
        classes = _per_class(run, before, after)
        reasons = reasons_of(run.folder, after, "rejected")
        stored = lease is not None and _put(run.folder, found, limits, overrides, lease)
    rejected, accepted = _moved(before, after)
    return Change(
        limits=limits,
        overrides=overrides,
        stored=stored,
        rejected=rejected,
        accepted=accepted,
        before=before.counts,
        after=after.counts,
        classes=classes,
        reasons=reasons,
        without_score=found.without_score,
    )


def _moved(before: Ledger, after: Ledger) -> tuple[int, int]:
    """Samples of one ledger that are rejected in the other, and those that are accepted there."""
    was, is_ = (ledger.status == STATUSES.index("ok") for ledger in (before, after))
    return int((was & ~is_).sum()), int((~was & is_).sum())


def _put(run: Folder, found: Judgement, limits: Limits | None, overrides: Limits, lease: Lease) -> bool:
    """Store a judgement; nothing where none is stored, nothing changed, and the limits are those of the job."""
    _, note = read_own(run, REFILTER)
    if (
        note is None
        and not found.decisions.num_rows
        and not overrides
        and limits is not None
        and is_judged(run, limits)
    ):
        return False
    lease.check()
    return put_decisions(run, REFILTER, found.decisions, {"limits": limits, "overrides": overrides})


def _per_class(run: Run, before: Ledger, after: Ledger) -> dict[str, tuple[int, int]]:
    """Accepted samples that show each class of the last round, by the pixels that it counts from."""
    rounds = read_rounds(run.folder)
    if not rounds:
        return {}
    min_pixels = int(rounds[-1].settings["min_pixels"])
    accepted = [accepted_per_class(run.folder, ledger, run.label_set, min_pixels) for ledger in (before, after)]
    counts = [per_class.images.tolist() for per_class in accepted]
    found = dict(zip(run.label_set.names, zip(*counts, strict=True), strict=True))
    return {summary.name: found[summary.name] for summary in rounds[-1].classes}
