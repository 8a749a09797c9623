"""The folder of a run: `run.json`, the attempts, and what makes two runs the same run.

A run is its address and its content recipes. Another recipe at the same address is refused with the difference;
another quota, method or execution is not. It does not know how plans or samples are stored.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdatagen.config_files import describe, read_stored
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.records import FORMAT_VERSION, FormatVersion
from segdatagen.storage import Folder

Model = TypeVar("Model", bound=BaseModel)

RUN_NAME = "run.json"
SUCCESS_NAME = "_SUCCESS"
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report"
"""Folder of a page about the run, which whoever writes it keeps for itself."""
OWN_FIELDS = ("options", "segments")
"""Fields of a content recipe that may be others in each method; the rest is the same in all recipes of a run."""
RECORDED_PACKAGES = (
    "segdatagen",
    "ray",
    "torch",
    "diffusers",
    "transformers",
    "pyarrow",
    "numpy",
    "opencv-python-headless",
)


class RunInfo(BaseModel):
    """`run.json`: the job as it was understood, the recipe of every method, and the label set.

    The job has absolute paths, defaults and the class names of the label set.

    `judges` is what scores: the segmenter of a filter by its name, of others what they say by field. Scores of two
    judges cannot be compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    job: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    fingerprints: dict[str, str]
    label_set: str
    judges: dict[str, str] = {}


class Attempt(BaseModel):
    """`attempts/<n>.json`: where, with what and how far one attempt went.

    `seconds` has what `chains` took over all actors, and the time on the clock (`wall`); `stage_seconds` is what chains
    took, by method and stage, `stage_peak_bytes` the most memory that an actor held meanwhile: of its GPU, or of its
    process, with all that the stages before left there.
    """

    model_config = ConfigDict(extra="forbid")
    number: int
    started: str
    ended: str | None = None
    outcome: str | None = None
    execution: dict[str, Any]
    packages: dict[str, str]
    hardware: dict[str, Any]
    seconds: dict[str, float] = Field(default_factory=dict)
    stage_seconds: dict[str, dict[str, float]] = Field(default_factory=dict)
    stage_peak_bytes: dict[str, dict[str, int]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """An opened run."""

    folder: Folder
    info: RunInfo
    label_set: LabelSet

    def is_made_from(self, fingerprint: str) -> bool:
        """Whether its recipes stand for a source store of this fingerprint, or say nothing of any."""
        known = {recipe["sources"] for recipe in self.info.recipes.values() if "sources" in recipe}
        return not known or fingerprint in known

    def job_as(self, model: type[Model], field: str | None = None) -> Model:
        """The job that this run was last planned or run with, or one of its fields, of which none is the default.

        Raises UsageError, in one line, where `run.json` says something else there.
        """
        stored = self.info.job if field is None else self.info.job.get(field, {})
        try:
            return model.model_validate(stored)
        except ValidationError as error:
            place = "job" if field is None else f"job.{field}"
            raise UsageError(
                f"{self.folder.uri_of(RUN_NAME)}: not as segdatagen writes it ({place}: {describe(error, model)})"
            ) from error


def recipe_fingerprint(recipe: Mapping[str, Any]) -> str:
    """128 bits of blake2b over a content recipe in canonical form."""
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16).hexdigest()


def open_run(uri: str) -> Run:
    """Open an existing run. Raises UsageError if there is none, or if it is damaged or of another format version."""
    folder = Folder(uri)
    try:
        info = read_stored(folder, RUN_NAME, RunInfo, UsageError)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{uri}: not a run folder ({RUN_NAME} is missing)") from None
    return Run(folder, info, LabelSet.from_yaml(info.label_set, folder.uri_of(RUN_NAME)))


def check_same_content(
    uri: str, recipes: Mapping[str, Mapping[str, Any]], judges: Mapping[str, str] | None = None
) -> None:
    """Raise UsageError, with the difference, if the run at this address was made by another recipe. Writes nothing.

    A method may come and go, and a filter that scores, but not score with another of its `judges`.
    """
    if not Folder(uri).exists(RUN_NAME):
        return
    info = open_run(uri).info
    stored = info.recipes
    changes = [
        f"filters.{name if '.' in name else f'{name}.segmenter'}: {info.judges[name]!r} -> {pinned!r}"
        for name, pinned in (judges or {}).items()
        if info.judges.get(name, pinned) != pinned
    ]
    for method in sorted(stored.keys() & recipes.keys()):
        changes += _differences(f"{method}.", stored[method], recipes[method])
    if stored and recipes and not stored.keys() & recipes.keys():
        before, after = (_shared(next(iter(some.values()))) for some in (stored, recipes))
        changes += _differences("", before, after)
    if changes:
        raise UsageError(
            f"{uri}: made by another recipe ({'; '.join(changes)}): give the job another version, or undo the change"
        )


def write_run(
    uri: str,
    job: dict[str, Any],
    recipes: Mapping[str, Mapping[str, Any]],
    label_set: LabelSet,
    judges: Mapping[str, str] | None = None,
) -> Run:
    """Create `run.json`, or bring it up to date with a raised quota, an added method or filter."""
    known = open_run(uri).info if Folder(uri).exists(RUN_NAME) else None
    merged = {**(known.recipes if known else {}), **{method: dict(recipe) for method, recipe in recipes.items()}}
    info = RunInfo(
        job=job,
        recipes=merged,
        fingerprints={method: recipe_fingerprint(recipe) for method, recipe in merged.items()},
        label_set=label_set.to_yaml(),
        judges={**(known.judges if known else {}), **(judges or {})},
    )
    Folder(uri).put(RUN_NAME, info.model_dump_json(indent=1).encode())
    return open_run(uri)


def begin_attempt(run: Folder, execution: dict[str, Any]) -> Attempt:
    """Number and record a new attempt."""
    number = max((attempt.number for attempt in read_attempts(run)), default=0) + 1
    attempt = Attempt(number=number, started=now(), execution=execution, packages=_packages(), hardware=_hardware())
    put_attempt(run, attempt)
    return attempt


def end_attempt(run: Folder, attempt: Attempt, outcome: str, spent: Mapping[str, Any]) -> None:
    """Record how an attempt ended, and what it spent: its fields `seconds`, `stage_seconds`, `stage_peak_bytes`."""
    put_attempt(run, attempt.model_copy(update={"ended": now(), "outcome": outcome, **spent}))


def put_attempt(run: Folder, attempt: Attempt) -> None:
    """Store an attempt, replacing what was known of it."""
    run.put(f"attempts/{attempt.number:04d}.json", attempt.model_dump_json(indent=1).encode())


def read_attempts(run: Folder) -> list[Attempt]:
    """All attempts of a run, in order. Raises SegdatagenError where one is damaged."""
    folder = run.child("attempts")
    return [read_stored(folder, entry.name, Attempt) for entry in folder.entries(".json")]


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _packages() -> dict[str, str]:
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found | {"python": platform.python_version()}


def _hardware() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _shared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in recipe.items() if field not in OWN_FIELDS}


def _differences(place: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Each field of two recipes that is not the same, with both values."""
    old, new = _flat(before), _flat(after)
    return [
        f"{place}{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
