"""The mask-guided DDPM as a stage: a mask and a seed in, an encoded image out (paper 001).

The image depends on mask, seed and options alone; the last microbatch is padded, so that it is bitwise the same
whatever rows are its neighbours. Knows neither sources nor the plan.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from segdatagen.diffusion.mask_ddpm import generate_batches
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.images import ImageFormat, decode_mask
from segdatagen.labels import LabelSet
from segdatagen.stages.best_of import BestOfN
from segdatagen.stages.encoding import EncodingThread
from segdatagen.stages.redraw import DRAWN_COLUMNS, Redraws, draw_with_retries
from segdatagen.stages.stage import Batch
from segdatagen.weights import load_mask_ddpm


class MaskDDPMStageOptions(BaseModel):
    """What the stage needs to know: content first, then where it is executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: str
    label_set: LabelSet
    sampler: SamplerOptions
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    image_format: ImageFormat = "jpeg95"
    redraws: Redraws | None = None
    microbatch: int = 8
    torch_threads: int = 1
    device: str = "cpu"


class MaskDDPMStage:
    """Generates one image per row, and again where it is blank and the options say so.

    An image with NaN or infinity is a defect, which fails the row, unless it is drawn again: then it was made, and is
    refused.
    """

    name = "mask2img"
    reads = ("mask", "seed")
    writes = DRAWN_COLUMNS

    def __init__(self, options: MaskDDPMStageOptions, best_of: BestOfN | None = None) -> None:
        torch.set_num_threads(options.torch_threads)
        model, _ = load_mask_ddpm(options.weights, options.label_set.num_classes)
        self.verdict: Literal["failed", "rejected"] = "failed" if options.redraws is None else "rejected"
        self._options, self._best_of = options, best_of
        self._model = model.to(device=options.device, dtype=getattr(torch, options.dtype))
        self._microbatch = options.microbatch
        """What fits: where memory ran out once it is not tried again."""
        self._channels = options.label_set.channel_table()

    def __call__(self, batch: Batch) -> Batch:
        """Encoded images of the masks with their deviation; a row with NaN or infinity gets a reason too."""
        masks = np.stack([self._channels[decode_mask(mask)] for mask in batch["mask"]])
        options = self._options

        with EncodingThread(options.image_format) as encoding:

            def draw(rows: np.ndarray, seeds: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                batches = generate_batches(self._model, masks[rows], seeds, options.sampler, self._microbatch)
                found = encoding.collect(rows.tolist(), seeds, batches)
                self._microbatch = int(found[2][-1])
                return found

            choice = self._best_of.among(batch["mask"].tolist(), encoding.stored) if self._best_of else None
            drawn = draw_with_retries(draw, batch["seed"].tolist(), self.name, options.redraws, choice)
            return drawn.columns(encoding.encoded(drawn.seeds))
