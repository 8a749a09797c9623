"""Exports: the good samples of a run in the layout of other tools, one module per format, named in EXPORTERS.

What holds for every format is here: an export never writes inside the run, nor among things that are not its own, and
the same command goes on where it was killed. It does not know any layout.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segdatagen.errors import UsageError
from segdatagen.exporters.mask_ddpm_folder import MaskDDPMFolder
from segdatagen.exporters.selection import select_good
from segdatagen.run_folder import Run
from segdatagen.storage import Folder

EXPORTERS = {"mask_ddpm_folder": MaskDDPMFolder}
INFO_NAME = "export.json"
"""Which run an export is of; written first, and again with its counts when it is whole."""


@dataclass(frozen=True)
class Exported:
    """What lies in `out` now, and how many of its images this call wrote; `left_out` are samples that are not good."""

    out: str
    data_format: str
    num_images: int
    num_sources: int
    num_written: int
    left_out: dict[str, int]


def export(run: Run, data_format: str, out: str, progress: Callable[[int, int], None]) -> Exported:
    """Write the good samples of a run into the folder `out`. Safe to run again, and after the run has grown.

    Reads the ledger, so it needs no `publish` and takes what that would. Images are in memory a few at a time;
    `progress` counts them. Raises UsageError, before anything is written, for an unknown format, a folder inside the
    run, one that holds other things, and samples that the format cannot hold.
    """
    if data_format not in EXPORTERS:
        raise UsageError(f"unknown export format {data_format!r}: choose one of {', '.join(EXPORTERS)}")
    folder = Folder(out)
    if folder.is_within(run.folder):
        raise UsageError(f"{out} lies in the run {run.folder.uri}, which no export changes: choose another --out")
    folder.require_writable()
    selection = select_good(run)
    layout = EXPORTERS[data_format](selection)
    origin = {
        "format": data_format,
        "format_version": layout.version,
        "run": run.folder.uri,
        "name": run.info.job.get("name"),
        "version": run.info.job.get("version"),
        "fingerprints": run.info.fingerprints,
    }
    present = {entry.name for entry in folder.entries()}
    stored = _require_own(folder, present, origin, layout.names)
    whole = origin | {"complete": True, "num_images": layout.num_images, "num_sources": layout.num_sources}
    pending = layout.pending(folder, present)
    if pending or stored != whole or not layout.names <= present:
        folder.put(INFO_NAME, _encoded(origin | {"complete": False}))
        layout.write(folder, pending, progress)
        folder.put(INFO_NAME, _encoded(whole))
    written = sum(source.count for source in pending)
    return Exported(folder.uri, data_format, layout.num_images, layout.num_sources, written, selection.left_out)


def _require_own(folder: Folder, present: set[str], origin: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """What `export.json` says, {} for an empty folder. Raises UsageError where the folder holds anything else."""
    if not present:
        return {}
    foreign = min(present - names - {INFO_NAME}, default=None)
    if foreign is not None or INFO_NAME not in present:
        exported = INFO_NAME in present
        since = " (was its sample excluded, or rejected by refilter, since the last export?)" if exported else ""
        raise UsageError(
            f"{folder.uri} holds {foreign or min(present)}, which this export would not write{since}: "
            "choose another --out"
        )
    try:
        stored: dict[str, Any] = json.loads(folder.read(INFO_NAME))
        fingerprints = stored["fingerprints"]
        same = all(stored[name] == origin[name] for name in ("format", "format_version", "name", "version")) and all(
            fingerprints.get(method, fingerprint) == fingerprint
            for method, fingerprint in origin["fingerprints"].items()
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder.uri_of(INFO_NAME)}: not of an export, choose another --out") from error
    if not same:
        raise UsageError(f"{folder.uri} holds the export of another run, {stored['run']}: choose another --out")
    return stored


def _encoded(info: dict[str, Any]) -> bytes:
    return (json.dumps(info, indent=1) + "\n").encode()
