"""The options of the mask-guided network, apart from it, so that a job is checked without torch.

It does not know what the network makes of them.
"""

from pydantic import BaseModel, ConfigDict, Field


class MaskUNetConfig(BaseModel):
    """Architecture of a `MaskUNet`. The defaults are the paper's: 90,816,131 parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(default=19, ge=1)
    hidden: int = Field(default=128, ge=2, multiple_of=2)
    time_embedding: int = Field(default=256, ge=2, multiple_of=2)
    attention: bool = True
    diffusion_steps: int = Field(default=1000, ge=2, description="steps of the schedule that the weights are made for")
