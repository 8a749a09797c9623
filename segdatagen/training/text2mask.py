"""Training of Text2Mask: a text-to-image model that learns to draw the colour maps of masks (SegGen, section 3.2).

The whole UNet is fine-tuned, or layers of LoRA. Steps, averages and checkpoints are the loop's.
"""

from typing import ClassVar

import numpy as np

from segdatagen.colours import ColourDecoder, quality_of
from segdatagen.errors import UsageError, placed
from segdatagen.training.data import TrainingArrays
from segdatagen.training.latent_parts import Parts, check_sdxl, vae_of
from segdatagen.training.latents import Kept
from segdatagen.training.pictures import colour_masks
from segdatagen.training.text_to_image import TextToImageOptions, TextToImageTraining
from segdatagen.training_record import require_colours_of
from segdatagen.weights import WeightsUri

PALETTE_DISTANCE = 16.0
"""RGB distance to the nearest class colour up to which a pixel is within the palette."""


class Text2MaskTrainingOptions(TextToImageOptions):
    """The YAML of `segdatagen train text2mask`. `init_weights` are those of a Text2Mask of the same classes."""

    base: WeightsUri


class Text2MaskTraining(TextToImageTraining):
    """The kind `text2mask`."""

    name = "text2mask"
    title = "Text2Mask"
    kept: ClassVar[Kept] = "colour_maps"
    options_type = Text2MaskTrainingOptions

    def __init__(self, options: Text2MaskTrainingOptions, arrays: TrainingArrays) -> None:
        shape = check_sdxl("base", options.base)
        self._start = options.base
        if options.init_weights is not None:
            if check_sdxl("init_weights", options.init_weights) != shape:
                raise UsageError(f"init_weights: {options.init_weights} is of another architecture than the base")
            with placed("init_weights"):
                require_colours_of(options.init_weights, arrays.label_set)
            self._start = options.init_weights
        super().__init__(options, arrays, vae_of(self._start))

    @property
    def start(self) -> str:
        """The base, or the weights of a Text2Mask."""
        return self._start

    def learned(self, rows: np.ndarray) -> np.ndarray:
        """The colour maps of masks."""
        return colour_masks(self.arrays.channels[rows], self.arrays.label_set)

    def figures(self, parts: Parts) -> dict[str, float]:
        """Of the layouts of a sample grid: pixels within the palette, and classes of the real mask that are there."""
        labels, rows = self.arrays.label_set, self.chosen()
        decoder, near, present, asked = ColourDecoder(labels), [], 0, 0
        for row, maps in zip(rows, self.drawn(parts, rows), strict=True):
            wanted = set(np.unique(self.arrays.channels[row])) - {-1}
            ids = {int(labels.ids[channel]) for channel in wanted}
            for colour_map in maps:
                found = quality_of(colour_map, decoder, far_distance=PALETTE_DISTANCE)
                near.append(1 - found.far_share)
                present += len(ids & set(found.class_ids))
                asked += len(ids)
        return {"within_palette": float(np.mean(near)), "classes_present": present / max(asked, 1)}
