"""PiDiNet (Su et al., 2021), "Pixel difference networks for efficient edge detection": the sketch of the annotators.

Layers are named as in `table5_pidinet.pth`, 710,149 parameters. A pixel difference convolution is linear in its
weights, so it is a plain convolution with other weights, and `plain_weights` makes them. It does not know where
weights lie.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, DILATED_WIDTH, ATTENTION_WIDTH = 60, 24, 4
DILATIONS = (5, 7, 9, 11)
STAGES = ((1, 3, WIDTH, WIDTH), (2, 4, WIDTH, 2 * WIDTH), (3, 4, 2 * WIDTH, 4 * WIDTH), (4, 4, 4 * WIDTH, 4 * WIDTH))
"""Number, blocks, channels in and channels out."""
KINDS = ("cd", "ad", "rd", "cv")
"""Configuration `carv4`: central, angular and radial differences, and a plain convolution, in turns."""
ANGULAR_BEFORE = (3, 0, 1, 6, 4, 2, 7, 8, 5)
"""For each place of a 3 x 3 kernel the one before it, clockwise around the centre."""
OUTER = (0, 2, 4, 10, 14, 20, 22, 24)
INNER = (6, 7, 8, 11, 13, 16, 17, 18)
"""Places of a 5 x 5 kernel whose pixels a radial difference compares, outside with inside."""


class PiDiNet(nn.Module):
    """Edges, white on black: RGB levels 0 to 255 `[B, 3, H, W]` to levels `[B, 1, H, W]`; sides are multiples of 8.

    All convolutions are plain. `threshold`: the probability above which a pixel is white, others black; None: shades.
    """

    multiple = 8

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self._threshold = threshold
        self.init_block = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        for stage, count, before, width in STAGES:
            for number in range(1, count + 1):
                radial = _kind(stage, number) == "rd"
                inputs = before if number == 1 else width
                self.add_module(f"block{stage}_{number}", _Block(inputs, width, radial, halves=stage > 1 == number))
        widths = [width for *_, width in STAGES]
        self.dilations = nn.ModuleList(_Dilated(width) for width in widths)
        self.attentions = nn.ModuleList(_Attention() for _ in widths)
        self.conv_reduces = nn.ModuleList(_Reduce() for _ in widths)
        self.classifier = nn.Conv2d(len(widths), 1, 1)

    def forward(self, levels: Tensor) -> Tensor:
        """The annotators show the network blue first, which this repeats."""
        hidden, found = self.init_block(levels.flip(1) / 255), []
        parts = zip(STAGES, self.dilations, self.attentions, self.conv_reduces, strict=True)
        for (stage, count, *_), dilated, attention, reduce in parts:
            for number in range(1, count + 1):
                hidden = self.get_submodule(f"block{stage}_{number}")(hidden)
            edges = reduce(attention(dilated(hidden)))
            found.append(functional.interpolate(edges, levels.shape[2:], mode="bilinear"))
        drawn: Tensor = self.classifier(torch.cat(found, dim=1)).sigmoid()
        if self._threshold is not None:
            drawn = (drawn > self._threshold).float()
        return (drawn * 255).floor()


def plain_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of plain convolutions for those of pixel differences; those of plain ones stay as they are.

    Radial differences tell the two apart: as a plain convolution they are 5 x 5.
    """
    kinds = {"init_block.weight": "cd"}
    for stage, count, *_ in STAGES:
        kinds |= {f"block{stage}_{number}.conv1.weight": _kind(stage, number) for number in range(1, count + 1)}
    if any(kinds.get(name) == "rd" and tensor.shape[2:] != (3, 3) for name, tensor in tensors.items()):
        return dict(tensors)
    return {
        name: _plain(tensor, kinds[name]) if name in kinds and tensor.shape[2:] == (3, 3) else tensor
        for name, tensor in tensors.items()
    }


def _plain(weights: Tensor, kind: str) -> Tensor:
    """Of a difference of pixels, each weight goes to the first pixel, and less to the second: section 3.1."""
    flat = weights.flatten(2)
    if kind == "cd":
        centre = torch.zeros_like(flat)
        centre[:, :, 4] = flat.sum(dim=2)
        return (flat - centre).view_as(weights)
    if kind == "ad":
        return (flat - flat[:, :, ANGULAR_BEFORE]).view_as(weights)
    if kind == "rd":
        wide = flat.new_zeros(*flat.shape[:2], 25)
        wide[:, :, OUTER] = flat[:, :, 1:]
        wide[:, :, INNER] = -flat[:, :, 1:]
        return wide.view(*flat.shape[:2], 5, 5)
    return weights


def _kind(stage: int, number: int) -> str:
    """The convolution at the beginning is the first of the first stage."""
    return KINDS[(number if stage == 1 else number - 1) % len(KINDS)]


class _Block(nn.Module):
    def __init__(self, before: int, width: int, radial: bool, halves: bool) -> None:
        super().__init__()
        self._halves = halves
        if halves:
            self.shortcut = nn.Conv2d(before, width, 1)
        size = 5 if radial else 3
        self.conv1 = nn.Conv2d(before, before, size, padding=size // 2, groups=before, bias=False)
        self.conv2 = nn.Conv2d(before, width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = functional.max_pool2d(hidden, 2) if self._halves else hidden
        changed: Tensor = self.conv2(functional.relu(self.conv1(hidden)))
        return changed + (self.shortcut(hidden) if self._halves else hidden)


class _Dilated(nn.Module):
    """Compact dilation convolution module, section 3.3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, DILATED_WIDTH, 1)
        for number, dilation in enumerate(DILATIONS, 1):
            layer = nn.Conv2d(DILATED_WIDTH, DILATED_WIDTH, 3, dilation=dilation, padding=dilation, bias=False)
            self.add_module(f"conv2_{number}", layer)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv1(functional.relu(hidden))
        first, *others = (self.get_submodule(f"conv2_{number}") for number in range(1, len(DILATIONS) + 1))
        summed: Tensor = first(hidden)
        for layer in others:
            summed = summed + layer(hidden)
        return summed


class _Attention(nn.Module):
    """Compact spatial attention module, section 3.3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(DILATED_WIDTH, ATTENTION_WIDTH, 1)
        self.conv2 = nn.Conv2d(ATTENTION_WIDTH, 1, 3, padding=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        weight: Tensor = self.conv2(self.conv1(functional.relu(hidden))).sigmoid()
        return hidden * weight


class _Reduce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DILATED_WIDTH, 1, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        edges: Tensor = self.conv(hidden)
        return edges
