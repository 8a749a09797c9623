"""How many masks a second `ingest` reads, checks and stores, beside the same checks in a plain loop of one process.

The masks are tiny, so that what is measured is the work per source and not the decoding of pixels; the memory that the
driver needs grows with the number of sources alone. It does not know how a mask is checked.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segdatagen.benchmark.flow import resident_mib
from segdatagen.benchmark.measure import Benchmark, Figures
from segdatagen.benchmark.run import Clock
from segdatagen.cluster import connect
from segdatagen.datasets import Options, open_reader
from segdatagen.errors import SegdatagenError
from segdatagen.images import encode_mask
from segdatagen.ingest import IngestRequest, cut_shards, ingest, ingest_shard
from segdatagen.labels import load_label_set

LABELS = "voc"
WIDTH, HEIGHT = 64, 48
DISTINCT = 200
"""Masks that differ; the files are copies of them."""
PER_FOLDER = 1000
PLAIN_PASSES = 4
"""Over the first folder, before and after: the speed of a machine drifts."""


@dataclass
class Watch:
    """Progress of an ingest: when each shard was reported, and the driver's memory then."""

    began: float = field(default_factory=time.perf_counter)
    seen: list[tuple[int, float, float]] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        """A shard was reported."""
        self.seen.append((done, time.perf_counter() - self.began, resident_mib()))


def bench_ingest(num_masks: int = 200_000) -> Figures:
    """Ingest `num_masks` masks of 64 x 48 without images, in parts as always, with Ray on all cores of this machine."""
    with tempfile.TemporaryDirectory() as folder, connect():
        root = Path(folder) / "masks"
        put_masks(root, num_masks)
        plain = [_plain_rate(root, folder)]
        before = resident_mib()
        watch = Watch()
        reader = open_reader("masks", str(root), "train", Options(labels=LABELS))
        request = IngestRequest("masks", str(root), "train", f"{folder}/store")
        store, _ = ingest(request, reader, watch, Clock().waiting)
        seconds = time.perf_counter() - watch.began
        plain.append(_plain_rate(root, folder))
        if store.info.num_sources != num_masks:
            raise SegdatagenError(f"{num_masks} masks became {store.info.num_sources} sources")
        parts = len(store.info.parts)
    (first_done, first, _), (last_done, last, _) = watch.seen[0], watch.seen[-1]
    steady = (last_done - first_done) / (last - first) if last > first else last_done / seconds
    peak = max(memory for _, _, memory in watch.seen)
    return {
        "masks": num_masks,
        "parts": parts,
        "seconds": round(seconds, 1),
        "seconds_before_first_part": round(first, 1),
        "masks_per_second": round(num_masks / seconds, 1),
        "masks_per_second_first_to_last_part": round(steady, 1),
        "masks_per_second_plain_loop": round(sum(plain) / len(plain), 1),
        "plain_fastest_to_slowest": round(max(plain) / min(plain), 2),
        "ratio_to_plain_loop": round(num_masks / seconds / (sum(plain) / len(plain)), 3),
        "driver_mib_before": round(before, 1),
        "driver_mib_peak": round(peak, 1),
        "driver_bytes_per_mask": round((peak - before) * 2**20 / num_masks, 1),
    }


INGEST = Benchmark(
    "ingest",
    bench_ingest,
    measures="tiny masks without images: listed, read, checked and stored on Ray, and the memory of the driver",
    reference="the same in a plain loop of one process",
    figure="{masks_per_second:.0f} masks/s; the driver grows by {driver_bytes_per_mask:.0f} bytes a mask",
    ratio="{ratio_to_plain_loop:.2f} times as fast",
    minutes=5,
)


def put_masks(root: Path, num_masks: int) -> None:
    """Files of blocks of VOC's classes with void between."""
    rng = np.random.default_rng(0)
    ids = load_label_set(LABELS).ids.astype(np.uint8)
    pictures = []
    for _ in range(DISTINCT):
        mask = np.kron(rng.choice(ids, (6, 8)), np.ones((8, 8), np.uint8))
        mask[::8] = 255
        pictures.append(encode_mask(mask))
    for number in range(num_masks):
        path = root / f"{number // PER_FOLDER:04d}" / f"{number % PER_FOLDER:04d}.png"
        if number % PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(pictures[number % DISTINCT])


def _plain_rate(root: Path, folder: str) -> float:
    """Masks a second of one process that lists, reads, checks and stores the first folder, a few times over."""
    first = str(root / "0000")
    request = IngestRequest("masks", first, "train", f"{folder}/plain")
    began = time.perf_counter()
    num_masks = 0
    for _ in range(PLAIN_PASSES):
        reader = open_reader("masks", first, "train", Options(labels=LABELS))
        for number, shard in enumerate(cut_shards(reader.list_items().items)):
            num_masks += ingest_shard(shard, f"part-{number:05d}.parquet", reader, request, keep=True).num_items
    return num_masks / (time.perf_counter() - began)
