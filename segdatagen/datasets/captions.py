"""Captions: files of them, sources that are nothing else, and another data set's sources with theirs from a file.

COCO's JSON of captions, a JSON list, JSON lines, and lines of `name<TAB>caption` are read. White space at the ends of
a caption and between its words counts as one space. It does not know what a caption is good for.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from segdatagen.datasets.json_stream import READ_AHEAD, elements
from segdatagen.datasets.options import Options
from segdatagen.datasets.partition import Partition
from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource, Reader, first_names, names_of
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.storage import Folder

NAME_KEYS = ("source_id", "file_name", "image", "image_id", "id")
"""Of the keys of an entry the first that has a value: the id of an annotation of COCO's is no name of its image."""
TEXT_KEYS = ("caption", "text")
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Caption:
    """One caption of a file: whose it is ("" where the file does not say), its text, and where it stands."""

    name: str
    text: str
    place: str


@dataclass(frozen=True)
class CaptionList:
    """Sources that are captions alone: one per caption, with the classes that masks made of them are to have."""

    root: str
    label_set: LabelSet

    def list_items(self) -> Listing:
        """An item per caption: its name, or else the number of the line.

        A number stands behind the name in JSON, where an image has several captions as a rule, and in lines behind
        every further caption of the same name.
        """
        items: list[Item] = []
        bad: list[BadItem] = []
        file_name = PurePosixPath(self.root).name
        numbered = self.root.lower().endswith(".json")
        seen: Counter[str] = Counter()
        for number, caption in enumerate(read_captions(self.root), 1):
            if not caption.text:
                bad.append(BadItem("empty caption", caption.place))
                continue
            name = caption.name or f"{PurePosixPath(file_name).stem}-{number:09d}"
            source_id = f"{name}-{seen[name]}" if caption.name and (numbered or seen[name]) else name
            seen[name] += 1
            items.append(Item(source_id, file_name, caption=caption.text, num_bytes=len(caption.text)))
        if not items and not bad:
            raise UsageError(f"{self.root}: no captions here")
        return Listing(tuple(items), tuple(bad))

    def read(self, item: Item) -> RawSource:
        """Nothing but the caption, which the item has."""
        return RawSource(mask=None, caption=item.caption)


@dataclass(frozen=True)
class CaptionedReader:
    """A reader whose items get captions from a file, of several for one item the first; then a part of them is chosen.

    Whether a name means one item is for the whole data set to say.
    """

    reader: Reader
    uri: str
    partition: Partition | None = None

    @property
    def label_set(self) -> LabelSet:
        """That of the data set."""
        return self.reader.label_set

    def list_items(self) -> Listing:
        """The items of the partition, those without a caption in the file as they are.

        Raises UsageError where the file has a caption for none of them, or an empty one.
        """
        whole = self.reader.list_items()
        captions: dict[str, str] = {}
        of_files: dict[str, set[str]] = {}
        for caption in read_captions(self.uri):
            if not caption.text:
                raise UsageError(f"{caption.place}: the caption is empty")
            if not caption.name:
                raise UsageError(f"{caption.place}: whose caption is this? Expected {_naming(self.uri)}")
            captions.setdefault(caption.name, caption.text)
            of_files.setdefault(PurePosixPath(caption.name).name, set()).add(caption.name)
        # Folders before a name may be others than ours, as long as only one of all names and only one item ends so.
        known = {file: captions[names.pop()] for file, names in of_files.items() if len(names) == 1} | captions
        shared = Counter(name for item in whole.items for name in names_of(item))
        own = {name: text for name, text in known.items() if shared[name] == 1}
        listing = Listing(
            tuple(
                replace(item, caption=captions.get(item.source_id) or _caption_of(item, own)) for item in whole.items
            ),
            whole.orphans,
        )
        if self.partition is not None:
            listing = self.partition.choose(listing)
        items = listing.items
        if items and not any(item.caption for item in items):
            raise UsageError(
                f"{self.uri}: no caption for any source: it names {first_names(list(captions), 3)}, while sources are "
                f"called {first_names([item.source_id for item in items], 3)}"
            )
        return listing

    def read(self, item: Item) -> RawSource:
        """As the data set's own reader reads it. Raises BadItem."""
        return self.reader.read(item)


def open_captions(root: str, split: str, options: Options) -> Reader:
    """A list of captions as sources without image and mask."""
    if options.captions is not None:
        raise UsageError("format captions takes no --captions: its captions are those of ROOT")
    return CaptionList(root, options.named_label_set("captions", "the classes of masks that are made of captions"))


def read_captions(uri: str) -> Iterator[Caption]:
    """Every caption of a file in its order, empty ones too. Raises UsageError."""
    parent, slash, name = uri.rpartition("/")
    folder = Folder(parent + slash or ".")
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if suffix == ".json":
            yield from _coco(folder, name)
            return
        # Not splitlines: U+2028 and U+0085 may stand in a caption.
        lines = folder.read(name).decode("utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"{uri}: no such file: captions are COCO's JSON, JSON lines or name<TAB>caption") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri}: not a text file ({error})") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{uri}:{number}"
            yield _json_line(line, place) if suffix in JSON_LINES else _tab_line(line, place)


def _coco(folder: Folder, name: str) -> Iterator[Caption]:
    """COCO's form: images have ids and file names, annotations captions. Images may stand behind annotations.

    A list, as captioners write their results, has entries like those of JSON lines.
    """
    uri = folder.uri_of(name)
    names: dict[Any, str] = {}
    listed = 0
    with folder.open(name, READ_AHEAD) as file:
        for key, value, _, _ in elements(file, uri):
            if not key:
                listed += 1
                yield _entry(value, f"{uri}, entry {listed}")
            if key == "images":
                names[_field(value, "id", uri)] = _stem(str(_field(value, "file_name", uri)))
    if listed:
        return
    if not names:
        raise UsageError(f"{uri}: not captions in COCO's form: it lists no images")
    with folder.open(name, READ_AHEAD) as file:
        for key, value, _, _ in elements(file, uri):
            if key == "annotations":
                image = _field(value, "image_id", uri)
                if image not in names:
                    raise UsageError(f"{uri}: a caption is for image {image}, which the file does not list")
                yield Caption(names[image], _clean(_field(value, "caption", uri)), f"{uri}, image {image}")


def _json_line(line: str, place: str) -> Caption:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place}: broken JSON ({error})") from error
    return _entry(row, place)


def _entry(row: object, place: str) -> Caption:
    """A caption of an object that names itself whose it is. Raises UsageError."""
    texts = [row[key] for key in TEXT_KEYS if key in row] if isinstance(row, dict) else []
    if not isinstance(row, dict) or len(texts) != 1 or not isinstance(texts[0], str):
        raise UsageError(f"{place}: expected an object with one text under {' or '.join(TEXT_KEYS)}")
    key, named = next(((key, row[key]) for key in NAME_KEYS if row.get(key) is not None), ("", ""))
    if not isinstance(named, str | int):
        raise UsageError(f"{place}: {key} must be a text or a number, not {json.dumps(named)[:40]}")
    return Caption(_stem(str(named)), _clean(texts[0]), place)


def _naming(uri: str) -> str:
    """How an entry of such a file says whose caption it is."""
    in_json = PurePosixPath(uri).suffix.lower() in (".json", *JSON_LINES)
    return f"an object with {', '.join(NAME_KEYS[:-1])} or {NAME_KEYS[-1]}" if in_json else "name<TAB>caption"


def _tab_line(line: str, place: str) -> Caption:
    name, tab, text = line.partition("\t")
    return Caption(_stem(name.strip()), _clean(text), place) if tab else Caption("", _clean(line), place)


def _stem(name: str) -> str:
    """A name without the suffix of an image file; other dots belong to it."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in (".jpg", ".jpeg", ".png") else name


def _clean(text: object) -> str:
    return " ".join(str(text).split())


def _caption_of(item: Item, captions: Mapping[str, str]) -> str | None:
    """The caption under any of the item's names."""
    return next((captions[name] for name in sorted(names_of(item)) if name in captions), None)


def _field(value: object, key: str, uri: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise UsageError(f"{uri}: not captions in COCO's form: an entry has no {key}")
    return value[key]
