"""The embedded data set `scenes`: procedural street scenes with masks, instances and captions, of any size.

A seed fixes a scene; `scene_seed` gives each split its own. Knows neither storage nor label sets: the shipped label set
`scenes` names the same classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segdatagen.datasets.scenes.caption import write_caption
from segdatagen.datasets.scenes.paint import paint_layout
from segdatagen.datasets.scenes.plan import draw_layout
from segdatagen.datasets.scenes.seeds import SPLITS, scene_seed
from segdatagen.datasets.scenes.segments import Segment, list_segments

__all__ = ["SPLITS", "Scene", "Segment", "make_scene", "scene_seed"]


@dataclass(frozen=True)
class Scene:
    """One scene: image (H x W x 3, uint8, RGB), mask of class ids (H x W, uint8), segments and a true caption.

    `segment_map` (H x W, uint16) holds the number of the segment that each pixel belongs to. Stuff makes one segment
    per class, things one per instance.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    segment_map: npt.NDArray[np.uint16]
    segments: tuple[Segment, ...]
    caption: str


def make_scene(seed: int, width: int, height: int) -> Scene:
    """Return the scene of a seed at a size in pixels: the same for the same arguments, to the bit.

    The layout depends on the seed alone, and fits the shorter side of the image; the longer one shows more of it.
    """
    layout = draw_layout(seed)
    image, numbers, classes = paint_layout(layout, width, height)
    segments = list_segments(numbers, classes)
    return Scene(
        image, classes[numbers], numbers.astype(np.uint16), segments, write_caption(layout.light.time, segments)
    )
