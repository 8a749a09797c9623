"""What a training reads, a data set in memory as one form of it, and the batch of any step.

Order and randomness have no state: rows, flips and noise of a step follow from (seed, step, row) alone, so that a
resumed training, and one on more workers, sees what an uninterrupted one sees. Knows nothing of networks.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.records import derive_seed


class TrainingData(Protocol):
    """N sources at the size of a training: all of them in memory, or read from their store where they are asked for."""

    @property
    def label_set(self) -> LabelSet:
        """The classes of the masks."""
        ...

    @property
    def captions(self) -> tuple[str | None, ...]:
        """N captions."""
        ...

    @property
    def num_sources(self) -> int:
        """N."""
        ...

    @property
    def class_pixels(self) -> np.ndarray:
        """Pixels of every source by class: int64 `[N, C]`."""
        ...

    def images_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images of some sources, a copy: uint8 `[n, H, W, 3]` RGB."""
        ...

    def channels_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks of some sources, a copy: int16 `[n, H, W]`, below 0: ignored."""
        ...

    def fingerprint(self, with_captions: bool = False) -> str:
        """32 hex digits of images, masks, label set and, for who reads them, captions."""
        ...


@dataclass(frozen=True)
class TrainingArrays:
    """Images uint8 `[N, H, W, 3]` RGB, mask channels int16 `[N, H, W]` (below 0: ignored), label set and captions."""

    images: np.ndarray
    channels: np.ndarray
    label_set: LabelSet
    captions: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if not len(self.images):
            raise UsageError("the source store holds no images: there is nothing to train on")
        if self.images.shape[:3] != self.channels.shape:
            raise UsageError(f"images {self.images.shape} and masks {self.channels.shape} do not belong together")
        if len(self.captions) != len(self.images):
            raise UsageError(f"{len(self.captions)} captions do not belong to {len(self.images)} images")

    def first(self, most: int) -> "TrainingArrays":
        """The first sources, `most` at most."""
        return TrainingArrays(self.images[:most], self.channels[:most], self.label_set, self.captions[:most])

    @property
    def num_sources(self) -> int:
        """N."""
        return len(self.images)

    @functools.cached_property
    def class_pixels(self) -> np.ndarray:
        """Pixels of every source by class: int64 `[N, C]`."""
        num_classes = self.label_set.num_classes
        counts = [np.bincount(found[found >= 0], minlength=num_classes) for found in self.channels]
        return np.asarray(counts, np.int64)

    def images_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images of some sources, a copy: uint8 `[n, H, W, 3]`."""
        found: np.ndarray = self.images[np.asarray(rows)]
        return found

    def channels_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks of some sources, a copy: int16 `[n, H, W]`."""
        found: np.ndarray = self.channels[np.asarray(rows)]
        return found

    def fingerprint(self, with_captions: bool = False) -> str:
        """Hash of all pixels, the label set and, for who reads them, the captions: 32 hex digits."""
        digest = hashlib.blake2b(self.label_set.fingerprint().encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.channels).data)
        if with_captions:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Share:
    """Which worker this is, and of how many."""

    rank: int = 0
    num_workers: int = 1


@dataclass(frozen=True)
class Order:
    """What decides which images a step sees: each row is mirrored with probability 1/2 if `flip`."""

    seed: int
    batch_size: int
    flip: bool


@dataclass(frozen=True)
class Batch:
    """One worker's rows of a step: which sources, whether they are mirrored, and sources of chance.

    `sources` int64 `[B]`, `flipped` bool `[B]`. `chance` is the same on all workers of the step; `row_chance` holds one
    CPU generator per row. Pixels are read for who asks for them, onto `device`: others keep more of each source.
    """

    data: TrainingData
    device: torch.device
    chance: torch.Generator
    row_chance: list[torch.Generator]
    sources: np.ndarray
    flipped: np.ndarray

    @functools.cached_property
    def images(self) -> Tensor:
        """uint8 `[B, H, W, 3]`."""
        return torch.from_numpy(self._mirrored(self.data.images_of(self.sources))).to(self.device)

    @functools.cached_property
    def channels(self) -> Tensor:
        """int64 `[B, H, W]`, below 0: ignored."""
        return torch.from_numpy(self._mirrored(self.data.channels_of(self.sources))).to(self.device, torch.int64)

    def _mirrored(self, pixels: np.ndarray) -> np.ndarray:
        pixels[self.flipped] = pixels[self.flipped, :, ::-1]
        return pixels


def sources_of_step(num_sources: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Indices int64 `[batch_size]` of the images of a step: each epoch is one permutation, and no row is dropped."""
    places = step * batch_size + np.arange(batch_size)
    epochs = places // num_sources
    found = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        found[chosen] = _permutation(num_sources, seed, int(epoch))[places[chosen] % num_sources]
    return found


def batch_of_step(data: TrainingData, order: Order, step: int, share: Share, device: torch.device) -> Batch:
    """This worker's share of the batch of `step`, counted from 0. Raises `UsageError` unless the shares are equal."""
    seed, batch_size = order.seed, order.batch_size
    if batch_size % share.num_workers:
        raise UsageError(f"batch_size {batch_size} is not a multiple of num_workers {share.num_workers}")
    length = batch_size // share.num_workers
    rows = range(share.rank * length, (share.rank + 1) * length)
    sources = sources_of_step(data.num_sources, seed, step, batch_size)[rows.start : rows.stop]
    row_chance = [generator_for(seed, "row", step, row) for row in rows]
    flipped = np.zeros(length, np.bool_)
    if order.flip:
        flipped[:] = [float(torch.rand((), generator=generator)) < 0.5 for generator in row_chance]
    return Batch(data, device, generator_for(seed, "step", step), row_chance, sources, flipped)


def generator_for(seed: int, *scope: int | str) -> torch.Generator:
    """A CPU generator that depends on the seed and on what it is for, and on nothing else."""
    return torch.Generator().manual_seed(derive_seed(seed, "train", *scope))


@functools.lru_cache(maxsize=2)
def _permutation(num_sources: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_sources)
