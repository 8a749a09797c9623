"""The YAML of an experiment, and the trainings that it stands for.

Every training has the same options but for its real images, its synthetic ones and its seed. What lies where an option
points to is not known here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segdatagen.config_files import describe, shown
from segdatagen.job import A_NAME, NAME
from segdatagen.storage import Folder
from segdatagen.training.mixture import SyntheticOptions
from segdatagen.training.segmenter import SegmenterTrainingOptions

ALONE = "alone"
"""Name of the trainings on real images alone, which every set of real images has."""
CELLS_NAME = "cells"
NOT_SHARED = frozenset({"sources", "validation", "out", "seed", "synthetic", "num_workers", "max_hours"})
"""Options of a training that an experiment sets for each, or that would not make its trainings alike."""
EXECUTION = frozenset({"checkpoint_every", "keep_checkpoints", "sample_every", "use_gpu", "torch_threads"})
"""Options that decide where and how a training runs, not what is trained."""


class RealOptions(BaseModel):
    """A set of real images, and the synthetic data that it is trained with, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: str = Field(min_length=1, description="URI of a source store")
    synthetic: dict[str, SyntheticOptions] = {}

    @field_validator("synthetic")
    @classmethod
    def _named(cls, synthetic: dict[str, SyntheticOptions]) -> dict[str, SyntheticOptions]:
        _require_names(synthetic)
        if ALONE in synthetic:
            raise ValueError(f"{ALONE!r} is the name of the real images without any: choose another")
        return synthetic


class ExperimentOptions(BaseModel):
    """The YAML of `segdatagen experiment`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str = Field(min_length=1, description="URI of the folder for trainings and results")
    test: str = Field(min_length=1, description="URI of a source store of real images that nothing was trained on")
    rare: tuple[str, ...] = Field(min_length=1, description="names of the classes whose mean IoU stands apart")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    training: dict[str, Any] = Field(description="options of `train segmenter` that all trainings share")
    real: dict[str, RealOptions] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if seed < 0 or seeds.count(seed) > 1:
                raise ValueError(f"must be different numbers from 0 on, not {shown(list(seeds))}")
        return seeds

    @field_validator("real")
    @classmethod
    def _named(cls, real: dict[str, RealOptions]) -> dict[str, RealOptions]:
        _require_names(real)
        return real

    @field_validator("training")
    @classmethod
    def _is_a_training(cls, training: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(training.keys() & NOT_SHARED):
            raise ValueError(f"{name}: is not for all trainings of an experiment alike: leave it out")
        try:
            folders = {name: name for name in ("sources", "validation", "out")}  # any that differ
            SegmenterTrainingOptions.model_validate(training | folders)
        except ValidationError as error:
            raise ValueError(describe(error, SegmenterTrainingOptions)) from error
        return training

    def cells(self) -> Iterator["Cell"]:
        """Every training, all of the first seed first."""
        for seed in self.seeds:
            for real, options in self.real.items():
                for synthetic in (ALONE, *options.synthetic):
                    yield Cell(real, synthetic, seed, self._training(real, synthetic, seed))

    def shared(self) -> dict[str, Any]:
        """The options of the trainings that decide what they all are, defaults included, as JSON has them."""
        cell = next(self.cells())
        return cell.options.model_dump(mode="json", exclude=set(NOT_SHARED | EXECUTION))

    def _training(self, real: str, synthetic: str, seed: int) -> SegmenterTrainingOptions:
        """The options of one training. It validates on the test store: once, behind its last step."""
        name = "/".join((CELLS_NAME, real, synthetic, f"seed-{seed}"))
        mine = {
            "sources": self.real[real].sources,
            "validation": self.test,
            "out": Folder(self.out).uri_of(name),
            "seed": seed,
            "synthetic": self.real[real].synthetic.get(synthetic),
        }
        return SegmenterTrainingOptions.model_validate(self.training | mine)


@dataclass(frozen=True)
class Cell:
    """One training of an experiment: names of its real and its synthetic data, its seed, all its options."""

    real: str
    synthetic: str
    seed: int
    options: SegmenterTrainingOptions

    @property
    def name(self) -> str:
        """What a reader calls it."""
        return f"{self.real} {self.synthetic} seed {self.seed}"


def _require_names(names: Iterable[str]) -> None:
    """They are names of folders, too."""
    for name in names:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"names must be {A_NAME}, not {shown(name)}")
