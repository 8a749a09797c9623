"""Training of Text2Mask: a text-to-image model that learns to draw the colour maps of masks (SegGen, section 3.2).

The whole UNet is fine-tuned, or layers of LoRA. Steps, averages and checkpoints are the loop's.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from segdatagen.colours import ColourDecoder, quality_of
from segdatagen.errors import UsageError, placed
from segdatagen.training.data import TrainingData
from segdatagen.training.latent_parts import Parts, check_sdxl, check_text_to_image, vae_of
from segdatagen.training.latents import Kept
from segdatagen.training.pictures import colour_masks
from segdatagen.training.text_to_image import TextToImageOptions, TextToImageTraining
from segdatagen.training_record import require_colours_of, require_kind
from segdatagen.weights import WeightsUri

PALETTE_DISTANCE = 16.0
"""RGB distance to the nearest class colour up to which a pixel is within the palette."""
MIN_PIXELS = 16
"""Of a class that counts as there: fewer are speckle, of which a blurred edge between two others has some."""


class Text2MaskTrainingOptions(TextToImageOptions):
    """The YAML of `segdatagen train text2mask`. `init_weights` are those of a Text2Mask of the same classes."""

    base: WeightsUri


class Text2MaskTraining(TextToImageTraining):
    """The kind `text2mask`."""

    name = "text2mask"
    title = "Text2Mask"
    kept: ClassVar[Kept] = "colour_maps"
    reads: ClassVar[tuple[str, ...]] = ("mask",)
    options_type = Text2MaskTrainingOptions

    def __init__(self, options: Text2MaskTrainingOptions, data: TrainingData) -> None:
        shape = check_text_to_image("base", options.base)
        self._start = options.base
        if options.init_weights is not None:
            if check_sdxl("init_weights", options.init_weights) != shape:
                raise UsageError(f"init_weights: {options.init_weights} is of another architecture than the base")
            with placed("init_weights"):
                require_colours_of(options.init_weights, data.label_set)
                require_kind(options.init_weights, self.name)
            self._start = options.init_weights
        super().__init__(options, data, vae_of(self._start))

    @property
    def start(self) -> str:
        """The base, or the weights of a Text2Mask."""
        return self._start

    def learned(self, rows: np.ndarray) -> np.ndarray:
        """The colour maps of masks."""
        return colour_masks(self.data.channels_of(rows), self.data.label_set)

    def figures(self, parts: Parts) -> dict[str, float]:
        """Of the layouts of a sample grid: pixels within the palette; how well their classes are those of the mask.

        `classes_present`: classes of the real mask that the layout shows. `classes_asked`: classes of the layout that
        the real mask has. By chance: of the layouts that were drawn for the next source.
        """
        labels, rows = self.data.label_set, self.chosen()
        decoder, near = ColourDecoder(labels), []
        asked = [self._classes(channels) for channels in self.data.channels_of(rows)]
        drawn: list[list[set[int]]] = []
        for maps in self.drawn(parts, rows):
            found = [quality_of(colour_map, decoder, far_distance=PALETTE_DISTANCE) for colour_map in maps]
            near += [1 - one.far_share for one in found]
            drawn.append([_large(one.class_ids, one.class_pixels) for one in found])
        figures = {"within_palette": float(np.mean(near)), **_agreement(asked, drawn)}
        if len(rows) > 1:
            by_chance = _agreement(asked, [*drawn[1:], drawn[0]])
            figures |= {f"{name}_by_chance": value for name, value in by_chance.items()}
        return figures

    def _classes(self, channels: np.ndarray) -> set[int]:
        """Ids of the classes of a mask that count as there."""
        found, pixels = np.unique(channels[channels >= 0], return_counts=True)
        return _large(self.data.label_set.ids[found].tolist(), pixels.tolist())


def _large(ids: Sequence[int], pixels: Sequence[int]) -> set[int]:
    return {one for one, count in zip(ids, pixels, strict=True) if count >= MIN_PIXELS}


def _agreement(asked: Sequence[set[int]], drawn: Sequence[Sequence[set[int]]]) -> dict[str, float]:
    """Recall and precision of the classes of layouts, over all of them together."""
    pairs = [(wanted, found) for wanted, layouts in zip(asked, drawn, strict=True) for found in layouts]
    both = sum(len(wanted & found) for wanted, found in pairs)
    return {
        "classes_present": both / max(sum(len(wanted) for wanted, _ in pairs), 1),
        "classes_asked": both / max(sum(len(found) for _, found in pairs), 1),
    }
