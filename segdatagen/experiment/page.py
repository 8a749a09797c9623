"""The results of an experiment for people: tables of text, as Markdown and for a screen.

It only writes figures down; it does not compute them.
"""

from collections.abc import Callable, Iterable, Sequence

from segdatagen.experiment.options import ALONE
from segdatagen.experiment.results import Results, Row, Spread

COLUMNS = ("real images", "synthetic images", "p_aug", "mIoU", "mIoU - alone", "rare mIoU", "rare mIoU - alone")


def page(results: Results) -> str:
    """`results.md`: a table of the mixtures, and one of the classes for each set of real images."""
    seeds = ", ".join(map(str, results.seeds))
    opening = (
        f"{results.num_test:,} test images of `{results.test}`, none of which is among the real images. Each "
        f"training: {results.steps:,} steps of {results.batch_size} images. Mean of the seeds {seeds} ± standard "
        "deviation (least to greatest); differences are between trainings of the same seed. mIoU is over the "
        f"{len(results.classes)} classes that the test images show; rare are {', '.join(results.rare)}."
    )
    parts = ["# Results of an experiment", opening, _table(COLUMNS, [_line(row, _whole) for row in results.rows])]
    foreign = [f"{row.real} {row.synthetic}" for row in results.rows if not row.of_these_sources]
    if foreign:
        parts.append(f"Made from other sources than the real images beside them: {', '.join(foreign)}.")
    for real in dict.fromkeys(row.real for row in results.rows):
        rows = [row for row in results.rows if row.real == real]
        heading = ("class", *(row.synthetic for row in rows))
        parts += [f"## IoU per class, {real}, rare ones first", _table(heading, _classes(results, rows))]
    return "\n\n".join(parts) + "\n"


def overview(results: Results) -> list[list[str]]:
    """A line per mixture, a text for each of COLUMNS, with the standard deviations alone."""
    return [_line(row, _short) for row in results.rows]


def _line(row: Row, spread: Callable[[Spread, str], str]) -> list[str]:
    alone = row.synthetic == ALONE
    return [
        f"{row.real}: {row.num_real:,}",
        "none" if alone else f"{row.synthetic}: {row.num_synthetic:,}",
        "-" if alone else f"{row.p_aug:g}",
        spread(row.mean_iou, ""),
        "-" if alone else spread(row.difference, "+"),
        spread(row.rare_mean_iou, ""),
        "-" if alone else spread(row.rare_difference, "+"),
    ]


def _classes(results: Results, rows: Sequence[Row]) -> list[list[str]]:
    others = [name for name in results.classes if name not in results.rare]
    return [
        [f"**{name}**" if name in results.rare else name, *(_short(row.iou[name]) for row in rows)]
        for name in (*results.rare, *others)
    ]


def _whole(spread: Spread, sign: str) -> str:
    return f"{_short(spread, sign)} ({spread.least:{sign}.3f} to {spread.greatest:{sign}.3f})"


def _short(spread: Spread, sign: str = "") -> str:
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.3f}"
    return f"{spread.mean:{sign}.3f}{deviation}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
