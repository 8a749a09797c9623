"""One sample made again and compared with what the run stored.

The recorded microbatch and the job of the run decide how, on the CPU where there is no GPU; no Ray and no lease, since
nothing of the run is written.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image, decode_mask
from segdatagen.job import Job
from segdatagen.judges import execution_here
from segdatagen.method_context import method_contexts
from segdatagen.methods import build_chain, check_weights, content_recipes
from segdatagen.planner import read_plan, read_rounds
from segdatagen.run_folder import Run, check_same_content
from segdatagen.samples import read_ledger
from segdatagen.sources import open_store
from segdatagen.storage import Folder
from segdatagen.tables import read_part


@dataclass(frozen=True)
class Comparison:
    """The sample as stored and as made again: hashes equal or not, and how far pixels differ (0 to 255)."""

    sample_id: int
    identical: bool
    mask_identical: bool
    largest_difference: int | None
    mean_difference: float | None
    files: tuple[str, ...]


def regenerate(run: Run, sample_id: int, out: str) -> Comparison:
    """Make a sample again into the folder `out` and compare it with the stored one.

    Raises UsageError for an id that the run does not have, that was stored without an image, or whose method the job
    has no more; SegdatagenError if the sample cannot be made now.
    """
    stored = _stored_row(run, sample_id)
    job = run.job_as(Job)
    if stored["method"] not in job.methods.named():
        raise UsageError(
            f"{run.folder.uri}: sample {sample_id} is of {stored['method']}, which the job of this run has no more: "
            f"put methods.{stored['method']} back, and plan the job once more"
        )
    store = open_store(job.sources)
    check_same_content(run.folder.uri, content_recipes(job, store))
    # What only scores a sample is not needed to make it, nor do limits matter.
    changes = {"filters": job.filters.content(), "execution": execution_here(job.execution)}
    content = job.model_copy(update=changes)
    context = method_contexts(content, store.label_set)[stored["method"]]
    context = replace(
        context,
        filtering=replace(context.filtering, run=run.folder.uri),  # what the run keeps is here, wherever it was made
        image_microbatch=stored["microbatch"],
        layout_microbatch=stored.get("layout_microbatch"),
        keeps_code=False,
    )
    check_weights(context)
    Folder(out).require_writable()
    plan = read_plan(run.folder, read_rounds(run.folder))
    row = plan.filter(pc.field("sample_id") == sample_id)
    made = build_chain(stored["method"], context).run(row, stored["attempt"]).to_pylist()[0]
    if made["image"] is None:
        raise SegdatagenError(f"{run.folder.uri}: sample {sample_id} cannot be made again: {made['reason']}")
    return _compare(stored, made, _put(Folder(out), made, job.output.image_format))


def _stored_row(run: Run, sample_id: int) -> dict[str, Any]:
    ledger = read_ledger(run.folder)
    place = np.flatnonzero(ledger.sample_ids == sample_id)
    if not len(place):
        raise UsageError(f"{run.folder.uri}: has no sample {sample_id}: ids are in the column sample_id of data/")
    part = ledger.parts[ledger.part[place[0]]].name
    table: pa.Table = read_part(run.folder, part).take([int(ledger.row[place[0]])])
    row: dict[str, Any] = table.to_pylist()[0]
    if row["image"] is None:
        raise UsageError(
            f"{run.folder.uri}: sample {sample_id} is {row['status']} ({row['reason']}): it has no image, there is "
            "nothing to compare"
        )
    return row


def _put(out: Folder, made: dict[str, Any], image_format: str) -> tuple[str, ...]:
    suffix = "png" if image_format == "png" else "jpg"
    files = {f"{made['sample_id']}.{suffix}": made["image"], f"{made['sample_id']}_mask.png": made["mask"]}
    for name, data in files.items():
        out.put(name, data)
    return tuple(out.uri_of(name) for name in files)


def _compare(stored: dict[str, Any], made: dict[str, Any], files: tuple[str, ...]) -> Comparison:
    mask_before, mask_after = (decode_mask(row["mask"]) for row in (stored, made))
    before, after = (decode_image(row["image"]).astype(np.int16) for row in (stored, made))
    apart = np.abs(before - after) if before.shape == after.shape else None
    return Comparison(
        sample_id=stored["sample_id"],
        identical=all(stored[name] == made[name] for name in ("image_hash", "mask_hash", "segment_map", "segments")),
        mask_identical=np.array_equal(mask_before, mask_after),
        largest_difference=None if apart is None else int(apart.max()),
        mean_difference=None if apart is None else float(apart.mean()),
        files=files,
    )
