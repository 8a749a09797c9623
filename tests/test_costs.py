"""Estimates against closed forms, prices that are missing, and budgets over attempts."""

import time
from dataclasses import replace

import pytest
from conftest import JobFactory

from segdatagen.budget import COST_OVER, TIME_OVER, Budget, cost_of
from segdatagen.cli.screen import as_money
from segdatagen.costs import Charges, Pool, Prices, Work, estimate
from segdatagen.forecast import forecast
from segdatagen.job import load_job
from segdatagen.planner import RoundSummary
from segdatagen.run_folder import Attempt

PRICES = Prices(per_gpu_hour=2.5, per_cpu_hour=0.04, per_gb_month=0.023, per_1000_puts=0.005)
POOL = Pool(actors=8, gpus_per_actor=1.0, cpus_per_actor=4.0)
WORK = Work(num_rows=500_000, seconds=1_440_000.0, num_bytes=40_000_000_000, num_puts=20_000)
MILLION = Work(num_rows=1_000_000, seconds=2_880_000.0, num_bytes=80_000_000_000, num_puts=39_000)


def test_an_estimate_has_its_closed_form() -> None:
    found = estimate(WORK, MILLION, POOL, PRICES)
    assert (found.actor_hours, found.gpu_hours, found.wall_hours) == (400.0, 400.0, 50.0)
    assert (found.stored_bytes, found.put_requests) == (40_000_000_000, 20_000)
    assert found.cost.actors == pytest.approx(400 * (2.5 + 4 * 0.04))
    assert found.cost.requests == pytest.approx(0.1)
    assert found.cost.storage_per_month == pytest.approx(0.92)
    for name in ("actors", "storage_per_month"):
        assert getattr(found.cost_per_million, name) == pytest.approx(2 * getattr(found.cost, name))
    assert found.cost_per_million.requests == pytest.approx(0.195)


def test_what_has_no_price_or_was_not_measured_is_not_guessed() -> None:
    none = Charges(actors=None, requests=None, storage_per_month=None)
    assert estimate(WORK, MILLION, POOL, Prices()).cost == none
    unmeasured = estimate(replace(WORK, seconds=None), None, POOL, PRICES)
    assert (unmeasured.actor_hours, unmeasured.gpu_hours, unmeasured.wall_hours) == (None, None, None)
    assert unmeasured.cost.actors is None
    assert unmeasured.cost.requests == pytest.approx(0.1)
    assert estimate(Work(0, 0.0, 0, 0), None, POOL, PRICES).cost_per_million == none


def make_summary(num_rows: int, seconds_per_sample: float | None = 1.5, bytes_per_sample: int = 60_000) -> RoundSummary:
    seconds = None if seconds_per_sample is None else seconds_per_sample * num_rows
    return RoundSummary(
        round=0,
        settings={},
        num_rows=num_rows,
        rows_per_method={"mask_ddpm": num_rows, "imgsyn": 0},
        classes=(),
        entropy_before=0,
        entropy_after=0,
        cir_before=0,
        cir_after=0,
        unreachable=(),
        seconds_per_sample=seconds_per_sample,
        estimated_seconds=seconds,
        estimated_bytes=num_rows * bytes_per_sample,
    )


@pytest.mark.parametrize("seconds", [1.5, None])
def test_a_million_costs_the_same_whatever_the_round(make_job: JobFactory, seconds: float | None) -> None:
    """Of a round, a summary and a lease are put once: a small round says no more of a million than a large one."""
    job = load_job(str(make_job(prices=PRICES.model_dump(), execution={"actors": 2, "rows_per_block": 8})))
    million = forecast(job, make_summary(1_000_000, seconds))
    assert million.cost_per_million == million.cost
    for num_rows in (10, 300, 200_000):
        found = forecast(job, make_summary(num_rows, seconds)).cost_per_million
        assert found.model_dump() == pytest.approx(million.cost.model_dump())
    assert forecast(job, make_summary(0)).cost_per_million.requests is None


def test_requests_of_a_large_round_are_its_parts_its_shards_and_a_few_files(make_job: JobFactory) -> None:
    job = load_job(str(make_job(execution={"actors": 4, "rows_per_block": 10})))
    found = forecast(job, make_summary(400_000, seconds_per_sample=0.1))
    parts, plan, shards, once = 40_000, 4, 24_000_000_000 / (50 * 2**20), 10
    fixed = parts + plan + shards + once
    renewals, records = 1000, 333  # of 10,000 s
    assert found.put_requests == pytest.approx(fixed + renewals + records, abs=2 * 61)
    unmeasured = forecast(job, make_summary(400_000, None))
    assert found.put_requests - unmeasured.put_requests == renewals + records


def test_parts_are_of_one_method_each(make_job: JobFactory) -> None:
    job = load_job(str(make_job(execution={"actors": 4, "rows_per_block": 10})))
    of_one = make_summary(100_005, None)
    of_two = of_one.model_copy(update={"rows_per_method": {"mask_ddpm": 60_001, "imgsyn": 40_004}})
    assert forecast(job, of_two).put_requests == forecast(job, of_one).put_requests + 1


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "0.00"), (8.5e-05, "less than 0.01"), (0.0123, "0.01"), (93.456, "93.46"), (12_345.6, "12,346")],
)
def test_money_is_written_as_a_person_would(amount: float, text: str) -> None:
    assert as_money(amount, None) == text
    assert as_money(amount, "EUR") == f"{text} EUR"


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
