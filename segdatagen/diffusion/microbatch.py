"""Any number of samples in batches of one shape: the last one padded, smaller ones where memory runs out.

A result is bitwise the same only at the same batch shape, so that a sample must not depend on how many it is made with.
This module does not know what is made.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segdatagen.device_errors import is_out_of_memory

Make = Callable[[np.ndarray, list[torch.Generator]], tuple[np.ndarray, np.ndarray]]
"""Rows int64 `[B]`, a CPU generator for each -> images uint8 `[B, H, W, 3]`, whether each is finite bool `[B]`."""


@dataclass(frozen=True)
class Generated:
    """Images uint8 `[N, H, W, 3]`; whether each was free of NaN and infinity `[N]`; the batch it was made in `[N]`."""

    images: np.ndarray
    finite: np.ndarray
    microbatch: np.ndarray


@dataclass(frozen=True)
class Made:
    """The samples from `start` on: images uint8 `[n, H, W, 3]`, whether each is finite `[n]`, and the batch shape."""

    start: int
    images: np.ndarray
    finite: np.ndarray
    microbatch: int


def microbatches(make: Make, seeds: Sequence[int], microbatch: int) -> Iterator[Made]:
    """One image for every seed, in batches of exactly `microbatch`, as they are made.

    The last batch is padded with copies of its last row. When memory runs out the batch is halved, the seeds stay, and
    `Made.microbatch` tells it. Raises the device's error when a batch of one does not fit.
    """
    start = 0
    while start < len(seeds):
        stop = min(start + microbatch, len(seeds))
        rows = np.minimum(np.arange(start, start + microbatch), stop - 1)
        generators = [torch.Generator().manual_seed(int(seeds[row])) for row in rows]
        try:
            images, finite = make(rows, generators)
        except RuntimeError as error:
            if microbatch == 1 or not is_out_of_memory(error):
                raise
            microbatch //= 2
            continue
        yield Made(start, images[: stop - start], finite[: stop - start], microbatch)
        start = stop


def together(batches: Iterable[Made], size: tuple[int, int]) -> Generated:
    """All samples of `batches` as one, of images of `size` (height, width)."""
    made = list(batches)
    if not made:
        return Generated(np.zeros((0, *size, 3), np.uint8), np.zeros(0, bool), np.zeros(0, np.int32))
    return Generated(
        images=np.concatenate([batch.images for batch in made]),
        finite=np.concatenate([batch.finite for batch in made]),
        microbatch=np.repeat([batch.microbatch for batch in made], [len(b.images) for b in made]).astype(np.int32),
    )


def draw_noise(generators: Sequence[torch.Generator], shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Standard normal noise float32 `[len(generators), *shape]`, one row from each CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
