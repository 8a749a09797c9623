"""The generator of Chan et al. (2022), "Learning to generate line drawings that convey geometry and semantics".

Layers are named as in the public annotators' `sk_model.pth` (fine) and `sk_model2.pth` (coarse), 4,290,945 parameters.
It does not know where weights lie.
"""

from collections.abc import Iterable

from torch import Tensor, nn

WIDTHS = (64, 128, 256)
NUM_BLOCKS = 3


class LineArt(nn.Module):
    """White lines on black: RGB levels 0 to 255 `[B, 3, H, W]` to levels `[B, 1, H, W]`; sides are multiples of 4.

    Statistics of each picture as a whole normalise it, so the rest of a batch has no influence, and padding a little.
    """

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), *_normalised(nn.Conv2d(3, first, 7)))
        self.model1 = _chain(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((first, second), (second, third)))
        self.model2 = nn.Sequential(*(_Residual(third) for _ in range(NUM_BLOCKS)))
        self.model3 = _chain(
            nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1)
            for a, b in ((third, second), (second, first))
        )
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(first, 1, 7), nn.Sigmoid())

    def forward(self, levels: Tensor) -> Tensor:
        """The generator draws black on white, which adapters and ControlNets expect inverted."""
        hidden = self.model3(self.model2(self.model1(self.model0(levels / 255))))
        drawn: Tensor = self.model4(hidden)
        return 255 - (drawn * 255).floor()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3) for _ in range(2))
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), *_normalised(first), nn.ReflectionPad2d(1), second, nn.InstanceNorm2d(width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        changed: Tensor = self.conv_block(hidden)
        return hidden + changed


def _normalised(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return layer, nn.InstanceNorm2d(layer.out_channels), nn.ReLU()


def _chain(layers: Iterable[nn.Conv2d | nn.ConvTranspose2d]) -> nn.Sequential:
    return nn.Sequential(*(part for layer in layers for part in _normalised(layer)))
