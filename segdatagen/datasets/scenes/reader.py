"""The procedural `scenes` as a data set: the root is `COUNT@WIDTHxHEIGHT`, an item is the index of a scene.

Nothing is read from disk. Knows the generator, not how sources are stored.
"""

import re
from dataclasses import dataclass

from segdatagen.datasets.reader import Item, Listing, RawSource, Segment
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.datasets.scenes.seeds import SPLIT_SIZE
from segdatagen.errors import UsageError
from segdatagen.geometry import MAX_SIDE, SIZE_STEP
from segdatagen.images import encode_image
from segdatagen.labels import LabelSet, load_label_set

ROOT_PATTERN = re.compile(r"(\d{1,18})@(\d{1,18})x(\d{1,18})")


@dataclass(frozen=True)
class ScenesReader:
    """The first `count` scenes of a split at one size."""

    split: str
    count: int
    width: int
    height: int
    label_set: LabelSet

    def list_items(self) -> Listing:
        """One item per scene; the mask name is its index."""
        digits = len(str(self.count - 1))
        return Listing(tuple(Item(f"{self.split}-{i:0{max(6, digits)}d}", str(i)) for i in range(self.count)))

    def read(self, item: Item) -> RawSource:
        """Paint the scene. The image is lossless PNG."""
        scene = make_scene(scene_seed(self.split, int(item.mask_name)), self.width, self.height)
        segments = tuple(Segment(s.id, s.class_id, s.area, s.bbox, s.iscrowd) for s in scene.segments)
        return RawSource(
            mask=scene.mask,
            image=encode_image(scene.image, "png"),
            caption=scene.caption,
            segment_map=scene.segment_map,
            segments=segments,
        )


def open_scenes(root: str, split: str) -> ScenesReader:
    """Parse `COUNT@WIDTHxHEIGHT`, for example `92@128x128`. Raises UsageError."""
    match = ROOT_PATTERN.fullmatch(root)
    if match is None:
        raise UsageError(f"scenes needs COUNT@WIDTHxHEIGHT as its root, for example 92@128x128, not {root!r}")
    count, width, height = map(int, match.groups())
    if count < 1 or min(width, height) < 4 * SIZE_STEP:
        raise UsageError(f"scenes {root!r}: at least one scene of at least {4 * SIZE_STEP} x {4 * SIZE_STEP} pixels")
    if count > SPLIT_SIZE or max(width, height) > MAX_SIDE:
        raise UsageError(f"scenes {root!r}: at most {SPLIT_SIZE:,} scenes of at most {MAX_SIDE} x {MAX_SIDE} pixels")
    scene_seed(split, count - 1)
    return ScenesReader(split, count, width, height, load_label_set("scenes"))
