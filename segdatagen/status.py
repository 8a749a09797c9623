"""What a run looks like from outside: how far it is, what failed and why, and who holds it.

Reads what is stored and changes nothing. It does not know how samples are made.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from segdatagen.budget import cost_of
from segdatagen.costs import Prices
from segdatagen.lease import read_holder
from segdatagen.missing import Shortfall
from segdatagen.planner import RoundSummary, read_plan, read_rounds
from segdatagen.progress import accepted_per_class
from segdatagen.publish import read_index
from segdatagen.run_folder import Attempt, Run, read_attempts
from segdatagen.samples import Ledger, read_ledger, reasons_of
from segdatagen.verify import read_manifest

NAMED_GOALS = 5
"""Goals that a sentence names before it counts the rest."""


class RunStatus(BaseModel):
    """The state of a run.

    `accepted` counts, now, the accepted samples that show each class, `accepted_pixels` their pixels of it. `reasons`
    counts why samples are not `ok`, most frequent first. `cost` is what the attempts cost at the prices of the job, 0
    where their actors have none. `goals_met` and `unmet`, what the goals lack, are known where the run is complete.
    `published` samples lie in `data/`; `published_is_current` where they are those that are good now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    complete: bool
    goals_met: bool | None
    unmet: tuple[Shortfall, ...]
    planned: int
    missing: int
    counts: dict[str, int]
    accepted: dict[str, int]
    accepted_pixels: dict[str, int]
    reasons: dict[str, int]
    unreadable: tuple[str, ...]
    rounds: tuple[RoundSummary, ...]
    attempts: tuple[Attempt, ...]
    cost: float
    currency: str | None
    held_by: str | None
    published: int | None
    published_is_current: bool

    @property
    def state(self) -> str:
        """In words: complete, and whether its goals are met, or why it is not complete."""
        if self.complete:
            return f"complete, {goals_in_words(bool(self.goals_met), self.unmet)}"
        if self.missing or not self.rounds:
            return "not complete"
        return "all that is planned is made; the next run plans a further round if the goals miss samples"


def goals_in_words(met: bool, unmet: Sequence[Shortfall]) -> str:
    """Whether goals are met, and if not, the first five that are not."""
    if met:
        return "goals met"
    if not unmet:
        return "goals not met"
    more = f" and {len(unmet) - NAMED_GOALS} more" if len(unmet) > NAMED_GOALS else ""
    named = ", ".join(map(str, unmet[:NAMED_GOALS]))
    return f"{len(unmet)} goal{'' if len(unmet) == 1 else 's'} not met ({named}{more})"


def status_of(run: Run, ledger: Ledger | None = None) -> RunStatus:
    """Read rounds, attempts and lease of a run, and its ledger unless the caller has.

    Raises SegdatagenError where one of them is damaged.
    """
    ledger = ledger or read_ledger(run.folder)
    rounds, holder = read_rounds(run.folder), read_holder(run.folder)
    planned = read_plan(run.folder, rounds, ["sample_id"])["sample_id"].to_numpy()
    index, attempts = read_index(run.folder), tuple(read_attempts(run.folder))
    manifest, prices = read_manifest(run.folder), run.job_as(Prices, "prices")
    accepted, accepted_pixels = _accepted(run, ledger, rounds)
    held_by = None if holder is None else f"{holder}{' (dead)' if holder.is_dead_here() else ''}"
    return RunStatus(
        uri=run.folder.uri,
        complete=manifest is not None,
        goals_met=None if manifest is None else manifest.goals_met,
        unmet=() if manifest is None else manifest.unmet,
        planned=len(planned),
        missing=int((ledger.status_of(planned) < 0).sum()),
        counts=ledger.counts,
        accepted=accepted,
        accepted_pixels=accepted_pixels,
        reasons=reasons_of(run.folder, ledger, "rejected", "failed"),
        unreadable=tuple(ledger.unreadable.values()),
        rounds=tuple(rounds),
        attempts=attempts,
        cost=cost_of(attempts, prices),
        currency=prices.currency,
        held_by=held_by,
        published=None if index is None else index.num_rows,
        published_is_current=index is not None and index.holds(ledger.ids_with("ok")),
    )


def _accepted(run: Run, ledger: Ledger, rounds: list[RoundSummary]) -> tuple[dict[str, int], dict[str, int]]:
    """Accepted samples and their pixels per class that counts, with the `min_pixels` of the last round."""
    if not rounds:
        return {}, {}
    found = accepted_per_class(run.folder, ledger, run.label_set, int(rounds[-1].settings["min_pixels"]))
    names, counted = run.label_set.names, [summary.name for summary in rounds[-1].classes]
    images, pixels = (dict(zip(names, counts.tolist(), strict=True)) for counts in (found.images, found.pixels))
    return {name: images[name] for name in counted}, {name: pixels[name] for name in counted}
