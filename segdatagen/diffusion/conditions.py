"""What a latent diffusion model is told of each source, computed once and shared by all samples of that source.

Every tensor's first dimension is the source; `at` picks a row per sample, for all of them in the same way. Nothing here
knows how conditions are computed from pictures or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import ControlNetModel, T2IAdapter
from torch import Tensor, nn

from segdatagen.diffusion.latent_options import adapter_works, controlnet_works


@dataclass(frozen=True)
class TextCondition:
    """Embeddings of prompts: `hidden` `[S, L, D]` of every token, `pooled` `[S, P]` of the whole (SDXL)."""

    hidden: Tensor
    pooled: Tensor | None

    def at(self, rows: Tensor) -> TextCondition:
        """The embeddings of `rows`, int64 `[B]`."""
        return TextCondition(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    def with_zeros(self, rows: Tensor) -> TextCondition:
        """The embeddings with zeros in place of those of `rows`, bool `[S]`."""
        pooled = None if self.pooled is None else self.pooled.masked_fill(rows[:, None], 0.0)
        return TextCondition(self.hidden.masked_fill(rows[:, None, None], 0.0), pooled)


@dataclass(frozen=True)
class ControlCondition:
    """A ControlNet with its embedded pictures `[S, C, h, w]`, at work from `start` to `end` of the steps, in [0, 1].

    A `guided` one does not see the prediction without the prompt.
    """

    network: ControlNetModel
    embedded: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guided: bool = False

    def is_at_work(self, step: int, num_steps: int) -> bool:
        """Whether step number `step` of `num_steps` lies in the interval as a whole."""
        return self.scale != 0 and controlnet_works(step, num_steps, self.start, self.end)

    def at(self, rows: Tensor) -> ControlCondition:
        """The same with the pictures of `rows`, int64 `[B]`."""
        return replace(self, embedded=self.embedded[rows])


@dataclass(frozen=True)
class AdapterCondition:
    """Weighted features of a T2I-Adapter, a `[S, c, h, w]` per scale, at work for the first `until` of the steps.

    Those of a `guided` one are not added to the prediction without the prompt.
    """

    features: Sequence[Tensor]
    until: float = 1.0
    guided: bool = False

    def is_at_work(self, step: int, num_steps: int) -> bool:
        """Whether the features are added at step number `step` of `num_steps`."""
        return adapter_works(step, num_steps, self.until)

    def at(self, rows: Tensor) -> AdapterCondition:
        """The same with the features of `rows`, int64 `[B]`."""
        return replace(self, features=[feature[rows] for feature in self.features])


@dataclass(frozen=True)
class InpaintCondition:
    """Latents of the real images `[S, 4, h, w]`, and where they are drawn anew: 1 in `redrawn` `[S, 1, h, w]`, else 0.

    `masked` are the latents of the images without what is drawn anew, for networks that were trained to inpaint.
    """

    latents: Tensor
    redrawn: Tensor
    masked: Tensor | None = None

    def at(self, rows: Tensor) -> InpaintCondition:
        """Those of `rows`, int64 `[B]`."""
        return InpaintCondition(
            self.latents[rows], self.redrawn[rows], None if self.masked is None else self.masked[rows]
        )


@dataclass(frozen=True)
class Conditions:
    """All that is told of S sources. `size` is that of the latents, height and width."""

    size: tuple[int, int]
    text: TextCondition
    negative: TextCondition
    time_ids: Tensor | None
    """SDXL's size conditioning `[S, 6]`: original height and width, top, left, target height and width."""
    controls: Sequence[ControlCondition] = ()
    adapters: Sequence[AdapterCondition] = ()
    inpaint: InpaintCondition | None = None

    def at_work(self, step: int, num_steps: int) -> tuple[bool, ...]:
        """Whether each control and each adapter is at work at step number `step` of `num_steps`."""
        conditions: list[ControlCondition | AdapterCondition] = [*self.controls, *self.adapters]
        return tuple(one.is_at_work(step, num_steps) for one in conditions)


class ControlEncoder:
    """A ControlNet taken apart: the layers that see the picture run once per source, the others at every step."""

    def __init__(self, network: ControlNetModel) -> None:
        """Takes the first layers off `network`, which is of no use without this object from then on."""
        self.network = network
        self._embedding: nn.Module = network.controlnet_cond_embedding
        self._is_bgr = network.config.controlnet_conditioning_channel_order == "bgr"
        network.controlnet_cond_embedding = nn.Identity()
        network.register_to_config(controlnet_conditioning_channel_order="rgb")

    @torch.inference_mode()
    def encode(
        self, pictures: Tensor, scale: float = 1.0, start: float = 0.0, end: float = 1.0, guided: bool = False
    ) -> ControlCondition:
        """The condition of RGB pictures `[S, 3, H, W]` in [0, 1], of the size of the images, each by itself."""
        pictures = pictures.to(self.network.device, self.network.dtype)
        pictures = pictures.flip(1) if self._is_bgr else pictures
        embedded = torch.cat([self._embedding(picture) for picture in torch.split(pictures, 1)])
        return ControlCondition(self.network, embedded, scale, start, end, guided)


@torch.inference_mode()
def encode_adapter(
    adapter: T2IAdapter, pictures: Tensor, weight: float = 1.0, until: float = 1.0, guided: bool = False
) -> AdapterCondition:
    """The condition of a T2I-Adapter for its pictures `[S, 3, H, W]` in [0, 1], of the images' size, each by itself.

    Features of several adapters add up: Mou et al. (2023), "T2I-Adapter", section 3.4.
    """
    pictures = pictures.to(adapter.device, adapter.dtype)
    scales = zip(*(adapter(picture) for picture in torch.split(pictures, 1)), strict=True)
    return AdapterCondition([weight * torch.cat(features) for features in scales], until, guided)
