"""Ingest: read and check every item of a data set on Ray, and leave a source store.

A shard is one Ray task: it reads its items, checks each, and puts one part. The store appears with `source.json`, or
not at all. It does not know formats, nor what the sources are for.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segdatagen.cluster import connect, require_seen, spread
from segdatagen.datasets import BadItem, Item, Listing, Reader
from segdatagen.datasets.reader import first_names
from segdatagen.errors import UsageError
from segdatagen.lease import LEASE_NAME, Holder, Lease, read_holder
from segdatagen.sources import (
    INFO_NAME,
    LABELS_NAME,
    ROW_GROUP_SIZE,
    SHARD_BYTES,
    SHARD_SIZE,
    PartInfo,
    SourceInfo,
    SourceStore,
    fingerprint_of,
    is_part,
    open_store,
    part_table,
    source_row,
)
from segdatagen.storage import Folder
from segdatagen.tables import to_parquet

PART_NAME = re.compile(r"part-\d{5,}\.parquet")
OWN_NAMES = re.compile("|".join([PART_NAME.pattern, *map(re.escape, (LEASE_NAME, LABELS_NAME, INFO_NAME))]))
"""All that an ingest puts; hidden files of others may lie beside it."""

Progress = Callable[[int, int], None]
"""Called with sources done and sources in all."""


@dataclass(frozen=True)
class IngestRequest:
    """What to ingest: `data_format`, `root` and `split` name the data, `out` is the URI of the store.

    `partition` and `captions` are kept in the store as they were given; it is the reader that heeds them.
    """

    data_format: str
    root: str
    split: str
    out: str
    skip_bad: bool = False
    address: str | None = None
    partition: str | None = None
    captions: str | None = None


@dataclass(frozen=True)
class ShardResult:
    """What one task reports: its part, unless no item was good, and what was wrong with the others."""

    part: PartInfo | None
    num_items: int
    bad: tuple[BadItem, ...]


def ingest(
    request: IngestRequest, reader: Reader, progress: Progress, waiting: Callable[[Holder], None]
) -> tuple[SourceStore, bool]:
    """Build the store and open it; the flag says whether it was there already, unchanged.

    Holds the lease of the folder while it writes; `waiting` is called if another process held it. Raises UsageError if
    items are bad (unless `skip_bad`), if there are none, or if another store is at the address; nothing is left behind
    then. Raises LeaseError where another process writes here, and SegdatagenError where workers write elsewhere.
    """
    listing = without_duplicates(reader.list_items())
    if listing.orphans and not request.skip_bad:
        raise UsageError(describe_bad(request.root, listing.orphans, len(listing.items) + len(listing.orphans)))
    work = _Work(request, reader, listing, progress)
    folder = Folder(request.out)
    folder.require_writable()
    if not folder.exists(INFO_NAME):
        _require_nothing_else(folder)
        with Lease(folder, waiting) as lease:
            folder.sweep(names=OWN_NAMES)
            if not folder.exists(INFO_NAME):  # or else it was written while we waited
                return _build(work, lease), False
    elif (holder := read_holder(folder)) and holder.is_dead_here():
        with Lease(folder, waiting):  # it was killed between its last word and its end
            folder.sweep(names=OWN_NAMES)
    return _compare(work), True


@dataclass(frozen=True)
class _Work:
    """One ingest: what is asked for, what reads it, what there is to read, and who hears how far it is."""

    request: IngestRequest
    reader: Reader
    listing: Listing
    progress: Progress

    def judge(self, results: Sequence[ShardResult]) -> tuple[tuple[PartInfo, ...], list[BadItem]]:
        """Parts and bad items. Raises UsageError where these may not become a store."""
        bad = [*self.listing.orphans, *(item for result in results for item in result.bad)]
        parts = tuple(result.part for result in results if result.part is not None)
        if (bad and not self.request.skip_bad) or not parts:
            num_items = len(self.listing.items) + len(self.listing.orphans)
            raise UsageError(describe_bad(self.request.root, bad, num_items))
        return parts, bad


def _build(work: _Work, lease: Lease) -> SourceStore:
    """Put every part, then seal the store. A lease that was lost leaves everything to whoever has it now."""
    folder = Folder(work.request.out)

    def progress(done: int, total: int) -> None:
        lease.check()
        work.progress(done, total)

    results = _run_shards(work, True, progress)
    lease.check()
    try:
        parts, bad = work.judge(results)
    except UsageError:
        folder.delete(_part_names(folder))
        raise
    require_seen(folder.uri, lambda: not _not_whole(folder, parts))
    folder.delete(_part_names(folder) - {part.name for part in parts})
    return seal_store(work.request, work.reader, parts, bad)


def _compare(work: _Work) -> SourceStore:
    """The store that is there. Raises UsageError unless it is whole and holds what is asked for."""
    request = work.request
    existing = open_store(request.out)
    _require_whole(existing)
    _require_same_origin(existing, request, work.reader)
    parts, _ = work.judge(_run_shards(work, False, work.progress))
    if existing.info.fingerprint != fingerprint_of(parts, work.reader.label_set):
        raise UsageError(
            f"{request.out}: another source store is here, of {existing.info.root}: its sources differ from those "
            f"of {request.root}; choose another --out"
        )
    return existing


def seal_store(
    request: IngestRequest, reader: Reader, parts: Sequence[PartInfo], left_out: Sequence[BadItem]
) -> SourceStore:
    """Make a store of parts that are put already: its labels, and `source.json` last."""
    folder = Folder(request.out)
    info = SourceInfo(
        fingerprint=fingerprint_of(parts, reader.label_set),
        num_sources=sum(part.num_rows for part in parts),
        data_format=request.data_format,
        root=request.root,
        split=request.split,
        label_set=reader.label_set.name,
        parts=tuple(parts),
        skipped=tuple(f"{item.file_name}: {item.problem}" for item in left_out),
        partition=request.partition,
        captions=request.captions,
    )
    folder.put(LABELS_NAME, reader.label_set.to_yaml().encode())
    folder.put(INFO_NAME, info.model_dump_json(indent=1).encode())
    return open_store(request.out)


def ingest_shard(items: Sequence[Item], name: str, reader: Reader, request: IngestRequest, keep: bool) -> ShardResult:
    """Read, check and, if `keep`, store one part. Runs without Ray as well."""
    rows: list[dict[str, object]] = []
    bad: list[BadItem] = []
    for item in items:
        try:
            rows.append(source_row(item, reader.read(item), request.split, reader.label_set))
        except BadItem as problem:
            bad.append(problem)
    if not rows:
        return ShardResult(None, len(items), tuple(bad))
    table, digest = part_table(rows)
    data = to_parquet(table, ROW_GROUP_SIZE)
    if keep:
        Folder(request.out).put(name, data)
    return ShardResult(PartInfo(name=name, num_rows=len(rows), size=len(data), digest=digest), len(items), tuple(bad))


def without_duplicates(listing: Listing) -> Listing:
    """The listing with every id once; later items of an id that stood before become orphans."""
    first: dict[str, Item] = {}
    again = []
    for item in listing.items:
        if item.source_id in first:
            again.append(BadItem("duplicate id", item.mask_name, item.source_id))
        else:
            first[item.source_id] = item
    return Listing(tuple(first.values()), (*listing.orphans, *again)) if again else listing


def cut_shards(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Items in order, cut so that a shard has neither too many sources nor too many bytes."""
    shards: list[Sequence[Item]] = []
    start = 0
    num_bytes = 0
    for place, item in enumerate(items):
        if place > start and (place - start == SHARD_SIZE or num_bytes + item.num_bytes > SHARD_BYTES):
            shards.append(items[start:place])
            start, num_bytes = place, 0
        num_bytes += item.num_bytes
    return [*shards, items[start:]] if items else []


def describe_bad(root: str, bad: Sequence[BadItem], num_items: int) -> str:
    """One line: each problem with values, pixel counts and the first 20 files."""
    if not bad:
        return f"{root}: no sources here"
    groups: dict[str, list[BadItem]] = defaultdict(list)
    for item in bad:
        groups[item.problem].append(item)
    sentences = []
    for problem, items in groups.items():
        counts: Counter[str] = Counter()
        for item in items:
            counts.update(item.counts)
        values = ", ".join(f"{value}: {pixels} pixels" for value, pixels in counts.most_common(20))
        details = "; ".join(dict.fromkeys(item.detail for item in items[:3] if item.detail))
        if (farthest := max(item.distance for item in items)) > 0:
            details += f"; the farthest is {farthest:.1f} away: --snap-colours {math.ceil(farthest)} takes them all"
        extra = " ".join(f"[{text}]" for text in (values, details) if text)
        names = first_names([item.file_name for item in items])
        sentences.append(f"{problem} in {len(items)} ({names}) {extra}".rstrip())
    return f"{root}: {len(bad)} of {num_items} files are bad: {'. '.join(sentences)}. Correct them or give --skip-bad"


def _part_names(folder: Folder) -> set[str]:
    """Parts of a store that an earlier, interrupted ingest may have left; nothing else is ever deleted."""
    return {entry.name for entry in folder.entries(".parquet") if PART_NAME.fullmatch(entry.name)}


def _require_nothing_else(folder: Folder) -> None:
    """Raise UsageError where a folder without a store holds anything that no other ingest can have put there."""
    for entry in folder.entries():
        own = entry.name in (LABELS_NAME, LEASE_NAME)
        if PART_NAME.fullmatch(entry.name):
            own = is_part(folder, entry.name)
        if not own:
            raise UsageError(
                f"{folder.uri}: holds {entry.name} and is no source store: choose an empty or a new folder for --out"
            )


def _require_whole(store: SourceStore) -> None:
    """Raise UsageError where parts of a store are gone or of another size: it can neither be used nor compared."""
    for name, found in _not_whole(store.folder, store.info.parts).items():
        raise UsageError(
            f"{store.folder.uri}: {name} {found}: delete {INFO_NAME} there and ingest again, or choose another --out"
        )


def _not_whole(folder: Folder, parts: Sequence[PartInfo]) -> dict[str, str]:
    """What is wrong with each part that is not as large as it was put, by its name."""
    present = {entry.name: entry.size for entry in folder.entries(".parquet")}
    return {
        part.name: f"has {present[part.name]} bytes, not {part.size}" if part.name in present else "is gone"
        for part in parts
        if present.get(part.name) != part.size
    }


def _require_same_origin(store: SourceStore, request: IngestRequest, reader: Reader) -> None:
    """Raise UsageError, before anything is read, where a store cannot hold what is asked for."""
    found = store.info
    compared = [
        ("format", found.data_format, request.data_format),
        ("split", found.split, request.split),
        ("label set", store.label_set.name, reader.label_set.name),
        ("partition", found.partition or "all", request.partition or "all"),
    ]
    if request.data_format == "scenes":  # whose root is no place: another one is another data set
        compared.append(("number of scenes and size", found.root, request.root))
    differences = [f"{name} {old} -> {new}" for name, old, new in compared if old != new]
    if differences:
        raise UsageError(
            f"{request.out}: another source store is here ({', '.join(differences)}): choose another --out"
        )


def _run_shards(work: _Work, keep: bool, progress: Progress) -> list[ShardResult]:
    """All shards, in order; Ray streams them, so that what is in flight stays bounded."""
    request, reader = work.request, work.reader
    shards = list(enumerate(cut_shards(work.listing.items)))
    total = len(work.listing.items)

    def read(shard: tuple[int, Sequence[Item]]) -> ShardResult:
        return ingest_shard(shard[1], f"part-{shard[0]:05d}.parquet", reader, request, keep)

    found: dict[int, ShardResult] = {}
    done = 0
    if not shards:
        return []
    with connect(request.address):
        for number, result in spread(f"{request.root}: reading failed", shards, read):
            found[number] = result
            done += result.num_items
            progress(done, total)
    return [found[number] for number in range(len(shards))]
