"""Data sets in rows: Parquet files, and folders as Hugging Face's `datasets` saves or publishes them.

A row has an encoded mask and mostly an encoded image, as bytes or as a struct of `bytes` and `path`. Rows are read one
after another, so that a row group need not be in memory whole. Knows nothing of `datasets` but how its files lie.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from segdatagen.datasets.folder import annotation_of, check_image, checked_ids
from segdatagen.datasets.options import NO_IMAGES, Options
from segdatagen.datasets.reader import BadItem, Item, Listing, Problem, RawSource, Reader, first_names
from segdatagen.datasets.row_files import Group, list_groups, rows_of
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.storage import Folder

MAX_GROUP_BYTES = 4 * 2**30
"""Of a row group: what a task reads to get at the last rows of it."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where there is none. Without an id, file and row number are the id."""

    mask: str
    image: str | None
    id: str | None
    caption: str | None

    @property
    def of_source(self) -> list[str]:
        """Columns that a source is read from."""
        return [name for name in (self.mask, self.image, self.caption) if name]

    @property
    def by_role(self) -> dict[str, str]:
        """Those that there are."""
        roles = {"mask": self.mask, "image": self.image, "caption": self.caption, "id": self.id}
        return {role: name for role, name in roles.items() if name}


@dataclass
class Cursor:
    """How far a process has read: the rows of `group` (file and place) from `next_row` on. It stays in its process."""

    group: tuple[str, int] = ("", -1)
    next_row: int = 0
    rows: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))

    def __reduce__(self) -> tuple[type["Cursor"], tuple[()]]:
        return Cursor, ()


@dataclass(frozen=True)
class TableReader:
    """The rows of some files of a folder, in order."""

    root: str
    files: tuple[str, ...]
    columns: Columns
    label_set: LabelSet
    _cursor: Cursor = field(default_factory=Cursor, compare=False, repr=False)

    def list_items(self) -> Listing:
        """An item per row. Raises UsageError where a file is damaged, or has other columns than the first."""
        items: list[Item] = []
        folder = Folder(self.root)
        for name in self.files:
            groups, schema = list_groups(folder, name, self.columns.of_source)
            columns = self.columns.by_role
            missing = [column for column in columns.values() if column not in schema.names]
            if missing:
                raise UsageError(f"{folder.uri_of(name)}: no column {', '.join(missing)}, unlike {self.files[0]}")
            for role, column in columns.items():
                _check_type(role, schema.field(column), folder.uri_of(name))
            if name.endswith(".parquet"):
                _require_short_groups(groups, folder.uri_of(name))
            stem = str(PurePosixPath(name).with_suffix(""))
            before = 0
            for group in groups:
                ids = self._ids(folder, name, group.place, before) or (
                    f"{stem}-{row:07d}" for row in range(before, before + group.num_rows)
                )
                size = -(-group.num_bytes // max(1, group.num_rows))
                items += [Item(id_, name, None, (group.place, row), size) for row, id_ in enumerate(ids)]
                before += group.num_rows
        if not items:
            raise UsageError(f"{self.root}: no rows in {first_names(self.files, 3)}")
        return Listing(tuple(items))

    def read(self, item: Item) -> RawSource:
        """A row's mask, image and caption, checked. Raises BadItem."""
        name = f"{item.mask_name} ({item.source_id})"
        try:
            row = self._row(item)
        except (pa.ArrowException, OSError) as error:
            raise BadItem("unreadable mask", name, str(error).split("\n")[0]) from error
        annotation = annotation_of(_encoded(row[self.columns.mask], "unreadable mask", name), name)
        mask = checked_ids(annotation, self.label_set, name)
        image = None
        if self.columns.image:
            image = _encoded(row[self.columns.image], "unreadable image", name)
            check_image(image, mask.shape, name, name)
        caption = row[self.columns.caption] if self.columns.caption else None
        return RawSource(mask=mask, image=image, caption=" ".join(caption.split()) or None if caption else None)

    def _row(self, item: Item) -> dict[str, Any]:
        """The row of an item: the next of its group, or read from the group's start."""
        place, wanted = item.place
        cursor = self._cursor
        if cursor.group != (item.mask_name, place) or cursor.next_row > wanted:
            rows = rows_of(Folder(self.root), item.mask_name, place, self.columns.of_source)
            cursor.group, cursor.next_row, cursor.rows = (item.mask_name, place), 0, rows
        for row in cursor.rows:
            cursor.next_row += 1
            if cursor.next_row > wanted:
                return row
        cursor.group = ("", -1)
        raise OSError(f"the file changed: it has no row {wanted} in group {place} any more")

    def _ids(self, folder: Folder, name: str, place: int, before: int) -> list[str]:
        if self.columns.id is None:
            return []
        ids = [row[self.columns.id] for row in rows_of(folder, name, place, [self.columns.id])]
        if None in ids:
            row = before + ids.index(None)
            raise UsageError(f"{folder.uri_of(name)}: row {row} has nothing in its column {self.columns.id}")
        return [str(id_) for id_ in ids]


def open_parquet(root: str, split: str, options: Options) -> Reader:
    """One Parquet file, or all below a folder."""
    labels = options.named_label_set("parquet")
    if root.endswith(".parquet"):
        parent, slash, name = root.rpartition("/")
        return _open(parent or slash or ".", [name], options, labels)
    files = [entry.name for entry in Folder(root).entries(".parquet")]
    if not files:
        raise UsageError(f"{root}: no .parquet files here (missing or empty folder)")
    return _open(root, files, options, labels)


def open_hf_dataset(root: str, split: str, options: Options) -> Reader:
    """A folder of `save_to_disk`, with or without splits, or one whose Parquet files are named for the split."""
    labels = options.named_label_set("hf_dataset")
    folder = Folder(root)
    if folder.exists("dataset_dict.json"):
        known = _json(folder, "dataset_dict.json").get("splits", [])
        if split not in known:
            raise UsageError(f"{root}: no split {split!r} here: it has {', '.join(map(str, known))}")
        root, folder = folder.uri_of(split), folder.child(split)
    if folder.exists("state.json"):
        state = _json(folder, "state.json")
        if state.get("_split") not in (None, split):
            raise UsageError(f"{root}: this is split {state['_split']!r}, not {split!r}")
        return _open(root, [str(file["filename"]) for file in state.get("_data_files", [])], options, labels)
    named = re.compile(rf"(.*/)?{re.escape(split)}(-\d[^/]*|/[^/]*)?\.parquet")
    there = [entry.name for entry in folder.entries(".parquet")]
    matches = {name: match for name in there if (match := named.fullmatch(name))}
    files = list(matches)
    configurations = list(dict.fromkeys(match[1] or "./" for match in matches.values()))
    if len(configurations) > 1:
        raise UsageError(
            f"{root}: split {split} lies in several folders ({first_names(configurations, 5)}), which are data sets of "
            "their own: give one of them"
        )
    if not files:
        found = f": {first_names(there, 5)}" if there else " (missing or empty folder)"
        raise UsageError(
            f"{root}: no state.json, dataset_dict.json, {split}.parquet, {split}-00000*.parquet or {split}/*.parquet "
            f"here{found}"
        )
    return _open(root, files, options, labels)


def _open(root: str, files: list[str], options: Options, labels: LabelSet) -> Reader:
    if not files:
        raise UsageError(f"{root}: lists no files of rows")
    folder = Folder(root)
    if not folder.exists(files[0]):
        raise UsageError(f"{folder.uri_of(files[0])}: no such file")
    _, schema = list_groups(folder, files[0], [])
    columns = choose_columns(schema, options.columns, folder.uri_of(files[0]))
    return TableReader(root, tuple(files), columns, labels)


def choose_columns(schema: pa.Schema, text: str | None, place: str) -> Columns:
    """Columns by their usual names (mask, image, caption), or as `--columns` names them. Raises UsageError."""
    named: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        role, equals, name = pair.partition("=")
        if role not in ("mask", "image", "id", "caption") or not equals or not name or role in named:
            raise UsageError(f"--columns {text}: expected image=NAME,mask=NAME,id=NAME,caption=NAME or some of them")
        named[role] = name
    without = [role for role in ("image", "id", "caption") if named.get(role) == NO_IMAGES]
    has_caption = "caption" in schema.names and _is_text(schema.field("caption").type)
    usual = {"mask": "mask", "image": "image"} | ({"caption": "caption"} if has_caption else {})
    chosen = {role: name for role, name in (usual | named).items() if role not in without}
    for role, name in chosen.items():
        if name not in schema.names:
            or_none = f", or {role}={NO_IMAGES}" if role == "image" else ""
            raise UsageError(
                f"{place}: no column {name} (there are {first_names(schema.names, 12)}): name it with "
                f"--columns {role}=NAME{or_none}"
            )
    return Columns(chosen["mask"], chosen.get("image"), chosen.get("id"), chosen.get("caption"))


def _check_type(role: str, column: pa.Field, place: str) -> None:
    """Raise UsageError for a column that cannot hold what it is said to hold."""
    kind = column.type
    if role == "caption":
        good, expected = _is_text(kind) or pa.types.is_null(kind), "text"  # of a file without any it is null
    elif role == "id":
        good, expected = _is_text(kind) or pa.types.is_integer(kind), "text or whole numbers"
    else:
        fields = kind.names if pa.types.is_struct(kind) else []
        good = "bytes" in fields or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        expected = "encoded pictures, as bytes or as a struct with bytes"
    if not good:
        raise UsageError(f"{place}: column {column.name} is {kind}; the {role} column holds {expected}")


def _require_short_groups(groups: Sequence[Group], place: str) -> None:
    """Raise UsageError for a row group of which much would be read again for each of the parts that it is cut into."""
    longest = max(groups, key=lambda group: group.num_bytes, default=None)
    if longest is not None and longest.num_bytes > MAX_GROUP_BYTES:
        raise UsageError(
            f"{place}: row group {longest.place} has {longest.num_bytes / 2**30:.1f} GiB, and is read from its "
            "beginning again and again: write the file with shorter ones (pandas and pyarrow: row_group_size=1000)"
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _encoded(value: Any, problem: Problem, name: str) -> bytes:
    """The bytes of a picture, alone or in a struct. Raises BadItem where there are none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise BadItem(problem, name, f"no bytes, only the path {path}" if path else "nothing there")
    return bytes(data)


def _json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read(name))
    except ValueError as error:
        raise UsageError(f"{folder.uri_of(name)}: not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("splits", []), Collection):
        raise UsageError(f"{folder.uri_of(name)}: not written by `datasets`")
    return found
