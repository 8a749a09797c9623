"""What a job can be told of a visual prior.

Imports no torch, and does not know what each prior needs.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.priors.blend import SGA_BLEND
from segdatagen.weights import OptionalWeightsUri

Of = Literal["image", "mask", "both"]


class PriorOptions(BaseModel):
    """A visual prior: which drawing, of what, and how both are blended. `check_prior` says whether it can be drawn.

    The defaults of `w1` and `w2` are SGA's (table 7), those of Canny and of the sketch the public annotators'.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="a name in PRIORS")
    weights: OptionalWeightsUri = None
    of: Of = Field(default="both", description="drawn of the image, of the mask's colour map, or of both, blended")
    w1: float = Field(default=SGA_BLEND.w1, ge=0, allow_inf_nan=False, description="scale of the image's prior")
    w2: float = Field(default=SGA_BLEND.w2, ge=0, allow_inf_nan=False, description="scale of the mask's prior")
    canny_low: float = Field(default=100.0, ge=0, allow_inf_nan=False, description="edges go on down to this gradient")
    canny_high: float = Field(default=200.0, ge=0, allow_inf_nan=False, description="edges begin at this gradient")
    sketch_threshold: float | None = Field(
        default=0.5, ge=0, le=1, description="probability above which a pixel is white, others black; null: shades"
    )
    resolution: int | None = Field(
        default=None,
        ge=32,
        le=8192,
        strict=True,
        description="shorter side that a network sees; null: native",
    )

    outlines: bool = Field(
        default=True,
        description="segments of a mask that has some are outlined in its colour map (SegGen, appendix A.2)",
        exclude_if=lambda value: value,
    )

    @model_validator(mode="after")
    def _require_an_order(self) -> "PriorOptions":
        if self.canny_low > self.canny_high:
            raise ValueError(f"canny_low is {self.canny_low:g}: it must not be above canny_high, {self.canny_high:g}")
        return self

    @model_validator(mode="after")
    def _require_a_picture(self) -> "PriorOptions":
        if self.w1 == self.w2 == 0:
            raise ValueError("w1 and w2 are both 0, and a black picture guides nothing: raise one of them")
        return self


def prior_columns(count: int) -> list[str]:
    """Names of the columns that hold the priors of so many controls."""
    return ["prior"] if count == 1 else [f"prior_{number}" for number in range(count)]
