"""Devices that run out of memory under several names, and those that are lost to a process."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import JobFactory
from ray import cloudpickle
from test_faults import run, source_ids

from segdatagen.device_errors import DeviceLost
from segdatagen.diffusion.microbatch import microbatches, together
from segdatagen.job import Job, load_job
from segdatagen.method_context import method_contexts
from segdatagen.methods import METHODS, Chain, guard
from segdatagen.placement import ChainFactory
from segdatagen.sources import open_store
from segdatagen.stages.stage import Batch, objects

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:40])
def test_memory_that_ran_out_halves_the_batch_by_whatever_name(error: RuntimeError) -> None:
    sizes = []

    def make(rows: np.ndarray, generators: list[torch.Generator]) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return np.zeros((len(rows), 1, 1, 3), np.uint8), np.ones(len(rows), bool)

    made = together(microbatches(make, [1, 2, 3, 4, 5], 8), (1, 1))
    assert made.microbatch.tolist() == [2] * 5
    assert sizes == [8, 4, 2, 2, 2]


def test_what_the_cpu_cannot_hold_is_memory_that_ran_out() -> None:
    def make(rows: np.ndarray, generators: list[torch.Generator]) -> tuple[np.ndarray, np.ndarray]:
        torch.empty(1 << (50 if len(rows) > 1 else 1), dtype=torch.uint8)
        return np.zeros((len(rows), 1, 1, 3), np.uint8), np.ones(len(rows), bool)

    assert together(microbatches(make, [1, 2], 2), (1, 1)).microbatch.tolist() == [1, 1]


class Breaks:
    """A stage whose process loses its device at the first row, unless another process has lost one before."""

    name = "breaks"
    reads = ("source_id",)
    writes = ("reason",)
    verdict = "failed"

    def __init__(self, folder: Path) -> None:
        self._mark, self._lost = folder / "lost", False

    def __call__(self, batch: Batch) -> Batch:
        if not self._lost:
            try:
                os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
                self._lost = True
            except FileExistsError:
                pass
        if self._lost:
            raise torch.AcceleratorError(ILLEGAL)
        return {"reason": objects([None] * len(batch["source_id"]))}


def test_no_row_fails_where_the_device_is_lost(tmp_path: Path) -> None:
    batch = {"source_id": objects(["a", "b"]), "status": objects(["ok", "ok"]), "reason": objects([None, None])}
    with pytest.raises(DeviceLost, match=r"an illegal memory access was encountered\): start again"):
        guard(Breaks(tmp_path), batch)
    assert batch["status"].tolist() == ["ok", "ok"]


def with_break(job: Job, folder: Path) -> dict[str, ChainFactory]:
    """The chain of the job with that stage after the source was loaded."""
    context = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]

    def build() -> Chain:
        load, generate = (stage.build() for stage in METHODS["mask_ddpm"](context))
        return Chain([load, Breaks(folder), generate])

    return {"mask_ddpm": build}


def test_a_process_that_lost_its_device_costs_no_row(
    ray_session: None, make_job: JobFactory, tmp_path: Path, scenes_store: Path
) -> None:
    job = load_job(str(make_job(plan=[{"method": "mask_ddpm", "strategy": "uniform", "per_source": 1}])))
    outcome = run(job, factories=with_break(job, tmp_path))
    assert (tmp_path / "lost").exists()
    assert outcome.counts == {"ok": len(source_ids(scenes_store)), "rejected": 0, "failed": 0}
