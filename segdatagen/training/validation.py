"""Sources that a training is judged by, and which it must not have seen: a store of their own; and the loss on them.

It does not know networks, nor what else is judged.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.sources import SourceStore, arrays_of, open_store
from segdatagen.training.data import Batch, TrainingArrays, TrainingData, generator_for
from segdatagen.training.options import TrainingOptions
from segdatagen.training.pictures import spread_rows

MOST_MEASURED = 256
"""Sources of the loss on a validation store: spread over it, the same ones every time."""


class Losing(Protocol):
    """Data, and a loss on it: a kind of training."""

    @property
    def data(self) -> TrainingData:
        """What it is measured on."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the rows of a batch."""
        ...


def open_validation(uri: str, options: TrainingOptions, label_set: LabelSet) -> SourceStore:
    """A store to judge by. Raises UsageError where its labels are others, or it is that of the training.

    Stores are compared whole: a single source that both hold is not found.
    """
    store = open_store(uri)
    if store.label_set != label_set:
        raise UsageError(f"validation: {uri} has other labels than {options.sources}")
    if store.info.fingerprint == open_store(options.sources).info.fingerprint:
        raise UsageError(f"validation: {uri} holds the sources of the training: give a store of others")
    return store


def read_validation(uri: str, options: TrainingOptions, label_set: LabelSet) -> TrainingArrays:
    """The sources of a store to judge by, in memory. Raises UsageError as `open_validation` does."""
    return TrainingArrays(*arrays_of(open_validation(uri, options, label_set), options.geometry))


def mean_loss(kind: Losing, network: nn.Module) -> float:
    """Mean loss of a network over sources of a store, none of them mirrored.

    The chance of each follows from its place alone: the same timesteps and noise in every training. Row by row, since a
    step of the training may hold no more on its device.
    """
    device, total = next(network.parameters()).device, 0.0
    chosen = spread_rows(kind.data.num_sources, MOST_MEASURED)
    with torch.no_grad():
        for source in chosen.tolist():
            chance, common = (generator_for(0, "validation", scope, source) for scope in ("row", "step"))
            batch = Batch(kind.data, device, common, [chance], np.array([source]), np.zeros(1, np.bool_))
            total += float(kind.loss(network, batch))
    return total / len(chosen)
