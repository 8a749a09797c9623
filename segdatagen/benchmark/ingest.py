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
from segdatagen.cluster import connect
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import SilentEvents
from segdatagen.errors import SegdatagenError
from segdatagen.images import encode_mask
from segdatagen.ingest import IngestRequest, cut_shards, ingest, ingest_shard
from segdatagen.labels import load_label_set

LABELS = "voc"
WIDTH, HEIGHT = 64, 48
DISTINCT = 200
"""Masks that differ; all other files are links to them, since making files takes longer than reading them."""
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


@dataclass(frozen=True)
class _Pass:
    """One ingest: its seconds, parts, and the driver's memory before it and at its highest."""

    masks: int
    seconds: float
    parts: int
    before: float
    watch: Watch

    @property
    def peak(self) -> float:
        return max(memory for _, _, memory in self.watch.seen)

    @property
    def steady_rate(self) -> float:
        """Masks a second from the first part to the last: without what it takes Ray to begin."""
        (first_done, first, _), (last_done, last, _) = self.watch.seen[0], self.watch.seen[-1]
        return (last_done - first_done) / (last - first) if last > first else last_done / self.seconds


def bench_ingest(num_masks: int = 200_000) -> Figures:
    """Ingest `num_masks` masks of 64 x 48 without images, in parts as always, on all cores of this machine.

    A tenth of them comes first: it shows how the driver's memory grows.
    """
    with tempfile.TemporaryDirectory() as folder:
        few, many = f"{folder}/few", f"{folder}/many"
        put_masks(Path(few), num_masks // 10)
        put_masks(Path(many), num_masks)
        plain = [_plain_rate(many, folder)]
        with connect():
            tenth = _ingest(few, f"{folder}/few-store")
            whole = _ingest(many, f"{folder}/many-store")
        plain.append(_plain_rate(many, folder))
    if (tenth.masks, whole.masks) != (num_masks // 10, num_masks):
        raise SegdatagenError(f"{num_masks} masks became {whole.masks} sources, a tenth of them {tenth.masks}")
    plain_rate = sum(plain) / len(plain)
    return {
        "masks": num_masks,
        "parts": whole.parts,
        "seconds": round(whole.seconds, 1),
        "seconds_before_first_part": round(whole.watch.seen[0][1], 1),
        "masks_per_second": round(num_masks / whole.seconds, 1),
        "masks_per_second_first_to_last_part": round(whole.steady_rate, 1),
        "masks_per_second_plain_loop": round(plain_rate, 1),
        "plain_fastest_to_slowest": round(max(plain) / min(plain), 2),
        "ratio_to_plain_loop": round(num_masks / whole.seconds / plain_rate, 3),
        "driver_mib_before": round(whole.before, 1),
        "driver_mib_growth": round(whole.peak - whole.before, 1),
        "driver_mib_growth_tenth": round(tenth.peak - tenth.before, 1),
        "driver_bytes_per_mask": round((whole.peak - whole.before) * 2**20 / num_masks, 1),
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


def _ingest(root: str, out: str) -> _Pass:
    before = resident_mib()
    watch = Watch()
    reader = open_reader("masks", root, "train", Options(labels=LABELS))
    store, _ = ingest(IngestRequest("masks", root, "train", out), reader, watch, SilentEvents().waiting)
    seconds = time.perf_counter() - watch.began
    return _Pass(store.info.num_sources, seconds, len(store.info.parts), before, watch)


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
        if number < DISTINCT:
            path.write_bytes(pictures[number])
        else:
            path.hardlink_to(root / "0000" / f"{number % DISTINCT:04d}.png")


def _plain_rate(root: str, folder: str) -> float:
    """Masks a second of one process that lists, reads, checks and stores the first folder, a few times over."""
    first = f"{root}/0000"
    request = IngestRequest("masks", first, "train", f"{folder}/plain")
    began = time.perf_counter()
    num_masks = 0
    for _ in range(PLAIN_PASSES):
        reader = open_reader("masks", first, "train", Options(labels=LABELS))
        for number, shard in enumerate(cut_shards(reader.list_items().items)):
            num_masks += ingest_shard(shard, f"part-{number:05d}.parquet", reader, request, keep=True).num_items
    return num_masks / (time.perf_counter() - began)
