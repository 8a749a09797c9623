"""A training on Ray Train: workers that each train their share, and one of them that reports.

Ray sets `torch.distributed` up (gloo, or nccl on GPUs); the loop averages gradients and writes all that lasts, so
Ray's own folder is removed. Knows neither kinds nor networks.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segdatagen.cluster import connect
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.storage import Folder
from segdatagen.training.checkpoints import CHECKPOINTS_NAME, newest_step
from segdatagen.training.data import Share
from segdatagen.training.kind import Progress, TrainingResult
from segdatagen.training.options import TrainingOptions

MAX_RESTARTS = 2
"""In a row, without a new checkpoint between them."""

Worker = Callable[[Share, torch.device, Progress], TrainingResult]
"""Trains one share on one device."""


def train_on_ray(worker: Worker, options: TrainingOptions, address: str | None, progress: Progress) -> TrainingResult:
    """Run a worker `num_workers` times on Ray and return what the first of them returned.

    On several machines, `sources` and `out` have to be addresses that mean the same on each. Where a worker dies, all
    are started again, as soon as the cluster has room, and go on from the last checkpoint. Raises UsageError where the
    cluster has fewer CPUs or GPUs than the workers need, or where a worker raised one, and SegdatagenError where
    workers die again and again without a new checkpoint.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same as without Ray
    checkpoints = Folder(options.out).child(CHECKPOINTS_NAME)
    restarts = in_a_row = 0
    with connect(address), tempfile.TemporaryDirectory() as scratch:
        require_workers(options)
        with reports_to(lambda found: progress(replace(found, restarts=restarts))) as reports:
            while True:
                before = newest_step(checkpoints)
                try:
                    result: TrainingResult = _trainer(worker, reports, options, scratch).fit().return_value
                    return replace(result, restarts=restarts)
                except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                    in_a_row = in_a_row + 1 if newest_step(checkpoints) == before else 1
                    _raise_unless_it_died(error, options.out, again=in_a_row <= MAX_RESTARTS)
                restarts += 1


def _trainer(worker: Worker, reports: Queue, options: TrainingOptions, scratch: str) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"worker": worker, "reports": reports},
        scaling_config=ray.train.ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.use_gpu,
            resources_per_worker={"CPU": options.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(storage_path=scratch),
    )


def _work(config: dict[str, Any]) -> TrainingResult:
    """What Ray runs in every worker."""
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    worker: Worker = config["worker"]
    reports: Queue = config["reports"]
    return worker(share, ray.train.torch.get_device(), reports.put)


@contextlib.contextmanager
def reports_to(progress: Callable[[Any], None]) -> Iterator[Queue]:
    """A queue whose contents are handed to `progress`, in this process, while the block runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # not on a node that may be lost

    def listen() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # Ray is gone: the trainer says so, in the main thread
            while (report := reports.get()) is not None:
                progress(report)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield reports
    finally:
        reports.put(None)
        listener.join()
        reports.shutdown()


def require_workers(options: TrainingOptions) -> None:
    """Raise UsageError where the cluster Ray is connected to has less than the workers of a training need."""
    have = ray.cluster_resources()
    needs = {"CPU": options.num_workers * options.cpus_per_worker, "GPU": options.num_workers * options.use_gpu}
    for resource, needed in needs.items():
        if needed > have.get(resource, 0.0):
            raise UsageError(
                f"{options.num_workers} workers need {needed:g} {resource} but the cluster has "
                f"{have.get(resource, 0.0):g}: lower num_workers{' or torch_threads' if resource == 'CPU' else ''}"
            )


def _raise_unless_it_died(error: Exception, out: str, again: bool) -> None:
    """Raise the error that a worker raised for the user; where one died, one line about it, unless it starts `again`.

    When a worker dies, the others raise what their library says of a partner that is gone, so that whatever is no
    SegdatagenError counts as a death.
    """
    failures = [failure for _, failure in sorted(getattr(error, "worker_failures", {}).items())]
    for failure in failures:
        if isinstance(cause := _user_error(failure), SegdatagenError):
            raise cause from error
    if again:
        return
    reason = str(failures[0] if failures else error).strip().splitlines()[-1]
    raise SegdatagenError(
        f"workers of the training failed {1 + MAX_RESTARTS} times without a new checkpoint ({reason}): "
        f"the same command goes on from the last one in {out}"
    ) from error


def _user_error(failure: BaseException | None) -> BaseException | None:
    """What a worker raised, below the wrappings of Ray."""
    while failure is not None and not isinstance(failure, SegdatagenError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure
