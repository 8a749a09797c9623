"""Ingest: read and check every item of a data set on Ray, and leave a source store.

A shard is one Ray task: it reads its items, checks each, and puts one part. The store appears with `source.json`, or
not at all. It does not know formats, nor what the sources are for.
"""

import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from segdatagen.cluster import connect
from segdatagen.datasets import BadItem, Item, Listing, Reader
from segdatagen.datasets.reader import first_names
from segdatagen.errors import SegdatagenError, UsageError
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


def ingest(request: IngestRequest, reader: Reader, progress: Progress) -> tuple[SourceStore, bool]:
    """Build the store and open it; the flag says whether it was there already, unchanged.

    Raises UsageError if items are bad (unless `skip_bad`), if there are none, or if another store is at the address;
    nothing is left behind then.
    """
    listing = without_duplicates(reader.list_items())
    if listing.orphans and not request.skip_bad:
        raise UsageError(describe_bad(request.root, listing.orphans, len(listing.items) + len(listing.orphans)))
    folder = Folder(request.out)
    folder.require_writable()
    existing = open_store(request.out) if folder.exists(INFO_NAME) else None
    if existing is None:
        _require_nothing_else(folder)
    else:
        _require_whole(existing)
        _require_same_origin(existing, request, reader)
    keep = existing is None
    results = _run_shards(cut_shards(listing.items), reader, request, keep, progress)
    bad = [*listing.orphans, *(item for result in results for item in result.bad)]
    parts = tuple(result.part for result in results if result.part is not None)
    if (bad and not request.skip_bad) or not parts:
        if keep:
            folder.delete(_part_names(folder))
        raise UsageError(describe_bad(request.root, bad, len(listing.items) + len(listing.orphans)))
    if existing is not None:
        fingerprint = fingerprint_of(parts, reader.label_set)
        if existing.info.fingerprint != fingerprint:
            raise UsageError(
                f"{request.out}: another source store is here, of {existing.info.root}: its sources differ from those "
                f"of {request.root}; choose another --out"
            )
        return existing, True
    folder.delete(_part_names(folder) - {part.name for part in parts})
    return seal_store(request, reader, parts, bad), False


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
        extra = " ".join(f"[{text}]" for text in (values, details) if text)
        names = first_names([item.file_name for item in items])
        sentences.append(f"{problem} in {len(items)} ({names}) {extra}".rstrip())
    return f"{root}: {len(bad)} of {num_items} files are bad: {'. '.join(sentences)}. Correct them or give --skip-bad"


def _part_names(folder: Folder) -> set[str]:
    """Parts of a store that an earlier, interrupted ingest may have left; nothing else is ever deleted."""
    return {entry.name for entry in folder.entries(".parquet") if PART_NAME.fullmatch(entry.name)}


def _require_nothing_else(folder: Folder) -> None:
    """Raise UsageError where a folder without a store holds anything but the parts of an interrupted ingest."""
    for entry in folder.entries():
        own = entry.name == LABELS_NAME
        if PART_NAME.fullmatch(entry.name):
            own = is_part(folder, entry.name)
        if not own:
            raise UsageError(
                f"{folder.uri}: holds {entry.name} and is no source store: choose an empty or a new folder for --out"
            )


def _require_whole(store: SourceStore) -> None:
    """Raise UsageError where parts of a store are gone or of another size: it can neither be used nor compared."""
    present = {entry.name: entry.size for entry in store.folder.entries(".parquet")}
    for part in store.info.parts:
        if present.get(part.name) != part.size:
            found = "is gone" if part.name not in present else f"has {present[part.name]} bytes, not {part.size}"
            raise UsageError(
                f"{store.folder.uri}: {part.name} {found}: delete {INFO_NAME} there and ingest again, or choose "
                "another --out"
            )


def _require_same_origin(store: SourceStore, request: IngestRequest, reader: Reader) -> None:
    """Raise UsageError, before anything is read, where a store cannot hold what is asked for."""
    found = store.info
    differences = [
        f"{name} {old} -> {new}"
        for name, old, new in (
            ("format", found.data_format, request.data_format),
            ("split", found.split, request.split),
            ("label set", store.label_set.name, reader.label_set.name),
            ("partition", found.partition or "all", request.partition or "all"),
            ("number of scenes and size", found.root, request.root),
        )
        if old != new and (name != "number of scenes and size" or request.data_format == "scenes")
    ]
    if differences:
        raise UsageError(
            f"{request.out}: another source store is here ({', '.join(differences)}): choose another --out"
        )


def _run_shards(
    shards: Sequence[Sequence[Item]], reader: Reader, request: IngestRequest, keep: bool, progress: Progress
) -> list[ShardResult]:
    """All shards, in order; Ray Data streams them, so that what is in flight stays bounded.

    Each row carries its own items: a function that held all of them would be unpickled whole by every worker.
    """
    rows = [{"number": number, "items": pickle.dumps(shard)} for number, shard in enumerate(shards)]
    total = sum(len(shard) for shard in shards)

    def work(row: dict[str, Any]) -> dict[str, Any]:
        number, items = int(row["number"]), pickle.loads(row["items"])
        return {"number": number, "result": ingest_shard(items, f"part-{number:05d}.parquet", reader, request, keep)}

    found: dict[int, ShardResult] = {}
    done = 0
    if not rows:
        return []
    with connect(request.address):
        try:
            for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(work).iter_rows():
                found[int(row["number"])] = row["result"]
                done += row["result"].num_items
                progress(done, total)
        except ray.exceptions.RayTaskError as error:
            raise SegdatagenError(f"{request.root}: reading failed ({error.cause})") from error
    return [found[number] for number in range(len(shards))]
