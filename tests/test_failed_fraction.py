"""max_failed_fraction: when a run has failed too often to go on."""

import pytest

from segdatagen.driver import EARLY_ROWS, Tally


def tally_of(num_planned: int, allowed: float, ok: int, failed: int) -> Tally:
    """What a run knows once so many rows of its plan are done."""
    tally = Tally({"ok": 0, "rejected": 0, "failed": 0}, num_planned, allowed)
    tally.add("ok", ok)
    tally.add("failed", failed)
    return tally


@pytest.mark.parametrize("ok", range(10))
def test_a_bad_row_among_the_first_ten_stops_no_run_of_a_thousand(ok: int) -> None:
    assert not tally_of(1000, 0.05, ok, failed=1).too_many_failed()


@pytest.mark.parametrize(
    ("num_planned", "ok", "most"),
    [
        *((1000, 0, 5), (1000, 20, 5), (1000, EARLY_ROWS - 5, 5)),  # of a hundred rows, though fewer are done
        *((1000, 190, 10), (1000, 950, 50)),  # of all that are done
        *((40, 0, 2), (40, 38, 2), (10, 0, 0)),  # of the whole plan, where that is less
    ],
)
def test_so_many_may_fail_and_not_one_more(num_planned: int, ok: int, most: int) -> None:
    assert not tally_of(num_planned, 0.05, ok, most).too_many_failed()
    assert tally_of(num_planned, 0.05, ok, most + 1).too_many_failed()


def test_none_or_all_may_fail() -> None:
    assert tally_of(1000, 0.0, 500, failed=1).too_many_failed()
    assert not tally_of(1000, 1.0, 0, failed=1000).too_many_failed()
