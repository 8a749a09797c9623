"""YAML and JSON files into pydantic models, and their mistakes as one line: field, what is allowed, what was found.

It does not know what the files configure.
"""

import json
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.storage import CONTROL_CHARACTERS, Folder, read_any

Model = TypeVar("Model", bound=BaseModel)


def _checked_place(value: str) -> str:
    if CONTROL_CHARACTERS.search(value):
        raise ValueError(f"must have no control characters, not {shown(value)}")
    return value


Place = Annotated[str, Field(min_length=1), AfterValidator(_checked_place)]
"""A path or URI, as a file gives it."""

_ALLOWED = {
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of fields",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
"""What is allowed, by the type of pydantic's error. Others keep pydantic's words."""


def read_config(model: type[Model], uri: str) -> Model:
    """Read a YAML file from a path or URI into a model. Raises UsageError in one line."""
    if not uri:
        raise UsageError("the name of the file is empty: give that of a YAML file")
    try:
        text = read_any(uri).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{uri}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{uri}: is a folder: give the YAML file in it") from None
    except OSError as error:
        raise UsageError(f"{uri}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri}: not a text file ({error})") from error
    try:
        data = load_yaml(text)
    except ValueError as error:
        raise UsageError(f"{uri}: {error}") from error
    if not isinstance(data, dict):
        found = "nothing: the file is empty" if data is None else shown(data)
        raise UsageError(f"{uri}: expected a mapping of fields, found {found}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{uri}: {describe(error, model)}") from error


def read_stored(
    folder: Folder, name: str, model: type[Model], refusal: type[SegdatagenError] = SegdatagenError
) -> Model:
    """Read a JSON document that segdatagen wrote.

    Raises FileNotFoundError or NotADirectoryError where there is none, and `refusal`, in one line, where it is damaged
    or of another format version: file, field, what is allowed, value.
    """
    data = folder.read(name)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        problem = _another_format(error) or describe(error, model)
        raise refusal(f"{folder.uri_of(name)}: not as segdatagen writes it ({problem})") from error


def _another_format(error: ValidationError) -> str | None:
    """What is wrong with the format version, if it is: then nothing else of the document says anything."""
    for problem in error.errors():
        if problem["loc"] == ("format_version",):
            allowed = problem.get("ctx", {}).get("expected", "text")
            return f"format_version: must be {allowed}, not {shown(problem['input'])}: use the version that wrote it"
    return None


def load_yaml(text: str) -> object:
    """Parse YAML. Raises ValueError with line and column; a key that stands twice in a mapping is a mistake too."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "an unknown line"
        raise ValueError(f"broken YAML at {where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise ValueError(f"broken YAML: {' '.join(str(error).split())}") from error


def load_json(data: bytes) -> Any:
    """Parse JSON that somebody wrote, as strictly as YAML.

    Raises ValueError, in one line, for what is none, for a key that stands twice in an object, and for half a
    character (a lone surrogate), which no file could hold.
    """
    try:
        text = data.decode(json.detect_encoding(data))
        found = json.loads(text, object_pairs_hook=_unique_keys)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return found


@dataclass
class _Complaint:
    """What is wrong with one field: sentences, the value where it says something, and whether the key is unknown."""

    sentences: list[str] = field(default_factory=list)
    value: str = ""
    unknown: bool = False

    @property
    def text(self) -> str:
        return f"{' or '.join(dict.fromkeys(self.sentences))}{self.value}"


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The problems of a pydantic error in one line: field, what is allowed, value.

    Unknown keys of the same mapping share what is allowed.
    """
    complaints: dict[str, _Complaint] = {}
    for problem in error.errors():
        if problem["type"] == "too_short" and len(problem["input"]) >= problem["ctx"]["min_length"]:
            continue  # pydantic counts the entries that are right, and the others are named
        path, owner = _resolve(model, problem["loc"])
        complaint = complaints.setdefault(".".join(path), _Complaint(unknown=problem["type"] == "extra_forbidden"))
        sentence = _without_value(problem, owner)
        if sentence is None:
            described = owner.model_fields.get(path[-1]) if owner and path else None
            sentence = _of_value(problem, described.description if described else None)
            complaint.value = f", not {shown(problem['input'])}"
        complaint.sentences.append(sentence)
    unknown: dict[str, list[str]] = {}
    for name, found in complaints.items():
        if found.unknown:
            unknown.setdefault(found.text, []).append(name)
    lines = []
    for name, found in complaints.items():
        sharing = unknown[found.text] if found.unknown else [name]
        if name == sharing[0]:
            lines.append(f"{', '.join(sharing)}: {found.text}".removeprefix(": "))
    return "; ".join(" ".join(line.split()) for line in lines)


def _without_value(problem: ErrorDetails, owner: type[BaseModel] | None) -> str | None:
    """What a problem says by itself; None where the value that was found belongs to it."""
    match problem["type"]:
        case "extra_forbidden":
            return "unknown key" + (f"; allowed are {', '.join(owner.model_fields)}" if owner else "")
        case "missing":
            return "missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "json_invalid":
            return f"no JSON, {problem['ctx']['error']}"
    return None


def _of_value(problem: ErrorDetails, allowed: str | None) -> str:
    """What a value must be; `allowed` is the field's own description of a pattern."""
    if problem["type"] == "string_pattern_mismatch" and allowed:
        return f"must be {allowed}"
    if _is_nan(problem["input"]):  # it is neither below nor above a bound
        return "must be a number"
    if problem["type"] in _ALLOWED:
        return _ALLOWED[problem["type"]].format_map(problem.get("ctx", {}))
    return problem["msg"]


def _is_nan(value: object) -> bool:
    return str(value).strip().lower() in ("nan", "+nan", "-nan")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r} stands twice")
            seen.add(key)
    return found


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where YAML's own loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _resolve(model: type[BaseModel], place: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """A place as fields and indices, without the tags of unions, and the model that owns its last field."""
    path: list[str] = []
    owner: type[BaseModel] | None = model
    annotation: Any = model
    for part in place:
        models = [found for found in _alternatives(annotation) if _is_model(found)]
        if models:
            owner = next((found for found in models if part in found.model_fields), models[0])
            path.append(str(part))
            field = owner.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif isinstance(part, int) or any(get_origin(found) in (dict, Mapping) for found in _alternatives(annotation)):
            path.append(str(part))
            inner = [found for found in get_args(annotation) if found is not Ellipsis]
            annotation = next(iter(inner[-1:]), None)
            owner = None
    return path, owner


def shown(value: object) -> str:
    """A value as an error message quotes it: 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type that it is."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
