"""A device that holds so many rows and no more: what does not fit runs out of memory, and is counted."""

from typing import Any

import torch
from torch import nn


def hold(network: nn.Module, most: int) -> list[int]:
    """From now on `network` takes no batch of more than `most` rows; the sizes of those that it refused."""
    refused: list[int] = []

    def look(_: nn.Module, arguments: Any) -> None:
        if len(arguments[0]) > most:
            refused.append(len(arguments[0]))
            raise torch.OutOfMemoryError("too large")

    network.register_forward_pre_hook(look)
    return refused
