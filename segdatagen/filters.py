"""Filters of a job: what decides which samples are good, as options, and the limits that scores must keep.

What makes or scores a sample are options of stages; a limit only decides over a score that is stored, so that it can
be moved at any time. It does not know how scores are made, nor where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdatagen.clip_scores import ClipOptions
from segdatagen.config_files import describe
from segdatagen.errors import UsageError
from segdatagen.records import score_words
from segdatagen.weights import WeightsUri

FILTER_STAGE = "filter"
"""The stage that compares scores with limits: reasons that begin with it can be taken back without a GPU."""
MAX_HASH_BITS = 64
CLIP_SCORE = "clip"
"""Name of CLIP's score among those of classes and candidates."""

MOST_DEVIATION = 127.5
"""Of levels from 0 to 255: a half is black, the other white."""
Limits = dict[str, float]
"""Values of limits by `<filter>.<field>`, as in LIMITS."""


class _Filter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Blank(_Filter):
    """Images without content: drawn again with other seeds, then rejected. The deviation is that of the levels."""

    min_deviation: float = Field(
        default=4.0, gt=0, le=MOST_DEVIATION, description="limit: standard deviation of the levels"
    )
    redraws: int = Field(default=2, ge=0, le=100, strict=True, description="how often an image is drawn again, at most")
    redraw_below: float = Field(default=4.0, gt=0, le=MOST_DEVIATION, description="deviation that is drawn again")


class Adherence(_Filter):
    """Images in which a segmenter does not find the mask, or the class that asked for it."""

    segmenter: WeightsUri
    min: float = Field(default=0.5, ge=0, le=1, description="limit of the mean IoU")
    target_min: float | None = Field(
        default=None, ge=0, le=1, description="limit of the IoU of the class whose goal asked for the sample"
    )


class Duplicates(_Filter):
    """Images that repeat a source: bits of 64 in which perceptual hashes differ."""

    min_distance: float = Field(default=8, ge=0, le=MAX_HASH_BITS, description="limit in bits")


class IgnoreNoisy(_Filter):
    """FreeMask's rule (Yang et al., 2023, arXiv 2310.15160): pixels with too high a loss become ignored."""

    segmenter: WeightsUri
    factor: float = Field(default=1.25, gt=0, allow_inf_nan=False, description="of the mean loss of the pixel's class")
    max_ignored: float = Field(default=1.0, ge=0, le=1, description="limit of the share of ignored pixels")


class ClipRank(ClipOptions):
    """Samples that stand behind the others of all their classes by CLIP (Fang et al., 2024): ranked by `refilter`."""

    keep: float = Field(default=0.8, gt=0, le=1, description="limit: the ratio of its samples that each class keeps")


class Filters(_Filter):
    """The filters of a job, in the order in which they give their reason."""

    blank: Blank | None = None
    adherence: Adherence | None = None
    duplicates: Duplicates | None = None
    ignore_noisy: IgnoreNoisy | None = None
    clip_rank: ClipRank | None = None

    def limits(self) -> Limits:
        """The limits of the filters that are configured, but for those that are None."""
        found = {}
        for name in LIMITS:
            filter_name, field = name.split(".")
            options = getattr(self, filter_name)
            value = None if options is None else getattr(options, field)
            if value is not None:
                found[name] = float(value)
        return found

    def segmenters(self) -> dict[str, str]:
        """URI of the segmenter of each filter that has one."""
        named = {"adherence": self.adherence, "ignore_noisy": self.ignore_noisy}
        return {name: options.segmenter for name, options in named.items() if options is not None}

    def content(self) -> "Filters":
        """The filters that make a sample again, without those that only score it.

        `blank` stays even without redraws: it alone makes an image with NaN one that was made, and refused.
        """
        return self.model_copy(update={"adherence": None, "duplicates": None, "clip_rank": None})


@dataclass(frozen=True)
class Limit:
    """What a limit compares: a score column of the sample row, which must not be `below` or `above` it.

    `behind`: the limit is a ratio, and samples are ranked over the whole set, which no stage sees: see `refilter`.
    """

    column: str
    refused: Literal["below", "above", "behind"]


LIMITS: dict[str, Limit] = {
    "blank.min_deviation": Limit("score_deviation", "below"),
    "adherence.min": Limit("score_adherence", "below"),
    "adherence.target_min": Limit("score_target", "below"),
    "duplicates.min_distance": Limit("score_duplicate_distance", "below"),
    "ignore_noisy.max_ignored": Limit("score_ignored", "above"),
    "clip_rank.keep": Limit("score_clip", "behind"),
}


def columns_of(limits: Mapping[str, float]) -> list[str]:
    """The score columns that limits compare."""
    return [LIMITS[name].column for name in limits]


def of_rows(limits: Mapping[str, float]) -> Limits:
    """The limits that a row keeps or not by itself, whatever others there are."""
    return {name: value for name, value in limits.items() if LIMITS[name].refused != "behind"}


def refusals(scores: Mapping[str, np.ndarray], limits: Mapping[str, float]) -> np.ndarray:
    """Why each row is refused, object array [N], None where it is not; the first limit in the order of LIMITS counts.

    `scores` are float32 [N] by column, NaN where a row has none: a score that is missing refuses nothing. The limit is
    compared as float32, so that an IoU of 0.7 is not below 0.7. Limits that rank are left to `refilter`.
    """
    count = len(next(iter(scores.values()))) if scores else 0
    found = np.full(count, None, dtype=object)
    for name in reversed([name for name in LIMITS if name in of_rows(limits)]):
        limit, value = LIMITS[name], limits[name]
        given = scores[limit.column].astype(np.float32)
        refused = given < np.float32(value) if limit.refused == "below" else given > np.float32(value)
        found[refused] = f"{score_words(limit.column)} {limit.refused} {value:g}"
    return found


_REQUIRED: dict[str, dict[str, str]] = {
    "adherence": {"segmenter": "unused"},
    "ignore_noisy": {"segmenter": "unused"},
    "clip_rank": {"weights": "unused"},
}
"""Fields that a filter cannot do without, of which its limits know nothing."""


def parse_limits(words: list[str]) -> Limits:
    """Limits from words like `adherence.min=0.6`. Raises UsageError that names the word and what is allowed."""
    found: Limits = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in LIMITS or not equals:
            raise UsageError(f"{word!r} sets no limit: give NAME=VALUE, NAME one of {', '.join(LIMITS)}")
        filter_name, field = name.split(".")
        required = _REQUIRED.get(filter_name, {})
        given: dict[str, Any] = {filter_name: {**required, field: text}}
        try:
            found |= {name: Filters.model_validate(given).limits()[name]}
        except ValidationError as error:
            raise UsageError(describe(error, Filters)) from error
    return found
