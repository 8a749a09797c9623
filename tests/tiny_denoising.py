"""What tests of the denoising loop share: diffusers' pipelines to hold it against, and images of tiny networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from tiny_latent import VAE_FACTOR, make_controlnet, make_pipeline
from torch import Tensor

from segdatagen.diffusion.conditions import Conditions
from segdatagen.diffusion.denoise import SCHEDULERS, SPACING, LatentNetwork, denoise
from segdatagen.diffusion.latent_options import LatentSamplerOptions, SchedulerName
from segdatagen.diffusion.text import TextEncoder

SIZE = 32
STEPS = 4
PROMPTS = ["a red car on a road; car, road", "two trees; tree"]
NEGATIVE = "blurry"
CLOSE = 1e-4
"""Of image values in [0, 1]: float32 on the CPU, the same noise."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet_pipeline() -> StableDiffusionXLPipeline:
    """One of tiny networks, without progress bars."""
    made = make_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def text_of(pipeline: StableDiffusionXLPipeline) -> TextEncoder:
    return TextEncoder(
        [pipeline.tokenizer, pipeline.tokenizer_2],
        [pipeline.text_encoder, pipeline.text_encoder_2],
        pipeline.config.force_zeros_for_empty_prompt,
    )


def with_scheduler(kind: Any, pipeline: StableDiffusionXLPipeline, name: SchedulerName, **more: Any) -> Any:
    """Another pipeline of the same parts."""
    scheduler = SCHEDULERS[name].from_config(pipeline.scheduler.config, **SPACING[name])
    parts = pipeline.components | more | {"scheduler": scheduler}
    made = kind(**{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")})
    made.set_progress_bar_config(disable=True)
    return made


def condition(text: TextEncoder, prompts: list[str], negative: str | None = NEGATIVE, **more: Any) -> Conditions:
    found = text.encode(prompts)
    return Conditions(
        size=(SIZE // VAE_FACTOR, SIZE // VAE_FACTOR),
        text=found,
        negative=text.encode_negative([negative] * len(prompts), found),
        time_ids=torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(prompts), dtype=torch.float32),
        **more,
    )


def ours(
    pipeline: StableDiffusionXLPipeline,
    conditions: Conditions,
    options: LatentSamplerOptions,
    rows: list[int],
    seeds: list[int],
) -> np.ndarray:
    """Images float32 in [0, 1] `[B, H, W, 3]`, before they become bytes."""
    network = LatentNetwork(pipeline.unet, pipeline.scheduler.config)
    latents = denoise(network, conditions, torch.tensor(rows), [seeded(seed) for seed in seeds], options)
    with torch.inference_mode():
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def options_of(name: SchedulerName, **more: Any) -> LatentSamplerOptions:
    return LatentSamplerOptions(scheduler=name, steps=STEPS, guidance=4.0, **more)


def pictures(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=seeded(seed))


def noise_of(seed: int) -> Tensor:
    return torch.randn(1, 4, SIZE // VAE_FACTOR, SIZE // VAE_FACTOR, generator=seeded(seed))


CALL = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np", "height": SIZE, "width": SIZE}


def seeded_network(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def controlnet_of(pipeline: StableDiffusionXLPipeline) -> ControlNetModel:
    """The same one every time, for the UNet of a pipeline."""
    made: ControlNetModel = seeded_network(lambda: make_controlnet(pipeline.unet), 1)
    return made


def copy_of(network: ControlNetModel) -> ControlNetModel:
    copied = ControlNetModel.from_config(network.config)
    copied.load_state_dict(network.state_dict())
    return copied.eval()
