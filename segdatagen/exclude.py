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


def exclude(
    run: Run, sample_ids: Sequence[int], reason: str | None, waiting: Callable[[Holder], None]
) -> tuple[int, int]:
    """Reject samples by hand, whatever their scores are; with `reason` None take that back.

    Returns how many decisions are new or gone, and how many stand then. Holds the lease. Raises UsageError for ids that
    the run does not have.
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
        left = before.filter(pa.array(~np.isin(before["sample_id"].to_numpy(), ids)))
        if reason is not None:
            rows = {"sample_id": ids, "status": ["rejected"] * len(ids), "reason": [f"excluded: {reason}"] * len(ids)}
            left = pa.concat_tables([left, pa.table(rows, schema=DECISION_SCHEMA)])
        if left.num_rows or before.num_rows:
            lease.check()
            put_decisions(run.folder, EXCLUDE, left, {})
    return abs(left.num_rows - before.num_rows), left.num_rows
