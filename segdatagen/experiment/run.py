"""An experiment from its file to its results: every cell trained, as tasks of Ray or in this process, then compared.

A cell that is finished is not trained again, and one that was stopped goes on, by the rules of any training. It does
not know networks.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from segdatagen.cluster import connect, spread
from segdatagen.config_files import read_config
from segdatagen.experiment.checks import FACTS_NAME, check
from segdatagen.experiment.options import Cell, ExperimentOptions
from segdatagen.experiment.page import page
from segdatagen.experiment.results import Results, is_finished, results_of
from segdatagen.storage import Folder
from segdatagen.training.data import Share
from segdatagen.training.kind import TrainingProgress
from segdatagen.training.ray_train import reports_to, require_workers
from segdatagen.training.run import TrainingRequest, local_device, train_share

RESULTS_NAME = "results.json"
PAGE_NAME = "results.md"


@dataclass(frozen=True)
class ExperimentProgress:
    """Where an experiment is: steps of all its cells, done and in all, the cell that reported last, and its report."""

    step: int
    steps: int
    cell: str
    report: TrainingProgress


Report = Callable[[tuple[str, TrainingProgress]], None]
"""Is told the name of a cell and where its training is."""
Train = Callable[[Report, Cell], None]
"""Trains a cell."""
TrainAll = Callable[[Train, Report], None]
"""Trains every cell that is missing."""


def run_experiment(
    config_uri: str,
    progress: Callable[[ExperimentProgress], None],
    local: bool = False,
    address: str | None = None,
) -> Results:
    """Train every cell of an experiment, or go on, and put `results.json` and `results.md` into its `out`.

    `local` trains one cell after the other in this process. Otherwise each is a task of Ray with `torch_threads` CPUs,
    and a GPU where `use_gpu` says so, on the cluster at `address` or on a Ray that is started for it: as many at once
    as it holds, with the same results.
    Raises UsageError before anything is written where something does not fit or `out` holds another experiment;
    SegdatagenError where a training fails.
    """
    options = read_config(ExperimentOptions, config_uri)
    cells = list(options.cells())
    checked = check(options)
    out = Folder(options.out)
    missing = [cell for cell in cells if not is_finished(cell)]
    steps = cells[0].options.steps
    done = {cell.name: steps * is_finished(cell) for cell in cells}

    def report(found: tuple[str, TrainingProgress]) -> None:
        name, training = found
        done[name] = training.step
        progress(ExperimentProgress(sum(done.values()), len(cells) * steps, name, training))

    train = functools.partial(_train, f"segdatagen experiment {config_uri}")
    with _one_by_one(missing) if local or not missing else _on_ray(missing, address) as train_all:
        out.put(FACTS_NAME, checked.facts.model_dump_json(indent=1).encode())
        train_all(train, report)
    results = results_of(options, checked)
    out.put(RESULTS_NAME, results.model_dump_json(indent=1).encode())
    out.put(PAGE_NAME, page(results).encode())
    return results


def _train(command: str, report: Report, cell: Cell) -> None:
    """Train one cell in this process."""
    request = TrainingRequest("segmenter", cell.options, command)
    device = local_device(cell.options.use_gpu)
    train_share(request, Share(), device, lambda found: report((cell.name, found)))


@contextlib.contextmanager
def _one_by_one(cells: Sequence[Cell]) -> Iterator[TrainAll]:
    """Trains cells in this process. Raises UsageError where they need a GPU that is not here."""
    for cell in cells[:1]:
        local_device(cell.options.use_gpu)

    def train_all(train: Train, report: Report) -> None:
        for cell in cells:
            train(report, cell)

    yield train_all


@contextlib.contextmanager
def _on_ray(cells: Sequence[Cell], address: str | None) -> Iterator[TrainAll]:
    """Trains cells as tasks of Ray, as many at once as it has CPUs or GPUs for. Raises UsageError where none fits."""
    options = cells[0].options
    with connect(address):
        require_workers(options)

        def train_all(train: Train, report: Report) -> None:
            cpus, gpus = options.cpus_per_worker, float(options.use_gpu)
            with reports_to(report) as reports:
                work = functools.partial(train, reports.put)
                for _ in spread("a training of the experiment failed", cells, work, num_cpus=cpus, num_gpus=gpus):
                    pass  # its weights lie where is_finished looks for them

        yield train_all
