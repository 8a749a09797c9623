"""The speed of trainings: of steps alone, and beside the peak of the device that it is."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from segdatagen.training import speed
from segdatagen.training.speed import Speedometer, peak_of


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
        ("the CPU", None),
    ],
)
def test_a_peak_is_that_of_the_device_and_of_no_other_with_a_name_like_it(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_what_is_done_between_laps_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def passing(seconds: float) -> None:
        now[0] += seconds

    def laps() -> Iterator[float]:
        meter = Speedometer(8, torch.device("cpu"))
        passing(50)  # to resume
        meter.begin()
        for _ in range(3):
            for _ in range(10):
                meter.step(lambda: passing(0.5))
            yield meter.lap().images_per_second
            passing(30)  # a checkpoint
            meter.begin()

    assert list(laps()) == [16.0, 16.0, 16.0]
