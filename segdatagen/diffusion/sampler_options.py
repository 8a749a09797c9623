"""How images are drawn from a diffusion model: what a job file and a sample grid can be told.

Imports no torch, and does not know how the samplers work.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SamplerOptions(BaseModel):
    """How images are drawn.

    `ancestral` is the paper's sampler: it visits every step of the schedule and bounds nothing. The others take few
    steps, and bound the predicted image at each: `static` cuts it off at the range of images, `dynamic` scales it into
    that range where more than 2 % of its values leave it (Saharia et al., 2022, section 2.3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler: Literal["ancestral", "ddim", "dpm++2m"] = "ddim"
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(
        default=3.0, ge=0, allow_inf_nan=False, description="0, 1: conditional only; the paper's: 3"
    )
    thresholding: Literal["static", "dynamic"] = "dynamic"
