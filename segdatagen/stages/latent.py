"""Latent diffusion as a stage: prompt, pictures to draw after and a seed in, an encoded image out.

What is told of a source is computed once, however many of its variants and their prompts a batch holds; an image
depends on its own row alone. Images are encoded on a thread while the next ones are made. It does not know the plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from segdatagen.diffusion.conditions import AdapterCondition, Conditions, ControlCondition, encode_adapter
from segdatagen.diffusion.latent_options import ControlOptions
from segdatagen.diffusion.render import Wanted, describe, inpainting, render_batches, to_pixels
from segdatagen.images import Image, ImageFormat, decode_image, decode_mask
from segdatagen.priors.options import prior_columns
from segdatagen.stages.best_of import BestOfN
from segdatagen.stages.encoding import EncodingThread
from segdatagen.stages.model_options import ModelStageOptions
from segdatagen.stages.redraw import DRAWN_COLUMNS, Redraws, draw_with_retries
from segdatagen.stages.stage import Batch

Columns = Mapping[str, Sequence[Any]]
"""What the distinct sources of a batch are told, by column; with another prompt a source is another one."""


@dataclass(frozen=True)
class Known:
    """Real images uint8 `[K, H, W, 3]`, which pixels are drawn anew, bool `[K, H, W]`, and the image of each source."""

    images: np.ndarray
    redrawn: np.ndarray
    rows: Sequence[int]

    def paste(self, image: Image, source: int) -> Image:
        """`image` where it is drawn anew, the real one of its source everywhere else."""
        row = self.rows[source]
        pasted: Image = np.where(self.redrawn[row][..., None], image, self.images[row])
        return pasted


class LatentStageOptions(ModelStageOptions):
    """What the stage needs to know beside its model.

    `controls` see the columns `prior`, or `prior_0`, `prior_1`... where there are several. `inpaint`: ids of the
    classes whose pixels are drawn anew; every other pixel stays as it is in `source_image`.
    """

    compiled_of: ClassVar[frozenset[str]] = ModelStageOptions.compiled_of | {"controls"}

    controls: tuple[ControlOptions, ...] = ()
    inpaint: tuple[int, ...] | None = None
    image_format: ImageFormat = "jpeg95"
    redraws: Redraws | None = None


class LatentStage:
    """Generates one image per row, and again where it is blank and the options say so."""

    name = "mask2img"
    writes = DRAWN_COLUMNS

    def __init__(self, options: LatentStageOptions, best_of: BestOfN | None = None) -> None:
        """Load every network. Raises UsageError where one cannot be used."""
        self.verdict: Literal["failed", "rejected"] = "failed" if options.redraws is None else "rejected"
        self._options, self._best_of = options, best_of
        self._models, self._compiled = options.load()
        self._controls = [options.load_control(control) for control in options.controls]
        self._microbatch = options.microbatch
        """What fits: where memory ran out once it is not tried again."""
        self._told = ("prompt", "negative_prompt", *prior_columns(len(options.controls)))
        if options.inpaint is not None:
            self._told += ("source_image", "mask")
        self.reads = tuple(dict.fromkeys((*self._told, "seed", *(("mask",) if best_of else ()))))

    def __call__(self, batch: Batch) -> Batch:
        """Encoded images with their deviation; a row with NaN or infinity gets a reason too."""
        distinct, sources = _distinct(list(zip(*(batch[name].tolist() for name in self._told), strict=True)))
        columns = dict(zip(self._told, zip(*distinct, strict=True), strict=True))
        known = self._known(columns)
        conditions = self._conditions(columns, known)
        options = self._options
        with EncodingThread(options.image_format) as encoding:

            def paste(row: int, image: Image) -> Image:
                return image if known is None else known.paste(image, sources[row])

            def draw(rows: np.ndarray, seeds: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                wanted = Wanted([sources[row] for row in rows], seeds)
                batches = render_batches(self._models, conditions, wanted, options.sampler, self._microbatch)
                found = encoding.collect(rows.tolist(), seeds, batches, paste)
                self._microbatch = int(found[2][-1])
                return found

            choice = self._best_of.among(batch["mask"].tolist(), encoding.stored) if self._best_of else None
            drawn = draw_with_retries(draw, batch["seed"].tolist(), self.name, options.redraws, choice)
            images = encoding.encoded(drawn.seeds)
        if self._compiled is not None:
            self._compiled.keep()
        return drawn.columns(images)

    def _known(self, columns: Columns) -> Known | None:
        """What stays of the real images; None: nothing does."""
        if self._options.inpaint is None:
            return None
        pairs, rows = _distinct(list(zip(columns["source_image"], columns["mask"], strict=True)))
        redrawn = np.isin(np.stack([decode_mask(mask) for _, mask in pairs]), self._options.inpaint)
        return Known(np.stack([decode_image(image) for image, _ in pairs]), redrawn, rows)

    def _conditions(self, columns: Columns, known: Known | None) -> Conditions:
        width, height = self._options.size
        found = describe(self._models, columns["prompt"], columns["negative_prompt"], (height, width))
        controls: list[ControlCondition] = []
        adapters: list[AdapterCondition] = []
        names = prior_columns(len(self._controls))
        for control, network, name in zip(self._options.controls, self._controls, names, strict=True):
            priors, places = _distinct(columns[name])
            pictures, rows = to_pixels(np.stack([decode_image(prior) for prior in priors])), self._on_device(places)
            if control.kind == "controlnet":
                condition = network.encode(pictures, control.scale, control.start, control.end, control.guided)
                controls.append(condition.at(rows))
            else:
                features = encode_adapter(network, pictures, control.scale, control.end, control.guided)
                adapters.append(features.at(rows))
        inpaint = None
        if known is not None:
            inpaint = inpainting(self._models, known.images, known.redrawn).at(self._on_device(known.rows))
        return replace(found, controls=controls, adapters=adapters, inpaint=inpaint)

    def _on_device(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(rows, device=self._models.network.unet.device)


def _distinct(values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Values without repetition, and the place of each of `values` among them."""
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return list(places), [places[value] for value in values]
