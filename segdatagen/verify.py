"""Verify: what lies in a run against its plan, and the manifest that says it was whole.

Reads plans, ledgers and, for a deep look, one part at a time; it writes the manifest and nothing else. It does not
know how samples are made, nor how parts are spread over a cluster.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.decisions import DECISIONS
from segdatagen.errors import SegdatagenError
from segdatagen.images import DecodeError, class_pixels, decode_image, decode_mask
from segdatagen.missing import Shortfall
from segdatagen.planner import PlannedRound, RoundSummary, read_plan, read_rounds
from segdatagen.records import FORMAT_VERSION, FormatVersion, bytes_hash
from segdatagen.run_folder import MANIFEST_NAME, SUCCESS_NAME, Run, now
from segdatagen.samples import SAMPLES, Ledger, read_ledger
from segdatagen.segments import NO_SEGMENT, PANOPTIC
from segdatagen.storage import Entry, Folder
from segdatagen.tables import UnreadablePart, read_part


@dataclass(frozen=True)
class Verdict:
    """What a look at a run found. `problems` is empty where plan and ledger agree."""

    planned: int
    counts: dict[str, int]
    duplicates: int
    problems: tuple[str, ...]


class Manifest(BaseModel):
    """`manifest.json`: what a run was that ended whole.

    `settings` are those of the job that found it whole, `rounds_of_settings` the rounds that had them, `missing` the
    samples that another such round would make, and `unmet` what its goals lacked. `parts` maps names to bytes,
    `decisions` names to digests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    written: str
    fingerprints: dict[str, str]
    settings: dict[str, Any]
    rounds_of_settings: int
    goals_met: bool
    unmet: tuple[Shortfall, ...] = ()
    missing: int | None = None
    rounds: int
    counts: dict[str, int]
    parts: dict[str, int]
    decisions: dict[str, str] = {}


def verify_ledger(run: Run, ledger: Ledger | None = None) -> Verdict:
    """Compare ids of plan and ledger; every footer is read on the way."""
    rounds = read_rounds(run.folder)
    planned = read_plan(run.folder, rounds, ["sample_id"])["sample_id"].to_numpy()
    found = ledger or read_ledger(run.folder)
    problems = list(found.unreadable.values())
    missing = np.setdiff1d(planned, found.sample_ids)
    unknown = np.setdiff1d(found.sample_ids, planned)
    if not rounds:
        problems.append("nothing is planned yet")
    if len(missing):
        problems.append(f"{len(missing)} of {len(planned)} planned samples are missing: run the job again")
    if len(unknown):
        problems.append(f"{len(unknown)} samples are in no plan, the first is {unknown[0]}")
    problems += stray_decisions(run.folder, found.decisions)
    return Verdict(len(planned), found.counts, found.num_rows - len(found.sample_ids), tuple(problems))


def stray_decisions(run: Folder, decisions: pa.Table) -> list[str]:
    """A sentence per file that decides on samples which no plan has: its ids are mistaken."""
    if not decisions.num_rows:
        return []
    planned = read_plan(run, read_rounds(run), ["sample_id"])["sample_id"]
    stray = decisions.filter(pc.invert(pc.is_in(decisions["sample_id"], planned.combine_chunks())))
    first = dict(zip(reversed(stray["file"].to_pylist()), reversed(stray["sample_id"].to_pylist()), strict=True))
    return [
        f"{run.uri_of(f'{DECISIONS}/{name}')}: {count} of its sample_ids are in no plan, {first[name]} "
        "first: correct or delete it"
        for name, count in sorted(Counter(stray["file"].to_pylist()).items())
    ]


def check_part(run: Folder, name: str) -> list[str]:
    """Decode every image, mask and segment map of a part and compare sizes, hashes and areas of segments.

    Returns one sentence per problem.
    """
    columns = ["sample_id", "status", "image", "mask", "height", "width", "image_hash", "mask_hash", *PANOPTIC]
    try:
        rows = read_part(run, name, columns)
    except UnreadablePart as error:
        return [str(error)]
    return [
        f"{name}: sample {row['sample_id']}: {problem}"
        for row in rows.to_pylist()
        if row["status"] != "failed"
        for problem in _row_problems(row)
    ]


def write_manifest(run: Run, ledger: Ledger, rounds: Sequence[RoundSummary], next_round: PlannedRound) -> None:
    """`manifest.json`, then `_SUCCESS`: the run is whole. `next_round` is what its job would still plan, if it may."""
    settings = next_round.summary.settings
    manifest = Manifest(
        written=now(),
        fingerprints=run.info.fingerprints,
        settings=settings,
        rounds_of_settings=sum(summary.settings == settings for summary in rounds),
        goals_met=next_round.goals_met,
        unmet=next_round.unmet,
        missing=next_round.summary.num_rows,
        rounds=len(rounds),
        counts=ledger.counts,
        parts={part.name: part.size for part in ledger.parts},
        decisions=_digests(run.folder.child(DECISIONS)),
    )
    run.folder.put(MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    run.folder.put(SUCCESS_NAME, b"")


def read_manifest(run: Folder) -> Manifest | None:
    """The manifest of a run that ended whole, if rounds, parts and decisions are those it names; None otherwise.

    A manifest that is damaged says nothing: the run looks at its parts again and writes another.
    """
    if not run.exists(SUCCESS_NAME):
        return None
    try:
        manifest = read_stored(run, MANIFEST_NAME, Manifest)
    except (FileNotFoundError, SegdatagenError):
        return None
    parts = {entry.name: entry.size for entry in part_entries(run)}
    unchanged = manifest.parts == parts and manifest.rounds == len(read_rounds(run))
    return manifest if unchanged and manifest.decisions == _digests(run.child(DECISIONS)) else None


def part_entries(run: Folder) -> list[Entry]:
    """All parts of a run."""
    return [Entry(f"{SAMPLES}/{entry.name}", entry.size) for entry in run.child(SAMPLES).entries(".parquet")]


def _digests(folder: Folder) -> dict[str, str]:
    return {entry.name: bytes_hash(folder.read(entry.name)) for entry in folder.entries(".parquet")}


def _row_problems(row: dict[str, Any]) -> list[str]:
    problems = []
    size = (row["height"], row["width"])
    for column, decode in (("image", decode_image), ("mask", decode_mask)):
        data = row[column]
        if data is None:
            # What was refused before an image was spent on it has none, and says so: there is no hash of one either.
            if row["status"] == "ok" or row[f"{column}_hash"] is not None:
                problems.append(f"has no {column}")
            continue
        if bytes_hash(data) != row[f"{column}_hash"]:
            problems.append(f"its {column} is not what was written")
        try:
            shape = decode(data).shape[:2]
            if shape != size:
                problems.append(f"its {column} is {shape[1]} x {shape[0]}, not {size[1]} x {size[0]}")
        except DecodeError as error:
            problems.append(f"its {column} cannot be decoded ({error})")
    return problems + _segment_problems(row)


def _segment_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with the segments of a row; nothing where its mask is semantic."""
    data, segments = (row[name] for name in PANOPTIC)
    if data is None and segments is None:
        return []
    if data is None or segments is None:
        return ["has segments without a map of them" if data is None else "has a segment map without its segments"]
    try:
        found = decode_mask(data)
    except DecodeError as error:
        return [f"its segment map cannot be decoded ({error})"]
    if found.shape != (row["height"], row["width"]):
        return [f"its segment map is {found.shape[1]} x {found.shape[0]}, not {row['width']} x {row['height']}"]
    areas = {int(id_): int(area) for id_, area in zip(*class_pixels(found), strict=True) if id_ != NO_SEGMENT}
    listed = {segment["id"]: segment["area"] for segment in segments}
    return [] if areas == listed else ["its segments are not those of its segment map"]
