"""Images to latents and back with diffusers' AutoencoderKL, a few at a time, so that a large batch fits.

Pixels are made on the device and cross to the host once, as bytes. It knows neither prompts nor solvers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from segdatagen.diffusion.latent_options import DECODE_BATCH
from segdatagen.diffusion.pixels import to_levels


def shift_and_scale(vae: AutoencoderKL, device: torch.device) -> tuple[Tensor, Tensor]:
    """What latents are moved by, and then multiplied with, before the network sees them: each `[1, C or 1, 1, 1]`."""

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device).reshape(1, -1, 1, 1)

    factor = per_channel([vae.config.scaling_factor])
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return torch.zeros_like(factor), factor
    return per_channel(mean), factor / per_channel(std)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents float32 `[N, 4, h, w]` of images `[N, 3, H, W]` in [-1, 1]: the mode of the posterior, no draw of it.

    Each by itself: in a batch its last bits would depend on the others, and with them those of every sample of it.
    """
    shift, scale = shift_and_scale(vae, vae.device)
    found = [vae.encode(image.to(vae.device, vae.dtype)).latent_dist.mode().float() for image in torch.split(images, 1)]
    return (torch.cat(found) - shift) * scale


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = DECODE_BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, H, W, 3]` of latents `[N, 4, h, w]`, and whether each was finite, bool `[N]`.

    So many are decoded at once; the last ones are padded to as many. NaN becomes black.
    """
    shift, scale = shift_and_scale(vae, latents.device)
    latents = latents.float() / scale + shift
    pixels, finite = [], []
    for start in range(0, len(latents), batch):
        chunk = latents[start : start + batch]
        padding = min(batch, len(latents)) - len(chunk)
        padded = torch.cat([chunk, chunk[-1:].expand(padding, -1, -1, -1)]) if padding else chunk
        image = vae.decode(padded.to(vae.dtype), return_dict=False)[0][: len(chunk)].float()
        finite.append(torch.isfinite(image).flatten(1).all(dim=1))
        pixels.append(to_levels(image))
    return torch.cat(pixels).cpu().numpy(), torch.cat(finite).cpu().numpy()
