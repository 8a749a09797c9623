"""`training.json` beside weights that were trained here: on which classes, in which colours, for how long.

A job and a training ask it whether weights mean by a colour what their label set means. It does not know networks.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.storage import Folder
from segdatagen.weights import local_weights

RECORD_NAME = "training.json"


class TrainingRecord(BaseModel):
    """What a folder was trained on, for programs. A folder that was not trained here has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    label_set: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] | None = None
    """Of the classes, RGB; None in records of before they were kept."""
    outlines: bool | None = None
    """Of a ControlNet on colour maps: whether it saw segments outlined; None where that is not known."""
    size: tuple[int, int]
    training: dict[str, Any] = {}
    figures: dict[str, float] = {}


def read_record(uri: str) -> TrainingRecord | None:
    """The record of weights that were trained here; None for others. Raises UsageError where it is damaged."""
    folder = Folder(str(local_weights(uri)))
    if not folder.exists(RECORD_NAME):
        return None
    return read_stored(folder, RECORD_NAME, TrainingRecord, UsageError)


def require_kind(uri: str, kind: str) -> None:
    """Raise UsageError where weights were trained here as another kind. Of others nothing is known."""
    record = read_record(uri)
    if record is not None and record.kind != kind:
        raise UsageError(f"{uri} was trained as {record.kind}, and a {kind} is needed")


def require_colours_of(uri: str, label_set: LabelSet) -> TrainingRecord | None:
    """The record of weights. Raises UsageError where they learned the colours of other classes than a label set's."""
    record = read_record(uri)
    if record is None:
        return None
    if record.classes != label_set.names:
        raise UsageError(
            f"{uri} was trained on the classes of {record.label_set} ({', '.join(record.classes)}), and the sources "
            f"have those of {label_set.name}"
        )
    for label, colour in zip(label_set.classes, record.colours or (), strict=False):
        if label.colour != colour:
            raise UsageError(
                f"{uri} was trained on {record.label_set} with {label.name} in the colour {list(colour)}, and the "
                f"sources have it in {list(label.colour)}: give weights of the same colours"
            )
    return record
