"""A run that notes which rows its chains begin, so that what a kill costs can be counted.

But for that it is `segdatagen run`. Run it as a process of its own: `run_noted(*sys.argv[1:])`.
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from segdatagen.driver import RunOptions, SilentEvents
from segdatagen.job import load_job
from segdatagen.method_context import MethodContext, method_contexts
from segdatagen.methods import Chain, build_chain
from segdatagen.run import run_job
from segdatagen.sources import open_store
from segdatagen.stages.stage import Stage


@dataclass(frozen=True)
class Begun:
    """Rows that one process of an attempt began together."""

    attempt: int
    pid: int
    sample_ids: tuple[int, ...]


class NotedChain(Chain):
    """A chain that appends a line to `journal` before it makes a block."""

    def __init__(self, stages: Sequence[Stage], journal: str) -> None:
        super().__init__(stages)
        self._journal = journal

    def run(self, plan_rows: pa.Table, attempt: int) -> pa.Table:
        """As any chain."""
        line = json.dumps([attempt, os.getpid(), plan_rows["sample_id"].to_pylist()]) + "\n"
        file = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())  # one call: a process that is killed leaves the whole line or none of it
        finally:
            os.close(file)
        return super().run(plan_rows, attempt)


def run_noted(job_path: str, journal: str) -> None:
    """Run a job, or go on with it. Raises what `segdatagen run` says in a line."""
    job = load_job(job_path)
    contexts = method_contexts(job, open_store(job.sources).label_set)
    factories = {method: functools.partial(_noted_chain, method, contexts[method], journal) for method in contexts}
    run_job(job, RunOptions(), SilentEvents(), factories)


def read_journal(path: Path) -> Iterator[Begun]:
    """What was begun, in that order; nothing where no chain came that far."""
    for line in path.read_text().splitlines() if path.exists() else ():
        attempt, pid, sample_ids = json.loads(line)
        yield Begun(attempt, pid, tuple(sample_ids))


def _noted_chain(method: str, context: MethodContext, journal: str) -> Chain:
    return NotedChain(build_chain(method, context).stages, journal)
