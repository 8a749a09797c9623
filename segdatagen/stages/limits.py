"""The last stage of a chain with filters: scores against limits.

Scores are written by the stages before it, all of them for every row, so that a limit can be moved later. It does not
know what the scores mean.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from segdatagen.filters import FILTER_STAGE, columns_of, refusals
from segdatagen.stages.stage import Batch


class LimitsStage:
    """Rejects the rows whose scores do not keep the limits."""

    name = FILTER_STAGE
    writes = ("reason",)
    verdict: Literal["rejected"] = "rejected"

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.reads = tuple(columns_of(limits))
        self._limits = dict(limits)

    def __call__(self, batch: Batch) -> Batch:
        """A reason for each row that is refused."""
        scores = {name: np.array([np.nan if s is None else s for s in batch[name]], np.float32) for name in self.reads}
        return {"reason": refusals(scores, self._limits)}
