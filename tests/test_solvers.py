"""Solvers: what they take of a base's scheduler, and that they lead from noise to data whatever the steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny_denoising import quiet_pipeline
from torch import Tensor

from segdatagen.diffusion.denoise import SCHEDULERS, LatentNetwork
from segdatagen.diffusion.latent_options import LatentSamplerOptions, SchedulerName


@pytest.fixture(scope="module")
def network() -> LatentNetwork:
    """With the noise of SDXL, and its `leading` steps."""
    pipeline = quiet_pipeline()
    theirs = dict(pipeline.scheduler.config) | {"timestep_spacing": "leading", "steps_offset": 1}
    return LatentNetwork(pipeline.unet, theirs)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_solver_takes_the_noise_of_a_base_and_nothing_else(network: LatentNetwork, name: SchedulerName) -> None:
    """The scheduler of its authors may draw noise of its own, clamp latents, or be of another order."""
    theirs = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "thresholding": True, "predict_x0": False}

    def solved(more: dict[str, Any]) -> Tensor:
        own = replace(network, schedule=dict(network.schedule) | more)
        scheduler = own.scheduler(LatentSamplerOptions(scheduler=name, steps=6))
        x = torch.linspace(-3, 3, 256).reshape(1, 4, 8, 8) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t) / 2, t, x, return_dict=False)[0]
        return x

    assert torch.equal(solved({}), solved(theirs))
    assert not torch.equal(solved({}), solved({"use_karras_sigmas": True})), "levels of noise are those of the base"


@pytest.mark.parametrize("steps", [20, 200, 999, 1000])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_solver_leads_from_all_noise_to_the_data(network: LatentNetwork, name: SchedulerName, steps: int) -> None:
    """Of data that is 1 everywhere: the right prediction is known, and so is what comes out."""
    scheduler = network.scheduler(LatentSamplerOptions(scheduler=name, steps=steps))
    assert scheduler.timesteps[0] >= 950
    assert len(scheduler.timesteps.unique()) == steps
    kept = EulerDiscreteScheduler.from_config(network.schedule).alphas_cumprod
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        left = kept[min(int(t), len(kept) - 1)]  # of 1000 steps Euler's first is 1000, which `leading` adds one to
        predicted = (scheduler.scale_model_input(x, t) - left.sqrt()) / (1 - left).sqrt()
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, torch.ones_like(x), atol=0.02, rtol=0)
