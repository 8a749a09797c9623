"""FreeMask's filter as a stage: pixels that look wrong to a segmenter become ignored in the mask.

Yang et al., "FreeMask: Synthetic Images with Dense Annotations Make Stronger Segmentation Models", 2023, arXiv
2310.15160. It does not know sources or limits.
"""

from typing import Any, Literal

import numpy as np

from segdatagen.images import class_pixels, decode_image, decode_mask, encode_mask
from segdatagen.labels import LabelSet
from segdatagen.segmenters import Segmenter
from segdatagen.segments import NO_SEGMENT, PANOPTIC, measured
from segdatagen.stages.stage import Batch, objects


class IgnoreNoisyStage:
    """A pixel whose loss is more than `factor` times the mean loss of its class on real images becomes ignored.

    The means are those of the segmenter's weights. Pixels of a class that its validation images did not show have
    nothing to be compared with, and stay. What becomes ignored belongs to no segment any more.
    """

    name = "ignore_noisy"
    reads = ("image", "mask", *PANOPTIC)
    writes = ("mask", "class_ids", "class_pixels", "score_ignored", *PANOPTIC)
    verdict: Literal["failed"] = "failed"

    def __init__(self, segmenter: Segmenter, label_set: LabelSet, factor: float) -> None:
        self._segmenter = segmenter
        self._ignore_id = label_set.ignore_ids[0]
        self._channels = label_set.channel_table()
        means = [np.inf if mean is None else mean for mean in segmenter.config.class_losses]
        self._limits = np.array([*means, np.inf]) * factor  # the last is that of channel -1

    def __call__(self, batch: Batch) -> Batch:
        """New masks with the classes that are left, and the share of the labelled pixels that were ignored."""
        rows = [self._ignore(*row) for row in zip(*(batch[name] for name in self.reads), strict=True)]
        return {name: objects([row[name] for row in rows]) for name in self.writes}

    def _ignore(
        self, image: bytes, mask: bytes, segment_map: bytes | None, segments: list[dict[str, Any]] | None
    ) -> dict[str, Any]:
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
        if segment_map is not None and segments is not None:
            kept = np.where(noisy, NO_SEGMENT, decode_mask(segment_map))
            segment_map, segments = encode_mask(kept), measured(kept, segments)
        return {
            "mask": encode_mask(left),
            "class_ids": found[counted].tolist(),
            "class_pixels": pixels[counted].tolist(),
            "score_ignored": share,
            "segment_map": segment_map,
            "segments": segments,
        }
