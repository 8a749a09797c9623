"""A part of a data set: the first N items, a fraction, or those that a file names.

A fraction is drawn by a hash of the ids: the same on every machine, and 1/16 lies in 1/8. Knows no format.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath

from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource, Reader, first_names, names_of, spellings
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.records import derive_seed
from segdatagen.storage import read_any

FIRST = re.compile(r"first:(\d+)")
FRACTION = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class NameList:
    """Lines of a file, each the name of an item: its id or one of its files, as `names_of` spells them.

    A line may also give two files of one item, image and mask, as the lists of the literature do.
    """

    place: str
    lines: tuple[str, ...]

    def choose(self, listing: Listing) -> Listing:
        """The items that are named, in the order of the data set, with what was named and is not there as orphans.

        Raises UsageError where a name means two items, or two lines mean one.
        """
        known: dict[str, list[Item]] = {name: [] for line in self.lines for name in _ways_to_say(line)}
        for item in listing.items:
            for name in names_of(item):
                if name in known:
                    known[name].append(item)
        orphans = _orphans_by_name(listing)
        chosen: dict[str, str] = {}
        missing: list[BadItem] = []
        for line in self.lines:
            named = self._item_of(line, known)
            if named is None:
                missing += orphans.get(_ways_to_say(line)[-1], [BadItem("not in the data set", line)])
            elif named.source_id in chosen:
                raise UsageError(f"{self.place}: {chosen[named.source_id]} and {line} are the same item: remove one")
            else:
                chosen[named.source_id] = line
        items = tuple(item for item in listing.items if item.source_id in chosen)
        return Listing(items, tuple(dict.fromkeys(missing)))

    def _item_of(self, line: str, known: dict[str, list[Item]]) -> Item | None:
        """The one item that a line names; further words of the line are files of the same item."""
        found = next((known[name] for name in _ways_to_say(line) if known[name]), [])
        found = [item for item in found if item.source_id == line] or found
        ids = list(dict.fromkeys(item.source_id for item in found))
        if len(ids) > 1:
            raise UsageError(f"{self.place}: {line} means several items ({first_names(ids, 3)}): name one per line")
        if found and line not in names_of(found[0]):
            for word in line.split()[1:]:
                rest = PurePosixPath(word).name.removeprefix(PurePosixPath(ids[0]).name)
                if rest == PurePosixPath(word).name or rest[:1].isalnum():
                    raise UsageError(f"{self.place}: {line}: {word} is no file of {ids[0]}: name one item per line")
        return found[0] if found else None


@dataclass(frozen=True)
class First:
    """The first `count` items of the data set, in its own order."""

    count: int

    def choose(self, listing: Listing) -> Listing:
        """Raises UsageError where there are fewer."""
        if self.count > len(listing.items):
            raise UsageError(f"--partition first:{self.count}: there are only {len(listing.items)} items")
        return Listing(listing.items[: self.count], listing.orphans)


@dataclass(frozen=True)
class Share:
    """A fraction of the items, rounded up, whose ids have the smallest hashes."""

    fraction: Fraction

    def choose(self, listing: Listing) -> Listing:
        """92, 183, 366 and 732 of 1,464 items for 1/16, 1/8, 1/4 and 1/2."""
        count = math.ceil(self.fraction * len(listing.items))
        ranked = sorted(listing.items, key=lambda item: derive_seed(0, "partition", item.source_id))
        kept = {item.source_id for item in ranked[:count]}
        return Listing(tuple(item for item in listing.items if item.source_id in kept), listing.orphans)


Partition = NameList | First | Share


@dataclass(frozen=True)
class PartReader:
    """A reader that lists a part of what another one does."""

    reader: Reader
    partition: Partition

    @property
    def label_set(self) -> LabelSet:
        """That of the whole."""
        return self.reader.label_set

    def list_items(self) -> Listing:
        """The chosen items. Raises UsageError where the partition does not fit the data set."""
        return self.partition.choose(self.reader.list_items())

    def read(self, item: Item) -> RawSource:
        """As the other reader reads it. Raises BadItem."""
        return self.reader.read(item)


def parse_partition(text: str) -> Partition:
    """`first:N`, a fraction such as `1/16`, or the path or URI of a file of names. Raises UsageError."""
    if text.startswith("first:"):
        match = FIRST.fullmatch(text)
        if match is None or int(match[1]) < 1:
            raise UsageError(f"--partition {text}: at least one item, as in first:100")
        return First(int(match[1]))
    if match := FRACTION.fullmatch(text):
        above, below = int(match[1]), int(match[2])
        if not 0 < above < below:
            raise UsageError(f"--partition {text}: a fraction lies between 0 and 1, such as 1/16")
        return Share(Fraction(above, below))
    return read_names(text, "--partition is first:N, a fraction such as 1/16, or a file of names, one per line")


def read_names(uri: str, advice: str) -> NameList:
    """A file of names, one per line; empty lines and those that begin with # do not count. Raises UsageError."""
    try:
        lines = [line.strip() for line in read_any(uri).decode("utf-8-sig").split("\n")]
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{uri}: no such file; {advice}") from None
    except IsADirectoryError:
        raise UsageError(f"{uri}: is a folder; {advice}") from None
    except OSError as error:
        raise UsageError(f"{uri}: cannot be read ({error.strerror or error}); {advice}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri}: not a text file ({error})") from error
    named = tuple(line for line in lines if line and not line.startswith("#"))
    if not named:
        raise UsageError(f"{uri}: names nothing")
    return NameList(uri, named)


def _ways_to_say(line: str) -> tuple[str, ...]:
    """Names that a line may mean, the whole line first, its first word without folders and suffix last."""
    return (line, *spellings(PurePosixPath(line)), *spellings(PurePosixPath(line.split()[0])))


def _orphans_by_name(listing: Listing) -> dict[str, list[BadItem]]:
    found: dict[str, list[BadItem]] = defaultdict(list)
    for orphan in listing.orphans:
        for name in spellings(PurePosixPath(orphan.file_name)):
            found[name].append(orphan)
    return found
