"""How images are drawn from a latent diffusion model: what a job file can be told. Imports no torch.

It does not know networks, nor which conditions they get.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segdatagen.weights import OptionalWeightsUri, WeightsUri

SchedulerName = Literal["euler", "dpm++2m", "unipc"]
"""Solvers of the ordinary differential equation: a sample's noise is all drawn at the start, from its own generator.

`euler` is what Stability's code calls EulerEDM, and SegGen its EDM sampler.
"""


class Numerics(BaseModel):
    """How networks compute. All of it is content: none of it gives the same bits as another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vae: OptionalWeightsUri = None
    """A VAE in place of the base's, as SDXL's with the fp16 fix."""
    channels_last: bool = False
    compile: bool = Field(default=False, description="torch.compile of UNet and ControlNet")
    fuse_qkv: bool = False


class ControlOptions(BaseModel):
    """A ControlNet or T2I-Adapter that draws after a picture, and how much of the image is its own.

    A ControlNet works from `start` to `end` of the steps; an adapter from the first one to `end`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["controlnet", "t2i_adapter"]
    weights: WeightsUri
    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _require_steps(self) -> "ControlOptions":
        if self.start >= self.end:
            raise ValueError(f"it works from {self.start:g} to {self.end:g}: start must be less than end")
        if self.kind == "t2i_adapter" and self.start > 0:
            raise ValueError("a t2i_adapter starts with the first step: leave start out")
        return self


class LatentSamplerOptions(BaseModel):
    """Solver, steps and guidance of a latent diffusion model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheduler: SchedulerName = "euler"
    steps: int = Field(default=30, ge=1, le=1000, strict=True)
    guidance: float = Field(default=5.0, ge=0, allow_inf_nan=False, description="0, 1: conditional only")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="noise levels (sigma) that are guided: above the first, up to the second"
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _require_an_interval(self) -> "LatentSamplerOptions":
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high:
                raise ValueError(f"guidance_interval is [{low:g}, {high:g}]: the first must be less than the second")
        return self

    def is_guided(self, sigma: float) -> bool:
        """Whether a step that begins at noise level `sigma` needs the unconditional prediction, too.

        Kynkaanniemi et al. (2024), "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
        """
        if self.guidance in (0.0, 1.0):
            return False
        low, high = self.guidance_interval or (-1.0, float("inf"))
        return low < sigma <= high
