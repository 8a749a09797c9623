"""How images are drawn from a latent diffusion model: what a job file can be told. Imports no torch.

All of it is content. A field that came later is left out of the recipe where it is off, so that ids stay as they were.
It does not know networks, nor which conditions they get.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from segdatagen.errors import UsageError
from segdatagen.weights import OptionalWeightsUri, WeightsUri

SchedulerName = Literal["euler", "dpm++2m", "unipc"]
"""Solvers of the ordinary differential equation: a sample's noise is all drawn at the start, from its own generator.

`euler` is what Stability's code calls EulerEDM, and SegGen its EDM sampler.
"""

PresetName = Literal["seggen_text2mask", "seggen_mask2img", "sga"]
PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    "seggen_text2mask": {"scheduler": "euler", "steps": 200},
    "seggen_mask2img": {"scheduler": "euler", "steps": 40},
    "sga": {"steps": 30},
}
"""What the papers state of their samplers, and no more: SegGen (appendix A.4) the EDM sampler and its steps, SGA
(section 4.1.2) the steps. Neither states its guidance, nor SGA its solver: those are our defaults."""

Attention = Literal["auto", "math", "flash", "efficient", "cudnn"]
"""Kernels of torch's scaled dot product attention; `auto`: torch picks one by device, type and shape."""
ON_A_GPU: tuple[Attention, ...] = ("efficient", "cudnn")
IN_HALF_PRECISION: tuple[Attention, ...] = ("flash", "cudnn")
"""On a GPU these two have no float32."""
DECODE_BATCH = 4
"""Images that are decoded at once, by default: the widest layers need more memory than the whole loop before."""


class Numerics(BaseModel):
    """How networks compute. All of it is content: none of it gives the same bits as another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vae: OptionalWeightsUri = None
    """A VAE in place of the base's, as SDXL's with the fp16 fix."""
    decode_batch: int = Field(
        default=DECODE_BATCH, ge=1, le=64, strict=True, exclude_if=lambda value: value == DECODE_BATCH
    )
    """Images that the VAE decodes at once, which needs more memory than all steps before: fewer for a small GPU."""
    channels_last: bool = False
    compile: bool = Field(default=False, description="torch.compile of UNet and ControlNet")
    fuse_qkv: bool = False
    attention: Attention = Field(default="auto", exclude_if=lambda value: value == "auto")
    """Of UNet and ControlNet; the VAE and the text encoders keep torch's own choice."""
    float8_weights: bool = Field(default=False, exclude_if=lambda value: not value)
    """UNet and ControlNet are kept in float8 (e4m3) and cast to `dtype` layer by layer: less memory, no more speed."""

    @model_validator(mode="after")
    def _fit(self) -> "Numerics":
        if self.compile and self.float8_weights:
            raise ValueError("float8_weights are cast between layers, which compile cannot see: leave one of them out")
        return self

    def require_usable(self, device: str) -> None:
        """Raise UsageError where `device`, `cpu` or `cuda`, has no such attention, or this machine no compiler."""
        if device == "cpu" and self.attention in ON_A_GPU:
            raise UsageError(f"numerics.attention: {self.attention} needs a GPU: on a CPU give auto, math or flash")
        if device == "cuda" and self.attention in IN_HALF_PRECISION and self.dtype == "float32":
            raise UsageError(
                f"numerics.attention: {self.attention} needs dtype bfloat16 or float16 on a GPU, not float32"
            )
        compiler = os.environ.get("CXX", "g++")
        if self.compile and shutil.which(compiler) is None:
            raise UsageError(
                f"numerics.compile needs a C++ compiler on every node, and here is no {compiler}: install one, name it "
                "in CXX, or leave compile out"
            )


def controlnet_works(step: int, num_steps: int, start: float, end: float) -> bool:
    """Whether step number `step` of `num_steps` lies as a whole in the interval of a ControlNet."""
    return step / num_steps >= start and (step + 1) / num_steps <= end


def adapter_works(step: int, num_steps: int, end: float) -> bool:
    """Whether a T2I-Adapter works at step number `step` of `num_steps`."""
    return step < int(num_steps * end)


class ControlOptions(BaseModel):
    """A ControlNet or T2I-Adapter that draws after a picture, and how much of the image is its own.

    A ControlNet works from `start` to `end` of the steps; an adapter from the first one to `end`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["controlnet", "t2i_adapter"]
    weights: WeightsUri
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    guided: bool = Field(default=False, exclude_if=lambda value: not value)
    """Left out of the prediction without the prompt: guidance then leads towards the picture, too.

    Zhang et al. (2023), "Adding Conditional Control to Text-to-Image Diffusion Models", section 3.4, without their
    weights by resolution.
    """

    @model_validator(mode="after")
    def _require_steps(self) -> "ControlOptions":
        if self.start >= self.end:
            raise ValueError(f"it works from {self.start:g} to {self.end:g}: start must be less than end")
        if self.kind == "t2i_adapter" and self.start > 0:
            raise ValueError("a t2i_adapter starts with the first step: leave start out")
        return self

    def works(self, num_steps: int) -> bool:
        """Whether there is a step of `num_steps` at which it is at work."""
        if self.kind == "t2i_adapter":
            return any(adapter_works(step, num_steps, self.end) for step in range(num_steps))
        return any(controlnet_works(step, num_steps, self.start, self.end) for step in range(num_steps))


class StepCacheOptions(BaseModel):
    """Ma et al. (2024), "DeepCache": all of the network runs at one step of `every`, shallow layers at the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(ge=1, le=1000, strict=True)


class LatentSamplerOptions(BaseModel):
    """Solver, steps and guidance of a latent diffusion model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName | None = Field(default=None, exclude=True)
    """Stands for its values of PRESETS, under those that are given beside it; nothing remembers it."""
    scheduler: SchedulerName = "euler"
    steps: int = Field(default=30, ge=1, le=1000, strict=True)
    guidance: float = Field(default=5.0, ge=0, allow_inf_nan=False, description="0, 1: conditional only")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="noise levels (sigma) that are guided: above the first, up to the second"
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    step_cache: StepCacheOptions | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """The values that a preset stands for in its place; one that there is not stays, and is refused."""
        if not isinstance(data, dict) or data.get("preset") not in list(PRESETS):
            return data
        given = {name: value for name, value in data.items() if name != "preset"}
        return {**PRESETS[data["preset"]], **given}

    @model_validator(mode="after")
    def _require_an_interval(self) -> "LatentSamplerOptions":
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high:
                raise ValueError(f"guidance_interval is [{low:g}, {high:g}]: the first must be less than the second")
        return self

    @property
    def guides(self) -> bool:
        """Whether there is guidance at all."""
        return self.guidance not in (0.0, 1.0)

    def is_guided(self, sigma: float) -> bool:
        """Whether a step that begins at noise level `sigma` needs the unconditional prediction, too.

        Kynkaanniemi et al. (2024), "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
        """
        if not self.guides:
            return False
        low, high = self.guidance_interval or (-1.0, float("inf"))
        return low < sigma <= high


def beneath(preset: PresetName) -> BeforeValidator:
    """For a field of LatentSamplerOptions: what it leaves out is that of `preset`, unless it names another one."""

    def fill(data: Any) -> Any:
        names_its_own = not isinstance(data, Mapping) or data.get("preset") is not None
        return data if names_its_own else {**PRESETS[preset], **data}

    return BeforeValidator(fill)


Text2MaskSampler = Annotated[LatentSamplerOptions, beneath("seggen_text2mask")]
Mask2ImgSampler = Annotated[LatentSamplerOptions, beneath("seggen_mask2img")]


def require_whole_steps(sampler: LatentSamplerOptions, numerics: Numerics) -> None:
    """Raise ValueError for a step cache with `compile`: which layers run changes from step to step."""
    if sampler.step_cache is not None and numerics.compile:
        raise ValueError("sampler.step_cache and numerics.compile do not go together: leave one of them out")
