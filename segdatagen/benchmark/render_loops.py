"""The loops that `bench render` times: the latent engine, and diffusers' pipeline as a user would call it.

Both have the same random weights, steps, guidance and device. The floor is the time that the counted operations take
at the speed of a large matrix product, measured in the same run.
"""

import collections
import io
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from segdatagen.benchmark.architectures import SCHEDULE, Architecture, build
from segdatagen.benchmark.measure import Figures
from segdatagen.benchmark.render_cases import OPTIONS, Case, Control, Size
from segdatagen.diffusion.conditions import Conditions, ControlEncoder, TextCondition, encode_adapter
from segdatagen.diffusion.denoise import LatentNetwork
from segdatagen.diffusion.latent_models import LatentModels, prepared
from segdatagen.diffusion.latent_options import LatentSamplerOptions, Numerics, StepCacheOptions
from segdatagen.diffusion.microbatch import Made
from segdatagen.diffusion.render import Wanted, render_batches
from segdatagen.diffusion.text import TextEncoder
from segdatagen.images import encode_image
from segdatagen.latent_folders import Shape

GUIDANCE = 5.0
TOKENS = 77
STEP_CACHE = StepCacheOptions(every=3)
ROUNDS = 3
"""All are timed so often, in turns; the medians count."""
PRODUCT_SIDE: dict[str, int] = {"cuda": 8192, "cpu": 1536}
SETTINGS: dict[tuple[Size, Control], tuple[int, int]] = {
    ("sdxl", "t2i_adapter"): (1024, 30),  # SGA
    ("sdxl", "controlnet"): (768, 40),  # SegGen's Mask2Img
    ("tiny", "t2i_adapter"): (64, 10),
    ("tiny", "controlnet"): (64, 10),
}
"""Side of the images and number of steps."""


@dataclass(frozen=True)
class Scene:
    """What both draw: `variants` images of each of `sources`, with random prompts and pictures, the same for both."""

    side: int
    steps: int
    sources: int
    variants: int
    text: TextCondition
    negative: TextCondition
    pictures: torch.Tensor

    @property
    def rows(self) -> list[int]:
        """The source of every image."""
        return [source for source in range(self.sources) for _ in range(self.variants)]


def measure(size: Size, case: Case, microbatch: int, numerics: Numerics) -> Figures:
    """Images of a case by both, on the GPU in bfloat16 where there is one, else on one core in float32.

    Ours: `microbatch` images at once, JPEG with quality 95 on a thread of its own. The plain loop: one image at a time
    by diffusers' pipeline, stored as PNG by PIL. The decoded images of both are compared once, on equal noise. Ours is
    timed again with each of OPTIONS, which draw other images.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        architecture = _cast(build(size, case.control), dtype)
    side, steps = SETTINGS[size, case.control]
    scene = _scene(architecture, (side, steps), (case.sources, case.variants), dtype)
    options = LatentSamplerOptions(scheduler="euler", steps=steps, guidance=GUIDANCE)
    cached = options.model_copy(update={"step_cache": STEP_CACHE})
    in_float8 = numerics.model_copy(update={"float8_weights": True, "compile": False})
    loops = {
        "plain": _plain(architecture, scene),
        "ours": _ours(architecture, scene, microbatch, (options, numerics)),
        "step_cache": _ours(architecture, scene, microbatch, (cached, numerics)),
        "float8": _ours(architecture, scene, microbatch, (options, in_float8)),
    }
    for loop in (loops["step_cache"], loops["float8"]):
        collections.deque(loop(1), maxlen=0)  # what compiles does so now; the other two are compared just below
    difference = float(np.abs(np.stack(list(loops["ours"](1))) - np.stack(list(loops["plain"](1)))).mean())
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            seconds[name].append(_timed(loop, len(scene.rows), device))
    tflop = tflop_per_image(size, case)
    rates = {name: len(scene.rows) / statistics.median(found) for name, found in seconds.items()}
    rate, plain_rate = rates["ours"], rates["plain"]
    return {
        "side": side,
        "steps": steps,
        "images_per_second": round(rate, 3),
        "images_per_second_plain": round(plain_rate, 3),
        "ratio_to_plain": round(rate / plain_rate, 3),
        **{f"{name}_images_per_second": round(rates[name], 3) for name in OPTIONS},
        **{f"{name}_ratio": round(rates[name] / rate, 3) for name in OPTIONS},
        "tflop_per_image": round(tflop, 4),
        "tflops": round(rate * tflop, 3),
        "share_of_floor": round(rate * tflop / peak_tflops(device, dtype), 3),
        "mean_difference_in_levels": round(difference, 3),
    }


def tflop_per_image(size: Size, case: Case) -> float:
    """Operations of one image, 1 multiply-add as 2, counted on networks without memory.

    UNet and ControlNet twice per step, for guidance; the VAE's decoder once; an adapter once per source.
    """
    side, steps = SETTINGS[size, case.control]
    counts = tflops_of(size, case.control, side)
    twice = 2 * steps
    return (
        twice * (counts["unet"] + counts.get("controlnet", 0.0))
        + counts["vae"]
        + counts.get("t2i_adapter", 0.0) / case.variants
    )


def tflops_of(size: Size, control: Control, side: int) -> dict[str, float]:
    """TFLOP of one forward pass of each network for one image of `side` x `side`."""
    with torch.device("meta"):
        architecture = build(size, control)
        latent = side // 2 ** (len(architecture.vae.config.block_out_channels) - 1)
        x = torch.empty(1, 4, latent, latent)
        hidden = torch.empty(1, TOKENS, architecture.unet.config.cross_attention_dim)
        added = {"text_embeds": torch.empty(1, architecture.pooled_channels), "time_ids": torch.empty(1, 6)}
        picture = torch.empty(1, 3, side, side)
        passes: dict[str, Callable[[], Any]] = {
            "unet": lambda: architecture.unet(x, 1, hidden, added_cond_kwargs=added),
            "vae": lambda: architecture.vae.decode(x),
        }
        if architecture.controlnet is not None:
            controlnet = architecture.controlnet
            passes["controlnet"] = lambda: controlnet(x, 1, hidden, picture, added_cond_kwargs=added)
        if architecture.adapter is not None:
            adapter = architecture.adapter
            passes["t2i_adapter"] = lambda: adapter(picture)
        found = {}
        for name, forward in passes.items():
            counter = FlopCounterMode(display=False)
            with counter:
                forward()
            found[name] = counter.get_total_flops() / 1e12
    return found


def _cast(architecture: Architecture, dtype: torch.dtype) -> Architecture:
    for network in (architecture.unet, architecture.vae, architecture.controlnet, architecture.adapter):
        if network is not None:
            network.to(dtype)
    return architecture


def _scene(
    architecture: Architecture, side_and_steps: tuple[int, int], counts: tuple[int, int], dtype: torch.dtype
) -> Scene:
    generator = torch.Generator().manual_seed(1)
    (side, steps), (sources, variants) = side_and_steps, counts
    device = architecture.unet.device

    def text() -> TextCondition:
        hidden = torch.randn(sources, TOKENS, architecture.unet.config.cross_attention_dim, generator=generator)
        pooled = torch.randn(sources, architecture.pooled_channels, generator=generator)
        return TextCondition(hidden.to(device, dtype), pooled.to(device, dtype))

    pictures = torch.rand(sources, 3, side, side, generator=generator).to(device, dtype)
    return Scene(side, steps, sources, variants, text(), text(), pictures)


def _ours(
    architecture: Architecture, scene: Scene, microbatch: int, how: tuple[LatentSamplerOptions, Numerics]
) -> Callable[[int], Iterator[np.ndarray]]:
    """Draws the first so many images of a scene, encodes them, and yields their pixels."""
    options, numerics = how
    numerics = numerics.model_copy(update={"dtype": str(architecture.unet.dtype).removeprefix("torch.")})
    unet = prepared(_copy(architecture.unet), numerics)
    factor = 2 ** (len(architecture.vae.config.block_out_channels) - 1)
    models = LatentModels(
        network=LatentNetwork(unet, SCHEDULE),
        vae=architecture.vae,
        text=TextEncoder((), (), False),  # the embeddings are random
        shape=Shape("sdxl", unet.config.block_out_channels, 4, 4, unet.config.cross_attention_dim, factor),
    )
    controlnet = architecture.controlnet
    encoder = None if controlnet is None else ControlEncoder(prepared(_copy(controlnet), numerics))
    ids = torch.tensor([[scene.side, scene.side, 0, 0, scene.side, scene.side]] * scene.sources).float()

    def draw(count: int) -> Iterator[np.ndarray]:
        conditions = Conditions(
            size=(scene.side // factor, scene.side // factor),
            text=scene.text,
            negative=scene.negative,
            time_ids=ids.to(unet.device),
            controls=[encoder.encode(scene.pictures)] if encoder is not None else [],
            adapters=[encode_adapter(architecture.adapter, scene.pictures)] if architecture.adapter else [],
        )

        def encode(batch: Made) -> np.ndarray:
            for image in batch.images:
                encode_image(image, "jpeg95")
            return batch.images

        with ThreadPoolExecutor(1) as encoders:
            wanted = Wanted(scene.rows[:count], range(count))
            batches = render_batches(models, conditions, wanted, options, microbatch)
            waiting = [encoders.submit(encode, batch) for batch in batches]
            for done in waiting:
                yield from done.result().astype(np.int16)

    return draw


def _plain(architecture: Architecture, scene: Scene) -> Callable[[int], Iterator[np.ndarray]]:
    """The same by diffusers' pipeline, one image after the other."""
    parts: dict[str, Any] = {
        "vae": architecture.vae,
        "unet": architecture.unet,
        "scheduler": EulerDiscreteScheduler.from_config(SCHEDULE),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    }
    if architecture.controlnet is not None:
        pipeline = StableDiffusionXLControlNetPipeline(
            **parts, controlnet=architecture.controlnet, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionXLAdapterPipeline(**parts, adapter=architecture.adapter)
    pipeline.set_progress_bar_config(disable=True)

    def draw(count: int) -> Iterator[np.ndarray]:
        for seed, source in enumerate(scene.rows[:count]):
            row = slice(source, source + 1)
            image: Image.Image = pipeline(
                prompt_embeds=scene.text.hidden[row],
                pooled_prompt_embeds=scene.text.pooled[row] if scene.text.pooled is not None else None,
                negative_prompt_embeds=scene.negative.hidden[row],
                negative_pooled_prompt_embeds=scene.negative.pooled[row] if scene.negative.pooled is not None else None,
                image=scene.pictures[row],
                height=scene.side,
                width=scene.side,
                num_inference_steps=scene.steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            image.save(io.BytesIO(), "PNG")
            yield np.asarray(image).astype(np.int16)

    return draw


def _copy(network: Any) -> Any:
    """The same network with layers of its own to take off, to round or to compile; tensors are shared."""
    copied = type(network).from_config(network.config).to(network.device, network.dtype)
    copied.load_state_dict(network.state_dict(), assign=True)
    return copied.eval()


def _timed(loop: Callable[[int], Iterator[np.ndarray]], count: int, device: str) -> float:
    began = time.perf_counter()
    made = sum(1 for _ in loop(count))
    if device == "cuda":
        torch.cuda.synchronize()
    assert made == count
    return time.perf_counter() - began


def peak_tflops(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a product of two large square matrices, the best of five."""
    side = PRODUCT_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - began) / 1e12)
    return best
