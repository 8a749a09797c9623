"""Any number of samples in batches of one shape: the last one padded, smaller ones where memory runs out.

A result is bitwise the same only at the same batch shape, so that a sample must not depend on how many it is made with.
This module does not know what is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Make = Callable[[np.ndarray, list[torch.Generator]], tuple[np.ndarray, np.ndarray]]
"""Rows int64 `[B]`, a CPU generator for each -> images uint8 `[B, H, W, 3]`, whether each is finite bool `[B]`."""


@dataclass(frozen=True)
class Generated:
    """Images uint8 `[N, H, W, 3]`; whether each was free of NaN and infinity `[N]`; the batch it was made in `[N]`."""

    images: np.ndarray
    finite: np.ndarray
    microbatch: np.ndarray


def in_microbatches(make: Make, seeds: Sequence[int], size: tuple[int, int], microbatch: int) -> Generated:
    """One image of `size` (height, width) for every seed, in batches of exactly `microbatch`.

    The last batch is padded with copies of its last row. When memory runs out the batch is halved, the seeds stay, and
    `Generated.microbatch` tells it per sample. Raises `torch.OutOfMemoryError` when a batch of one does not fit.
    """
    num_samples = len(seeds)
    images = np.zeros((num_samples, *size, 3), dtype=np.uint8)
    finite = np.zeros(num_samples, dtype=bool)
    used = np.zeros(num_samples, dtype=np.int32)
    start = 0
    while start < num_samples:
        stop = min(start + microbatch, num_samples)
        rows = np.minimum(np.arange(start, start + microbatch), stop - 1)
        generators = [torch.Generator().manual_seed(int(seeds[row])) for row in rows]
        try:
            batch_images, batch_finite = make(rows, generators)
        except torch.OutOfMemoryError:
            if microbatch == 1:
                raise
            microbatch //= 2
            continue
        images[start:stop] = batch_images[: stop - start]
        finite[start:stop] = batch_finite[: stop - start]
        used[start:stop] = microbatch
        start = stop
    return Generated(images, finite, used)


def draw_noise(generators: Sequence[torch.Generator], shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Standard normal noise float32 `[len(generators), *shape]`, one row from each CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
