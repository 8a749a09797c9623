"""The newest row of every benchmark as one table, `RESULTS.md`, beside the rows that it is made of.

It reads the CSV files and writes that page. It does not measure.
"""

import csv
import inspect
import re
import string
from collections.abc import Mapping
from pathlib import Path

from segdatagen.benchmark.measure import Benchmark

RESULTS_NAME = "RESULTS.md"
COLUMNS = ("benchmark", "date", "commit", "hardware", "command", "figure", "reference", "ratio to it")
OPENING = """# Results

The newest row of each benchmark. `segdatagen bench NAME` measures again, adds a row to `NAME.csv` and writes this page;
all rows with all figures are in those files, and `segdatagen bench` says what each measures. The reference was measured
in the same run. A `+` behind a commit: the checkout had changes.

"""


def write_results(folder: Path, benchmarks: Mapping[str, Benchmark]) -> Path:
    """Write `RESULTS.md` from the CSV files of a folder."""
    path = folder / RESULTS_NAME
    path.write_text(results(folder, benchmarks))
    return path


def results(folder: Path, benchmarks: Mapping[str, Benchmark]) -> str:
    """The text of `RESULTS.md`; a benchmark that has no file has no row."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, benchmark in benchmarks.items():
        path = folder / f"{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                lines.append(_cells(benchmark, list(csv.DictReader(file))[-1]))
    return OPENING + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def headline(template: str, row: Mapping[str, str]) -> str:
    """A headline with the figures of a row; says so where the row is older than a figure in it."""
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    if not all(row.get(name) for name in names):
        return "not measured then"
    return template.format(**{name: _number(row[name]) for name in names})


def _cells(benchmark: Benchmark, row: Mapping[str, str]) -> tuple[str, ...]:
    return (
        f"[{benchmark.name}]({benchmark.name}.csv)",
        row["date"][: len("2026-11-21")],
        row["commit"],
        row["hardware"],
        f"`{row['command']}`{_other_settings(benchmark, row['command'])}",
        headline(benchmark.figure, row),
        benchmark.reference,
        headline(benchmark.ratio, row),
    )


def _other_settings(benchmark: Benchmark, command: str) -> str:
    """Which settings of a command are not the defaults, and what those are."""
    parameters = inspect.signature(benchmark.run).parameters
    defaults = [
        f"{name} is {parameters[name].default} by default"
        for name, value in re.findall(r"--(\w+)[ =](\S+)", command)
        if name in parameters and value != str(parameters[name].default)
    ]
    return f" ({', '.join(defaults)})" if defaults else ""


def _number(text: str) -> float | int:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
