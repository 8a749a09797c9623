"""The samplers of the mask-guided DDPM beside the literal algorithm: speed, and how well a judge finds the masks.

The judge is a segmenter that was trained on real scenes. Masks are those of test scenes, which no weights have seen;
adherence is the judge's mIoU on what was generated, divided by its mIoU on the real images of the same masks.
"""

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from segdatagen.benchmark.measure import Benchmark, Figures, torch_threads
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.diffusion.mask_ddpm import (
    alpha_bars,
    cosine_betas,
    generate_microbatched,
    to_pixels,
)
from segdatagen.diffusion.mask_unet import MaskUNet, one_hot
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.labels import LabelSet, load_label_set
from segdatagen.metrics.segmentation import confusion, mean_iou
from segdatagen.segmenters import Segmenter
from segdatagen.weights import load_mask_ddpm

MICROBATCH = 8
GUIDANCE = 4.0
FEW_STEPS = {
    "ddim_20": SamplerOptions(sampler="ddim", steps=20, guidance=GUIDANCE),
    "ddim_50": SamplerOptions(sampler="ddim", steps=50, guidance=GUIDANCE),
    "dpmpp_20": SamplerOptions(sampler="dpm++2m", steps=20, guidance=GUIDANCE),
    "dpmpp_50": SamplerOptions(sampler="dpm++2m", steps=50, guidance=GUIDANCE),
}


@dataclass(frozen=True)
class Judge:
    """Real images uint8 `[N, H, W, 3]`, their channels int16 `[N, H, W]`, and what finds classes in images."""

    segmenter: Segmenter
    images: np.ndarray
    channels: np.ndarray
    _of_real: dict[int, float] = field(default_factory=dict, init=False)

    def mean_iou(self, images: np.ndarray, channels: np.ndarray) -> float:
        """mIoU of the classes found in `images` with `channels`, over all pixels."""
        return mean_iou(confusion(channels, self.segmenter.predict(images), len(self.segmenter.config.classes)))

    def adherence(self, images: np.ndarray) -> float:
        """mIoU on images of the first masks, divided by that on the real images of the same masks."""
        count = len(images)
        return self.mean_iou(images, self.channels[:count]) / self.real_mean_iou(count)

    def real_mean_iou(self, count: int) -> float:
        """mIoU on the first real images, which are looked at once however often they are asked for."""
        if count not in self._of_real:
            self._of_real[count] = self.mean_iou(self.images[:count], self.channels[:count])
        return self._of_real[count]


def bench_mask_ddpm(
    weights: str = "builtin:scenes-mask-ddpm",
    segmenter: str = "builtin:scenes-segmenter",
    num_images: int = 200,
    num_literal: int = 16,
    threads: int = 1,
) -> Figures:
    """Images per second of each way to sample, on `threads` cores, and the adherence of what they make.

    The full schedule makes `num_literal` images, twice: literally and as we do; the others make `num_images`.
    """
    with torch_threads(threads):
        label_set = load_label_set("scenes")
        model, config = load_mask_ddpm(weights, label_set.num_classes)
        images, channels = held_out_scenes(num_images, config.size, label_set)
        judge = Judge(Segmenter(segmenter, label_set.names), images, channels)
        figures: Figures = {"images": num_images, "size": f"{config.size[0]}x{config.size[1]}", "threads": threads}
        figures["judge_miou_real"] = round(judge.real_mean_iou(num_images), 4)
        figures |= _full_schedule(model, judge, num_literal)
        for name, options in FEW_STEPS.items():
            made, rate = _timed(model, channels, options)
            figures[f"{name}_images_per_second"] = round(rate, 4)
            figures[f"{name}_ratio_to_literal"] = round(rate / float(figures["literal_images_per_second"]), 1)
            figures[f"{name}_judge_miou"] = round(judge.mean_iou(made, channels), 4)
            figures[f"{name}_adherence"] = round(judge.adherence(made), 4)
            # The control: the same images beside the masks of others.
            shuffled = judge.mean_iou(made, np.roll(channels, 1, axis=0))
            figures[f"{name}_adherence_shuffled"] = round(shuffled / float(figures["judge_miou_real"]), 4)
    return figures


MASK_DDPM = Benchmark(
    "mask_ddpm",
    bench_mask_ddpm,
    measures="the samplers of the mask-DDPM on masks of test scenes, with a judge of what they make",
    reference="the literal algorithm: a mask at a time, two forwards, every step; of adherence: the real images",
    figure="{ddim_20_images_per_second:.2f} images/s with 20 steps, adherence {ddim_20_adherence:.2f} "
    "({ddim_20_adherence_shuffled:.2f} beside other masks)",
    ratio="{ddim_20_ratio_to_literal:.0f} times as fast",
    minutes=42,
)


def held_out_scenes(count: int, size: tuple[int, int], label_set: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, H, W, 3]` and channels int16 `[N, H, W]` of the first test scenes, `size` is width, height."""
    scenes = [make_scene(scene_seed("test", number), *size) for number in range(count)]
    channels = label_set.channel_table()[np.stack([scene.mask for scene in scenes])]
    return np.stack([scene.image for scene in scenes]), channels.astype(np.int16)


@torch.inference_mode()
def literal_sample(model: MaskUNet, channels: Tensor, seed: int, guidance: float) -> np.ndarray:
    """One image uint8 `[H, W, 3]` for a mask `[H, W]`, as the paper's algorithm reads: nothing is batched or reused.

    Every step runs the network with the mask and without it, and convolves the mask anew.
    """
    betas = cosine_betas(model.config.diffusion_steps)
    bars = alpha_bars(betas)
    generator = torch.Generator().manual_seed(seed)
    x = draw_noise([generator], torch.Size((3, *channels.shape)), channels.device)
    for t in range(len(betas) - 1, -1, -1):
        step = torch.tensor([t])
        features = model.mask_conv(one_hot(channels[None], model.config.num_classes))
        with_mask, without_mask = model(x, step, features), model(x, step, None)
        noise = without_mask + guidance * (with_mask - without_mask)
        beta, bar = float(betas[t]), float(bars[t])
        x = (x - beta / math.sqrt(1 - bar) * noise) / math.sqrt(1 - beta)
        if t > 0:
            x = x + math.sqrt(beta) * draw_noise([generator], x.shape[1:], x.device)
    image: np.ndarray = to_pixels(x)[0]
    return image


def _full_schedule(model: MaskUNet, judge: Judge, count: int) -> Figures:
    """The literal algorithm and ours on the same noise: rates, the largest difference of a pixel, and adherence."""
    channels = judge.channels[:count]
    began = time.perf_counter()
    literal = np.stack(
        [literal_sample(model, torch.from_numpy(mask.astype(np.int64)), n, GUIDANCE) for n, mask in enumerate(channels)]
    )
    literal_rate = count / (time.perf_counter() - began)
    options = SamplerOptions(sampler="ancestral", steps=model.config.diffusion_steps, guidance=GUIDANCE)
    made, rate = _timed(model, channels, options)
    return {
        "full_schedule_images": count,
        "literal_images_per_second": round(literal_rate, 5),
        "ancestral_images_per_second": round(rate, 5),
        "ancestral_ratio_to_literal": round(rate / literal_rate, 2),
        "ancestral_largest_difference": int(np.abs(literal.astype(int) - made.astype(int)).max()),
        "ancestral_adherence": round(judge.adherence(made), 4),
    }


def _timed(model: MaskUNet, channels: np.ndarray, options: SamplerOptions) -> tuple[np.ndarray, float]:
    """Images for all masks, seeds 0, 1, 2 and so on, and images per second."""
    began = time.perf_counter()
    made = generate_microbatched(model, channels.astype(np.int64), range(len(channels)), options, MICROBATCH).images
    return made, len(channels) / (time.perf_counter() - began)
