"""Objects that would do something when they are unpickled: they write a file."""

import functools
from pathlib import Path
from typing import Any


def spring(path: str, *_: object) -> str:
    """Leave a trace."""
    Path(path).write_text("sprung")
    return path


class OnReduce:
    """Calls a function to be made."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return spring, (self.path,)


class OnState:
    """Does its harm when it is told its state."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __setstate__(self, state: dict[str, str]) -> None:
        spring(state["path"])


class OnItems(dict[str, Any]):
    """A dict whose items do harm when they are set, made by a call with keywords."""

    def __new__(cls, *, path: str) -> "OnItems":
        return super().__new__(cls)

    def __init__(self, *, path: str) -> None:
        super().__init__(path=path)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"path": "unused"}

    def __setitem__(self, key: str, value: Any) -> None:
        spring(value)


def traps(folder: Path) -> dict[str, Any]:
    """One of each kind; each writes a file below `folder`."""
    return {
        "reduce": OnReduce(folder / "reduce"),
        "state": OnState(folder / "state"),
        "items": OnItems(path=str(folder / "items")),
        "partial": [functools.partial(spring, str(folder / "partial")), OnReduce(folder / "inner")],
        "class": OnState,
        "key": {OnReduce(folder / "key"): 1},
    }


def sprung(folder: Path) -> set[str]:
    """Names of the traps that went off."""
    return {path.name for path in folder.iterdir()}
