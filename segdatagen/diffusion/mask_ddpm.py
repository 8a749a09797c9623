"""The mask-guided DDPM of paper 001: its noise schedule, its samplers, and masks in, images out.

A sample depends on its mask, its own generator and the batch shape, never on its neighbours. All arithmetic outside the
network is float32. This module does not know where weights or masks come from, nor what becomes of the images.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from segdatagen.diffusion.mask_unet import MaskUNet, one_hot
from segdatagen.diffusion.microbatch import Generated, Made, draw_noise, microbatches, together
from segdatagen.diffusion.pixels import to_levels
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.errors import UsageError

Noise = Callable[[Tensor, int], Tensor]
"""Predicted noise `[B, 3, H, W]` for images `[B, 3, H, W]` at one step of the schedule."""


DYNAMIC_RATIO = 0.98
"""Share of a predicted image's values that dynamic thresholding keeps in range as they are."""


def cosine_betas(num_steps: int = 1000) -> Tensor:
    """Noise variances beta_t, float64 `[num_steps]`: a half-cosine ramp from 1e-4 to 0.02.

    The ramp is of beta itself, as in the authors' implementation, not of alpha-bar as in Nichol and Dhariwal (2021).
    """
    t = torch.arange(num_steps, dtype=torch.float64)
    return 1e-4 + 0.0199 * (1 - torch.cos(math.pi * t / (num_steps - 1))) / 2


def alpha_bars(betas: Tensor) -> Tensor:
    """Cumulative products of `1 - beta`: the share of the image's variance that is left after each step."""
    return torch.cumprod(1 - betas, dim=0)


def trailing_timesteps(num_diffusion_steps: int, steps: int) -> list[int]:
    """`steps` steps of the schedule, evenly spaced, descending, the first of them the noisiest.

    "Trailing" spacing of Lin et al. (2023), "Common Diffusion Noise Schedules and Sample Steps Are Flawed": sampling
    starts from pure noise, so it has to visit the last step.
    """
    return [round(num_diffusion_steps * (steps - i) / steps) - 1 for i in range(steps)]


def sample_ancestral(predict: Noise, x: Tensor, betas: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Algorithm 2 of Ho et al. (2020), "Denoising Diffusion Probabilistic Models", with sigma_t^2 = beta_t.

    From noise `x [B, 3, H, W]` through all steps down to 0; predicted images are not clipped on the way. Each
    sample's noise comes from its own CPU generator.
    """
    bars = alpha_bars(betas)
    for t in reversed(range(len(betas))):
        beta, bar = float(betas[t]), float(bars[t])
        x = (x - beta / math.sqrt(1 - bar) * predict(x, t)) / math.sqrt(1 - beta)
        if t > 0:
            x = x + math.sqrt(beta) * draw_noise(generators, x.shape[1:], x.device)
    return x


def sample_ddim(predict: Noise, x: Tensor, betas: Tensor, steps: int) -> Tensor:
    """Equation 12 of Song et al. (2021), "Denoising Diffusion Implicit Models", with eta = 0; nothing is clipped.

    Ours, because `diffusers.DDIMScheduler` takes the next step as `t - T // steps`, which is not the next step that it
    visits unless `steps` divides T.
    """
    bars = [float(bar) for bar in alpha_bars(betas)]
    timesteps = trailing_timesteps(len(betas), steps)
    for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        bar, next_bar = bars[t], bars[following] if following >= 0 else 1.0
        noise = predict(x, t)
        image = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
        x = math.sqrt(next_bar) * image + math.sqrt(1 - next_bar) * noise
    return x


def sample_dpmpp_2m(predict: Noise, x: Tensor, betas: Tensor, steps: int) -> Tensor:
    """Second-order multistep DPM-Solver++ of Lu et al. (2022), by diffusers; nothing is clipped."""
    from diffusers import DPMSolverMultistepScheduler  # here, because it doubles the start of every actor

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(betas), trained_betas=betas.numpy(), final_sigmas_type="zero", lower_order_final=True
    )
    scheduler.set_timesteps(timesteps=trailing_timesteps(len(betas), steps))
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(predict(x, t), t, x).prev_sample
    return x


@torch.inference_mode()
def generate(
    model: MaskUNet, masks: np.ndarray | Tensor, generators: Sequence[torch.Generator], options: SamplerOptions
) -> tuple[np.ndarray, np.ndarray]:
    """One image per mask, on the device and in the dtype of the model.

    `masks` are channels, integers `[B, H, W]`, below 0 where ignored; `generators` are CPU generators, one per sample.
    Returns images uint8 `[B, H, W, 3]` RGB and a bool `[B]`: False where the result held NaN or infinity (its image
    then holds black in those places). Raises `UsageError` on sizes, channels or steps that the model cannot take.
    """
    if len(generators) != len(masks):
        raise UsageError(f"{len(masks)} masks came with {len(generators)} generators: give one generator per mask")
    require_steps(options, model.config.diffusion_steps)
    device = model.outc.weight.device
    channels = torch.as_tensor(masks, device=device)
    betas = cosine_betas(model.config.diffusion_steps)
    predict = guided_noise(model, channels, options.guidance)
    x = draw_noise(generators, torch.Size((3, *channels.shape[1:])), device)
    if options.sampler == "ancestral":
        x = sample_ancestral(predict, x, betas, generators)
    elif options.sampler == "ddim":
        x = sample_ddim(bounded_noise(predict, betas, options.thresholding), x, betas, options.steps)
    else:
        x = sample_dpmpp_2m(bounded_noise(predict, betas, options.thresholding), x, betas, options.steps)
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    return to_pixels(x), finite.cpu().numpy()


def require_steps(options: SamplerOptions, num_diffusion_steps: int) -> None:
    """Raise `UsageError` unless a model with so many diffusion steps can be sampled as the options say."""
    if options.sampler == "ancestral" and options.steps != num_diffusion_steps:
        raise UsageError(
            f"the ancestral sampler visits every step: set steps to {num_diffusion_steps}, not {options.steps}"
        )
    if options.steps > num_diffusion_steps:
        raise UsageError(
            f"steps is {options.steps}, but the model has {num_diffusion_steps} diffusion steps: set fewer steps"
        )


def guided_noise(model: MaskUNet, channels: Tensor, guidance: float) -> Noise:
    """The model's noise prediction for masks of channels `[B, H, W]` with classifier-free guidance.

    `unconditional + guidance * (conditional - unconditional)` (Ho and Salimans, 2022); 0 is conditional only, as in the
    authors' implementation. Both halves run in one forward pass of 2B; the masks are convolved once.
    """
    dtype = model.outc.weight.dtype
    features = model.mask_conv(one_hot(channels, model.config.num_classes).to(dtype))
    if guidance in (0.0, 1.0):

        def predict(x: Tensor, t: int) -> Tensor:
            steps = torch.full((len(x),), t, device=x.device)
            noise: Tensor = model(x.to(dtype), steps, features)
            return noise.float()

        return predict
    both_features = torch.cat([features, torch.zeros_like(features)])

    def predict_guided(x: Tensor, t: int) -> Tensor:
        steps = torch.full((2 * len(x),), t, device=x.device)
        conditional, unconditional = model(torch.cat([x, x]).to(dtype), steps, both_features).float().chunk(2)
        guided: Tensor = unconditional + guidance * (conditional - unconditional)
        return guided

    return predict_guided


def bounded_noise(predict: Noise, betas: Tensor, thresholding: str) -> Noise:
    """The noise that belongs to the predicted image once that is brought into [-1, 1], the range of images.

    As `diffusers.DDIMScheduler` does with `use_clipped_model_output`. At the noisiest step an error of the noise is one
    158 times as large in the image; unbounded, few steps and guidance carry it to the end. Cut off (`static`), an image
    of one wrong colour stays so; scaled (`dynamic`), it keeps its contrasts, and later steps correct the colour.
    """
    bars = [float(bar) for bar in alpha_bars(betas)]
    bound = {"static": threshold_static, "dynamic": threshold_dynamic}[thresholding]

    def predict_bounded(x: Tensor, t: int) -> Tensor:
        bar = bars[t]
        image = (x - math.sqrt(1 - bar) * predict(x, t)) / math.sqrt(bar)
        return (x - math.sqrt(bar) * bound(image)) / math.sqrt(1 - bar)

    return predict_bounded


def threshold_static(image: Tensor) -> Tensor:
    """Predicted images with what leaves [-1, 1] cut off."""
    return image.clamp(-1, 1)


def threshold_dynamic(image: Tensor) -> Tensor:
    """Predicted images `[B, 3, H, W]`, each divided by the quantile DYNAMIC_RATIO of its absolute values where above 1.

    Saharia et al. (2022), "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", 2.3.
    """
    # One by one: torch.quantile takes no more than 16 million values.
    quantiles = torch.stack([torch.quantile(values, DYNAMIC_RATIO) for values in image.abs().flatten(1)])
    scale = quantiles.nan_to_num(nan=1.0).clamp(min=1)[:, None, None, None]
    return image.clamp(-scale, scale) / scale


def generate_microbatched(
    model: MaskUNet, masks: np.ndarray, seeds: Sequence[int], options: SamplerOptions, microbatch: int
) -> Generated:
    """All images of `generate_batches` together."""
    height, width = masks.shape[1:]
    return together(generate_batches(model, masks, seeds, options, microbatch), (height, width))


def generate_batches(
    model: MaskUNet, masks: np.ndarray, seeds: Sequence[int], options: SamplerOptions, microbatch: int
) -> Iterator[Made]:
    """`generate` for any number of masks `[N, H, W]`, in batches of exactly `microbatch`, as they are made.

    See `microbatches`, also for what it raises.
    """

    def make(rows: np.ndarray, generators: list[torch.Generator]) -> tuple[np.ndarray, np.ndarray]:
        return generate(model, masks[rows], generators, options)

    return microbatches(make, seeds, microbatch)


def from_pixels(images: Tensor) -> Tensor:
    """Images uint8 `[B, H, W, 3]` -> float32 `[B, 3, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: Tensor) -> np.ndarray:
    """Images `[B, 3, H, W]`, clamped to [-1, 1], -> uint8 `[B, H, W, 3]`; NaN becomes 0."""
    return to_levels(x).cpu().numpy()
