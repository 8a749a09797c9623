"""Estimates against closed forms, prices that are missing, and budgets over attempts."""

import time
from dataclasses import replace

import pytest

from segdatagen.budget import COST_OVER, TIME_OVER, Budget, cost_of
from segdatagen.costs import Charges, Pool, Prices, Work, estimate
from segdatagen.run_folder import Attempt

PRICES = Prices(per_gpu_hour=2.5, per_cpu_hour=0.04, per_gb_month=0.023, per_1000_puts=0.005)
POOL = Pool(actors=8, gpus_per_actor=1.0, cpus_per_actor=4.0)
WORK = Work(num_rows=500_000, seconds=1_440_000.0, num_bytes=40_000_000_000, num_puts=20_000)


def test_an_estimate_has_its_closed_form() -> None:
    found = estimate(WORK, POOL, PRICES)
    assert (found.actor_hours, found.gpu_hours, found.wall_hours) == (400.0, 400.0, 50.0)
    assert (found.stored_bytes, found.put_requests) == (40_000_000_000, 20_000)
    assert found.cost.actors == pytest.approx(400 * (2.5 + 4 * 0.04))
    assert found.cost.requests == pytest.approx(0.1)
    assert found.cost.storage_per_month == pytest.approx(0.92)
    for name, value in found.cost.model_dump().items():
        assert getattr(found.cost_per_million, name) == pytest.approx(2 * value)


def test_what_has_no_price_or_was_not_measured_is_not_guessed() -> None:
    none = Charges(actors=None, requests=None, storage_per_month=None)
    assert estimate(WORK, POOL, Prices()).cost == none
    unmeasured = estimate(replace(WORK, seconds=None), POOL, PRICES)
    assert (unmeasured.actor_hours, unmeasured.gpu_hours, unmeasured.wall_hours) == (None, None, None)
    assert unmeasured.cost.actors is None
    assert unmeasured.cost.requests == pytest.approx(0.1)
    assert estimate(Work(0, 0.0, 0, 0), POOL, PRICES).cost_per_million == none


def test_an_actor_is_paid_by_what_it_works_with() -> None:
    assert PRICES.per_actor_hour(gpus=2, cpus=3) == pytest.approx(5.12)
    assert PRICES.per_actor_hour(gpus=0, cpus=0.5) == pytest.approx(0.02)
    assert Prices(per_gpu_hour=2.5).per_actor_hour(gpus=1, cpus=4) == 2.5, "CPUs come with the GPU"
    assert Prices(per_gpu_hour=2.5).per_actor_hour(gpus=0, cpus=4) is None
    assert Prices(per_cpu_hour=0.04).per_actor_hour(gpus=1, cpus=4) is None


def attempt(number: int, actors: int, gpus: float, **seconds: float) -> Attempt:
    execution = {"actors": actors, "gpus_per_actor": gpus, "cpus_per_actor": 2.0}
    return Attempt(number=number, started="", execution=execution, packages={}, hardware={}, seconds=seconds)


def test_the_cost_of_attempts_is_their_time_for_all_their_actors() -> None:
    attempts = [attempt(1, 2, 1.0, wall=1800.0, chains=5.0), attempt(2, 4, 0.0, wall=3600.0), attempt(3, 9, 1.0)]
    assert cost_of(attempts, PRICES) == pytest.approx(2 * 0.5 * (2.5 + 0.08) + 4 * 0.08)
    assert cost_of(attempts, Prices(per_cpu_hour=0.04)) == pytest.approx(4 * 0.08)


def test_time_is_over_only_after_something_was_made() -> None:
    budget = Budget(max_hours=1.0, max_cost=None, spent=0.0, per_hour=0.0, began=time.monotonic() - 3601)
    assert budget.reached() is None
    budget.has_made = True
    assert budget.reached() == TIME_OVER
    assert Budget(2.0, None, 0.0, 0.0, time.monotonic() - 3601, has_made=True).reached() is None


def test_cost_counts_earlier_attempts_and_stops_before_anything_is_made() -> None:
    began = time.monotonic() - 3600
    assert Budget(None, 10.0, spent=4.0, per_hour=5.0, began=began).reached() is None
    assert Budget(None, 10.0, spent=5.1, per_hour=5.0, began=began).reached() == COST_OVER
    assert Budget(None, 10.0, spent=10.0, per_hour=5.0).reached() == COST_OVER
    assert Budget(None, None, spent=1e9, per_hour=5.0).reached() is None
