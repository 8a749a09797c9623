"""The options of the mask-guided DDPM, apart from its network and samplers, so that a job is checked without torch.

The one place where they are declared. It does not know where weights lie or how a sampler works.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from segdatagen.errors import UsageError


class SamplerOptions(BaseModel):
    """How images are drawn.

    `ancestral` is the paper's sampler: it visits every step of the schedule and clips nothing. The others take few
    steps, and clip the predicted image at each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler: Literal["ancestral", "ddim", "dpm++2m"] = "ddim"
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(
        default=3.0, ge=0, allow_inf_nan=False, description="0 and 1 are conditional only; the paper's is 3"
    )


class MaskDDPMOptions(SamplerOptions):
    """The method `mask_ddpm` of a job (paper 001). All of it is content."""

    weights: str = Field(min_length=1, description="builtin:NAME, a path or a URI")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def require_steps(options: SamplerOptions, num_diffusion_steps: int, field: str = "steps") -> None:
    """Raise `UsageError` unless weights with so many diffusion steps can be sampled as the options say.

    `field` is how the user knows `options.steps`.
    """
    if options.sampler == "ancestral" and options.steps != num_diffusion_steps:
        raise UsageError(
            f"{field}: the ancestral sampler visits every step: {num_diffusion_steps}, not {options.steps}"
        )
    if options.steps > num_diffusion_steps:
        raise UsageError(f"{field}: the weights have {num_diffusion_steps} steps, fewer than {options.steps}")
