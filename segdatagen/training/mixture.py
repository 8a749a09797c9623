"""Synthetic samples among real ones: SegGen's p_aug (section 3.4, the strategy of synthetic data augmentation).

Whether a row of a batch is replaced, and by which sample, follows from the row's own chance: a resumed training and one
on more workers replace the same rows. It does not know networks, nor how samples were made.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.labels import LabelSet
from segdatagen.reader import read_published, read_sources_of
from segdatagen.training.data import Batch


class SyntheticOptions(BaseModel):
    """Published runs, and how often one of their samples stands in place of a real image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: tuple[str, ...] = Field(min_length=1, description="URIs of published runs")
    images: Literal["samples", "sources"] = Field(
        default="samples", description="or the source of each: what drawing real images as often gives, for comparison"
    )
    p_aug: float = Field(default=0.6, ge=0, le=1, description="probability per row; the default is SegGen's on ADE20K")

    @field_validator("runs")
    @classmethod
    def _each_once(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        for uri in runs:
            if runs.count(uri) > 1:
                raise ValueError(f"{uri} stands twice")
        return runs


class Pixels(NamedTuple):
    """Images uint8 `[B, H, W, 3]` and channels int64 `[B, H, W]` (below 0: ignored) that a step learns from."""

    images: Tensor
    channels: Tensor


@dataclass(frozen=True)
class Mixture:
    """Samples of published runs, images uint8 `[N, H, W, 3]` and channels int16 `[N, H, W]` (below 0: ignored)."""

    options: SyntheticOptions
    images: np.ndarray
    channels: np.ndarray

    def fingerprint(self) -> str:
        """Hash of all pixels: 32 hex digits."""
        digest = hashlib.blake2b(self.images.data, digest_size=16)
        digest.update(self.channels.data)
        return digest.hexdigest()

    def facts(self) -> dict[str, str]:
        """What a resumed training must have in common: the samples, and how often they are seen."""
        return {"synthetic data": self.fingerprint(), "p_aug": repr(self.options.p_aug)}

    def in_words(self) -> str:
        """What a model card says of it."""
        runs = ", ".join(f"`{uri}`" for uri in self.options.runs)
        what = "samples" if self.options.images == "samples" else "sources of the samples"
        return f"p_aug {self.options.p_aug:g}: {len(self.images):,} {what} of {runs}, `{self.fingerprint()}`"

    def mixed(self, batch: Batch) -> Pixels:
        """The pixels of a batch, each row replaced with the probability `p_aug`, by any sample, mirrored as the row."""
        draws = [float(torch.rand((), generator=chance)) for chance in batch.row_chance]
        replaced = [row for row, draw in enumerate(draws) if draw < self.options.p_aug]
        if not replaced:
            return Pixels(batch.images, batch.channels)
        samples = [int(torch.randint(len(self.images), (), generator=batch.row_chance[row])) for row in replaced]
        images, channels = self.images[samples], self.channels[samples]
        flipped = batch.flipped[replaced]
        images[flipped] = images[flipped, :, ::-1]
        channels[flipped] = channels[flipped, :, ::-1]
        mixed_images, mixed_channels = batch.images.clone(), batch.channels.clone()
        mixed_images[replaced] = torch.from_numpy(images).to(mixed_images.device)
        mixed_channels[replaced] = torch.from_numpy(channels).to(mixed_channels)
        return Pixels(mixed_images, mixed_channels)


def read_mixture(options: SyntheticOptions, geometry: Geometry, label_set: LabelSet) -> Mixture:
    """All samples of the runs, or the source of each, in the order of the runs and of the samples' ids.

    Raises UsageError where a run is not published, of another label set, or of a size that does not fit.
    """
    read = read_published if options.images == "samples" else read_sources_of
    images, channels = [], []
    for uri in options.runs:
        found_images, found_channels, labels = read(uri, geometry)
        if labels != label_set:
            raise UsageError(f"synthetic: {uri} has other labels than the sources: give runs of their label set")
        images.append(found_images)
        channels.append(found_channels)
    return Mixture(options, np.concatenate(images), np.concatenate(channels))
