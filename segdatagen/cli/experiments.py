"""The command that compares trainings: experiment.

It parses words and prints results; the work is the library's.
"""

from typing import Annotated

import typer

from segdatagen.cli.data import Address, Json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(experiment)


def experiment(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", help="What is trained on which data, and the test.")],
    local: Annotated[bool, typer.Option("--local", help="One by one in this process, without Ray.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train a segmenter on several mixtures of real and synthetic data, and compare; or go on: the same command.

    Example: segdatagen experiment jobs/scenes_gain/experiment.yaml
    """
    from segdatagen.cli import screen
    from segdatagen.experiment.page import COLUMNS, overview
    from segdatagen.experiment.run import PAGE_NAME, RESULTS_NAME, ExperimentProgress, run_experiment

    last: list[ExperimentProgress] = []

    def describe() -> str:
        return "".join(
            f"{found.cell}: loss {found.report.loss:.4f}, {found.report.steps_per_second:.2f} steps/s" for found in last
        )

    shown = screen.Meter("experiment, steps", as_json, describe)

    def progress(found: ExperimentProgress) -> None:
        last[:] = [found]
        shown.update(found.step, found.steps)

    try:
        results = run_experiment(file, progress, local, address)
    finally:
        shown.close()
    if as_json:
        screen.print_json(results.model_dump(mode="json"))
        return
    tested, seeds = screen.as_count(results.num_test, "test image"), screen.as_count(len(results.seeds), "seed")
    screen.table(COLUMNS, overview(results), f"{tested}, {seeds}: mean and standard deviation")
    screen.say(f"{results.out}/{PAGE_NAME} has this table and the classes, {results.out}/{RESULTS_NAME} every figure")
