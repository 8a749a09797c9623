"""Commands that decide about samples which are made: exclude.

They parse words and print results; the work is the library's, and needs neither Ray nor a GPU.
"""

from pathlib import Path
from typing import Annotated

import typer

from segdatagen.cli.data import Json
from segdatagen.cli.runs import RunUri
from segdatagen.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(exclude)


def exclude(
    run: RunUri,
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Each a sample_id of the run.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with one sample_id in a line.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for status and report.")] = "by hand",
    undo: Annotated[bool, typer.Option("--undo", help="Take the exclusion of these samples back.")] = False,
    as_json: Json = False,
) -> None:
    """Reject samples by hand, whatever their scores are; the next round replaces them.

    Example: segdatagen exclude out/demo/runs/demo/v1 1234567890 --reason "the car floats"
    """
    from segdatagen.cli import screen
    from segdatagen.exclude import exclude as exclude_samples
    from segdatagen.run_folder import open_run

    chosen = [*(ids or []), *(_read_ids(file) if file else [])]
    if not chosen:
        raise UsageError("which samples? give their ids, or --file with one id in a line")
    changed, excluded = exclude_samples(open_run(run), chosen, None if undo else reason, screen.waiting)
    if as_json:
        screen.print_json({"uri": run, "changed": changed, "excluded": excluded})
        return
    words = "included again" if undo else "excluded"
    screen.say(f"{run}: {screen.as_count(changed, 'sample')} {words}, {excluded} excluded in all")


def _read_ids(path: Path) -> list[int]:
    """The ids of a text file. Raises UsageError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.strip().isdecimal():
            raise UsageError(f"{path}: line {number}: {line.strip()[:40]!r} is no sample_id")
    return [int(line) for line in lines if line.strip()]
