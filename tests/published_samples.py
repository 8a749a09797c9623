"""Published runs without Ray and without models: samples whose pixels say which sample they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from committed import METHOD, plan, sample_rows

from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import LabelSet, load_label_set
from segdatagen.publish import publish
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.run_folder import Run, write_run
from segdatagen.samples import put_samples

IGNORED = 255
SIZE = 32


def pixels_of(sample_id: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a sample: two halves of its own colours and classes, the first line of the mask ignored."""
    image = np.full((size, size, 3), sample_id % 128, np.uint8)
    image[:, size // 2 :] = 255 - sample_id % 128
    mask = np.full((size, size), sample_id % 3, np.uint8)
    mask[:, size // 2 :] = 3 + sample_id % 5
    mask[0] = IGNORED
    return image, mask


def make_published(
    folder: Path,
    parts: Iterable[Sequence[int]],
    size: int = SIZE,
    labels: LabelSet | None = None,
    recipe: dict[str, object] | None = None,
    sources: Path | None = None,
) -> Path:
    """A run of these samples, part by part, published. `sources` is the store that its job names."""
    labels = labels or load_label_set("scenes")
    run = write_run(
        str(folder), {"name": "published", "sources": str(sources)}, {METHOD: recipe or {"seed": 0}}, labels
    )
    parts = list(parts)
    plan(run, [sample_id for part in parts for sample_id in part])
    for part in parts:
        put_samples(run.folder, rows_of(part, size))
    publish_here(run)
    return folder


def publish_here(run: Run) -> None:
    publish(run, lambda holder: None, lambda done, total: None)


def rows_of(ids: Sequence[int], size: int = SIZE) -> pa.Table:
    """Rows of good samples, with the pixels of `pixels_of`."""
    rows = sample_rows(ids, "ok", attempt=1, number=0).to_pylist()
    for row in rows:
        image, mask = pixels_of(row["sample_id"], size)
        row |= {"image": encode_image(image, "png"), "mask": encode_mask(mask), "height": size, "width": size}
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
