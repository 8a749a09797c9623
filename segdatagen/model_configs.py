"""Configurations in the folders of published models, of diffusers and transformers alike, as JSON objects.

Nothing here knows which model is wanted, and no code of a folder is ever run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdatagen.errors import UsageError


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """A JSON object from a file. Raises UsageError that begins with `problem`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{problem}: {path} is missing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{problem}: {path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{problem}: {path} holds no JSON object")
    return found


def require_no_code(uri: str, config: Mapping[str, Any]) -> None:
    """Raise UsageError where a config asks for code that comes with the weights."""
    if "auto_map" in config:
        raise UsageError(f"{uri} asks for code of its own (auto_map in its config), which is never run")
