"""Label sets: the ordered classes of a segmentation task, read from one YAML file each.

A label set says which ids a mask may hold, what each is called in a file and in a prompt, and which colour it has.
A class's channel is its position in the set, not its id. This module knows nothing of images, of data sets on disk, or
of object stores: who keeps a label set in one reads the text there and calls `LabelSet.from_yaml`.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segdatagen.config_files import load_yaml, shown
from segdatagen.errors import UsageError

IGNORE_CHANNEL = -1
"""What `LabelSet.channel_table` holds for an id that a mask may carry but no metric counts."""
UNKNOWN_CHANNEL = -2
"""What `LabelSet.channel_table` holds for an id that the label set does not know."""

MAX_ID = 65535
"""Masks are PNG of 8 or 16 bits."""

_A_TEXT = "text on one line without spaces at its ends (a number as text needs quotes)"
_SOME_IDS = f"a list of integers from 0 to {MAX_ID}"

ClassId = Annotated[int, Field(strict=True, ge=0, le=MAX_ID)]
Intensity = Annotated[int, Field(strict=True, ge=0, le=255)]
Text = Annotated[str, Field(strict=True, min_length=1, pattern=r"^\S(.*\S)?$")]


class LabelClass(BaseModel):
    """One class: its id in masks, its name, its name in prompts, and its RGB colour.

    A field's description is what an error says is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: ClassId = Field(description=f"an integer from 0 to {MAX_ID}")
    name: Text = Field(description=_A_TEXT)
    prompt: Text = Field(description=_A_TEXT)
    aliases: tuple[Text, ...] = Field(default=(), description=f"a list, each {_A_TEXT}")
    colour: tuple[Intensity, Intensity, Intensity] = Field(description="three integers from 0 to 255")
    kind: Literal["thing", "stuff"] = Field(description="thing or stuff")


class LabelSet(BaseModel):
    """The ordered classes of a task, the ids that are ignored, and the classes that never count for balance.

    Building one directly raises pydantic's ValidationError where it contradicts itself; `from_yaml` and
    `load_label_set` raise UsageError with every problem instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text = Field(description=_A_TEXT)
    version: Text = Field(description=_A_TEXT)
    ignore_ids: tuple[ClassId, ...] = Field(default=(), description=_SOME_IDS)
    background_ids: tuple[ClassId, ...] = Field(default=(), description=_SOME_IDS)
    classes: tuple[LabelClass, ...] = Field(min_length=1, description="a list of at least one class")

    @model_validator(mode="after")
    def _free_of_conflicts(self) -> "LabelSet":
        conflicts = _conflicts(self.classes, self.ignore_ids, self.background_ids)
        if conflicts:
            raise ValueError("; ".join(conflicts))
        return self

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Class ids in channel order, int64 [C]."""
        return np.array([label.id for label in self.classes], dtype=np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in channel order."""
        return tuple(label.name for label in self.classes)

    @property
    def colours(self) -> npt.NDArray[np.uint8]:
        """RGB colours in channel order, uint8 [C, 3]."""
        return np.array([label.colour for label in self.classes], dtype=np.uint8)

    @property
    def num_classes(self) -> int:
        """How many classes, and so channels, there are."""
        return len(self.classes)

    def channel_of(self, name: str) -> int:
        """The channel of the class of this name or alias, in any case; UsageError, with near names, if none is."""
        wanted = name.casefold()
        for channel, label in enumerate(self.classes):
            if wanted == label.name.casefold() or any(wanted == alias.casefold() for alias in label.aliases):
                return channel
        near = difflib.get_close_matches(wanted, [own.casefold() for own in self.names], n=3)
        known = [own for own in self.names if own.casefold() in near] or list(self.names)
        raise UsageError(f"label set {self.name} has no class {name!r}; did you mean one of: {', '.join(known)}?")

    def channel_table(self) -> npt.NDArray[np.int16]:
        """Look-up table int16 [65536] from id to channel: -1 for ignored ids, -2 for ids that the set does not know."""
        table = np.full(MAX_ID + 1, UNKNOWN_CHANNEL, dtype=np.int16)
        table[list(self.ignore_ids)] = IGNORE_CHANNEL
        table[self.ids] = np.arange(self.num_classes, dtype=np.int16)
        return table

    def fingerprint(self) -> str:
        """16 hexadecimal digits of blake2b over the content: equal sets have equal fingerprints, however written."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def to_yaml(self) -> str:
        """The set as YAML text, a class per line, that `from_yaml` reads back as an equal set."""
        head = self.model_dump(mode="json", include={"name", "version", "ignore_ids", "background_ids"})
        rows = [_flow_yaml(label.model_dump(mode="json")) for label in self.classes]
        lines = [f"{key}: {_flow_yaml(value)}" for key, value in head.items()]
        return "\n".join([*lines, "classes:", *(f"  - {row}" for row in rows)]) + "\n"

    @classmethod
    def from_yaml(cls, text: str, place: str = "label set") -> "LabelSet":
        """Read YAML text; UsageError that begins with `place` and lists every problem if it is not a label set."""
        problems, label_set = _read(text)
        if label_set is None:
            raise UsageError(f"{place}: {'; '.join(problems)}")
        return label_set


def load_label_set(name_or_path: str) -> LabelSet:
    """A shipped label set by its name, or any other by the path of its YAML file; UsageError if it cannot be read."""
    shipped = shipped_label_sets()
    if name_or_path in shipped:
        text = (resources.files("segdatagen") / "label_sets" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return LabelSet.from_yaml(text, f"shipped label set {name_or_path}")
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"label set {name_or_path!r} is neither a file nor one of the shipped sets: {', '.join(shipped)}; "
            "give one of these names or the path of a YAML file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"label set {path} cannot be read as UTF-8 text ({error}); give a YAML file") from error
    return LabelSet.from_yaml(text, str(path))


def shipped_label_sets() -> list[str]:
    """Names of the label sets that come with the package, sorted."""
    folder = resources.files("segdatagen") / "label_sets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def from_colormap(name: str, mapping: Mapping[str, Sequence[int]], file: str | None = None) -> LabelSet:
    """The label set of paper 001's `colormap.json`, {class: [r, g, b]}: its order gives both channel and id.

    The file says nothing of things and stuff, so every class is stuff; a class called "background" never counts for
    balance. UsageError, with `file` if given and every problem, where the mapping is no label set.
    """
    classes = [
        {"id": channel, "name": label, "prompt": str(label).replace("_", " "), "colour": colour, "kind": "stuff"}
        for channel, (label, colour) in enumerate(mapping.items())
    ]
    background_ids = [row["id"] for row in classes if str(row["name"]).casefold() == "background"]
    document = {"name": name, "version": "1", "background_ids": background_ids, "classes": classes}
    problems, label_set = _validated(document)
    if label_set is None:
        raise UsageError(f"{file or f'colour map {name}'}: {'; '.join(problems)}")
    return label_set


def _read(text: str) -> tuple[list[str], LabelSet | None]:
    """All problems of a YAML text and, when there are none, its label set."""
    try:
        document = load_yaml(text)
    except ValueError as error:
        return [str(error)], None
    return _validated(document)


def _validated(document: object) -> tuple[list[str], LabelSet | None]:
    """All problems of a parsed document and, when there are none, its label set."""
    if not isinstance(document, dict):
        keys = ", ".join(LabelSet.model_fields)
        return [f"expected a mapping with the keys {keys}, found {shown(document)}"], None
    try:
        return [], LabelSet.model_validate(document)
    except ValidationError as error:
        # One sentence for a field, however many of its items are wrong.
        entries = [dict(entry) for entry in error.errors() if entry["loc"]]
        if _rows(document.get("classes")):  # pydantic counts the classes without fault, and of those there may be none
            entries = [entry for entry in entries if (entry["loc"], entry["type"]) != (("classes",), "too_short")]
        structural = list(dict.fromkeys(_sentence(entry, document) for entry in entries))
    classes = [label for label in map(_class_or_none, _rows(document.get("classes"))) if label is not None]
    ignore_ids = _integers(document.get("ignore_ids"))
    background_ids = _integers(document.get("background_ids"))
    # A class that cannot be read may well be the one that a background id means, so that check waits for all of them.
    all_read = len(classes) == len(_rows(document.get("classes")))
    return structural + _conflicts(classes, ignore_ids, background_ids if all_read else ()), None


def _conflicts(classes: Sequence[LabelClass], ignore_ids: Sequence[int], background_ids: Sequence[int]) -> list[str]:
    """Contradictions between fields that are each well formed."""
    conflicts = []
    name_by_id: dict[int, str] = {}
    name_by_colour: dict[tuple[int, int, int], str] = {}
    name_by_word: dict[str, str] = {}
    for label in classes:
        if label.id in name_by_id:
            owner = name_by_id[label.id]
            conflicts.append(f"class {label.name!r}: id {label.id} is already that of {owner!r}; give an unused id")
        if label.colour in name_by_colour:
            owner, colour = name_by_colour[label.colour], list(label.colour)
            conflicts.append(f"class {label.name!r}: colour {colour} is already that of {owner!r}; give an unused one")
        for word in (label.name, *label.aliases):
            if word.casefold() in name_by_word:
                owner = name_by_word[word.casefold()]
                conflicts.append(f"class {label.name!r}: {word!r} is already a name or alias of {owner!r}")
            name_by_word.setdefault(word.casefold(), label.name)
        name_by_id.setdefault(label.id, label.name)
        name_by_colour.setdefault(label.colour, label.name)
    for ignored in ignore_ids:
        if ignored in name_by_id:
            conflicts.append(f"ignore_ids: {ignored} is the id of class {name_by_id[ignored]!r}; give an unused id")
    for background in background_ids:
        if background not in name_by_id:
            conflicts.append(f"background_ids: {background} is no class id; allowed are {_ranges(name_by_id)}")
    return conflicts


def _sentence(entry: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says, with the class and the field, the value found and what is allowed."""
    owner: type[BaseModel] = LabelSet
    where, path = "", list(entry["loc"])
    if path[0] == "classes" and len(path) > 1:
        row = _rows(document["classes"])[path[1]]
        name = row.get("name") if isinstance(row, dict) else None
        where = f"class {name!r}: " if isinstance(name, str) else f"class number {path[1] + 1}: "
        owner, path = LabelClass, path[2:]
    keys = ", ".join(owner.model_fields)
    if not path:
        return f"{where}{shown(entry['input'])} is no class; allowed is a mapping with the keys {keys}"
    if entry["type"] in ("extra_forbidden", "invalid_key"):
        return f"{where}{path[0]} is an unknown key; allowed are {keys}"
    allowed = owner.model_fields[str(path[0])].description
    if entry["type"] == "missing" and len(path) == 1:
        return f"{where}{path[0]} is missing; allowed is {allowed}"
    value = (row if owner is LabelClass else document)[path[0]]
    return f"{where}{path[0]} is {shown(value)}; allowed is {allowed}"


def _class_or_none(row: object) -> LabelClass | None:
    try:
        return LabelClass.model_validate(row)
    except ValidationError:
        return None


def _rows(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _integers(value: object) -> list[int]:
    return [item for item in _rows(value) if type(item) is int]


def _ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers with runs drawn together: 0..10, 14."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)


def _flow_yaml(value: object) -> str:
    """A value as YAML on one line; the list around it keeps the emitter from ending a scalar with a document mark."""
    return yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    ).strip()[1:-1]
