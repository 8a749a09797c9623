"""The driver of one attempt: rounds until the goals are met, and the passes that find lost rows.

What is to do is always the plan minus the ledger; nothing else is remembered between attempts. It does not know what
a method does, nor how parts travel.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from segdatagen.balance import BoolArray, Presence
from segdatagen.budget import RECORD_SECONDS, Budget
from segdatagen.cluster import require_seen
from segdatagen.dataflow import BLOCKS_OF_ACTOR, Flow, PartDone, rows_per_block, stream
from segdatagen.errors import SegdatagenError
from segdatagen.filters import Limits
from segdatagen.forecast import forecast
from segdatagen.job import Job
from segdatagen.lease import Holder, Lease
from segdatagen.methods import failed_rows
from segdatagen.missing import Shortfall
from segdatagen.placement import Segments
from segdatagen.plan_rows import first_variants, of_methods, stratified, without
from segdatagen.planner import PlannedRound, PlanRequest, RoundSummary, plan_round, put_round, read_plan, read_rounds
from segdatagen.progress import accepted_per_class, measured_cost, state_of
from segdatagen.run_folder import SUCCESS_NAME, Attempt, Run, put_attempt, recipe_fingerprint
from segdatagen.samples import STATUSES, Ledger, put_samples, read_ledger, reasons_of, set_aside, split_parts
from segdatagen.sources import SourceStore
from segdatagen.storage import Folder
from segdatagen.verify import stray_decisions, verify_ledger, write_manifest
from segdatagen.work import delete_work

PASSES_OF_ONE = 3
"""After the flow, lost rows are run this often in blocks of one row before they are written as failed."""
BLOCKS_PER_FLOW = 20_000
"""A longer plan is made in several flows: Ray Data keeps 3 kB of statistics per block in the driver until a flow ends
(`segdatagen bench flow`)."""
COMPLETE, LIMIT_OVER = "complete", "limit reached"
"""How an attempt ends of its own accord; `budget` knows two other ways."""
EARLY_ROWS = 100
"""The failed fraction is judged as if at least this many rows were done, or all of them where there are fewer."""


class Events(Protocol):
    """What a run tells while it runs."""

    def waiting(self, holder: Holder) -> None:
        """Another process held the lease when the run began."""

    def planned(self, summary: RoundSummary) -> None:
        """A round was added to the plan."""

    def hashing(self, num_done: int, num_after: int) -> None:
        """So many parts of the sources are hashed, of so many."""

    def working(self, counts: Mapping[str, int], num_after: int) -> None:
        """Rows are about to be made: the outcomes of the whole run so far, and how many there will be."""

    def part(self, part: PartDone) -> None:
        """A part was committed."""

    def note(self, text: str) -> None:
        """Anything else that the user should read."""


class SilentEvents:
    """Events that nobody watches: a start for who wants one of them."""

    def waiting(self, holder: Holder) -> None:
        """Tell nobody."""

    def planned(self, summary: RoundSummary) -> None:
        """Tell nobody."""

    def hashing(self, num_done: int, num_after: int) -> None:
        """Tell nobody."""

    def working(self, counts: Mapping[str, int], num_after: int) -> None:
        """Tell nobody."""

    def part(self, part: PartDone) -> None:
        """Tell nobody."""

    def note(self, text: str) -> None:
        """Tell nobody."""


@dataclass(frozen=True)
class RunOptions:
    """How this attempt differs from a plain one."""

    address: str | None = None
    retry_failed: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: counts over the whole run, whether the goals are met, and what they miss.

    `ended` says in words whether it is complete, or which limit was reached. `unmet` is known where it is complete.
    """

    counts: dict[str, int]
    planned: int
    goals_met: bool
    complete: bool
    ended: str = COMPLETE
    already_complete: bool = False
    unmet: tuple[Shortfall, ...] = ()


@dataclass(frozen=True)
class Session:
    """The inputs of a run, read and checked. `limits` are those in force: the job's, but for what `refilter` set.

    `usable` are the sources that a method can start from, by methods that cannot from all.
    """

    job: Job
    store: SourceStore
    recipes: dict[str, dict[str, Any]]
    presence: Presence
    limits: Limits
    usable: Mapping[str, BoolArray]

    @property
    def settings(self) -> dict[str, Any]:
        """Plan settings as a round records them."""
        goals = [goal.model_dump(mode="json") for goal in self.job.plan]
        found = {"goals": goals, "min_pixels": self.job.settings.min_pixels}
        return found | ({"limits": self.limits} if self.limits else {})

    @property
    def _shared_masks(self) -> dict[str, int]:
        """How many variants of a source share a mask that was drawn, by method."""
        options = self.job.methods.masksyn
        return {} if options is None else {"masksyn": options.images_per_mask}

    def may_plan(self, rounds: Sequence[RoundSummary]) -> bool:
        """Whether `max_rounds` allows one more round with these settings."""
        used = sum(summary.settings == self.settings for summary in rounds)
        return used < self.job.settings.max_rounds

    def next_round(self, run: Folder, ledger: Ledger, rounds: list[RoundSummary]) -> PlannedRound:
        """What is still missing after what was accepted; no rows if nothing is."""
        plan = read_plan(run, rounds, ["sample_id", "method", "source_id", "variant", "target_class"])
        min_pixels = self.job.settings.min_pixels
        accepted = accepted_per_class(run, ledger, self.store.label_set, min_pixels)
        state = state_of(self.presence, self.usable, plan, ledger, accepted)
        fingerprints = {method: recipe_fingerprint(recipe) for method, recipe in self.recipes.items()}
        request = PlanRequest(
            number=len(rounds),
            goals=self.job.plan,
            settings=self.settings,
            fingerprints=fingerprints,
            seed=self.job.seed,
            min_pixels=min_pixels,
            first_variants=first_variants(plan, self.presence.source_ids, self._shared_masks),
        )
        cost = measured_cost(run, ledger, self.job.geometry)
        planned = plan_round(request, self.store, state, cost)
        estimate = forecast(self.job, planned.summary)
        found = {"estimate": estimate, "rejected": reasons_of(run, ledger, "rejected")}
        return replace(planned, summary=planned.summary.model_copy(update=found))


@dataclass
class Driver:
    """One attempt at work.

    `chain_seconds` are those of all chains together; `stage_seconds` and `stage_peak_bytes` are by method and stage,
    `known_seconds` the former of the attempts before this one.
    """

    session: Session
    run_: Run
    lease: Lease
    attempt: Attempt
    options: RunOptions
    events: Events
    segments: Segments
    budget: Budget
    known_seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chain_seconds: float = 0.0
    stage_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    stage_peak_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    recorded: float = 0.0

    @property
    def spent(self) -> dict[str, Any]:
        """What an attempt records: seconds of the chains over all actors, those on the clock, and what stages took."""
        seconds = {"chains": self.chain_seconds, "wall": self.budget.seconds}
        return {"seconds": seconds, "stage_seconds": self.stage_seconds, "stage_peak_bytes": self.stage_peak_bytes}

    def run(self) -> Outcome:
        """Rounds until the goals are met, cannot be met, or no more rounds are allowed. Raises SegdatagenError."""
        folder, retry, left = self.run_.folder, self.options.retry_failed, self.options.limit
        while True:
            rounds, ledger = read_rounds(folder), self._ledger()
            plan = read_plan(folder, rounds)
            rows = self._of_job(without(plan, ledger.finished(retry_failed=retry)))
            ended = self.budget.reached()
            if rows.num_rows and left != 0 and ended is None:
                rows = rows if left is None else stratified(rows, left)
                left = None if left is None else left - rows.num_rows
                self._make_all(rows, ledger, plan.num_rows)
                retry = retry and self.budget.reached() is not None
                continue
            if rows.num_rows or left == 0:
                return Outcome(ledger.counts, plan.num_rows, False, complete=False, ended=ended or LIMIT_OVER)
            retry = False
            planned = self.session.next_round(folder, ledger, rounds)
            allowed = planned.is_plannable and self.session.may_plan(rounds)
            # the first round is stored even without rows, where real images meet the goals: a complete run has one
            if (planned.summary.num_rows or not rounds) and allowed:
                self.lease.check()
                put_round(folder, planned)
                self.events.planned(planned.summary)
                continue
            return self._finish(planned, rounds, ledger)

    def _of_job(self, rows: pa.Table) -> pa.Table:
        """Rows of methods that the job has: others can only have failed before, and stay as they are."""
        found = of_methods(rows, list(self.session.recipes))
        if rows.num_rows > found.num_rows:
            count = rows.num_rows - found.num_rows
            self.events.note(f"{count} samples that failed stay as they are: the job has their method no more")
        return found

    def _make_all(self, rows: pa.Table, ledger: Ledger, num_planned: int) -> None:
        """Run rows, a flow after the other.

        From here to its end the run is not whole, whether it was before (`--retry-failed`) or not.
        """
        self.run_.folder.delete([SUCCESS_NAME])
        tally = Tally.of(ledger, rows, num_planned, self.session.job.execution.max_failed_fraction)
        self.events.working(dict(tally.counts), tally.num_done + rows.num_rows)
        block_rows = rows_per_block(self.session.job.execution, rows.num_rows)
        for start in range(0, rows.num_rows, BLOCKS_PER_FLOW * block_rows):
            self._make(rows.slice(start, BLOCKS_PER_FLOW * block_rows), block_rows, tally)
            if self.budget.reached():
                return

    def _make(self, rows: pa.Table, block_rows: int, tally: "Tally") -> None:
        """Run rows; those that do not come back run alone, and are written as failed after three passes.

        Where more are lost than all actors hold at a time, it is hardly the rows: they run in whole blocks once more.
        """
        rows = self._pass(rows, block_rows, tally)
        if rows.num_rows > BLOCKS_OF_ACTOR * self.session.job.execution.actors * block_rows:
            self.events.note(f"{rows.num_rows} samples did not come back: making them again")
            rows = self._pass(rows, block_rows, tally)
        for number in range(1, 1 + PASSES_OF_ONE):
            if not rows.num_rows:
                return
            self.events.note(f"{rows.num_rows} samples did not come back: making them one by one, pass {number}")
            rows = self._pass(rows, 1, tally)
        for part in split_parts(rows):
            put_samples(self.run_.folder, failed_rows(part, self.attempt.number, "worker died"))
        tally.add("failed", rows.num_rows)
        self._stop_if_too_many_failed(tally)

    def _pass(self, rows: pa.Table, block_rows: int, tally: "Tally") -> pa.Table:
        """Run rows; returns those that did not come back, none where the budget is used up."""
        self._flow(rows, block_rows, tally)
        if self.budget.reached():
            return rows.slice(0, 0)
        ledger = self._ledger()
        return without(rows, ledger.sample_ids[ledger.attempt == self.attempt.number])

    def _flow(self, rows: pa.Table, block_rows: int, tally: "Tally") -> None:
        """Run rows until all came back, none come any more, or the budget is used up."""
        execution = self.session.job.execution
        flow = Flow(self.run_.folder.uri, self.segments, execution, self.attempt.number, self.known_seconds)
        with contextlib.closing(stream(flow, rows, block_rows)) as parts:
            for part in parts:
                self.lease.check()
                if part.error:
                    raise SegdatagenError(part.error)
                self._require_seen(part)
                self._add_costs(part)
                self.budget.has_made = True
                for status in STATUSES:
                    tally.add(status, getattr(part, status))
                self.events.part(part)
                self._stop_if_too_many_failed(tally)
                self._record()
                if self.budget.reached():
                    return

    def _require_seen(self, part: PartDone) -> None:
        """Raise SegdatagenError where a worker has put a part on a disk that is not that of the driver."""
        folder = self.run_.folder
        if folder.is_local and part.num_rows:
            require_seen(folder.uri_of(part.name), lambda: folder.exists(part.name))

    def _record(self) -> None:
        """Put what the attempt spent so far into its record, from time to time."""
        if self.budget.seconds - self.recorded >= RECORD_SECONDS:
            self.recorded = self.budget.seconds
            put_attempt(self.run_.folder, self.attempt.model_copy(update=self.spent))

    def _add_costs(self, part: PartDone) -> None:
        self.chain_seconds += part.chain_seconds
        seconds = self.stage_seconds.setdefault(part.method, {})
        peaks = self.stage_peak_bytes.setdefault(part.method, {})
        for stage, spent in part.stage_seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
            peaks[stage] = max(peaks.get(stage, 0), part.stage_peak_bytes.get(stage, 0))

    def _finish(self, next_round: PlannedRound, rounds: list[RoundSummary], ledger: Ledger) -> Outcome:
        """Verify, write the manifest and `_SUCCESS`, and say what the goals still miss."""
        missing = next_round.summary
        if not next_round.is_plannable:
            self.events.note(
                f"the goals still miss {missing.num_rows:,} samples, more than one run can plan: sources that failed "
                "are not copied, and the others show too little of what is wanted"
            )
        elif missing.num_rows:
            samples = "1 sample" if missing.num_rows == 1 else f"{missing.num_rows} samples"
            self.events.note(f"the goals still miss {samples}: {self._way_on(missing)}")
        elif missing.unreachable:
            self.events.note(f"no usable source shows {', '.join(missing.unreachable)}: these goals cannot be met")
        elif not next_round.goals_met:
            self.events.note("some sources only ever failed and are not asked again: these goals cannot be met")
        verdict, strays = verify_ledger(self.run_, ledger), stray_decisions(self.run_.folder, ledger.decisions)
        for sentence in strays:  # put there while it ran: nothing that was made depends on them
            self.events.note(sentence)
        problems = [problem for problem in verdict.problems if problem not in strays]
        if problems:
            raise SegdatagenError(f"{self.run_.folder.uri}: {'; '.join(problems)}")
        self.lease.check()
        delete_work(self.run_.folder)
        write_manifest(self.run_, ledger, rounds, next_round)
        met, unmet = next_round.goals_met, next_round.unmet
        return Outcome(verdict.counts, verdict.planned, met, complete=True, unmet=unmet)

    def _way_on(self, missing: RoundSummary) -> str:
        """What a user can do about samples that are missing when no more rounds are allowed."""
        rejected = sum(missing.rejected.values())
        if not rejected:
            return "raise max_rounds to go on"
        reason, count = next(iter(missing.rejected.items()))
        return (
            f"{rejected} were rejected, {count} of them for {reason!r}; `segdatagen refilter {self.run_.folder.uri}` "
            "moves limits, a higher max_rounds goes on with other samples"
        )

    def _ledger(self) -> Ledger:
        ledger = read_ledger(self.run_.folder)
        for name, sentence in ledger.unreadable.items():
            moved = set_aside(self.run_.folder, name)
            self.events.note(f"{sentence}; its samples are made again{', it is set aside' if moved else ''}")
        return ledger

    def _stop_if_too_many_failed(self, tally: "Tally") -> None:
        if tally.too_many_failed():
            uri = self.run_.folder.uri
            raise SegdatagenError(
                f"{uri}: {tally.counts['failed']} of {tally.num_done} samples failed, more than max_failed_fraction "
                f"{tally.allowed:g}; what is done is kept; `segdatagen status {uri}` shows why; --retry-failed makes "
                "them again, a higher max_failed_fraction leaves them"
            )


@dataclass
class Tally:
    """Outcomes of the whole run so far, without the rows that are being made again."""

    counts: dict[str, int]
    num_planned: int
    allowed: float

    @classmethod
    def of(cls, ledger: Ledger, rows: pa.Table, num_planned: int, allowed: float) -> "Tally":
        """The tally before `rows` are made."""
        again = ledger.status_of(rows["sample_id"].to_numpy())
        counts = {status: n - int((again == STATUSES.index(status)).sum()) for status, n in ledger.counts.items()}
        return cls(counts, num_planned, allowed)

    @property
    def num_done(self) -> int:
        """Rows with any outcome."""
        return sum(self.counts.values())

    def add(self, status: str, count: int) -> None:
        """Count more rows."""
        self.counts[status] += count

    def too_many_failed(self) -> bool:
        """Whether the failed fraction is past what is allowed."""
        return self.counts["failed"] > self.allowed * max(self.num_done, min(self.num_planned, EARLY_ROWS))
