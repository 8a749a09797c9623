"""Ray for the length of one command: started in the process, or an existing cluster joined.

Checks that a command's actors fit before any of them starts, and spreads work that is a function of a number. It does
not know what they do.
"""

import contextlib
import functools
import logging
import os
import pickle
import re
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
import ray._private.services as ray_services
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from segdatagen.errors import SegdatagenError, UsageError

Input = TypeVar("Input")
Result = TypeVar("Result")

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
"""Blocks are a few megabytes and few are in flight: a laptop keeps its memory for the models."""
ANSWER_SECONDS = 5.0
"""A cluster that does not accept a connection by then is not there."""

MAX_RETRIES = 2
"""Of a task whose worker died. Ray Data's own number is infinite: work that kills its worker would never end."""

SEEN_WITHIN = 60.0
"""Seconds by which a machine sees what another put on a shared disk: NFS trusts what it knew of a folder so long."""

TINY = 1e-9
"""Of a CPU or GPU: shares of them are sums of floats."""

START_ERRORS = (ConnectionError, ValueError, RuntimeError)

LOG_LEVEL_LINE = b"Set ray log level from environment variable"


@contextlib.contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster at `address`, or start Ray in this process; leave or stop it at the end.

    A Ray that is already initialised (tests) is used as it is. Raises UsageError if no cluster answers, and
    SegdatagenError if Ray cannot start here.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address:
        _require_answer(address)
    _init(address, num_cpus)
    try:
        quiet_ray_data()
        yield
    finally:
        ray.shutdown()


def _init(address: str | None, num_cpus: int | None) -> None:
    """`ray.init`, and what it raises in one line.

    Where its processes need more than 30 s to start, Ray raises Exception itself, of which every defect is one: the
    handler is as broad as that, holds `ray.init` alone, and raises whatever else it catches again.
    """
    options: dict[str, Any] = {"address": address}
    if not address:
        memory = LOCAL_OBJECT_STORE_BYTES
        options = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": memory}
    with _without_log_level_line(), _own_sigterm(), _daemons_in_sessions_of_their_own():
        try:
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:
            if not isinstance(error, START_ERRORS) and type(error) is not Exception:
                raise
            why = next(iter(str(error).splitlines()), type(error).__name__)
            if address:
                raise UsageError(f"no Ray cluster answers at {address}: {why}") from error
            raise SegdatagenError(f"Ray cannot start on this machine: {why}") from error


def _require_answer(address: str) -> None:
    """Raise UsageError if nothing listens at HOST:PORT, where Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto` and the like: Ray knows at once
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({error}): correct --address, or leave it out to run on this machine"
        ) from error


@contextlib.contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Drop the line with which Ray's native code reports its log level; what else it writes is shown afterwards."""
    screen = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        try:
            os.dup2(kept.fileno(), 2)
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            kept.seek(0)
            lines = [line for line in kept.read().splitlines(keepends=True) if LOG_LEVEL_LINE not in line]
            os.write(2, b"".join(lines))


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put back what SIGTERM did in this process: Ray takes it over, and then ends the process before its `finally`s."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # Ray's answer to SIGTERM while it starts
        before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _daemons_in_sessions_of_their_own() -> Iterator[None]:
    """Keep a signal for the command's process group (`timeout`, a job scheduler) from Ray's processes.

    Ray 2.60 starts them in the group of the driver and has no option for it. Without a raylet the driver ends at once,
    in native code and before its `finally`s. They still end with the driver: the kernel kills them then.
    """
    popen = ray_services.ConsolePopen
    ray_services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        ray_services.ConsolePopen = popen


def quiet_ray_data() -> None:
    """Leave the screen to our own progress: Ray Data keeps its logs in the session folder."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", category=UserWarning)


@contextlib.contextmanager
def deprecated_arguments() -> Iterator[None]:
    """For the only arguments that bound what work may cost that kills its worker: Ray 2.60 names no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def require_resources(actors: int, cpus_per_actor: float, gpus_per_actor: float, other_cpus: float) -> None:
    """Raise UsageError, naming the number that is too small, unless the actors fit beside what Ray itself needs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_fit(nodes, actors, cpus_per_actor, gpus_per_actor, other_cpus)


def check_fit(
    nodes: Sequence[Mapping[str, float]], actors: int, cpus_per_actor: float, gpus_per_actor: float, other_cpus: float
) -> None:
    """`require_resources` of nodes with so much of each resource: in sum, and as no actor stands on two nodes."""
    demands = {"CPU": (cpus_per_actor, other_cpus), "GPU": (gpus_per_actor, 0.0)}
    for resource, (per_actor, other) in demands.items():
        field = f"execution.{resource.lower()}s_per_actor"
        had = [node.get(resource, 0.0) for node in nodes]
        needed, available = actors * per_actor + other, sum(had)
        if needed > available + TINY:
            extra = f" and {other:g} to split the plan" if other else ""
            raise UsageError(
                f"the run needs {needed:g} {resource} ({actors} actors of {per_actor:g}{extra}) but the cluster has "
                f"{available:g}: lower execution.actors or {field}"
            )
        if per_actor > max(had, default=0.0) + TINY:
            raise UsageError(
                f"an actor needs {per_actor:g} {resource} but the largest node has {max(had):g}: lower {field}"
            )
    held = [_actors_on(node, cpus_per_actor, gpus_per_actor) for node in nodes]
    beside = [
        sum(held) - held[place] + _actors_on({**node, "CPU": node["CPU"] - other_cpus}, cpus_per_actor, gpus_per_actor)
        for place, node in enumerate(nodes)
        if node.get("CPU", 0.0) >= other_cpus - TINY and "CPU" in node
    ]
    if max(beside, default=0) < actors:
        of = f"{cpus_per_actor:g} CPU" + (f" and {gpus_per_actor:g} GPU" if gpus_per_actor else "")
        raise UsageError(
            f"the {len(nodes)} nodes of the cluster hold {max(beside, default=0)} actors of {of} beside "
            f"{other_cpus:g} CPU to split the plan, not {actors}: lower execution.actors or what each needs"
        )


def _actors_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many actors a node holds. A share of a GPU is one of a single GPU."""
    by_cpus = int(node.get("CPU", 0.0) / cpus + TINY)
    if not gpus:
        return by_cpus
    num_gpus = node.get("GPU", 0.0)
    by_gpus = int(num_gpus + TINY) * int(1 / gpus + TINY) if gpus < 1 else int(num_gpus / gpus + TINY)
    return min(by_cpus, by_gpus)


def without_progress_limit(data: ray.data.Dataset) -> None:
    """Ray Data ends what has moved no block for half an hour, and a block of ours may be a training, or slow images."""
    data.context.execution_no_progress_timeout_s = -1


def spread(
    failed: str,
    inputs: Sequence[Input],
    work: Callable[[Input], Result],
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[tuple[int, Result]]:
    """`work(input)` for every input as tasks of Ray Data, with its place among the inputs, as they end.

    `work`, inputs and results travel by pickling, each input with its own task: a function that held all of them would
    be unpickled whole by every worker. A task works in the folder of the driver, where its node has that, so that
    relative paths mean the same. Raises SegdatagenError, `failed` and the reason in one line, where a task raises, or
    where its worker dies again and again.
    """
    rows, here = [{"number": number, "input": pickle.dumps(given)} for number, given in enumerate(inputs)], os.getcwd()

    def task(row: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            os.chdir(here)
        return {"number": row["number"], "result": work(pickle.loads(row["input"]))}

    if not rows:
        return  # Ray Data takes no empty list
    blocks = ray.data.from_items(rows, override_num_blocks=len(rows))
    with deprecated_arguments():
        made = blocks.map(task, num_cpus=num_cpus, num_gpus=num_gpus or None, max_retries=MAX_RETRIES)
    without_progress_limit(made)
    try:
        for row in made.iter_rows():
            yield int(row["number"]), row["result"]
    except RayError as error:
        raise SegdatagenError(f"{failed} ({_reason(error)})") from error


def _reason(error: RayError) -> str:
    """In one line: the exception that a task raised, without Ray's colours and traceback, or what Ray itself says."""
    if isinstance(error, WorkerCrashedError):
        return f"its worker died, {1 + MAX_RETRIES} times"
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
    if not isinstance(error, RayTaskError):
        return text.splitlines()[0] if text else type(error).__name__
    raised = text.split("\n\nThe above exception was the direct cause", 1)[0]
    sentence = re.sub(r"(?s).*\n  File \"[^\n]*\n(    [^\n]*\n)*", "", raised)
    return re.sub(r"^segdatagen[\w.]*: ", "", " ".join(sentence.split()))


def require_seen(uri: str, is_there: Callable[[], bool]) -> None:
    """Raise SegdatagenError unless what workers have put at `uri` can be seen by this process, at once or soon."""
    deadline = time.monotonic() + SEEN_WITHIN
    while not is_there():
        if time.monotonic() > deadline:
            raise SegdatagenError(
                f"{uri}: a worker has put this, and it is not to be seen here: where workers run on other machines, "
                "the output has to be in an object store, or on a disk that all of them mount"
            )
        time.sleep(min(1.0, SEEN_WITHIN / 10))
