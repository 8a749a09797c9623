"""FreeMask's filter as a stage: pixels that look wrong to a segmenter become ignored in the mask.

Yang et al., "FreeMask: Synthetic Images with Dense Annotations Make Stronger Segmentation Models", 2023, arXiv
2310.15160. It does not know sources or limits.
"""

from typing import Literal

import numpy as np

from segdatagen.images import class_pixels, decode_image, decode_mask, encode_mask
from segdatagen.labels import LabelSet
from segdatagen.segmenters import Segmenter
from segdatagen.stages.stage import Batch, objects


class IgnoreNoisyStage:
    """A pixel whose loss is more than `factor` times the mean loss of its class on real images becomes ignored.

    The means are those of the segmenter's weights. Pixels of a class that its validation images did not show have
    nothing to be compared with, and stay.
    """

    name = "ignore_noisy"
    reads = ("image", "mask")
    writes = ("mask", "class_ids", "class_pixels", "score_ignored")
    verdict: Literal["failed"] = "failed"

    def __init__(self, segmenter: Segmenter, label_set: LabelSet, factor: float) -> None:
        self._segmenter = segmenter
        self._ignore_id = label_set.ignore_ids[0]
        self._channels = label_set.channel_table()
        means = [np.inf if mean is None else mean for mean in segmenter.config.class_losses]
        self._limits = np.array([*means, np.inf]) * factor  # the last is that of channel -1

    def __call__(self, batch: Batch) -> Batch:
        """New masks with the classes that are left, and the share of the labelled pixels that were ignored."""
        rows = [self._ignore(image, mask) for image, mask in zip(batch["image"], batch["mask"], strict=True)]
        return {name: objects([row[place] for row in rows]) for place, name in enumerate(self.writes)}

    def _ignore(self, image: bytes, mask: bytes) -> tuple[bytes, list[int], list[int], float | None]:
        ids = decode_mask(mask)
        channels = self._channels[ids]
        _, losses = self._segmenter.judge(np.stack([decode_image(image)]), channels[None])
        noisy = (losses[0] > self._limits[channels]) & (channels >= 0)
        labelled = int((channels >= 0).sum())
        dtype = np.promote_types(ids.dtype, np.min_scalar_type(self._ignore_id))
        left = ids.astype(dtype)
        left[noisy] = self._ignore_id
        found, pixels = class_pixels(left)
        counted = self._channels[found] >= 0
        share = float(noisy.sum() / labelled) if labelled else None
        return encode_mask(left), found[counted].tolist(), pixels[counted].tolist(), share
