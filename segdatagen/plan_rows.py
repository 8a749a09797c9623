"""Rows of a plan: which of them are still to be made, which come first, and where the variants of new ones begin.

Arithmetic on ids and methods alone; it reads the ledger of a run and writes nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.errors import UsageError
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run_folder import RUN_NAME, open_run
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder


def first_variants(plan: pa.Table, source_ids: Sequence[str], shared: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The first variant of new rows, by method int64 [num_sources]: behind those of `plan`, at a multiple of `shared`.

    So variants share a mask with others of their own round alone: one that was refused is not drawn a second time.
    """
    sources = pc.index_in(plan["source_id"], pa.array(source_ids, pa.string())).to_numpy()
    methods, behind = plan["method"].to_numpy(zero_copy_only=False), plan["variant"].to_numpy().astype(np.int64) + 1
    found = {}
    for method in np.unique(methods).tolist():
        first, rows, step = np.zeros(len(source_ids), np.int64), methods == method, shared.get(method, 1)
        np.maximum.at(first, sources[rows], behind[rows])
        found[method] = -(-first // step) * step
    return found


def without(plan: pa.Table, sample_ids: np.ndarray) -> pa.Table:
    """Plan rows whose id is not among `sample_ids`, in the same order."""
    return plan.filter(pa.array(~np.isin(plan["sample_id"].to_numpy(), sample_ids)))


def stratified(rows: pa.Table, limit: int) -> pa.Table:
    """The first `limit` rows, taken in turn from every (method, target class), in the order of the plan."""
    keys = pc.binary_join_element_wise(rows["method"], pc.fill_null(rows["target_class"], ""), "/")
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows["sample_id"].to_numpy(), codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return rows.take(np.sort(np.lexsort((codes, rank))[:limit]))


def of_methods(rows: pa.Table, methods: Sequence[str]) -> pa.Table:
    """Plan rows of these methods, in the same order."""
    return rows.filter(pc.is_in(rows["method"], pa.array(methods, pa.string())))


def refuse_gone_methods(run: Folder, methods: Sequence[str]) -> None:
    """Raise UsageError where rows are planned and not made of a method that is not among these, those of the job."""
    if not run.exists(RUN_NAME):
        return
    gone = sorted(open_run(run.uri).info.recipes.keys() - set(methods))
    if not gone:
        return
    plan = read_plan(run, read_rounds(run), ["sample_id", "method"])
    left = of_methods(without(plan, read_ledger(run).sample_ids), gone)
    for method in pc.unique(left["method"]).to_pylist():
        count = of_methods(left, [method]).num_rows
        raise UsageError(
            f"{run.uri}: {count} samples of {method} are planned and not made yet, and the job has it no more: put "
            f"methods.{method} back, without goals if you like, or give the job another version"
        )
