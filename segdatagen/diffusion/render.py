"""Images from a latent diffusion model: any number of samples of some sources, in microbatches of one shape.

What is told of a source is computed once, whatever number of samples it has. It does not know where sources come from,
nor what becomes of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segdatagen.diffusion import vae
from segdatagen.diffusion.conditions import Conditions, InpaintCondition
from segdatagen.diffusion.denoise import denoise
from segdatagen.diffusion.latent_models import LatentModels
from segdatagen.diffusion.latent_options import LatentSamplerOptions
from segdatagen.diffusion.microbatch import Generated, Made, microbatches, together


@dataclass(frozen=True)
class Wanted:
    """N samples: the source of each, a row of the conditions, and its seed."""

    rows: Sequence[int]
    seeds: Sequence[int]


def describe(
    models: LatentModels, prompts: Sequence[str], negatives: Sequence[str | None], size: tuple[int, int]
) -> Conditions:
    """The conditions of S sources: text alone, for images of `size` (height, width), multiples of the VAE's factor."""
    device = models.network.unet.device
    height, width = size
    factor = models.shape.vae_factor
    text = models.text.encode(prompts)
    ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
    return Conditions(
        size=(height // factor, width // factor),
        text=text,
        negative=models.text.encode_negative(negatives, text),
        time_ids=ids.expand(len(prompts), -1) if models.shape.family == "sdxl" else None,
    )


def inpainting(models: LatentModels, images: np.ndarray, redrawn: np.ndarray) -> InpaintCondition:
    """What an inpainting needs of images uint8 `[S, H, W, 3]` and of where to draw anew, bool `[S, H, W]`.

    A latent is drawn anew where any of its pixels is, so that thin things are, too; whoever pastes the result keeps the
    other pixels. (diffusers looks at the first pixel of each latent, and gives back what misses it.)
    """
    device = models.network.unet.device
    pixels = to_pixels(images).to(device) * 2 - 1
    where = torch.from_numpy(redrawn)[:, None].float().to(device)
    small = nn.functional.max_pool2d(where, models.shape.vae_factor)
    masked = vae.encode(models.vae, pixels * (where < 0.5)) if models.shape.inpaints else None
    return InpaintCondition(vae.encode(models.vae, pixels), small, masked)


def render(
    models: LatentModels, conditions: Conditions, wanted: Wanted, options: LatentSamplerOptions, microbatch: int
) -> Generated:
    """All images of `render_batches` together."""
    factor = models.shape.vae_factor
    height, width = (side * factor for side in conditions.size)
    return together(render_batches(models, conditions, wanted, options, microbatch), (height, width))


def render_batches(
    models: LatentModels, conditions: Conditions, wanted: Wanted, options: LatentSamplerOptions, microbatch: int
) -> Iterator[Made]:
    """An image per wanted sample, in batches of exactly `microbatch`, as they are made: see `microbatches`.

    Whoever encodes a batch on another thread does so while the device makes the next one.
    """
    places = np.asarray(wanted.rows, dtype=np.int64)

    def make(rows: np.ndarray, generators: list[torch.Generator]) -> tuple[np.ndarray, np.ndarray]:
        picked = torch.from_numpy(places[rows]).to(models.network.unet.device)
        latents = denoise(models.network, conditions, picked, generators, options)
        return vae.decode(models.vae, latents, models.decode_batch)

    return microbatches(make, wanted.seeds, microbatch)


def to_pixels(images: np.ndarray) -> Tensor:
    """Images uint8 `[S, H, W, C]` as `[S, C, H, W]` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
