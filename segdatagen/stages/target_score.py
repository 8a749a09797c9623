"""How well the class that a sample was made for is found in it, of what was scored of each class before.

It knows neither images nor masks nor segmenters, and refuses nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from segdatagen.labels import LabelSet
from segdatagen.stages.adherence import AdherenceStage
from segdatagen.stages.stage import Batch, objects


class TargetStage:
    """`score_target`: the IoU, under the segmenter of `adherence`, of the class whose goal asked for the row.

    None where no class did, and where the mask does not show it.
    """

    name = "target"
    reads = ("target_class", "scores_per_class")
    writes = ("score_target",)
    verdict: Literal["failed"] = "failed"

    def __init__(self, label_set: LabelSet) -> None:
        self._ids = {one.name: one.id for one in label_set.classes}

    def __call__(self, batch: Batch) -> Batch:
        """One of the scores of each row."""
        rows = zip(batch["target_class"], batch["scores_per_class"], strict=True)
        return {"score_target": objects([self._score(name, scores) for name, scores in rows])}

    def _score(self, name: str | None, scores: Sequence[Mapping[str, Any]] | None) -> float | None:
        if name is None:
            return None
        own = [
            entry["value"]
            for entry in scores or ()
            if entry["score"] == AdherenceStage.name and entry["class_id"] == self._ids.get(name)
        ]
        return own[0] if own else None
