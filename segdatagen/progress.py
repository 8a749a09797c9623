"""What a run has so far, as the next round of its plan sees it: accepted samples per source and class, and their cost.

Reads the samples; it does not know goals, nor what is missing.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.balance import BoolArray, Presence
from segdatagen.geometry import Geometry
from segdatagen.labels import LabelSet
from segdatagen.missing import State
from segdatagen.samples import STATUSES, Ledger, method_of
from segdatagen.storage import Folder
from segdatagen.tables import READ_THREADS, read_part, read_parts

GUESSED_BYTES_PER_ROW, GUESSED_BYTES_PER_PIXEL = 5000, 1.2
"""JPEG and mask, before anything is measured: runs at 64 x 48 and 64 x 64 took 9.3 and 10.2 kB a sample."""


RECENT_PARTS = 32
"""Of each method, whose seconds say what one of its samples takes."""


@dataclass(frozen=True)
class CostModel:
    """What one sample takes: seconds of each method of which any were measured, and bytes."""

    seconds_per_sample: Mapping[str, float]
    bytes_per_sample: float

    def seconds_of(self, rows_per_method: Mapping[str, int]) -> float | None:
        """Seconds of so many rows of each method; None while one of these was not measured."""
        rows = {method: count for method, count in rows_per_method.items() if count}
        if not rows.keys() <= self.seconds_per_sample.keys():
            return None
        return sum((count * self.seconds_per_sample[method] for method, count in rows.items()), 0.0)


@dataclass(frozen=True)
class PerClass:
    """int64 [C] each: images that show a class, and their pixels of it."""

    images: np.ndarray
    pixels: np.ndarray


def state_of(
    presence: Presence, usable: Mapping[str, BoolArray], plan: pa.Table, ledger: Ledger, accepted: PerClass
) -> State:
    """What exists: accepted samples per source and class, sources that only ever fail, and how far each cycle went.

    `usable` is that of `State`. A source that made any sample, good or not, does not only fail, whatever was decided on
    the sample.
    """
    sources = pc.index_in(plan["source_id"], pa.array(presence.source_ids)).to_numpy().astype(np.int64)
    methods = plan["method"].to_numpy(zero_copy_only=False)
    sample_ids = plan["sample_id"].to_numpy()
    ok = ledger.status_of(sample_ids) == STATUSES.index("ok")
    own_status = ledger.own_status_of(sample_ids)
    failed = own_status == STATUSES.index("failed")
    made = (own_status >= 0) & ~failed
    num_sources = presence.num_sources
    of_method = {method: methods == method for method in np.unique(methods)}
    ever_failed = np.bincount(sources[failed], minlength=num_sources) > 0
    never_made = np.bincount(sources[made], minlength=num_sources) == 0
    targets = pc.index_in(plan["target_class"], pa.array(presence.class_names)).drop_null().to_numpy()
    return State(
        presence=presence,
        accepted_per_source={
            m: np.bincount(sources[ok & rows], minlength=num_sources) for m, rows in of_method.items()
        },
        planned_per_source={m: np.bincount(sources[rows], minlength=num_sources) for m, rows in of_method.items()},
        accepted_class_counts=np.where(presence.counted, accepted.images, 0),
        accepted_class_pixels=np.where(presence.counted, accepted.pixels, 0),
        available=~(ever_failed & never_made),
        planned_for_class=np.bincount(targets, minlength=presence.num_classes).astype(np.int64),
        usable=usable,
    )


def accepted_per_class(run: Folder, ledger: Ledger, labels: LabelSet, min_pixels: int) -> PerClass:
    """Accepted samples that show a class with at least `min_pixels` pixels, by the masks that came out."""
    chosen = np.flatnonzero(ledger.status == STATUSES.index("ok"))
    chosen = chosen[np.argsort(ledger.part[chosen], kind="stable")]
    bounds = np.searchsorted(ledger.part[chosen], np.arange(len(ledger.parts) + 1))

    def count_part(number: int) -> np.ndarray:
        rows = ledger.row[chosen[bounds[number] : bounds[number + 1]]]
        if not len(rows):
            return np.zeros((2, labels.num_classes))
        table = read_part(run, ledger.parts[number].name, ["class_ids", "class_pixels"]).take(rows)
        pixels = pc.list_flatten(table["class_pixels"]).to_numpy()
        large = pixels >= min_pixels
        channels = labels.channel_table()[pc.list_flatten(table["class_ids"]).to_numpy()[large]]
        counted = (np.bincount(channels, weights, labels.num_classes) for weights in (None, pixels[large]))
        return np.stack(list(counted))

    with ThreadPoolExecutor(READ_THREADS) as pool:
        total = sum(pool.map(count_part, range(len(ledger.parts))), np.zeros((2, labels.num_classes)))
    return PerClass(*total.astype(np.int64))


def measured_cost(run: Folder, ledger: Ledger, geometry: Geometry) -> CostModel:
    """Seconds and bytes per sample of this run so far; without any, bytes are guessed from the size of the images."""
    if not ledger.num_rows:
        return CostModel({}, GUESSED_BYTES_PER_ROW + GUESSED_BYTES_PER_PIXEL * geometry.size[0] * geometry.size[1])
    of_method: dict[str, list[str]] = {}
    for part in ledger.parts:  # in the order of their names: of a method, by round and attempt
        of_method.setdefault(method_of(part.name), []).append(part.name)
    recent = [name for names in of_method.values() for name in names[-RECENT_PARTS:]]
    tables, _ = read_parts(run, recent, ["method", "seconds", "status"])
    made = [table.filter(pc.field("status") != "failed") for table in tables.values()]
    means = pa.concat_tables(made).group_by("method").aggregate([("seconds", "mean")]).to_pylist() if made else []
    seconds = {row["method"]: row["seconds_mean"] for row in means}
    return CostModel(seconds, sum(part.size for part in ledger.parts) / ledger.num_rows)
