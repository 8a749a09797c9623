"""Every sample of a run without its pixels, and which of them a report of limited size shows.

Reads ids, outcomes, classes, reasons and scores; strata are methods, outcomes, classes and reasons. It does not know
pictures, pages or files of a report.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.records import SAMPLE_SCHEMA, SCORE_COLUMNS
from segdatagen.run_folder import Run
from segdatagen.samples import STATUSES, Ledger, reasons_at
from segdatagen.tables import read_parts

NUMBER = r"\b\d+(\.\d+)?\b"
"""What differs between two reasons that say the same. The 2 of `mask2img` is no number."""
COLUMNS = ["method", "reason", "class_ids", "class_pixels", *SCORE_COLUMNS, "scores_per_class"]


@dataclass(frozen=True)
class Reason:
    """Reasons that differ in their numbers alone: `text` has # for each; `example` is one of them as it was stored."""

    text: str
    status: str
    count: int
    example: str


@dataclass(frozen=True)
class Outcomes:
    """Every sample that counts, in order of parts and rows: arrays of one length N.

    `shows` pairs samples with the channels of classes that have at least `min_pixels` pixels in their masks.
    """

    sample_ids: np.ndarray  # int64 [N]
    status: np.ndarray  # uint8 [N], index into STATUSES
    attempt: np.ndarray  # int32 [N]
    part: np.ndarray  # int32 [N], index into the parts of the ledger
    row: np.ndarray  # int32 [N], row in that part
    method: np.ndarray  # int32 [N], index into `methods`
    methods: tuple[str, ...]
    why: pa.ChunkedArray  # string [N]: the reason as it was recorded, null for what is ok
    reason: np.ndarray  # int32 [N], index into `reasons`, -1 for what is ok
    reasons: tuple[Reason, ...]  # most frequent first
    shows: np.ndarray  # int64 [P, 2]: sample, channel
    scores: pa.Table  # float [N] each, as in SCORE_COLUMNS, null for what was not scored
    scores_per_class: pa.ChunkedArray  # CLASS_SCORES [N], or null
    unreadable: tuple[str, ...]  # a sentence for each part that was left out

    def per_method(self, attempt: int) -> dict[str, int]:
        """Samples that count and that an attempt made, by method, whatever their outcome."""
        counts = np.bincount(self.method[self.attempt == attempt], minlength=len(self.methods))
        return dict(zip(self.methods, counts.tolist(), strict=True))


def read_outcomes(run: Run, ledger: Ledger, min_pixels: int) -> Outcomes:
    """Read every part of a run once, without pixels. Samples of parts that cannot be read are left out and named."""
    order = np.lexsort((ledger.row, ledger.part))
    numbers = np.unique(ledger.part).tolist()
    names = [ledger.parts[number].name for number in numbers]
    tables, unreadable = read_parts(run.folder, names, COLUMNS, SAMPLE_SCHEMA)
    readable = [number for number in numbers if ledger.parts[number].name in tables]
    order = order[np.isin(ledger.part[order], readable)]
    part, row = ledger.part[order], ledger.row[order]
    bounds = np.searchsorted(part, [*readable, len(ledger.parts)])
    chosen = [
        tables[ledger.parts[number].name].take(row[start:end])
        for number, start, end in zip(readable, bounds[:-1], bounds[1:], strict=True)
    ]
    table = pa.concat_tables(chosen) if chosen else _empty()
    methods = sorted(pc.unique(table["method"]).to_pylist())
    status = ledger.status[order]
    why = reasons_at(ledger, order, table["reason"])
    reason, reasons = group_reasons(why, status)
    return Outcomes(
        sample_ids=ledger.sample_ids[order],
        status=status,
        attempt=ledger.attempt[order],
        part=part,
        row=row,
        method=pc.index_in(table["method"], pa.array(methods, pa.string())).to_numpy(),
        methods=tuple(methods),
        why=why,
        reason=reason,
        reasons=reasons,
        shows=_pairs(table, run.label_set.channel_table(), min_pixels),
        scores=table.select(list(SCORE_COLUMNS)),
        scores_per_class=table["scores_per_class"],
        unreadable=(*ledger.unreadable.values(), *unreadable.values()),
    )


def group_reasons(reasons: pa.ChunkedArray, status: np.ndarray) -> tuple[np.ndarray, tuple[Reason, ...]]:
    """Reasons of samples [N] that are not ok, grouped by outcome and by their text without its numbers.

    Returns the group of each sample, int32 [N] with -1 for what is ok, and the groups, most frequent first.
    """
    bad = np.flatnonzero(status != STATUSES.index("ok"))
    texts = reasons.take(bad).combine_chunks()
    outcome = pa.array(STATUSES, pa.string()).take(pa.array(status[bad], pa.int32()))
    table = pa.table({"text": pc.replace_substring_regex(texts, NUMBER, "#"), "status": outcome, "example": texts})
    groups = table.group_by(["text", "status"], use_threads=False).aggregate([("example", "min"), ("text", "count")])
    rows = sorted(groups.to_pylist(), key=lambda row: (-row["text_count"], row["text"], row["status"]))
    found = tuple(Reason(row["text"], row["status"], row["text_count"], row["example_min"]) for row in rows)
    place = {(reason.text, reason.status): number for number, reason in enumerate(found)}
    codes = np.full(len(status), -1, np.int32)
    codes[bad] = [place[key] for key in zip(table["text"].to_pylist(), table["status"].to_pylist(), strict=True)]
    return codes, found


def choose(outcomes: Outcomes, limit: int) -> np.ndarray:
    """Indices of at most `limit` samples, ascending, taken in turn from every stratum.

    Strata are a method and an outcome, alone and together with each class that is shown and with the reason. Every
    stratum has at least the smaller of its size and `limit` divided by the number of strata, rounded down.
    """
    if len(outcomes.sample_ids) <= limit:
        return np.arange(len(outcomes.sample_ids))
    members, strata = (np.concatenate(found) for found in zip(*_memberships(outcomes), strict=True))
    order = np.lexsort((outcomes.sample_ids[members], strata))
    _, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    first_turn = np.full(len(outcomes.sample_ids), len(order))
    np.minimum.at(first_turn, members[order], rank)
    smallest = np.full(len(outcomes.sample_ids), len(order))
    np.minimum.at(smallest, members[order], np.repeat(sizes, sizes))
    return np.sort(np.lexsort((outcomes.sample_ids, smallest, first_turn))[:limit])


def _memberships(outcomes: Outcomes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples and their strata, one int64 code per stratum; a sample is a member of several."""
    base = outcomes.method.astype(np.int64) * len(STATUSES) + outcomes.status
    num_bases = len(outcomes.methods) * len(STATUSES)
    yield np.arange(len(base)), base
    bad = np.flatnonzero(outcomes.reason >= 0)
    yield bad, (1 + outcomes.reason[bad].astype(np.int64)) * num_bases + base[bad]
    sample, channel = outcomes.shows.T
    yield sample, (1 + len(outcomes.reasons) + channel) * num_bases + base[sample]


def _pairs(table: pa.Table, channels: np.ndarray, min_pixels: int) -> np.ndarray:
    ids, pixels = table["class_ids"].combine_chunks(), table["class_pixels"].combine_chunks()
    samples = pc.list_parent_indices(ids).to_numpy().astype(np.int64)
    found = channels[pc.list_flatten(ids).to_numpy().astype(np.int64)].astype(np.int64)
    counted = (found >= 0) & (pc.list_flatten(pixels).to_numpy() >= min_pixels)
    return np.stack([samples[counted], found[counted]], axis=1)


def _empty() -> pa.Table:
    return pa.schema([SAMPLE_SCHEMA.field(name) for name in COLUMNS]).empty_table()
