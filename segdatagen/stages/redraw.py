"""Bounded drawing: an image that came out blank or as NaN is drawn again, and of several the best is taken.

Any stage that makes images can draw through `draw_with_retries`. It knows neither networks nor judges nor limits: what
becomes of the image that is taken is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdatagen.images import Image
from segdatagen.records import derive_seed
from segdatagen.stages.stage import Batch, objects

Draw = Callable[[np.ndarray, list[int]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Rows int64 [N] with a seed each in; images uint8 [N, H, W, 3], whether they are finite [N], batch shapes [N] out."""


DRAWN_COLUMNS = ("image", "microbatch", "score_deviation", "candidates", "reason")
"""What a stage that makes images writes."""
DRAWN_SCORES = ("score_deviation",)
"""The scores among them."""


@dataclass(frozen=True)
class Redraws:
    """Images whose deviation is less than `below` levels are drawn again, at most `times` times."""

    below: float
    times: int


@dataclass(frozen=True)
class Choice:
    """Of `count` images of a row that is taken which has the highest score; `judge` has None for what has no score."""

    count: int
    score: str  # its name in SAMPLE_SCHEMA's `candidates`
    judge: Callable[[int, int], float | None]  # number of the row, seed of the image


@dataclass(frozen=True)
class _Candidate:
    """One image of a row: its seed, deviation (None: not finite) and score (None: there is none)."""

    seed: int
    deviation: float | None
    score: float | None = None

    def is_blank(self, redraws: Redraws | None) -> bool:
        return redraws is not None and (self.deviation is None or self.deviation < redraws.below)

    def rank(self, redraws: Redraws | None) -> tuple[int, float]:
        """What is finite goes before what is not, what is not blank before what is, then the greater figure."""
        if self.deviation is None:
            return 0, 0.0
        if self.is_blank(redraws):
            return 1, self.deviation
        return 2, -np.inf if self.score is None else self.score

    def entry(self, choice: Choice | None) -> dict[str, Any]:
        """As in SAMPLE_SCHEMA's `candidates`."""
        if choice is not None and self.score is not None:
            return {"seed": self.seed, "score": choice.score, "value": self.score}
        return {"seed": self.seed, "score": "deviation", "value": self.deviation}


@dataclass(frozen=True)
class Drawn:
    """The images that were taken, row by row, and what was drawn and not taken."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    finite: np.ndarray  # bool [N]: no NaN and no infinity
    microbatch: np.ndarray  # int32 [N]: batch shape that the network really saw
    deviations: list[float | None]  # None where an image is not finite
    candidates: list[list[dict[str, Any]] | None]  # as in SAMPLE_SCHEMA
    seeds: list[int]  # that the images were drawn with

    def columns(self, encoded: Sequence[bytes]) -> Batch:
        """DRAWN_COLUMNS of a stage, for its encoded images; a row with NaN or infinity gets a reason."""
        return {
            "image": objects(encoded),
            "microbatch": self.microbatch.astype(np.int32),
            "score_deviation": objects(self.deviations),
            "candidates": objects(self.candidates),
            "reason": objects([None if good else "the image holds NaN or infinity" for good in self.finite]),
        }


def deviation(image: Image) -> float:
    """Standard deviation of the levels of an image uint8 H x W x 3 around the mean of their channel, in 0 to 127.5."""
    return float(np.float32(np.sqrt(image.reshape(-1, image.shape[-1]).var(axis=0, dtype=np.float64).mean())))


def draw_with_retries(
    draw: Draw, parents: Sequence[int], stage: str, redraws: Redraws | None, choice: Choice | None = None
) -> Drawn:
    """Draw an image for each of the seeds `parents`, or as many as `choice` says, and again where all are blank.

    Of images that are neither blank nor NaN nor infinite the one with the highest score is taken, the first of equal
    ones; where there is none, the one with the greatest deviation. The seed of attempt 0 follows from the parent and
    the name of the stage, of attempt n from n too: neighbours change nothing.
    """
    count = choice.count if choice else 1
    first = [derive_seed(seed, stage) for seed in parents]
    images, finite, microbatch = draw(np.arange(len(parents)), first)
    taken = _candidates(np.arange(len(parents)), first, (images, finite), choice)
    losers: list[list[_Candidate]] = [[] for _ in parents]
    for attempt in range(1, count + (redraws.times if redraws else 0)):
        rows = [row for row, best in enumerate(taken) if attempt < count or best.is_blank(redraws)]
        if not rows:
            break
        again = [derive_seed(parents[row], stage, attempt) for row in rows]
        new_images, new_finite, new_microbatch = draw(np.array(rows), again)
        found = _candidates(np.array(rows), again, (new_images, new_finite), choice if attempt < count else None)
        for place, (row, new) in enumerate(zip(rows, found, strict=True)):
            better = new.rank(redraws) > taken[row].rank(redraws)
            losers[row].append(taken[row] if better else new)
            if better:
                taken[row] = new
                images[row], finite[row], microbatch[row] = new_images[place], new_finite[place], new_microbatch[place]
    entries = [[lost.entry(choice) for lost in lost_ones] or None for lost_ones in losers]
    return Drawn(images, finite, microbatch, [best.deviation for best in taken], entries, [best.seed for best in taken])


def _candidates(
    rows: np.ndarray, seeds: Sequence[int], made: tuple[np.ndarray, np.ndarray], choice: Choice | None
) -> list[_Candidate]:
    """One candidate per row, of its image and of whether that is finite."""
    found = []
    for row, seed, image, good in zip(rows.tolist(), seeds, *made, strict=True):
        score = choice.judge(row, seed) if choice is not None and good else None
        found.append(_Candidate(seed, deviation(image) if good else None, score))
    return found
