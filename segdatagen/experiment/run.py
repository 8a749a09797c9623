"""An experiment from its file to its results: every cell trained in this process, one after the other, then compared.

A cell that is finished is not trained again, and one that was stopped goes on, by the rules of any training. It does
not know networks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from segdatagen.config_files import read_config
from segdatagen.experiment.checks import FACTS_NAME, check
from segdatagen.experiment.options import ExperimentOptions
from segdatagen.experiment.page import page
from segdatagen.experiment.results import Results, is_finished, results_of
from segdatagen.storage import Folder
from segdatagen.training.data import Share
from segdatagen.training.kind import TrainingProgress
from segdatagen.training.run import TrainingRequest, local_device, train_share

RESULTS_NAME = "results.json"
PAGE_NAME = "results.md"


@dataclass(frozen=True)
class ExperimentProgress:
    """Where an experiment is: steps of all its cells, done and in all, the cell at hand, and its last report."""

    step: int
    steps: int
    cell: str
    report: TrainingProgress


def run_experiment(config_uri: str, progress: Callable[[ExperimentProgress], None]) -> Results:
    """Train every cell of an experiment, or go on, and put `results.json` and `results.md` into its `out`.

    Raises UsageError before anything is written where something does not fit or `out` holds another experiment;
    SegdatagenError where a training fails.
    """
    options = read_config(ExperimentOptions, config_uri)
    cells = list(options.cells())
    device = local_device(cells[0].options.use_gpu)
    checked = check(options)
    out = Folder(options.out)
    out.put(FACTS_NAME, checked.facts.model_dump_json(indent=1).encode())
    steps = cells[0].options.steps
    for number, cell in enumerate(cells):

        def report(found: TrainingProgress, number: int = number, name: str = cell.name) -> None:
            progress(ExperimentProgress(number * steps + found.step, len(cells) * steps, name, found))

        if not is_finished(cell):
            request = TrainingRequest("segmenter", cell.options, f"segdatagen experiment {config_uri}")
            train_share(request, Share(), device, report)
    results = results_of(options, checked)
    out.put(RESULTS_NAME, results.model_dump_json(indent=1).encode())
    out.put(PAGE_NAME, page(results).encode())
    return results
