"""What a run shows while it works: the outcomes of the whole run, and a rate from the first part on."""

import re

import pytest

from segdatagen.cli import screen
from segdatagen.cli.run_screen import RunScreen
from segdatagen.dataflow import PartDone


def part(ok: int, rejected: int = 0, failed: int = 0) -> PartDone:
    return PartDone("p", "mask_ddpm", ok, rejected, failed, chain_seconds=1.0, stage_seconds={}, finished=0.0)


@pytest.fixture
def every_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update is shown, not one in ten seconds."""
    monkeypatch.setattr(screen, "SECONDS_BETWEEN_SENTENCES", 0.0)


def shown_after(capfd: pytest.CaptureFixture[str], shown: RunScreen, *parts: PartDone) -> list[str]:
    capfd.readouterr()
    for one in parts:
        shown.part(one)
    return capfd.readouterr().err.splitlines()


def test_a_resumed_run_counts_as_one_that_was_never_stopped(
    every_sentence: None, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [part(6, rejected=2), part(7, failed=1), part(5, rejected=3)]
    through, resumed = RunScreen(), RunScreen()
    through.working({"ok": 0, "rejected": 0, "failed": 0}, 40)
    whole = shown_after(capfd, through, *parts)[-1]
    resumed.working({"ok": 13, "rejected": 2, "failed": 1}, 40)
    assert "16 of 40 starting actors, which load their weights: 2 rejected, 1 failed" in capfd.readouterr().err
    rest = shown_after(capfd, resumed, parts[-1])[-1]
    counted = re.compile(r"run: 24 of 40 \d+\.\d\d images/s, .+ left, 5 rejected, 1 failed")
    assert counted.fullmatch(whole)
    assert counted.fullmatch(rest)


def test_a_further_round_counts_on(every_sentence: None, capfd: pytest.CaptureFixture[str]) -> None:
    shown = RunScreen()
    shown.working({"ok": 0, "rejected": 0, "failed": 0}, 8)
    shown.part(part(6, rejected=2))
    shown.working({"ok": 6, "rejected": 2, "failed": 0}, 10)
    assert shown_after(capfd, shown, part(1, rejected=1))[-1].endswith(", 3 rejected, 0 failed")


def test_the_start_is_said_at_once_and_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Loading may take minutes, in which a log would stay empty."""
    shown = RunScreen()
    for _ in range(2):
        shown.working({"ok": 0, "rejected": 0, "failed": 0}, 8)
    assert capfd.readouterr().err == ("run: 0 of 8 starting actors, which load their weights: 0 rejected, 0 failed\n")
    RunScreen(silent=True).working({"ok": 0, "rejected": 0, "failed": 0}, 8)
    assert capfd.readouterr().err == ""


def test_a_part_without_rows_says_nothing_of_the_rate(every_sentence: None, capfd: pytest.CaptureFixture[str]) -> None:
    """The rows of a part that was kept between two stages and is damaged are made again."""
    shown = RunScreen()
    shown.working({"ok": 0, "rejected": 0, "failed": 0}, 8)
    empty, first = shown_after(capfd, shown, part(0), part(4))
    assert "starting actors" in empty
    assert re.fullmatch(r"run: 4 of 8 \d+\.\d\d images/s, .+ left, 0 rejected, 0 failed", first)


def test_the_first_part_has_a_rate(every_sentence: None, capfd: pytest.CaptureFixture[str]) -> None:
    shown = RunScreen()
    shown.working({"ok": 0, "rejected": 0, "failed": 0}, 8)
    (line,) = shown_after(capfd, shown, part(4))
    assert re.fullmatch(r"run: 4 of 8 \d+\.\d\d images/s, .+ left, 0 rejected, 0 failed", line)
