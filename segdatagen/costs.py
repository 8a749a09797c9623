"""What a run costs: prices, and an estimate of hours, bytes, requests and money from what one sample takes.

It knows arithmetic alone, and nothing of jobs, plans or storage. Prices are in the currency that they name, or in one
that only their reader knows.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

GIGABYTE = 1e9


class Prices(BaseModel):
    """What the provider asks for; what has no price here is not counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_gpu_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_cpu_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_gb_month: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="10^9 bytes for a month")
    per_1000_puts: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    currency: str | None = Field(default=None, min_length=1, description="such as EUR: stands behind every cost")

    def per_actor_hour(self, gpus: float, cpus: float) -> float | None:
        """An hour of one actor; None unless its GPUs have a price, or its CPUs where it has no GPU."""
        if (self.per_gpu_hour if gpus else self.per_cpu_hour) is None:
            return None
        return gpus * (self.per_gpu_hour or 0.0) + cpus * (self.per_cpu_hour or 0.0)


@dataclass(frozen=True)
class Pool:
    """The actors of a run, and what each of them holds."""

    actors: int
    gpus_per_actor: float
    cpus_per_actor: float


@dataclass(frozen=True)
class Work:
    """What is to be made: `seconds` of one actor, where they were measured; `num_bytes` that lie there afterwards."""

    num_rows: int
    seconds: float | None
    num_bytes: int
    num_puts: int


class Charges(BaseModel):
    """Money by what it is paid for; None where the price or the time is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    actors: float | None
    requests: float | None
    storage_per_month: float | None


class Estimate(BaseModel):
    """What a round will take. Hours are None until a sample was measured; no start-up is in them.

    `actor_hours` and `gpu_hours` are sums over all actors, `wall_hours` what a clock shows for the pool of the job.
    `stored_bytes` and `put_requests` are those of the samples and of `data/` after publishing, the latter without those
    of a lease that is renewed where the hours are None. `cost_per_million` is
    that of a round of a million samples: what a round puts only once is in it once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    actors: int
    actor_hours: float | None
    gpu_hours: float | None
    wall_hours: float | None
    stored_bytes: int
    put_requests: int
    cost: Charges
    cost_per_million: Charges
    currency: str | None = None


def charges(work: Work, pool: Pool, prices: Prices) -> Charges:
    """Money for this work on this pool at these prices."""
    return Charges(
        actors=_product(_hours(work), prices.per_actor_hour(pool.gpus_per_actor, pool.cpus_per_actor)),
        requests=_product(work.num_puts / 1000, prices.per_1000_puts),
        storage_per_month=_product(work.num_bytes / GIGABYTE, prices.per_gb_month),
    )


def estimate(work: Work, million: Work | None, pool: Pool, prices: Prices) -> Estimate:
    """Hours, bytes, requests and money for this work on this pool at these prices; `million` is as much for a million.

    Without work there is no million of it.
    """
    actor_hours = _hours(work)
    unknown = Charges(actors=None, requests=None, storage_per_month=None)
    return Estimate(
        actors=pool.actors,
        actor_hours=actor_hours,
        gpu_hours=_product(actor_hours, pool.gpus_per_actor),
        wall_hours=None if actor_hours is None else actor_hours / pool.actors,
        stored_bytes=work.num_bytes,
        put_requests=work.num_puts,
        cost=charges(work, pool, prices),
        cost_per_million=unknown if million is None else charges(million, pool, prices),
        currency=prices.currency,
    )


def _hours(work: Work) -> float | None:
    return None if work.seconds is None else work.seconds / 3600


def _product(amount: float | None, price: float | None) -> float | None:
    return None if amount is None or price is None else amount * price
