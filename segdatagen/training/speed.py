"""How fast a training is, beside what its device could do: images per second, memory, share of the peak.

The peak is known of some GPUs, in bf16 without sparsity, from their data sheets; of others and of CPUs it is not told.
Nothing here changes what is trained.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from segdatagen.peak_memory import peak_bytes

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Floating point operations per second by words of the device's name; the first that fits."""
COUNTED_STEP = 3
"""Of this process: the first ones are slow, and counting slows the one that is counted."""


@dataclass(frozen=True)
class Speed:
    """Images per second of all workers, most bytes held, and the share of the device's peak where that is known."""

    images_per_second: float
    peak_bytes: int
    device: str
    share_of_peak: float | None
    num_workers: int = 1

    def as_text(self) -> str:
        """For a model card."""
        share = "" if self.share_of_peak is None else f", {self.share_of_peak:.1%} of its peak in bf16"
        place = (
            f"on {self.device}" if self.num_workers == 1 else f"by {self.num_workers} workers, each on {self.device}"
        )
        return f"{self.images_per_second:.1f} images/s {place}{share}; {self.peak_bytes / 2**30:.2f} GiB"


def peak_of(name: str) -> float | None:
    """The peak of a device by its name, None where it is not known: an L40 is no L4."""
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


class Speedometer:
    """Times the steps of this process, one of `num_workers`; `num_images` is what all workers see in one."""

    def __init__(self, num_images: int, device: torch.device, num_workers: int = 1) -> None:
        self._num_images, self._num_workers = num_images, num_workers
        self._name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        self._peak = peak_of(self._name)
        self._steps, self._before, self._flops, self._began = 0, 0, 0, time.monotonic()

    def begin(self) -> None:
        """Begin a lap here: what was done since the last one, as a checkpoint or a picture, is no training."""
        self._before, self._began = self._steps, time.monotonic()

    def step(self, train: Callable[[], None]) -> None:
        """Do a step. One is counted, on a device whose peak is known: elsewhere nothing is between torch and it."""
        if self._steps == COUNTED_STEP and self._peak is not None:
            with FlopCounterMode(display=False) as counter:
                train()
            self._flops = counter.get_total_flops()
        else:
            train()
        self._steps += 1

    def lap(self) -> Speed:
        """The speed since the last lap, called where the device has done all steps.

        Its share of the peak is that of one device: `num_images` are shared by the workers, and so are operations.
        """
        now = time.monotonic()
        seconds, steps = max(now - self._began, 1e-9), self._steps - self._before
        self._began, self._before = now, self._steps
        share = None
        if self._peak is not None and self._flops:
            share = self._flops * steps / seconds / self._peak
        return Speed(steps * self._num_images / seconds, peak_bytes(), self._name, share, self._num_workers)
