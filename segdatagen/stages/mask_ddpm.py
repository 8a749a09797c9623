"""The mask-guided DDPM as a stage: a mask and a seed in, an encoded image out (paper 001).

The image depends on mask, seed and options alone; the last microbatch is padded, so that it is bitwise the same
whatever rows are its neighbours. Knows neither sources nor the plan.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from segdatagen.diffusion.mask_ddpm import generate_microbatched
from segdatagen.diffusion.mask_ddpm_options import MaskDDPMOptions
from segdatagen.images import ImageFormat, decode_mask, encode_image
from segdatagen.labels import LabelSet
from segdatagen.records import derive_seed
from segdatagen.stages.stage import Batch, objects
from segdatagen.weights import load_mask_ddpm


class MaskDDPMStageOptions(BaseModel):
    """What the stage needs to know: content first, then where it is executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: MaskDDPMOptions
    label_set: LabelSet
    image_format: ImageFormat = "jpeg95"
    microbatch: int = 8
    torch_threads: int = 1
    device: str = "cpu"


class MaskDDPMStage:
    """Generates one image per row."""

    name = "mask2img"
    reads = ("mask", "seed")
    writes = ("image", "microbatch", "reason")
    verdict: Literal["failed"] = "failed"

    def __init__(self, options: MaskDDPMStageOptions) -> None:
        torch.set_num_threads(options.torch_threads)
        model, _ = load_mask_ddpm(options.method.weights, options.label_set.num_classes)
        self._options = options
        self._model = model.to(device=options.device, dtype=getattr(torch, options.method.dtype))
        self._channels = options.label_set.channel_table()

    def __call__(self, batch: Batch) -> Batch:
        """Encoded images of the masks; a row with NaN or infinity gets a reason instead."""
        masks = np.stack([self._channels[decode_mask(mask)] for mask in batch["mask"]])
        seeds = [derive_seed(int(seed), self.name) for seed in batch["seed"]]
        made = generate_microbatched(self._model, masks, seeds, self._options.method, self._options.microbatch)
        image_format = self._options.image_format
        pairs = zip(made.images, made.finite, strict=True)
        return {
            "image": objects([encode_image(image, image_format) if good else None for image, good in pairs]),
            "microbatch": made.microbatch.astype(np.int32),
            "reason": objects([None if good else "the image holds NaN or infinity" for good in made.finite]),
        }
