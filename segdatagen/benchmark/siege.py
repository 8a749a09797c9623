"""A run that is killed again and again, at random instants, and started again by the same command.

Looks at the committed parts after every kill. It does not know what a kill may cost, nor how a run resumes.
"""

import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from segdatagen.benchmark.children import (
    COMMAND,
    Child,
    end_of,
    kill,
    processes_below,
    ray_was_slow,
    start,
    wait_until,
    workers_below,
)
from segdatagen.benchmark.noted_run import Begun, read_journal
from segdatagen.benchmark.run import Setup
from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder
from segdatagen.verify import part_entries

VICTIMS = ("driver", "worker", "all")
NOTED_RUN = "import sys; from segdatagen.benchmark.noted_run import run_noted; run_noted(*sys.argv[1:])"
EARLY = 0.3
"""Share of the kills of driver and all that come at any instant of a start."""
START_SECONDS = 12.0
"""About what a start takes on two cores."""
MOST_PARTS = 3
"""The other kills come one to so many parts later, and up to a second after that part."""
SLOW_STARTS = 5
"""So many starts may be too slow for Ray before that counts as a failure."""


@dataclass
class Start:
    """One start of the command: where it notes what it begins, what was committed before, and what was killed of it."""

    journal: Path
    parts_before: tuple[str, ...] = ()
    killed_workers: set[int] = field(default_factory=set)
    was_killed: bool = False

    def begun(self) -> Iterator[Begun]:
        """What its chains began, in that order."""
        return read_journal(self.journal)


class Siege:
    """The run of a setup, `per_source` samples of each source, more where it becomes whole before the last kill."""

    def __init__(self, setup: Setup, per_source: int, chance: random.Random) -> None:
        self.starts: list[Start] = []
        self.slow_starts = 0
        self._setup = setup
        self._folder = Path(setup.folder)
        self._chance = chance
        self._child: Child | None = None
        self._digests: dict[str, bytes] = {}
        self._ask_for(per_source)

    def strike(self, victim: str) -> None:
        """One kill at a random instant. Raises SegdatagenError if a committed part is not what it was."""
        while not self._strike(victim):
            pass
        self._look()

    def let_it_end(self) -> None:
        """The same command, undisturbed until the run is whole."""
        while not self._ended(*end_of(self._running())):
            pass
        self._look()

    def clear(self) -> None:
        """Leave no process behind."""
        if self._child is not None:
            kill([self._child.pid, *processes_below(self._child.pid)])
            end_of(self._child)
            self._child = None

    def command(self, *words: str) -> None:
        """A command of segdatagen that has to succeed."""
        while not self._ended(*end_of(start([*COMMAND, *words]))):
            pass

    def _strike(self, victim: str) -> bool:
        """Whether the victim was killed; not if the command ended by itself before."""
        child = self._running()
        self._wait_for_an_instant(child, victim)
        if victim == "worker":
            wait_until(lambda: workers_below(child.pid), child, "a worker to kill")
            workers = workers_below(child.pid)[:1]
            kill(workers)
            self.starts[-1].killed_workers.update(workers)
            if workers:
                return True
        elif child.poll() is None:
            kill([child.pid, *(processes_below(child.pid) if victim == "all" else ())])
        status, output = end_of(child)
        if status < 0:
            self.starts[-1].was_killed, self._child = True, None
        elif self._ended(status, output):
            self._ask_for(self._per_source + max(1, self._per_source // 4))
        return status < 0

    def _running(self) -> Child:
        """The command, which is started unless it runs."""
        if self._child is None:
            self.starts.append(Start(self._folder / f"journal-{len(self.starts)}", tuple(self._look())))
            self._child = start(["-c", NOTED_RUN, self._folder / "job.yaml", self.starts[-1].journal])
        return self._child

    def _ended(self, status: int, output: str) -> bool:
        """Whether a command that ended by itself did its work; False if Ray was too slow. Raises SegdatagenError."""
        self._child = None
        if ray_was_slow(status, output) and self.slow_starts < SLOW_STARTS:
            self.slow_starts += 1
            return False
        if status:
            said = output.strip().splitlines() or ["nothing"]
            raise SegdatagenError(f"{self.job.uri}: a command ended with status {status}, and said {said[-1]}")
        return True

    def _wait_for_an_instant(self, child: Child, victim: str) -> None:
        if victim != "worker" and self._chance.random() < EARLY:
            instant = time.monotonic() + self._chance.uniform(0, START_SECONDS)
            wait_until(lambda: time.monotonic() >= instant, child, "an instant")
            return
        run = Folder(self.job.uri)
        parts = len(part_entries(run)) + self._chance.randint(1, MOST_PARTS)
        wait_until(lambda: len(part_entries(run)) >= parts, child, "a part")
        time.sleep(self._chance.random())

    def _look(self) -> list[str]:
        """The names of all parts. Raises SegdatagenError if one that was committed is gone or has changed."""
        run = Folder(self.job.uri)
        names = [entry.name for entry in part_entries(run)]
        digests = {name: hashlib.blake2b(run.read(name), digest_size=16).digest() for name in names}
        for name, digest in self._digests.items():
            if digests.get(name) != digest:
                problem = "has changed" if name in digests else "is gone"
                raise SegdatagenError(f"{run.uri_of(name)} was committed, and {problem}")
        self._digests = digests
        return names

    def _ask_for(self, per_source: int) -> None:
        self._per_source = per_source
        self.job = self._setup.job("kills", per_source)
        (self._folder / "job.yaml").write_text(yaml.safe_dump(self.job.model_dump(mode="json")))
