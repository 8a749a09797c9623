"""The denoising loop of latent diffusion: one for text-to-image, ControlNet, T2I-Adapter and inpainting, in batches.

Written because diffusers' pipelines, given a batch with several images per prompt, cross adapter features and prompts,
and run a ControlNet where its weight is 0. Each sample has a CPU generator, and conditions are picked by row, so that
it depends on its own source and seed alone. Networks and solvers are diffusers'; this module knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from segdatagen.diffusion.conditions import AdapterCondition, Conditions, ControlCondition
from segdatagen.diffusion.latent_options import Attention, LatentSamplerOptions, SchedulerName
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.step_cache import step_cache

SCHEDULERS: dict[SchedulerName, Any] = {
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "use_karras_sigmas",
    "use_exponential_sigmas",
)
"""What solvers are told of a base's scheduler: its noise. The rest belongs to the solver of its authors, and might make
ours draw noise of its own, clamp latents, or not work at all."""
FROM_THE_END = {"timestep_spacing": "trailing"}
"""Of the multistep solvers, after Lin et al. (2023), "Common Diffusion Noise Schedules and Sample Steps Are Flawed":
with SDXL's `leading` diffusers has them begin at step 801 of 1000 when they take 200, and give them all the noise."""
SPACING: dict[SchedulerName, Mapping[str, str]] = {"euler": {}, "dpm++2m": FROM_THE_END, "unipc": FROM_THE_END}
KERNELS: dict[Attention, SDPBackend] = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class LatentNetwork:
    """A UNet with the configuration of the noise schedule that it was trained with, as diffusers stores it.

    `attention` holds for the UNet and for what controls it.
    """

    unet: UNet2DConditionModel
    schedule: Mapping[str, Any]
    attention: Attention = "auto"

    def scheduler(self, options: LatentSamplerOptions) -> Any:
        """A solver ready for its first step. It counts its steps: every batch needs a new one."""
        noise = {name: self.schedule[name] for name in NOISE if name in self.schedule}
        scheduler = SCHEDULERS[options.scheduler].from_config(noise, **SPACING[options.scheduler])
        scheduler.set_timesteps(options.steps, device=self.unet.device)
        scheduler.set_begin_index(0)
        return scheduler


@dataclass(frozen=True)
class Branch:
    """What the networks see of the conditions at every step: of B rows, or of 2B where the first half has no prompt.

    The picture of a guided control is there for the half with the prompt alone.
    """

    hidden: Tensor
    added: dict[str, Tensor]
    controls: list[tuple[ControlCondition, Tensor]]
    adapters: list[AdapterCondition]
    inpainted: Tensor | None


@torch.inference_mode()
def denoise(
    network: LatentNetwork,
    conditions: Conditions,
    rows: Tensor,
    generators: Sequence[torch.Generator],
    options: LatentSamplerOptions,
) -> Tensor:
    """Latents float32 `[B, C, h, w]` of B samples, of the sources `rows` int64 `[B]`, on the device of the network.

    All that lies between two forward passes is float32.
    """
    unet, inpaint, scheduler = network.unet, conditions.inpaint, network.scheduler(options)
    channels = unet.config.out_channels
    noise = draw_noise(generators, torch.Size((channels, *conditions.size)), unet.device)
    x = noise * float(scheduler.init_noise_sigma)
    branches: dict[bool, Branch] = {}
    num_steps = len(scheduler.timesteps)
    networks = [unet, *(control.network for control in conditions.controls)]
    with attention_kernel(network.attention), step_cache(networks, options.step_cache) as cache:
        for step, t in enumerate(scheduler.timesteps):
            guided = options.is_guided(float(scheduler.sigmas[step]))
            if guided not in branches:
                branches[guided] = make_branch(conditions, rows, guided, unet)
            cache.begin_step((guided, *conditions.at_work(step, num_steps)))
            predicted = predict(unet, branches[guided], scheduler.scale_model_input(x, t), t, (step, num_steps))
            x = scheduler.step(guide(predicted, options) if guided else predicted, t, x, return_dict=False)[0]
            if inpaint is not None and inpaint.masked is None:
                known, redrawn = inpaint.latents[rows].float(), inpaint.redrawn[rows].float()
                if step + 1 < num_steps:  # with the noise of the next step: Lugmayr et al. (2022), "RePaint"
                    known = scheduler.add_noise(known, noise, scheduler.timesteps[step + 1].reshape(1))
                x = (1 - redrawn) * known + redrawn * x
    return x


def attention_kernel(name: Attention) -> AbstractContextManager[Any]:
    """Within it attention runs by this kernel, or raises RuntimeError where the kernel cannot.

    diffusers' `set_attention_backend` reaches none of the processors that a UNet has.
    """
    return nullcontext() if name == "auto" else sdpa_kernel(KERNELS[name])


def make_branch(conditions: Conditions, rows: Tensor, guided: bool, unet: UNet2DConditionModel) -> Branch:
    """Gather the conditions of `rows`; where guided, those without prompt stand before those with it."""

    def with_prompt(tensor: Tensor) -> Tensor:
        return tensor[rows].to(unet.dtype)

    def of_both(tensor: Tensor) -> Tensor:
        picked = with_prompt(tensor)
        return torch.cat([picked, picked]) if guided else picked

    def added_features(adapter: AdapterCondition) -> AdapterCondition:
        if not adapter.guided or not guided:
            return replace(adapter, features=[of_both(feature) for feature in adapter.features])
        features = [behind_zeros(with_prompt(feature), len(rows)) for feature in adapter.features]
        return replace(adapter, features=features)

    text = conditions.text.at(rows)
    hidden, pooled = text.hidden, text.pooled
    if guided:
        negative = conditions.negative.at(rows)
        hidden = torch.cat([negative.hidden, hidden])
        if pooled is not None and negative.pooled is not None:
            pooled = torch.cat([negative.pooled, pooled])
    added = {}
    if pooled is not None and conditions.time_ids is not None:
        added = {"text_embeds": pooled.to(unet.dtype), "time_ids": of_both(conditions.time_ids)}
    inpaint = conditions.inpaint
    inpainted = None
    if inpaint is not None and inpaint.masked is not None:
        inpainted = of_both(torch.cat([inpaint.redrawn, inpaint.masked], dim=1))
    return Branch(
        hidden=hidden.to(unet.dtype),
        added=added,
        controls=[
            (control, with_prompt(control.embedded) if control.guided else of_both(control.embedded))
            for control in conditions.controls
        ],
        adapters=[added_features(adapter) for adapter in conditions.adapters],
        inpainted=inpainted,
    )


def predict(unet: UNet2DConditionModel, branch: Branch, scaled: Tensor, t: Tensor, at: tuple[int, int]) -> Tensor:
    """The network's prediction float32 for latents `[B, C, h, w]`: `[B, ...]`, or `[2B, ...]` of a guided branch.

    `at` is the number of the step and how many there are.
    """
    x = scaled.to(unet.dtype)
    x = x.repeat(len(branch.hidden) // len(x), 1, 1, 1)
    residuals = control_residuals(branch, x, t, at)
    if branch.inpainted is not None:
        x = torch.cat([x, branch.inpainted], dim=1)
    predicted: Tensor = unet(
        x,
        t,
        encoder_hidden_states=branch.hidden,
        added_cond_kwargs=branch.added,
        down_block_additional_residuals=residuals[:-1] or None,
        mid_block_additional_residual=residuals[-1] if residuals else None,
        down_intrablock_additional_residuals=adapter_features(branch, at),
        return_dict=False,
    )[0]
    return predicted.float()


def control_residuals(branch: Branch, x: Tensor, t: Tensor, at: tuple[int, int]) -> list[Tensor]:
    """What the ControlNets at work add to the network, summed: one per block of the way down, then the middle's.

    A ControlNet that is not at work does not run, and a guided one runs for the half with the prompt.
    """
    summed: list[Tensor] = []
    for control, embedded in branch.controls:
        if not control.is_at_work(*at):
            continue
        unseen = len(x) - len(embedded)
        down, middle = control.network(
            x[unseen:],
            t,
            encoder_hidden_states=branch.hidden[unseen:],
            controlnet_cond=embedded,
            conditioning_scale=control.scale,
            added_cond_kwargs={name: added[unseen:] for name, added in branch.added.items()},
            return_dict=False,
        )
        found = [behind_zeros(residual, unseen) for residual in (*down, middle)]
        summed = [a + b for a, b in zip(summed, found, strict=True)] if summed else found
    return summed


def behind_zeros(tensor: Tensor, count: int) -> Tensor:
    """`tensor` `[B, ...]` with `count` rows of zeros before it."""
    return torch.cat([tensor.new_zeros(count, *tensor.shape[1:]), tensor]) if count else tensor


def adapter_features(branch: Branch, at: tuple[int, int]) -> list[Tensor] | None:
    """What the T2I-Adapters at work add, summed, per scale; None: none is. The network takes entries off the list."""
    summed: list[Tensor] = []
    for adapter in branch.adapters:
        if adapter.is_at_work(*at):
            features = adapter.features
            summed = [a + b for a, b in zip(summed, features, strict=True)] if summed else list(features)
    return summed or None


def guide(predicted: Tensor, options: LatentSamplerOptions) -> Tensor:
    """Classifier-free guidance of `[2B, ...]`, without prompt before with it; rescaled as Lin et al. (2023), 3.4."""
    without, with_prompt = predicted.chunk(2)
    guided = without + options.guidance * (with_prompt - without)
    if options.guidance_rescale == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    rescaled = guided * (with_prompt.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return options.guidance_rescale * rescaled + (1 - options.guidance_rescale) * guided
