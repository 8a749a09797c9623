"""What a kind of training has to say, and what a training says of itself.

A kind knows its network and its loss; it does not know steps, checkpoints, devices or how many workers there are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.options import TrainingOptions


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is: steps done and in all, the mean loss since the last report, and steps per second.

    `restarts`: how often workers of Ray died in this command, and were started again. `passed_over`: steps of newer
    checkpoints than the one it went on from, which could not be read.
    """

    step: int
    steps: int
    loss: float
    steps_per_second: float
    images_per_second: float = 0.0
    restarts: int = 0
    passed_over: tuple[int, ...] = ()


Progress = Callable[[TrainingProgress], None]
"""Called every few steps, by one worker."""


@dataclass(frozen=True)
class Summary:
    """What weights say of their training: the command that made them, its length, and the smoothed last loss."""

    command: str
    data_fingerprint: str
    num_images: int
    steps: int
    seconds: float
    loss: float
    speed: str = "not measured"
    """Of the last steps: images per second, share of the device's peak where that is known, memory."""
    num_workers: int = 1
    precision: str = "fp32"
    validation_loss: float | None = None
    """At the last step, of a kind that measures it."""

    @property
    def validation(self) -> dict[str, float]:
        """The validation loss by its name, where there is one."""
        return {} if self.validation_loss is None else {"validation_loss": self.validation_loss}


@dataclass(frozen=True)
class TrainingResult:
    """How one command ended. `weights` is the URI of the finished weights, None where `max_hours` came first.

    `passed_over` as in `TrainingProgress`. `first_step`: that of the checkpoint it went on from, else 0.
    """

    out: str
    step: int
    steps: int
    loss: float
    seconds: float
    weights: str | None
    figures: Mapping[str, float] = field(default_factory=dict)
    restarts: int = 0
    passed_over: tuple[int, ...] = ()
    first_step: int = 0


@dataclass(frozen=True)
class Saved:
    """Finished weights: their URI, and what was measured of them, by name."""

    uri: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Kind(Protocol):
    """One kind of training, with its options and its data. See `mask_ddpm` for an example."""

    name: str
    data: TrainingData
    reads_captions: bool
    """Whether other captions make it another training."""
    frozen: Mapping[str, str]
    """What it uses and does not train, by name: fingerprints of networks and of synthetic data. In no checkpoint."""

    @property
    def options(self) -> TrainingOptions:
        """The options, with those that only this kind knows."""
        ...

    def build(self) -> nn.Module:
        """A new network, on the CPU. The caller has seeded torch."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a worker's rows: a scalar with a gradient. Draws chance from the batch alone."""
        ...

    def picture(self, average: nn.Module) -> np.ndarray:
        """What the network makes by now, uint8 `[H, W, 3]`; the same chance every time."""
        ...

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put the weights of a finished training, with their model card."""
        ...


@runtime_checkable
class Validated(Protocol):
    """A kind whose loss can be measured on sources that it does not learn from."""

    def validation_loss(self, average: nn.Module) -> float | None:
        """The loss on the store `validation` of the options, with the same chance every time; None without one."""
        ...
