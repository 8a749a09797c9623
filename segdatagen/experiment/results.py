"""Figures of an experiment: what each training reached on the test images, and how far mixtures are from real alone.

Differences are between trainings of the same seed, which saw the same real rows in the same order. It reads the weights
that trainings left; it does not train.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.experiment.checks import Checked
from segdatagen.experiment.options import ALONE, Cell, ExperimentOptions
from segdatagen.segmenters import SegmenterWeights
from segdatagen.storage import Folder
from segdatagen.weights import CONFIG_NAME, WEIGHTS_NAME


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellResult(_Figures):
    """One training: its IoU of each class that the test images show, and their means."""

    real: str
    synthetic: str
    seed: int
    out: str
    mean_iou: float
    rare_mean_iou: float
    iou: dict[str, float]


class Spread(_Figures):
    """Mean of several seeds, their sample standard deviation (of one seed: none), the least and the greatest."""

    mean: float
    deviation: float | None
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation, least=min(values), greatest=max(values))


class Row(_Figures):
    """The trainings of one mixture over all seeds; differences are to real images alone, of which they are 0."""

    real: str
    synthetic: str
    p_aug: float
    num_real: int
    num_synthetic: int
    of_these_sources: bool
    """Whether the synthetic images were made from the same sources: otherwise their masks add to what is known."""
    mean_iou: Spread
    difference: Spread
    rare_mean_iou: Spread
    rare_difference: Spread
    iou: dict[str, Spread]


class Results(_Figures):
    """`results.json`."""

    out: str
    test: str
    num_test: int
    classes: tuple[str, ...]
    rare: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    batch_size: int
    rows: tuple[Row, ...]
    cells: tuple[CellResult, ...]


def is_finished(cell: Cell) -> bool:
    """Whether a cell was trained to its end: what weights say of themselves is put last."""
    return _weights(cell).exists(CONFIG_NAME)


def results_of(options: ExperimentOptions, checked: Checked) -> Results:
    """The figures of an experiment whose cells are all finished."""
    cells = tuple(_judged(cell, checked) for cell in options.cells())
    names, training = checked.label_set.names, next(options.cells()).options
    return Results(
        out=options.out,
        test=options.test,
        num_test=checked.num_test,
        classes=tuple(names[channel] for channel in checked.shown),
        rare=tuple(dict.fromkeys(names[channel] for channel in checked.rare)),
        seeds=options.seeds,
        steps=training.steps,
        batch_size=training.batch_size,
        rows=tuple(
            _row(options, checked, real, synthetic, cells)
            for real, wanted in options.real.items()
            for synthetic in (ALONE, *wanted.synthetic)
        ),
        cells=cells,
    )


def _judged(cell: Cell, checked: Checked) -> CellResult:
    weights = read_stored(_weights(cell), CONFIG_NAME, SegmenterWeights)
    iou = {checked.label_set.names[channel]: weights.iou[channel] or 0.0 for channel in checked.shown}
    return CellResult(
        real=cell.real,
        synthetic=cell.synthetic,
        seed=cell.seed,
        out=cell.options.out,
        mean_iou=statistics.fmean(iou.values()),
        rare_mean_iou=statistics.fmean(iou[checked.label_set.names[channel]] for channel in set(checked.rare)),
        iou=iou,
    )


def _weights(cell: Cell) -> Folder:
    return Folder(cell.options.out).child(WEIGHTS_NAME)


def _row(options: ExperimentOptions, checked: Checked, real: str, synthetic: str, cells: Sequence[CellResult]) -> Row:
    mine, alone = (
        [cell for cell in cells if (cell.real, cell.synthetic) == (real, name)] for name in (synthetic, ALONE)
    )

    def spread(figure: Callable[[CellResult], float]) -> Spread:
        return Spread.of([figure(cell) for cell in mine])

    def difference(figure: Callable[[CellResult], float]) -> Spread:
        return Spread.of([figure(cell) - figure(beside) for cell, beside in zip(mine, alone, strict=True)])

    mixture, data = options.real[real].synthetic.get(synthetic), checked.synthetic.get((real, synthetic))
    return Row(
        real=real,
        synthetic=synthetic,
        p_aug=mixture.p_aug if mixture else 0.0,
        num_real=checked.num_real[real],
        num_synthetic=data.num_images if data else 0,
        of_these_sources=data.of_these_sources if data else True,
        mean_iou=spread(lambda cell: cell.mean_iou),
        difference=difference(lambda cell: cell.mean_iou),
        rare_mean_iou=spread(lambda cell: cell.rare_mean_iou),
        rare_difference=difference(lambda cell: cell.rare_mean_iou),
        iou={name: Spread.of([cell.iou[name] for cell in mine]) for name in cells[0].iou},
    )
