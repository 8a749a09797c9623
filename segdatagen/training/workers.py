"""What the workers of a training tell each other, by torch.distributed; one that is alone is told what it says itself.

All of them have to call the same functions in the same order. It does not know what they train.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from segdatagen.training.data import Share


@dataclass(frozen=True)
class Workers:
    """The workers of a training, as one of them sees them."""

    share: Share
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.share.rank == 0

    def first_says(self, words: Any) -> Any:
        """The words of the first worker, numbers and texts; those of the others count for nothing."""
        if self.share.num_workers == 1:
            return words
        told = [words]
        distributed.broadcast_object_list(told, src=0, device=self.device)
        return told[0]

    def all_say(self, words: Any) -> list[Any]:
        """The words of all workers, in their order."""
        if self.share.num_workers == 1:
            return [words]
        told: list[Any] = [None] * self.share.num_workers
        distributed.all_gather_object(told, words)
        return told

    def take_from_first(self, tensor: Tensor) -> None:
        """Fill a tensor, whatever its memory format, with the numbers that the first worker's has."""
        if self.share.num_workers == 1:
            return
        told = tensor.contiguous()
        distributed.broadcast(told, src=0)
        tensor.copy_(told)

    def mean(self, figures: Tensor) -> Tensor:
        """The mean of tensors of one shape over the workers."""
        if self.share.num_workers == 1:
            return figures
        distributed.all_reduce(figures)
        return figures / self.share.num_workers
