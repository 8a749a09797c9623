"""The network of the mask-guided DDPM (paper 001): a pixel-space U-Net that is guided by one-hot masks.

The names of the layers are those of the authors' checkpoints, because users hold checkpoints: they are an interface.
This module knows tensors only; noise schedules, samplers and files are elsewhere.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every torch code base uses)
from torch import Tensor, nn

from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.errors import UsageError

SIZE_MULTIPLE = 8  # three halvings; the skip connections need them to be exact


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with group norm; the residual form ends in GELU, the plain form without activation."""

    def __init__(self, channels_in: int, channels_out: int, channels_middle: int | None = None, residual: bool = False):
        super().__init__()
        middle = channels_middle or channels_out
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels_in, middle, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, middle),
            nn.GELU(),
            nn.Conv2d(middle, channels_out, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` -> `[B, channels_out, H, W]`."""
        convolved: Tensor = self.double_conv(x)
        return F.gelu(x + convolved) if self.residual else convolved


class Down(nn.Module):
    """Halves the resolution, then adds the time embedding."""

    def __init__(self, channels_in: int, channels_out: int, time_embedding: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2),
            DoubleConv(channels_in, channels_in, residual=True),
            DoubleConv(channels_in, channels_out),
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_embedding, channels_out))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`[B, channels_in, H, W]`, `[B, time_embedding]` -> `[B, channels_out, H/2, W/2]`."""
        halved: Tensor = self.maxpool_conv(x)
        shift: Tensor = self.emb_layer(time)
        return halved + shift[:, :, None, None]


class Up(nn.Module):
    """Doubles the resolution, joins the skip connection, then adds the time embedding."""

    def __init__(self, channels_in: int, channels_out: int, time_embedding: int):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(
            DoubleConv(channels_in, channels_in, residual=True),
            DoubleConv(channels_in, channels_out, channels_in // 2),
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_embedding, channels_out))

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        """`x [B, C, H/2, W/2]`, `skip [B, channels_in - C, H, W]` -> `[B, channels_out, H, W]`."""
        joined: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        shift: Tensor = self.emb_layer(time)
        return joined + shift[:, :, None, None]


class SelfAttention(nn.Module):
    """Four-head attention over all pixels, then a two-layer feed-forward, both residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, num_heads=4, batch_first=True)
        self.ln = nn.LayerNorm([channels])
        self.ff_self = nn.Sequential(
            nn.LayerNorm([channels]),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.ln(tokens)
        attended: Tensor = tokens + self.mha(normed, normed, normed, need_weights=False)[0]
        attended = attended + self.ff_self(attended)
        return attended.transpose(1, 2).reshape(batch, channels, height, width)


class MaskUNet(nn.Module):
    """Predicts the noise in an image, guided by a one-hot mask (paper 001, section III-B).

    `mask_conv(one_hot(mask))` does not depend on the noise or on the step: compute it once per mask and pass it as
    `mask_features`. Without a mask ("null" of classifier-free guidance) `mask_conv` is skipped; a row of zeros in
    `mask_features` is the same, which is how a guidance pair fits in one forward pass.
    """

    def __init__(self, config: MaskUNetConfig):
        super().__init__()
        self.config = config
        hidden, time = config.hidden, config.time_embedding
        self.mask_conv = DoubleConv(config.num_classes, hidden)
        self.inc = DoubleConv(3, hidden)
        self.down1 = Down(hidden, hidden * 2, time)
        self.down2 = Down(hidden * 2, hidden * 4, time)
        self.down3 = Down(hidden * 4, hidden * 4, time)
        self.sa3: nn.Module = SelfAttention(hidden * 4) if config.attention else nn.Identity()
        self.bot1 = DoubleConv(hidden * 4, hidden * 8)
        self.bot2 = DoubleConv(hidden * 8, hidden * 8)
        self.bot3 = DoubleConv(hidden * 8, hidden * 4)
        self.up1 = Up(hidden * 8, hidden * 2, time)
        self.sa4: nn.Module = SelfAttention(hidden * 2) if config.attention else nn.Identity()
        self.up2 = Up(hidden * 4, hidden, time)
        self.up3 = Up(hidden * 2, hidden, time)
        self.outc = nn.Conv2d(hidden, 3, kernel_size=1)

    def forward(self, x: Tensor, t: Tensor, mask_features: Tensor | None = None) -> Tensor:
        """Predicted noise `[B, 3, H, W]` for images `x [B, 3, H, W]` in about [-1, 1] at steps `t [B]` (integers).

        `mask_features [B, hidden, H, W]` comes from `mask_conv`; `None` is the unconditional prediction.
        Raises `UsageError` unless height and width are divisible by 8.
        """
        check_size(x.shape[-2], x.shape[-1])
        time = time_embedding(t, self.config.time_embedding).to(x.dtype)
        x1 = self.inc(x)
        if mask_features is not None:
            x1 = x1 + mask_features
        x2 = self.down1(x1, time)
        x3 = self.down2(x2, time)
        x4 = self.sa3(self.down3(x3, time))
        x4 = self.bot3(self.bot2(self.bot1(x4)))
        up = self.sa4(self.up1(x4, x3, time))
        up = self.up2(up, x2, time)
        up = self.up3(up, x1, time)
        predicted: Tensor = self.outc(up)
        return predicted


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of `t / 10000^(2k / channels)`: float32 `[B, channels]` for steps `t [B]`."""
    exponents = torch.arange(0, channels, 2, device=t.device, dtype=torch.float32) / channels
    angles = t[:, None].float() / 10000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def one_hot(channels: Tensor, num_classes: int) -> Tensor:
    """Mask channels, integers `[B, H, W]` -> float32 `[B, num_classes, H, W]`; a channel below 0 is all zeros.

    Raises `UsageError` where a channel is not below `num_classes`.
    """
    largest = int(channels.max())
    if largest >= num_classes:
        raise UsageError(
            f"the mask holds channel {largest} but the model knows {num_classes} classes: use weights of this label set"
        )
    hot = F.one_hot(channels.long().clamp(min=0), num_classes) * (channels >= 0)[..., None]
    return hot.permute(0, 3, 1, 2).float().contiguous()


def check_size(height: int, width: int) -> None:
    """Raise `UsageError` unless both sides are positive multiples of 8."""
    if height < SIZE_MULTIPLE or width < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise UsageError(
            f"the mask-guided DDPM cannot work at {width}x{height}: set geometry.size to multiples of {SIZE_MULTIPLE}"
        )
