"""A job file: what to make from which sources, where it goes, and how it is executed.

Parsed and checked as a whole, so that a mistake costs one line and no GPU. The content recipe (what a sample is), the
plan (which samples are made) and the execution (where) are told apart here and nowhere else. Knows nothing of Ray.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segdatagen.config_files import Place, describe, read_config
from segdatagen.costs import Prices
from segdatagen.filters import Filters
from segdatagen.geometry import Geometry
from segdatagen.goals import AnyGoal, Balance, BalancePixels, Cover, Quotas, RandomSamples, Uniform
from segdatagen.images import ImageFormat
from segdatagen.method_options import Methods
from segdatagen.storage import Folder
from segdatagen.weights import absolute_weights, map_weights

STRATEGIES: dict[str, type[AnyGoal]] = {
    "uniform": Uniform,
    "random": RandomSamples,
    "balance": Balance,
    "balance_pixels": BalancePixels,
    "quotas": Quotas,
    "cover": Cover,
}

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME = 100
"""Characters. A disk takes 255 bytes, an object store 1024 in a whole key."""
A_NAME = "letters, digits, dots, underscores and hyphens, the first a letter or digit"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanSettings(_Part):
    """What holds for all goals of the plan."""

    max_rounds: int = Field(default=3, ge=1)
    min_pixels: int = Field(default=1, ge=1, description="pixels from which a class counts as present")
    allow_splits: tuple[str, ...] = Field(default=(), description="evaluation splits that may be generated from")


class Output(_Part):
    """Where runs lie and how images are stored."""

    root: Place
    image_format: ImageFormat = "jpeg95"


class Execution(_Part):
    """Where and in what portions a run is executed: free to change between attempts."""

    placement: Literal["fused", "streaming", "staged"] = "fused"
    actors: int = Field(default=1, ge=1)
    cpus_per_actor: float = Field(default=1.0, gt=0)
    gpus_per_actor: float = Field(default=0.0, ge=0)
    torch_threads: int = Field(default=1, ge=1, le=1024)
    microbatch: int = Field(default=8, ge=1, le=65536, description="rows in one forward pass of the network")
    rows_per_block: int | Literal["auto"] = "auto"
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    max_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of one attempt")
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of all attempts together")

    @property
    def device(self) -> str:
        """Where the networks of an actor run."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    @field_validator("rows_per_block")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value


class Hub(_Part):
    """How `prefetch` asks the hub of `hf://` weights: no content, and no secret."""

    token: str | None = Field(default=None, description="env:NAME, the variable with the token; unset: HF_TOKEN")

    @field_validator("token")
    @classmethod
    def _name_alone(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"env:[A-Za-z_]\w*", value):
            raise ValueError("must be env:NAME, a variable of the environment; it alone holds the token")
        return value

    @property
    def token_name(self) -> str | None:
        """The variable of the environment that holds the token."""
        return None if self.token is None else self.token.removeprefix("env:")


class Job(_Part):
    """A whole job file."""

    name: str = Field(pattern=NAME, max_length=LONGEST_NAME, description=A_NAME)
    version: str = Field(pattern=NAME, max_length=LONGEST_NAME, description=A_NAME)
    sources: Place
    seed: int = Field(default=0, ge=0, strict=True)
    geometry: Geometry
    methods: Methods
    filters: Filters = Filters()
    plan: tuple[AnyGoal, ...] = Field(min_length=1)
    settings: PlanSettings = PlanSettings()
    output: Output
    execution: Execution = Execution()
    prices: Prices = Prices()
    hub: Hub = Hub()

    @model_validator(mode="before")
    @classmethod
    def _split_plan(cls, data: Any) -> Any:
        """Tell the goals of the `plan` list from its settings, and pick each goal's model by its strategy."""
        if not isinstance(data, dict) or not isinstance(data.get("plan"), list):
            return data
        goals: list[Any] = []
        given = data.get("settings", {})
        if not isinstance(given, dict):
            raise ValueError(f"settings: must be a mapping, not {given!r}; in a job file they are an entry of the plan")
        settings: dict[str, Any] = dict(given)
        for number, entry in enumerate(data["plan"]):
            if isinstance(entry, dict) and "strategy" in entry:
                kind = STRATEGIES.get(str(entry["strategy"]))
                if kind is None:
                    known = ", ".join(STRATEGIES)
                    raise ValueError(f"plan: unknown strategy {entry['strategy']!r}: choose one of {known}")
                try:
                    goals.append(kind.model_validate(entry).at(f"plan.{number}"))
                except ValidationError as error:
                    raise ValueError(f"plan.{number}: {describe(error, kind)}") from error
            elif isinstance(entry, dict) and "method" not in entry:
                if settings.keys() & entry.keys():
                    raise ValueError(f"plan.{number}: {', '.join(sorted(settings.keys() & entry.keys()))}: given twice")
                try:
                    PlanSettings.model_validate(entry)
                except ValidationError as error:
                    raise ValueError(f"plan.{number}: {describe(error, PlanSettings)}") from error
                settings |= entry
            else:
                raise ValueError(f"plan: each entry has a method and a strategy, or settings, not {entry!r}")
        return {**data, "plan": tuple(goals), "settings": settings}

    @model_validator(mode="after")
    def _methods_fit(self) -> "Job":
        known = self.methods.named()
        if not known:
            raise ValueError(f"methods: name at least one of {', '.join(Methods.model_fields)}")
        for goal in self.plan:
            if goal.method not in known:
                raise ValueError(f"plan: method {goal.method!r} is not among the job's methods ({', '.join(known)})")
        return self

    @model_validator(mode="after")
    def _cost_needs_a_price(self) -> "Job":
        execution = self.execution
        price = self.prices.per_actor_hour(execution.gpus_per_actor, execution.cpus_per_actor)
        if execution.max_cost is not None and price is None:
            field = "per_gpu_hour" if execution.gpus_per_actor else "per_cpu_hour"
            raise ValueError(f"execution.max_cost: needs the price of an actor: give prices.{field}")
        return self

    @property
    def uri(self) -> str:
        """Address of the run."""
        return Folder(self.output.root).uri_of(f"{self.name}/{self.version}")

    def from_anywhere(self) -> "Job":
        """The same job with absolute paths: it means the same in every working folder and on every node that has them.

        Paths are no content: the recipe, and with it every id, is as before.
        """
        changes = {
            "sources": Folder(self.sources).absolute_uri,
            "methods": map_weights(self.methods, absolute_weights),
            "filters": map_weights(self.filters, absolute_weights),
            "output": self.output.model_copy(update={"root": Folder(self.output.root).absolute_uri}),
        }
        return self.model_copy(update=changes)

    def shared_recipe(self) -> dict[str, Any]:
        """What decides every sample, whatever its method: sources come as a fingerprint, beside it."""
        return {
            "seed": self.seed,
            "geometry": self.geometry.model_dump(mode="json"),
            "image_format": self.output.image_format,
        }


def load_job(uri: str) -> Job:
    """Read a job file from a path or URI. Raises UsageError that names the field, the value and what is allowed."""
    return read_config(Job, uri)
