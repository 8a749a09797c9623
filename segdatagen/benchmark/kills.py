"""What SIGKILL at random instants costs a run, and that it ends as a run without kills would have.

Counts what was begun, committed and published. It does not know how a run is killed, nor how it resumes.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segdatagen.benchmark.measure import Benchmark, Figures
from segdatagen.benchmark.run import Setup
from segdatagen.benchmark.siege import VICTIMS, Siege, Start
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.planner import read_plan, read_rounds
from segdatagen.publish import DATA
from segdatagen.run_folder import Run, open_run
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder
from segdatagen.tables import read_parts
from segdatagen.verify import part_entries, verify_ledger

SIZE = 32
STEPS = 4
ROWS_PER_BLOCK = 4
ACTORS = 1
ROWS_IN_FLIGHT = ROWS_PER_BLOCK * 2 * ACTORS
"""The blocks that each actor holds: one that it makes and puts, one that waits. Nothing waits behind actors, which are
the writers."""


@dataclass(frozen=True)
class Committed:
    """A part: which attempt put it, and the ids in it."""

    attempt: int
    sample_ids: frozenset[int]


@dataclass(frozen=True)
class Cost:
    """Rows that chains began, repetitions included, and those that the worst kill cost: begun, never committed."""

    rows_begun: int
    worst_kill: int


def bench_kills(kills: int = 100, seed: int = 20261121) -> Figures:
    """Kill a run `kills` times, let it end, publish it and look at everything that lies there.

    A third of the kills each hits the driver, a worker, and all processes of the command with its Ray. Raises
    SegdatagenError where the run is not what it would have been without them.
    """
    if kills < 1:
        raise UsageError(f"kills is {kills}: give 1 or more")
    began = time.perf_counter()
    chance = random.Random(seed)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    chance.shuffle(victims)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(folder, "builtin:scenes-mask-ddpm", ACTORS, SIZE, STEPS, ROWS_PER_BLOCK, ROWS_PER_BLOCK)
        setup.put_sources()
        siege = Siege(setup, kills, chance)
        try:
            for victim in victims:
                siege.strike(victim)
            siege.let_it_end()
        finally:
            siege.clear()
        siege.command("publish", siege.job.uri)
        siege.command("verify", siege.job.uri, "--deep")
        run = open_run(siege.job.uri)
        rows = check_whole(run)
        cost = cost_of(siege.starts, _committed(run.folder))
        return {
            "kills": kills,
            **{f"kills_of_{victim}": victims.count(victim) for victim in VICTIMS},
            "kills_before_the_first_row": sum(start.was_killed and not any(start.begun()) for start in siege.starts),
            "starts": len(siege.starts),
            "starts_too_slow_for_ray": siege.slow_starts,
            "attempts": len(run.folder.child("attempts").entries(".json")),
            "rounds": len(read_rounds(run.folder)),
            "rows": rows,
            "rows_made_twice": cost.rows_begun - rows,
            "rows_committed_twice": verify_ledger(run).duplicates,
            "rows_of_the_worst_kill": cost.worst_kill,
            "rows_in_flight": ROWS_IN_FLIGHT,
            "ratio_to_rows_in_flight": round(cost.worst_kill / ROWS_IN_FLIGHT, 3),
            "seconds": round(time.perf_counter() - began, 1),
        }


KILLS = Benchmark(
    "kills",
    bench_kills,
    measures="what random kills of driver, worker or all of Ray cost a run; that nothing is lost or twice",
    reference="the rows that actors hold at once",
    figure="{kills} kills, {rows:,} rows: none lost, none twice, {rows_made_twice} made twice; "
    "the worst kill cost {rows_of_the_worst_kill} rows",
    ratio="{ratio_to_rows_in_flight:.1f} times as many for the worst kill",
    minutes=60,
)


def check_whole(run: Run) -> int:
    """The number of samples of a run that is whole and published: each that is planned, once, in `data/` too.

    Raises SegdatagenError where it is not.
    """
    planned = np.sort(read_plan(run.folder, read_rounds(run.folder), ["sample_id"])["sample_id"].to_numpy())
    verdict = verify_ledger(run)
    problems = list(verdict.problems)
    if verdict.counts["ok"] != len(planned) or not np.array_equal(read_ledger(run.folder).sample_ids, planned):
        problems.append(f"of {len(planned)} planned samples there are {verdict.counts}")
    data = run.folder.child(DATA)
    tables, unreadable = read_parts(data, [entry.name for entry in data.entries(".parquet")], ["sample_id"])
    problems += unreadable.values()
    published = np.concatenate([np.empty(0, np.int64), *(table["sample_id"].to_numpy() for table in tables.values())])
    if not np.array_equal(np.sort(published), planned):
        problems.append(f"{len(published)} rows are published, and are not the {len(planned)} that are planned")
    if problems:
        raise SegdatagenError(f"{run.folder.uri}: {'; '.join(problems)}")
    return len(planned)


def cost_of(starts: Sequence[Start], parts: Mapping[str, Committed]) -> Cost:
    """What was begun against what was committed, kill by kill.

    Raises SegdatagenError where a sample was begun that had been committed before the start.
    """
    committed: dict[int, set[int]] = {}
    for part in parts.values():
        committed.setdefault(part.attempt, set()).update(part.sample_ids)
    rows_begun = 0
    lost: Counter[tuple[int, int | None]] = Counter()
    for number, start in enumerate(starts):
        finished = frozenset().union(*(parts[name].sample_ids for name in start.parts_before))
        tries: dict[tuple[int, int], list[int]] = {}
        for begun in start.begun():
            rows_begun += len(begun.sample_ids)
            again = finished.intersection(begun.sample_ids)
            if again:
                raise SegdatagenError(f"start {number + 1} made {len(again)} samples again that were committed before")
            for sample_id in begun.sample_ids:
                tries.setdefault((begun.attempt, sample_id), []).append(begun.pid)
        for (attempt, sample_id), pids in tries.items():
            # The last try is the one that was committed. A worker that was killed has its losses to itself.
            for pid in pids[: len(pids) - (sample_id in committed.get(attempt, ()))]:
                lost[number, pid if pid in start.killed_workers else None] += 1
    return Cost(rows_begun, max(lost.values(), default=0))


def _committed(run: Folder) -> dict[str, Committed]:
    tables, _ = read_parts(run, [entry.name for entry in part_entries(run)], ["sample_id", "attempt"])
    return {
        name: Committed(table["attempt"][0].as_py(), frozenset(table["sample_id"].to_pylist()))
        for name, table in tables.items()
    }
