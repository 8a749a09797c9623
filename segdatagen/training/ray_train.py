"""A training on Ray Train: workers that each train their share, one of them that reports, and new ones where one dies.

Ray sets `torch.distributed` up (gloo, or nccl on GPUs); the loop averages gradients and writes all that lasts, so
Ray's own folder is removed. Knows neither kinds nor networks.
"""

import contextlib
import os
import tempfile
import threading
import time
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
from segdatagen.lease import LeaseError
from segdatagen.storage import Folder, NoSpaceError, StorageError
from segdatagen.training.checkpoints import CHECKPOINTS_NAME, newest_step
from segdatagen.training.data import Share
from segdatagen.training.kind import Progress, TrainingProgress, TrainingResult
from segdatagen.training.options import TrainingOptions

MAX_RESTARTS = 2
"""In a row, without a new checkpoint between them."""
MAX_STARTS = 30
"""How often Ray asks for room for the workers, for a minute each, until a command gives up."""
WAIT_SECONDS = 3 * 3600
"""How long workers wait for each other. The first one draws grids and puts checkpoints alone; a worker that died is not
found by this, but by Ray at once."""

Worker = Callable[[Share, torch.device, Progress], TrainingResult]
"""Trains one share on one device."""


def train_on_ray(
    worker_of: Callable[[TrainingOptions], Worker], options: TrainingOptions, address: str | None, progress: Progress
) -> TrainingResult:
    """Run a worker of the options `num_workers` times on Ray and return what the first of them returned.

    On several machines, `sources` and `out` have to be addresses that mean the same on each. See `Attempts` for workers
    that die. Raises UsageError where the cluster has fewer CPUs or GPUs than the workers need, or where a worker raised
    one, and SegdatagenError where the training fails.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same as without Ray
    with connect(address), tempfile.TemporaryDirectory() as scratch:
        require_workers(options)
        attempts = Attempts(options, progress)
        with reports_to(attempts.report) as reports:
            while True:
                try:
                    trainer = _trainer(worker_of(attempts.options()), reports, options, scratch)
                    result: TrainingResult = trainer.fit().return_value
                    return attempts.ended(result)
                except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                    attempts.failed(error)


class Attempts:
    """The attempts of one command to bring a training to its end.

    Where a worker dies, or its storage does not answer, all workers are started again and go on from the newest
    checkpoint: at most MAX_RESTARTS times in a row without a new one between. `max_hours` are of all attempts together.
    """

    def __init__(self, options: TrainingOptions, progress: Progress) -> None:
        self.restarts = 0
        self._options, self._progress = options, progress
        self._began = time.monotonic()
        self._in_a_row = 0
        self._checkpoints = Folder(options.out).child(CHECKPOINTS_NAME)
        self._newest = self._first = newest_step(self._checkpoints)
        self._last: TrainingProgress | None = None

    def options(self) -> TrainingOptions:
        """The options, with what is left of `max_hours`. With nothing left a worker stops at its first report."""
        if self._options.max_hours is None:
            return self._options
        left = self._options.max_hours - (time.monotonic() - self._began) / 3600
        return self._options.model_copy(update={"max_hours": max(left, 1e-9)})

    def report(self, found: TrainingProgress) -> None:
        """Hand on what a worker says."""
        self._last = replace(found, restarts=self.restarts)
        self._progress(self._last)

    def ended(self, result: TrainingResult) -> TrainingResult:
        """The result of the last attempt as that of the command."""
        if not self.restarts:
            return result
        return replace(result, restarts=self.restarts, first_step=self._first or 0)

    def failed(self, error: Exception) -> None:
        """Count a failed attempt, and say that another one follows; raise one line where none does.

        When a worker dies, the others raise what their library says of a partner that is gone, so that whatever is not
        said to the user counts as a death.
        """
        failures = [failure for _, failure in sorted(getattr(error, "worker_failures", {}).items())]
        said = next(filter(None, map(_user_error, failures)), None)
        if said is not None and not self._may_pass(said):
            raise said from error
        reason = str(failures[0] if failures else error).strip().splitlines()[-1]
        if isinstance(error, ray.train.ControllerError):
            raise SegdatagenError(f"the workers of the training could not be started ({reason})") from error
        self._in_a_row = 1 if self._has_new_checkpoint() else self._in_a_row + 1
        if self._in_a_row > MAX_RESTARTS:
            raise said or SegdatagenError(
                f"workers of the training failed {self._in_a_row} times without a new checkpoint ({reason}): the same "
                f"command goes on with what is in {self._options.out}"
            ) from error
        self.restarts += 1
        if self._last is not None:
            self.report(self._last)

    def _may_pass(self, said: SegdatagenError) -> bool:
        """Storage may answer again, unless it is full, and the lease of a worker that was cut off ends with it."""
        if isinstance(said, NoSpaceError):
            return False
        return isinstance(said, StorageError) or (isinstance(said, LeaseError) and self.restarts > 0)

    def _has_new_checkpoint(self) -> bool:
        before = self._newest
        with contextlib.suppress(StorageError, OSError):
            self._newest = self._first = newest_step(self._checkpoints)
        return self._newest != before


def _trainer(worker: Worker, reports: Queue, options: TrainingOptions, scratch: str) -> ray.train.torch.TorchTrainer:
    """One attempt: Ray itself would start workers again for ever, or count failures of a week together."""
    once = ray.train.FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=MAX_STARTS)
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"worker": worker, "reports": reports},
        torch_config=ray.train.torch.TorchConfig(timeout_s=WAIT_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.use_gpu,
            resources_per_worker={"CPU": options.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(storage_path=scratch, failure_config=once),
    )
    # Ctrl-C is the command's: the handler of Ray 2.60 would end it without a word, and with status 0 or 1.
    trainer._register_sigint_handler = lambda controller: None
    return trainer


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
            several = options.num_workers > 1
            need = f"{options.num_workers} workers need" if several else "1 worker needs"
            ways = ["lower num_workers"] * several + {
                "CPU": ["lower torch_threads"] * (options.cpus_per_worker > 1),
                "GPU": ["set use_gpu to false"],
            }[resource]
            raise UsageError(
                f"{need} {needed:g} {resource} but the cluster has {have.get(resource, 0.0):g}: {' or '.join(ways)}"
            )


def _user_error(failure: BaseException | None) -> SegdatagenError | None:
    """What a worker said to the user, below the wrappings of Ray; None where it did not."""
    while failure is not None and not isinstance(failure, SegdatagenError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure
