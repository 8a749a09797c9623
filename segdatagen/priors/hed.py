"""Holistically nested edges (Xie and Tu, 2015), as the public annotators' `ControlNetHED.pth` draws them.

VGG-16 with a projection per block, layers named as there, 14,716,168 parameters. It does not know where weights lie.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
"""Channels in and out, and convolutions, of each block; from the second on at half the size of the one before."""


class Hed(nn.Module):
    """Soft edges, white: RGB levels 0 to 255 `[B, 3, H, W]` to levels `[B, 1, H, W]`; sides are multiples of 16."""

    multiple = 16

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.block1, self.block2, self.block3, self.block4, self.block5 = (_Block(*shape) for shape in BLOCKS)

    def forward(self, levels: Tensor) -> Tensor:
        """The probability of the mean of all projections, each brought to the size of the picture bilinearly."""
        hidden, found = levels - self.norm, list[Tensor]()
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5):
            hidden = functional.max_pool2d(hidden, 2) if found else hidden
            for layer in block.convs:
                hidden = functional.relu(layer(hidden))
            found.append(functional.interpolate(block.projection(hidden), levels.shape[2:], mode="bilinear"))
        return (torch.stack(found).mean(dim=0).sigmoid() * 255).floor()


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        inputs = (channels, *(width for _ in range(count - 1)))
        self.convs = nn.Sequential(*(nn.Conv2d(before, width, 3, padding=1) for before in inputs))
        self.projection = nn.Conv2d(width, 1, 1)
