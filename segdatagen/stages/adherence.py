"""Adherence as a stage: how much of its mask a segmenter finds in the image that was generated for it.

It scores and refuses nothing. It does not know limits, nor how the segmenter was trained.
"""

from statistics import fmean
from typing import Any, Literal

import numpy as np

from segdatagen.images import decode_image, decode_mask
from segdatagen.labels import LabelSet
from segdatagen.metrics.segmentation import confusion, iou_of_given
from segdatagen.segmenters import Segmenter
from segdatagen.stages.stage import Batch, objects


class AdherenceStage:
    """`score_adherence`: the mean over the classes of the mask of their IoU with what the segmenter finds.

    A mask of ignored pixels alone has no score. See `metrics.segmentation.iou_of_given`.
    """

    name = "adherence"
    reads = ("image", "mask")
    writes = ("score_adherence", "scores_per_class")
    verdict: Literal["failed"] = "failed"

    def __init__(self, segmenter: Segmenter, label_set: LabelSet) -> None:
        self._segmenter = segmenter
        self._ids = label_set.ids
        self._channels = label_set.channel_table()

    def __call__(self, batch: Batch) -> Batch:
        """The mean, and the IoU of every class of the mask."""
        rows = [self._scores(image, mask) for image, mask in zip(batch["image"], batch["mask"], strict=True)]
        return {
            "score_adherence": objects([mean for mean, _ in rows]),
            "scores_per_class": objects([per_class for _, per_class in rows]),
        }

    def _scores(self, image: bytes, mask: bytes) -> tuple[float | None, list[dict[str, Any]]]:
        channels = self._channels[decode_mask(mask)]
        found = self._segmenter.predict(np.stack([decode_image(image)]))[0]
        iou = iou_of_given(confusion(channels, found, len(self._ids)))
        per_class = [
            {"class_id": int(self._ids[channel]), "score": self.name, "value": value} for channel, value in iou.items()
        ]
        return (fmean(iou.values()) if iou else None), per_class
