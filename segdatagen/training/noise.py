"""The noise of a training of latent diffusion: which timesteps, how much noise, and how much each row counts.

SDXL's schedule unless the base says another; the network predicts the noise (epsilon). Knows no network and no data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from segdatagen.errors import UsageError

SDXL_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


NOISE_FIELDS = (*SDXL_SCHEDULE, "trained_betas")
"""Of a schedule: what decides how much noise there is at a timestep."""


def require_trainable(schedule: Mapping[str, Any], place: str) -> None:
    """Raise UsageError, naming `place`, for a schedule of a network that does not predict the noise, or cannot.

    With zero terminal SNR (Lin et al., 2023, section 3.1) the last timestep is noise alone: to predict it says nothing
    of the image.
    """
    predicts = schedule.get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise UsageError(f"{place} predicts {predicts}, and trainings here are of networks that predict the noise")
    if schedule.get("rescale_betas_zero_snr"):
        raise UsageError(
            f"{place} has a schedule of zero terminal SNR (rescale_betas_zero_snr), whose last timestep is noise "
            "alone: a network that predicts the noise cannot be trained with it"
        )


class Noise:
    """The schedule that a network is trained with, which predicts the noise."""

    def __init__(self, schedule: Mapping[str, Any]) -> None:
        known = {name: value for name, value in schedule.items() if name in NOISE_FIELDS}
        self.bars: Tensor = DDPMScheduler(**known).alphas_cumprod.float()

    def timesteps(self, chance: Sequence[torch.Generator], name: Literal["uniform", "cubic"]) -> Tensor:
        """Timesteps int64 `[B]` in 0..T-1, on the CPU, one from each generator.

        `cubic`: t = (1 - u^3) T with u uniform, of Mou et al. (2023), "T2I-Adapter", section 3.3: mostly early steps of
        sampling, where an adapter decides what stands where.
        """
        u = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in chance])
        share = u if name == "uniform" else 1 - u**3
        return (share * len(self.bars)).long().clamp(max=len(self.bars) - 1)

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents `[B, C, h, w]` at timesteps int64 `[B]` of the CPU: equation 4 of Ho et al. (2020)."""
        bars = self.bars[timesteps].to(latents.device)[:, None, None, None]
        return bars.sqrt() * latents + (1 - bars).sqrt() * noise

    def weights(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """How much each row counts, float32 `[B]`: 1, or min(SNR, gamma) / SNR.

        Hang et al. (2023), "Efficient Diffusion Training via Min-SNR Weighting Strategy", for networks that predict
        the noise.
        """
        if min_snr_gamma is None:
            return torch.ones(len(timesteps))
        bars = self.bars[timesteps]
        snr = bars / (1 - bars)
        return snr.clamp(max=min_snr_gamma) / snr
