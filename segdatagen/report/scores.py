"""The scores of all samples in a few figures each: by method, and by class where a score has one for each.

Knows score columns and classes; it does not know limits, nor what a score says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from segdatagen.labels import LabelSet
from segdatagen.records import score_words
from segdatagen.report.outcomes import Outcomes
from segdatagen.samples import STATUSES

SHARES = (10, 50, 90)
"""Percentiles of a summary."""
JUDGED_SCORE = "adherence"
"""The score that real images have too."""


@dataclass(frozen=True)
class Summary:
    """Figures of one score over the samples of `group`, a method or a class, whatever became of them.

    `percentiles` are at SHARES; `accepted` is the mean over those that are ok, None where none is; `real` is the mean
    over real images, where they were judged (`segdatagen judge --keep`).
    """

    score: str  # as in reasons: a column without its prefix, words apart
    group: str
    count: int
    mean: float
    percentiles: tuple[float, ...]
    accepted: float | None
    real: float | None = None


def beside_real(rows: Iterable[Summary], means: Mapping[str, float]) -> list[Summary]:
    """The rows, those of adherence with what real images have of it: `means` by the group that a row is of."""
    return [replace(row, real=means.get(row.group)) if row.score == JUDGED_SCORE else row for row in rows]


def by_method(outcomes: Outcomes) -> list[Summary]:
    """Every score of each method that has it, in the order of the columns. Figures that are not finite are left out."""
    ok = outcomes.status == STATUSES.index("ok")
    found: list[Summary] = []
    for name in outcomes.scores.column_names:
        values = outcomes.scores[name].to_numpy().astype(np.float32)
        found += _summaries(name, values, outcomes.method, ok, outcomes.methods)
    return found


def by_class(outcomes: Outcomes, label_set: LabelSet) -> list[Summary]:
    """Every score that classes have of their own, by score, the class with the lowest mean first.

    A class has a figure in each sample whose mask shows it. Ids that the label set does not know are left out.
    """
    entries = outcomes.scores_per_class.combine_chunks()
    samples = pc.list_parent_indices(entries).to_numpy()
    flat = pc.list_flatten(entries)
    scores = pc.struct_field(flat, "score")
    channels = label_set.channel_table()[pc.struct_field(flat, "class_id").to_numpy(zero_copy_only=False)]
    values = pc.struct_field(flat, "value").to_numpy(zero_copy_only=False).astype(np.float32)
    ok = (outcomes.status == STATUSES.index("ok"))[samples]
    found: list[Summary] = []
    for name in sorted(pc.unique(scores).to_pylist()):
        own = pc.equal(scores, name).to_numpy(zero_copy_only=False) & (channels >= 0)
        rows = list(_summaries(name, values[own], channels[own], ok[own], label_set.names))
        found += sorted(rows, key=lambda row: (row.mean, row.group))
    return found


def _summaries(
    score: str, values: np.ndarray, groups: np.ndarray, ok: np.ndarray, names: tuple[str, ...]
) -> Iterator[Summary]:
    """One summary for each group that has finite values, float32 [N]; `groups` int [N] index into `names`."""
    finite = np.isfinite(values)
    for number in np.unique(groups[finite]).tolist():
        of_group = finite & (groups == number)
        own, accepted = values[of_group].astype(np.float64), values[of_group & ok].astype(np.float64)
        yield Summary(
            score=score_words(score),
            group=names[number],
            count=len(own),
            mean=float(own.mean()),
            percentiles=tuple(np.percentile(own, SHARES).tolist()),
            accepted=float(accepted.mean()) if len(accepted) else None,
        )
