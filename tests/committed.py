"""A run without Ray and without models: rows are planned and committed as the driver would, images are flat colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.planner import ClassSummary, PlannedRound, RoundSummary, put_round, read_rounds
from segdatagen.records import PLAN_SCHEMA, SAMPLE_SCHEMA, bytes_hash
from segdatagen.run_folder import Run, write_run
from segdatagen.samples import put_samples

METHOD = "mask_ddpm"


def make_run(folder: Path) -> Run:
    """An empty run of scenes."""
    return write_run(str(folder), {"name": "committed"}, {METHOD: {"seed": 0}}, load_label_set("scenes"))


def plan(run: Run, ids: Sequence[int], number: int = 0, method: str = METHOD) -> None:
    """Store a round of these ids."""
    count = len(ids)
    columns = {
        "sample_id": np.array(ids, np.int64),
        "round": np.full(count, number, np.int32),
        "method": [method] * count,
        "source_id": [f"source-{id_}" for id_ in ids],
        "source_file": ["part-00000.parquet"] * count,
        "source_row": np.zeros(count, np.int32),
        "variant": np.zeros(count, np.int32),
        "seed": np.array(ids, np.int64),
        "target_class": [None] * count,
    }
    summary = RoundSummary(
        round=number,
        settings={"min_pixels": 100},
        num_rows=count,
        rows_per_method={method: count},
        classes=tuple(_summary_of(name) for name in run.label_set.names),
        entropy_before=0,
        entropy_after=0,
        cir_before=0,
        cir_after=0,
        unreachable=(),
        seconds_per_sample=None,
        estimated_seconds=None,
        estimated_bytes=0,
    )
    put_round(run.folder, PlannedRound(pa.table(columns, schema=PLAN_SCHEMA), summary, goals_met=False))


def nothing_more(run: Run) -> PlannedRound:
    """The round that would follow where the goals of the last one are met."""
    last = read_rounds(run.folder)[-1]
    summary = last.model_copy(update={"round": last.round + 1, "num_rows": 0})
    return PlannedRound(PLAN_SCHEMA.empty_table(), summary, goals_met=True)


def _summary_of(name: str) -> ClassSummary:
    return ClassSummary(name=name, real=1, accepted=0, planned=1, wanted=1, total=2, share_before=0, share_after=0)


def commit(run: Run, ids: Sequence[int], status: str = "ok", attempt: int = 1, number: int = 0) -> str:
    """Put one part with an outcome of these ids; returns its name."""
    return put_samples(run.folder, sample_rows(ids, status, attempt, number))


def sample_rows(ids: Sequence[int], status: str, attempt: int, number: int) -> pa.Table:
    """Rows as a chain returns them: 16 x 16 images whose colour follows from the id."""
    rows = []
    for id_ in ids:
        row: dict[str, object] = dict.fromkeys(SAMPLE_SCHEMA.names)
        row |= {"sample_id": id_, "source_id": f"source-{id_}", "method": METHOD, "round": number, "variant": 0}
        row |= {"attempt": attempt, "status": status, "seed": id_, "seconds": 0.5}
        if status == "ok":
            image = encode_image(np.full((16, 16, 3), id_ % 256, np.uint8), "png")
            mask = encode_mask(np.full((16, 16), id_ % 3, np.uint8))
            row |= {"image": image, "mask": mask, "height": 16, "width": 16}
            row |= {"image_hash": bytes_hash(image), "mask_hash": bytes_hash(mask)}
            row |= {"class_ids": [id_ % 3], "class_pixels": [256]}
        else:
            row |= {"reason": f"{status} for a reason"}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
