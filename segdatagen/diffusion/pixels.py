"""What networks draw as the bytes that images are made of.

It knows no network and no file format, only the range [-1, 1] in which networks draw.
"""

import torch
from torch import Tensor


def to_levels(x: Tensor) -> Tensor:
    """Images `[B, 3, H, W]`, clamped to [-1, 1], -> uint8 `[B, H, W, 3]` on the same device; NaN becomes 0."""
    levels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().nan_to_num(nan=0.0)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
