"""Pictures of the sources that samples of a report came from, where their store can still be read.

What is not to be had is said in a sentence and costs nothing else. It does not know samples or pages.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segdatagen.errors import SegdatagenError
from segdatagen.report.files import Chunks
from segdatagen.report.pictures import SOURCE_SIDE, MaskPainter, layers
from segdatagen.report.reads import few_at_a_time
from segdatagen.run_folder import Run
from segdatagen.sources import SourceStore, open_store
from segdatagen.tables import UnreadablePart

ROWS_PER_READ = 16
"""Sources held in memory by a thread: a photograph may have some megabytes."""

Place = tuple[int, int]
"""A data file and the place in it."""


@dataclass(frozen=True, order=True)
class SourceRow:
    """A source and where its row lies in the store."""

    file: str
    row: int
    source_id: str


def open_sources(run: Run) -> tuple[SourceStore | None, str | None]:
    """The store that a run was made from, or None and a sentence: not named, not there, or not the same any more."""
    uri = run.info.job.get("sources")
    if not uri:
        return None, "the job of the run names no source store"
    try:
        store = open_store(str(uri))
    except (SegdatagenError, OSError) as error:
        return None, f"the source store is out of reach ({error})"
    if not run.is_made_from(store.info.fingerprint):
        return None, f"{uri} holds other sources than those of this run now"
    return store, None


def put_sources(
    store: SourceStore, wanted: Iterable[SourceRow], painter: MaskPainter, chunks: Chunks, step: Callable[[int], None]
) -> tuple[dict[str, Place], list[str]]:
    """Put reduced pictures of sources; returns where each lies, by id, and sentences for what cannot be read.

    `step` is called with the number of sources that are done.
    """
    rows = sorted(set(wanted))
    groups: dict[str, list[SourceRow]] = {}
    for row in rows:
        groups.setdefault(row.file, []).append(row)
    reads = [found[i : i + ROWS_PER_READ] for found in groups.values() for i in range(0, len(found), ROWS_PER_READ)]
    places: dict[str, Place] = {}
    problems: list[str] = []
    found_by_read = few_at_a_time(lambda read: _read(store, read, painter), reads)
    for read, (items, problem) in zip(reads, found_by_read, strict=True):
        for source_id, item in items:
            places[source_id] = chunks.add(item, len(item["image"] or "") + len(item["mask"] or ""))
        problems += [problem] if problem else []
        step(len(read))
    chunks.close()
    return places, list(dict.fromkeys(problems))


def _read(
    store: SourceStore, rows: Sequence[SourceRow], painter: MaskPainter
) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """Pictures and sizes of some sources of one file, by id, and a sentence where it cannot be read."""
    columns = ["source_id", "image", "mask", "height", "width"]
    try:
        found = store.read_rows(rows[0].file, [row.row for row in rows], columns).to_pylist()
    except UnreadablePart as error:
        return [], str(error)
    items: list[tuple[str, dict[str, Any]]] = []
    for row, source in zip(rows, found, strict=True):
        if source["source_id"] != row.source_id:
            return items, f"{store.folder.uri_of(row.file)}: row {row.row} is not source {row.source_id} any more"
        (shown,) = layers(source["image"], source["mask"], painter, [SOURCE_SIDE])
        size = {"width": source["width"], "height": source["height"]}
        items.append((row.source_id, size | {"image": shown.image, "mask": shown.mask, "problem": shown.problem}))
    return items, None
