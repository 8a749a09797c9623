"""Layouts that a model drew of a text, as colour maps: what is measured of one, and the limits that it must keep.

A layout that is refused costs no image. Every limit is content: another one makes other samples. This module knows
neither models nor where the hashes of real layouts come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segdatagen.bands import dissolve_bands
from segdatagen.colours import (
    FAR_DISTANCE,
    SPECKLE_PIXELS,
    ColourDecoder,
    ColourMap,
    encode,
    ignore_colour_of,
    quality_of,
)
from segdatagen.errors import UsageError
from segdatagen.filters import MAX_HASH_BITS
from segdatagen.image_hash import distances, perceptual_hash
from segdatagen.images import Mask, class_pixels
from segdatagen.labels import LabelSet

NOT_FINITE = "the colour map holds NaN or infinity"
NO_CLASS = "the mask shows no class"


class LayoutOptions(BaseModel):
    """What a generated layout must keep, and how often one that does not is drawn again. All of it is content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redraws: int = Field(default=2, ge=0, le=100, strict=True, description="how often a layout is drawn again, at most")
    palette_distance: float = Field(
        default=FAR_DISTANCE, gt=0, allow_inf_nan=False, description="RGB distance from every colour: off the palette"
    )
    max_off_palette: float = Field(default=0.1, ge=0, le=1, description="share of the pixels off the palette")
    speckle_pixels: int = Field(
        default=SPECKLE_PIXELS, ge=1, strict=True, description="regions of one class with fewer pixels are speckle"
    )
    dissolve_bands: bool = Field(
        default=True, description="classes that were not asked for have no bands too thin for a square of 3 x 3 pixels"
    )
    max_speckle: float = Field(default=0.05, ge=0, le=1, description="share of the pixels in speckle")
    min_classes_found: float = Field(default=0.5, ge=0, le=1, description="share of the classes that were asked for")
    min_distance: float = Field(
        default=6, ge=0, le=MAX_HASH_BITS, description="bits from the nearest real layout; 0: not compared"
    )
    min_colour_distance: float = Field(
        default=6.0, ge=0, allow_inf_nan=False, description="RGB distance of any two colours of the label set"
    )

    @property
    def compares(self) -> bool:
        """Whether layouts are compared with real ones."""
        return self.min_distance > 0


@dataclass(frozen=True)
class LayoutLimit:
    """A limit: the option that sets it, and whether a figure must not be below or above it."""

    option: str
    refused: Literal["below", "above"]


LAYOUT_LIMITS: dict[str, LayoutLimit] = {
    "off_palette": LayoutLimit("max_off_palette", "above"),
    "speckle": LayoutLimit("max_speckle", "above"),
    "classes_found": LayoutLimit("min_classes_found", "below"),
    "layout_distance": LayoutLimit("min_distance", "below"),
}
"""By figure, in the order in which they give their reason; a row has each as `score_<figure>`."""
LAYOUT_SCORES = tuple(f"score_{figure}" for figure in LAYOUT_LIMITS)
"""Those columns."""

Figures = dict[str, float | None]
"""Figures of a layout by the names of LAYOUT_LIMITS, as float32; None where there is nothing to compare with."""
NO_FIGURES: Figures = dict.fromkeys(LAYOUT_LIMITS)


@dataclass(frozen=True)
class Layout:
    """A mask of class ids H x W with what was measured of it. `refused` is why it may not be used, None where it may.

    `refused_by` is the figure that did not keep its limit, None where it was none of them.
    """

    mask: Mask
    class_ids: tuple[int, ...]
    class_pixels: tuple[int, ...]
    figures: Figures
    refused: str | None = None
    refused_by: str | None = None


def require_colours(label_set: LabelSet, options: LayoutOptions) -> None:
    """Raise UsageError where two colours of the label set, the ignore colour among them, are nearer than allowed."""
    names, colours = list(label_set.names), label_set.colours.astype(np.float64)
    if label_set.ignore_ids:
        names, colours = [*names, "what is ignored"], np.vstack([colours, ignore_colour_of(label_set)])
    apart = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(axis=-1))
    np.fill_diagonal(apart, np.inf)
    one, other = np.unravel_index(apart.argmin(), apart.shape)
    if apart[one, other] < options.min_colour_distance:
        raise UsageError(
            f"the colours of {names[one]} and {names[other]} in {label_set.name} are {apart[one, other]:.1f} apart, "
            f"less than min_colour_distance {options.min_colour_distance:g}: change a colour, or lower it"
        )


def asked_classes(
    class_ids: Sequence[int], class_pixels: Sequence[int], label_set: LabelSet, options: LayoutOptions
) -> tuple[int, ...]:
    """The classes that a layout is to show: those of its source, without background and without mere speckle.

    0 pixels mean that a caption names the class: how large it should be is not known.
    """
    large = [pixels == 0 or pixels >= options.speckle_pixels for pixels in class_pixels]
    known = zip(class_ids, large, strict=True)
    return tuple(int(id_) for id_, is_large in known if is_large and id_ not in label_set.background_ids)


class LayoutJudge:
    """Decodes colour maps to masks, measures them, and compares figures with limits."""

    def __init__(self, label_set: LabelSet, options: LayoutOptions, real: np.ndarray) -> None:
        """`real` uint64 [S] are the perceptual hashes of the colour maps of real masks; there may be none."""
        self._label_set, self._options, self._real = label_set, options, real
        self._decoder = ColourDecoder(label_set, with_ignore=bool(label_set.ignore_ids))

    def judge(self, colour_map: ColourMap, asked: Sequence[int], finite: bool = True) -> Layout:
        """The layout of a colour map uint8 [H, W, 3] that was to show the classes `asked`.

        `off_palette` and `speckle` are of what was drawn, all else is of the mask without bands.
        """
        mask = self._decoder.decode(colour_map)
        quality = quality_of(colour_map, self._decoder, self._options.palette_distance, self._options.speckle_pixels)
        if self._options.dissolve_bands:
            mask = dissolve_bands(mask, self._may_be_thin(asked))
        shown = {
            id_: pixels
            for id_, pixels in zip(*(found.tolist() for found in class_pixels(mask)), strict=True)
            if id_ not in self._label_set.ignore_ids
        }
        ids, counts = tuple(shown), tuple(shown.values())
        if not finite:
            return Layout(mask, ids, counts, NO_FIGURES, NOT_FINITE)
        found = sum(shown.get(id_, 0) >= self._options.speckle_pixels for id_ in asked)
        figures = {
            "off_palette": _float32(quality.far_share),
            "speckle": _float32(quality.speckle_share),
            "classes_found": _float32(found / len(asked)) if asked else None,
            "layout_distance": self._distance(mask),
        }
        refused_by = refusal(figures, self._options)
        if refused_by is not None:
            return Layout(mask, ids, counts, figures, self._reason(refused_by), refused_by)
        return Layout(mask, ids, counts, figures, None if shown else NO_CLASS)

    def _may_be_thin(self, asked: Sequence[int]) -> tuple[int, ...]:
        """What was asked for, and what nobody asks for: background, and pixels to ignore, as around objects of VOC."""
        return (*asked, *self._label_set.background_ids, *self._label_set.ignore_ids)

    def _distance(self, mask: Mask) -> float | None:
        if not self._options.compares or not len(self._real):
            return None
        return float(distances(perceptual_hash(encode(mask, self._label_set)), self._real).min())

    def _reason(self, figure: str) -> str:
        limit = LAYOUT_LIMITS[figure]
        return f"{figure.replace('_', ' ')} {limit.refused} {getattr(self._options, limit.option):g}"


def refusal(figures: Mapping[str, float | None], options: LayoutOptions) -> str | None:
    """The first figure that does not keep its limit, compared as float32; a figure that is missing refuses nothing."""
    for name, limit in LAYOUT_LIMITS.items():
        value, allowed = figures[name], np.float32(getattr(options, limit.option))
        if value is not None and (value < allowed if limit.refused == "below" else value > allowed):
            return name
    return None


def _float32(value: float) -> float:
    return float(np.float32(value))
