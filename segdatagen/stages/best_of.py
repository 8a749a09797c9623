"""Best of N: the score by which one of several images of a row is taken.

Any stage that writes a score can be the judge. It sees an image as it will be stored. It does not know how images are
drawn, nor which judge a job asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segdatagen.records import score_words
from segdatagen.stages.redraw import Choice
from segdatagen.stages.stage import Stage, objects


@dataclass(frozen=True)
class BestOfN:
    """Of `count` images that is taken to which the stage `judge` gives the highest `column`."""

    count: int
    judge: Stage
    column: str

    def among(self, masks: Sequence[bytes], stored: Callable[[int, int], bytes]) -> Choice:
        """The choice among images of rows that have these masks, encoded; `stored` gives the file of a row and seed."""

        def score(row: int, seed: int) -> float | None:
            known = {"image": stored(row, seed), "mask": masks[row], "scores_per_class": None}
            batch = {name: objects([known[name]]) for name in self.judge.reads}
            found = self.judge(batch)[self.column][0]
            return None if found is None else float(np.float32(found))

        return Choice(self.count, score_words(self.column), score)
