"""What trainings of latent diffusion can be told: prompts, noise, caches, memory. Imports no torch.

Each kind adds which networks it trains. It does not know how any of it is done.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from segdatagen.diffusion.latent_options import LatentSamplerOptions
from segdatagen.training.options import TrainingOptions

PromptForm = Literal["caption", "simple", "appended"]
"""As in jobs: the caption; "A photo of" and the classes of the mask; SGA's "caption; class, class"."""


class LoraOptions(BaseModel):
    """Low-rank adaptation by peft: only these layers learn, and they are merged into the weights that are saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0, description="unset: as the rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="names of the layers of the UNet"
    )


class LatentTrainingOptions(TrainingOptions):
    """What all trainings of latent diffusion can be told."""

    fixed: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.fixed,
        *("prompts", "drop_prompt", "timesteps", "min_snr_gamma", "cache_dtype"),
    )

    prompts: tuple[PromptForm, ...] = Field(
        default=("caption", "simple", "appended"), min_length=1, description="one is drawn for every row"
    )
    drop_prompt: float = Field(default=0.1, ge=0, le=1, description="share of rows without prompt, for guidance")
    timesteps: Literal["uniform", "cubic"] = Field(
        default="uniform", description="cubic: t = (1 - u^3) T, mostly noise, as T2I-Adapter samples"
    )
    min_snr_gamma: float | None = Field(default=None, gt=0, description="Hang et al. (2023); 5 in the paper")
    cache: str | None = Field(default=None, min_length=1, description="URI of the caches; unset: beside the store")
    cache_dtype: Literal["float16", "float32"] = "float16"
    cache_prompts: bool = Field(
        default=True, description="keep embeddings of frozen text encoders, too: small ones are faster than the disk"
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory, a third more time")
    validation: str | None = Field(
        default=None, min_length=1, description="URI of a source store to measure the loss on, not that of the training"
    )
    sampler: LatentSamplerOptions = Field(default=LatentSamplerOptions(steps=20), description="of the sample grids")
    sample_rows: int = Field(default=6, ge=1, description="sources in a sample grid")
