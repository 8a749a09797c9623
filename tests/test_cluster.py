"""Joining and starting Ray: what Ray raises becomes one line, a defect of ours stays what it is."""

from typing import Any

import pytest
import ray

from segdatagen import cluster
from segdatagen.errors import SegdatagenError, UsageError


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
