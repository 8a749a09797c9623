"""Joining and starting Ray: what Ray raises becomes one line, a defect of ours stays what it is."""

import sys
import time
from typing import Any

import pytest
import ray
from ray import cloudpickle

from segdatagen import cluster
from segdatagen.cluster import check_fit, spread
from segdatagen.errors import SegdatagenError, UsageError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return monkeypatch


def raising(error: Exception) -> Any:
    def init(**_: Any) -> None:
        raise error

    return init


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup.\nMore of it."),
        RuntimeError("no free port"),
        RuntimeError(""),
        ConnectionError("refused"),
    ],
)
def test_a_ray_that_cannot_start_is_one_line(no_ray: pytest.MonkeyPatch, error: Exception) -> None:
    no_ray.setattr(ray, "init", raising(error))
    first = next(iter(str(error).splitlines()), "RuntimeError")
    with pytest.raises(SegdatagenError) as refused, cluster.connect():
        raise AssertionError("connected")
    assert str(refused.value) == f"Ray cannot start on this machine: {first}"
    assert not isinstance(refused.value, UsageError), "the machine is slow, the command was right"


def test_any_other_error_is_not_swallowed(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setattr(ray, "init", raising(KeyError("CPU")))
    with pytest.raises(KeyError), cluster.connect():
        raise AssertionError("connected")


def test_an_error_of_the_work_is_not_taken_for_one_of_ray(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setattr(ray, "init", lambda **_: None)
    no_ray.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RuntimeError, match=r"^of the work$"), cluster.connect():
        raise RuntimeError("of the work")


@pytest.mark.parametrize(
    ("nodes", "actors", "cpus", "gpus", "says"),
    [
        ([2], 500, 1, 0, "needs 501 CPU (500 actors of 1 and 1 to split the plan) but the cluster has 2: lower exec"),
        ([1, 1, 1], 1, 1.5, 0, "an actor needs 1.5 CPU but the largest node has 1: lower execution.cpus_per_actor"),
        ([(4, 1), (4, 1)], 1, 1, 2, "an actor needs 2 GPU but the largest node has 1: lower execution.gpus_per_actor"),
        ([2, 2, 2], 3, 1.5, 0, "the 3 nodes of the cluster hold 2 actors of 1.5 CPU beside 1 CPU to split the plan"),
        ([(1, 0), (1, 0), (0, 4)], 1, 1, 1, "hold 0 actors of 1 CPU and 1 GPU beside 1 CPU"),
        ([(9, 2)], 3, 1, 0.6, "hold 2 actors of 1 CPU and 0.6 GPU"),
        ([], 1, 1, 0, "but the cluster has 0"),
    ],
)
def test_actors_that_no_nodes_can_hold_are_refused(
    nodes: list[Any], actors: int, cpus: float, gpus: float, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check_fit([resources(node) for node in nodes], actors, cpus, gpus, 1)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("nodes", "actors", "cpus", "gpus"),
    [
        ([2], 1, 1, 0),
        ([0, 3], 2, 1, 0),
        ([2, 2, 3], 3, 1.5, 0),
        ([1, 1.5], 1, 1.5, 0),
        ([(3, 1), (2, 1)], 4, 1, 0.5),
        ([(9, 2)], 8, 1, 0.25),
        ([1.1, 1], 11, 0.1, 0),
    ],
)
def test_actors_that_the_nodes_hold_are_taken(nodes: list[Any], actors: int, cpus: float, gpus: float) -> None:
    check_fit([resources(node) for node in nodes], actors, cpus, gpus, 1)


def resources(node: Any) -> dict[str, float]:
    """CPUs, or CPUs and GPUs; Ray names only what a node has."""
    cpus, gpus = node if isinstance(node, tuple) else (node, 0)
    return {name: have for name, have in {"CPU": cpus, "GPU": gpus, "memory": 1e9}.items() if have}


def doubled_after_a_while(number: int) -> int:
    time.sleep(6)
    return 2 * number


def test_a_task_may_take_longer_than_ray_data_waits_for_progress(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training of an experiment may take hours, and nothing moves meanwhile. Ray's half an hour is two seconds."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 2.0)
    assert list(spread("failed", [3], doubled_after_a_while)) == [(0, 6)]
