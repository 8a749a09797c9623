"""What every kind of training can be told. Each kind adds its own options beside its network.

Options say what is trained and how it is executed; they do not know where a process runs or what a network is.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segdatagen.errors import UsageError
from segdatagen.geometry import SIZE_STEP, Geometry
from segdatagen.labels import LabelSet
from segdatagen.weights import OptionalWeightsUri, StoreDtype


class TrainingOptions(BaseModel):
    """The YAML of `segdatagen train`, without what only one kind knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed: ClassVar[tuple[str, ...]] = ("size", "fit", "seed", "batch_size", "flip", "init_weights")
    """Fields that a resumed training cannot change: they decide the network or the order of the data."""

    sources: str = Field(min_length=1, description="URI of a source store")
    out: str = Field(min_length=1, description="URI of the folder for weights, checkpoints, logs and pictures")
    size: tuple[int, int] = Field(description="width, height in pixels, multiples of 8")
    fit: Literal["crop", "pad", "resize"] = "resize"
    init_weights: OptionalWeightsUri = None
    """Weights to go on from, of the same network."""
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="of all workers together")
    learning_rate: float = Field(default=3e-4, gt=0)
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="cosine: falls to 0 at the last step"
    )
    warmup_steps: int = Field(default=0, ge=0)
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    ema_start: int = Field(default=2000, ge=0, description="steps during which the average is a plain copy")
    flip: bool = Field(default=True, description="mirror images and masks left to right, half of the time")
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16", "auto"] = Field(default="auto", description="auto: bf16 on a GPU, else fp32")
    channels_last: bool = True
    accumulate: int = Field(default=1, ge=1, description="parts that a worker's share of a batch is computed in")
    max_grad_norm: float | None = Field(default=None, gt=0, description="longer gradients are shortened to this")
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1, description="the newest ones")
    sample_every: int = Field(default=1000, ge=1)
    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    max_hours: float | None = Field(default=None, gt=0, description="stop cleanly; the same command goes on")
    torch_threads: int | None = Field(default=None, ge=1, description="per worker; unset: as torch chooses")
    store_dtype: StoreDtype = Field(default="float32", description="of the final weights")

    @property
    def cpus_per_worker(self) -> int:
        """CPUs that a worker takes of a Ray cluster."""
        return self.torch_threads or 1

    @field_validator("size")
    @classmethod
    def _halved_three_times(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(pixels < SIZE_STEP or pixels % SIZE_STEP for pixels in size):
            raise ValueError(f"must be positive multiples of {SIZE_STEP}, not {size[0]} x {size[1]}")
        return size

    @model_validator(mode="after")
    def _out_is_no_store(self) -> "TrainingOptions":
        if self.out.rstrip("/") == self.sources.rstrip("/"):
            raise ValueError(f"out: {self.out} is the store of the sources: choose a folder of its own")
        return self

    @model_validator(mode="after")
    def _equal_shares(self) -> "TrainingOptions":
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}")
        if self.batch_size % (self.num_workers * self.accumulate):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_workers x accumulate, "
                f"{self.num_workers} x {self.accumulate}"
            )
        return self

    @property
    def geometry(self) -> Geometry:
        """How sources are fitted to the size of the training images."""
        return Geometry(size=self.size, fit=self.fit)


def require_same_network(
    uri: str, networks: tuple[BaseModel, BaseModel], classes: tuple[tuple[str, ...], LabelSet]
) -> None:
    """Raise UsageError unless the weights at `uri` are of the wanted network and classes; pairs are (found, wanted)."""
    for name, wanted in networks[1].model_dump().items():
        found = getattr(networks[0], name)
        if found != wanted:
            raise UsageError(f"init_weights: {uri} are weights of another network: its {name} is {found}, not {wanted}")
    if classes[0] != classes[1].names:
        raise UsageError(f"init_weights: {uri} were trained on the classes {', '.join(classes[0])}, in that order")
