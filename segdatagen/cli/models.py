"""Commands about models and measurements: train, bench.

They parse words and print results; the work is the library's.
"""

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
