"""Text2Mask of SegGen (section 3, appendix A.2) as stages: a prompt in, a mask that no human drew out.

A layout is drawn as a colour map, decoded, and judged before an image is spent on it. It depends on prompt, asked
classes and its own seed alone; what shares all three is drawn once in a batch. Knows neither the store nor the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from segdatagen.diffusion.render import Wanted, describe, render_batches
from segdatagen.images import encode_mask
from segdatagen.labels import LabelSet
from segdatagen.layouts import LAYOUT_SCORES, Layout, LayoutJudge, LayoutOptions, asked_classes
from segdatagen.records import derive_seed
from segdatagen.segments import PANOPTIC
from segdatagen.stages.model_options import ModelStageOptions
from segdatagen.stages.stage import Batch, objects

SEED_COLUMN = "layout_seed"


class LayoutSeedStage:
    """`layout_seed`: parent of every random number of a layout, of (seed of the job, source, number of the layout).

    `images_per_mask` variants of a source that follow each other have one layout, the first the layout 0.
    """

    name = "layout"
    reads = ("source_id", "variant")
    writes = (SEED_COLUMN,)
    verdict: Literal["failed"] = "failed"

    def __init__(self, seed: int, images_per_mask: int) -> None:
        self._seed, self._images_per_mask = seed, images_per_mask

    def __call__(self, batch: Batch) -> Batch:
        """The seed of the layout of every row."""
        rows = zip(batch["source_id"], batch["variant"], strict=True)
        numbers = [(source_id, int(variant) // self._images_per_mask) for source_id, variant in rows]
        return {SEED_COLUMN: objects([derive_seed(self._seed, "layout", *number) for number in numbers])}


class Text2MaskStageOptions(ModelStageOptions):
    """What the stage needs to know beside its model."""

    label_set: LabelSet
    layout: LayoutOptions = LayoutOptions()


@dataclass(frozen=True)
class Asked:
    """What a layout is drawn of: rows for which all of it is equal share one."""

    prompt: str
    negative: str | None
    seed: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class DrawnLayout:
    """The layout that was taken, or the last one where all were refused; those before it as in SAMPLE_SCHEMA."""

    layout: Layout
    encoded: bytes
    microbatch: int
    candidates: list[dict[str, Any]]


class Text2MaskStage:
    """Draws a layout per row and decodes it to a mask; one that does not keep the limits is drawn again.

    It reads the classes that are asked for, and writes those that came out. The mask has no segments, whatever its
    source has. A row none of whose layouts keeps the limits has the last one, and a reason.
    """

    name = "text2mask"
    reads = ("prompt", "negative_prompt", SEED_COLUMN, "class_ids", "class_pixels")
    writes = (
        *("mask", "class_ids", "class_pixels", "height", "width"),
        *("layout_microbatch", "layout_candidates", *LAYOUT_SCORES, "reason"),
        *PANOPTIC,
    )
    verdict: Literal["rejected"] = "rejected"

    def __init__(self, options: Text2MaskStageOptions, real: np.ndarray) -> None:
        """Load. `real` uint64 [S]: hashes of real layouts. Raises UsageError where the model cannot be used."""
        self._options = options
        self._models, self._compiled = options.load()
        self._microbatch = options.microbatch
        """What fits: where memory ran out once it is not tried again."""
        self._judge = LayoutJudge(options.label_set, options.layout, real)

    def __call__(self, batch: Batch) -> Batch:
        """Encoded masks with their classes and figures."""
        told = zip(*(batch[name] for name in self.reads), strict=True)
        label_set, layout = self._options.label_set, self._options.layout
        asked = [
            Asked(prompt, negative, int(seed), asked_classes(class_ids, class_pixels, label_set, layout))
            for prompt, negative, seed, class_ids, class_pixels in told
        ]
        distinct = list(dict.fromkeys(asked))
        drawn = dict(zip(distinct, self._draw(distinct), strict=True))
        rows = [_columns(drawn[one]) for one in asked]
        return {name: objects([row[name] for row in rows]) for name in self.writes}

    def _draw(self, asked: Sequence[Asked]) -> list[DrawnLayout]:
        """A layout each. The seed of attempt 0 follows from the layout's and the stage's name, of attempt n from n."""
        width, height = self._options.size
        prompts, negatives = [one.prompt for one in asked], [one.negative for one in asked]
        conditions = describe(self._models, prompts, negatives, (height, width))
        sampler = self._options.sampler
        drawn: dict[int, DrawnLayout] = {}
        lost: list[list[dict[str, Any]]] = [[] for _ in asked]
        pending = list(range(len(asked)))
        for attempt in range(1 + self._options.layout.redraws):
            if not pending:
                break
            seeds = [_seed_of(asked[place], attempt) for place in pending]
            again: list[int] = []
            for made in render_batches(self._models, conditions, Wanted(pending, seeds), sampler, self._microbatch):
                self._microbatch = made.microbatch
                for number, colour_map in enumerate(made.images):
                    place = pending[made.start + number]
                    if place in drawn:
                        lost[place].append(_candidate(drawn[place].layout, _seed_of(asked[place], attempt - 1)))
                    layout = self._judge.judge(colour_map, asked[place].classes, bool(made.finite[number]))
                    drawn[place] = DrawnLayout(layout, encode_mask(layout.mask), made.microbatch, lost[place])
                    again += [place] * (layout.refused is not None)
            pending = again
        if self._compiled is not None:
            self._compiled.keep()
        return [drawn[place] for place in range(len(asked))]


def _seed_of(asked: Asked, attempt: int) -> int:
    return derive_seed(asked.seed, Text2MaskStage.name, *([attempt] if attempt else []))


def _candidate(layout: Layout, seed: int) -> dict[str, Any]:
    value = None if layout.refused_by is None else layout.figures[layout.refused_by]
    return {"seed": seed, "score": layout.refused_by, "value": value}


def _columns(drawn: DrawnLayout) -> dict[str, Any]:
    layout = drawn.layout
    return {
        "mask": drawn.encoded,
        "class_ids": list(layout.class_ids),
        "class_pixels": list(layout.class_pixels),
        "height": layout.mask.shape[0],
        "width": layout.mask.shape[1],
        "layout_microbatch": drawn.microbatch,
        "layout_candidates": drawn.candidates or None,
        "reason": layout.refused,
        **{f"score_{figure}": value for figure, value in layout.figures.items()},
        **dict.fromkeys(PANOPTIC),
    }
