"""Samples that a person refuses, whatever is in their rows: decisions in a file of their own.

It does not know scores, limits or pictures.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from segdatagen.decisions import EXCLUDE, put_decisions, read_own
from segdatagen.errors import UsageError
from segdatagen.lease import Holder, Lease
from segdatagen.records import DECISION_SCHEMA
from segdatagen.run_folder import Run
from segdatagen.samples import read_ledger

BY_HAND = "by hand"
"""The reason of whoever gives none."""


def exclude(
    run: Run, sample_ids: Sequence[int], reason: str | None, waiting: Callable[[Holder], None]
) -> tuple[int, int]:
    """Reject samples by hand, whatever their scores are; a second reason replaces the first, None leaves it.

    Returns how many exclusions are new, and how many stand then. Holds the lease. Raises UsageError for ids that the
    run does not have.
    """
    decision = {"status": "rejected", "reason": f"excluded: {reason or BY_HAND}"}
    before, after = _replace(run, sample_ids, [decision], waiting, keep=reason is None)
    return after - before, after


def include(run: Run, sample_ids: Sequence[int], waiting: Callable[[Holder], None]) -> tuple[int, int]:
    """Take the exclusion of samples back: their scores count again, and what others decided.

    Returns how many exclusions are gone, and how many stand then. Holds the lease. Raises UsageError for ids that the
    run does not have.
    """
    before, after = _replace(run, sample_ids, [], waiting, keep=False)
    return before - after, after


def _replace(
    run: Run,
    sample_ids: Sequence[int],
    decisions: Sequence[dict[str, str]],
    waiting: Callable[[Holder], None],
    *,
    keep: bool,
) -> tuple[int, int]:
    """Put these decisions on each sample in place of earlier ones, unless those are kept.

    Returns on how many samples there were and are some.
    """
    with Lease(run.folder, waiting) as lease:
        known = set(read_ledger(run.folder).sample_ids.tolist())
        unknown = [id_ for id_ in sample_ids if id_ not in known]
        if unknown:
            raise UsageError(
                f"{run.folder.uri}: has no sample {', '.join(map(str, unknown[:5]))}: ids are in the column sample_id "
                "of data/ and samples/"
            )
        ids = np.unique(np.array(sample_ids, np.int64))
        before, _ = read_own(run.folder, EXCLUDE)
        if keep:
            ids = np.setdiff1d(ids, before["sample_id"].to_numpy())
        left = before.filter(pa.array(~np.isin(before["sample_id"].to_numpy(), ids)))
        rows = [{"sample_id": id_, **decision} for id_ in ids.tolist() for decision in decisions]
        left = pa.concat_tables([left, pa.Table.from_pylist(rows, schema=DECISION_SCHEMA)])
        if left.num_rows or before.num_rows:
            lease.check()
            put_decisions(run.folder, EXCLUDE, left, {})
    return len(before["sample_id"].unique()), len(left["sample_id"].unique())
