"""The whole way on a laptop without network: scenes, a class-balanced plan, images by five methods, a report.

Calls what the commands call, in their order. It knows no more than they do; what it writes is an ordinary source store
and an ordinary run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from segdatagen.cluster import connect
from segdatagen.colours import encode
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import Events, Outcome, RunOptions
from segdatagen.errors import UsageError
from segdatagen.images import decode_image, decode_mask, encode_image
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import load_job
from segdatagen.labels import LabelSet
from segdatagen.publish import DATA, publish
from segdatagen.report.write import ReportRequest, write_report
from segdatagen.run import run_job
from segdatagen.run_folder import open_run
from segdatagen.scenes_suite import SHIPPED, SIZE, SMALLEST_REGION, suite_methods
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.training.pictures import grid

NUM_SCENES = 48
COLUMNS = 8
MAGNIFY = 2
PER_METHOD = 16
"""Samples of each method but the first, which balances the classes."""


@dataclass(frozen=True)
class DemoResult:
    """Where the run, its picture and its report lie, and how the run ended."""

    run: str
    picture: str
    report: str
    outcome: Outcome


def demo(out: str, events: Events, progress: Callable[[str, int, int], None]) -> DemoResult:
    """Make the demo below `out`; a second call goes on or finds everything done. `progress` gets a title too."""
    folder = Folder(out)
    folder.require_writable()
    text = yaml.safe_dump(demo_job(out), sort_keys=False).encode()
    if folder.exists("job.yaml") and folder.read("job.yaml") != text:
        raise UsageError(f"{folder.uri_of('job.yaml')} is not that of the demo: choose another --out")
    folder.put("job.yaml", text)
    job = load_job(folder.uri_of("job.yaml"))
    root = f"{NUM_SCENES}@{SIZE}x{SIZE}"
    with connect():
        request = IngestRequest("scenes", root, "train", job.sources)
        reader = open_reader("scenes", root, "train", Options())
        ingest(request, reader, lambda *n: progress("ingest", *n), events.waiting)
        outcome = run_job(job, RunOptions(), events)
    run = open_run(job.uri)
    index = publish(run, events.waiting, lambda *n: progress("publish", *n)).index
    rows = pa.concat_tables(
        read_part(run.folder.child(DATA), shard.name, ["method", "source_id", "image", "mask"])
        for shard in index.shards
    )
    folder.put("pairs.png", encode_image(pairs_picture(rows, run.label_set), "png"))
    report = write_report(run, ReportRequest(), events.waiting, lambda *n: progress("report", *n))
    return DemoResult(job.uri, folder.uri_of("pairs.png"), report.index, outcome)


def demo_job(out: str) -> dict[str, object]:
    """The job file of the demo: every method of the small suite."""
    methods = suite_methods()
    return {
        "name": "demo",
        "version": "v1",
        "sources": f"{out}/sources",
        "seed": 0,
        "geometry": {"size": [SIZE, SIZE], "fit": "resize"},
        "methods": methods,
        "filters": {
            "adherence": {"segmenter": SHIPPED.segmenter, "min": 0.3},
            "clip_rank": {"weights": SHIPPED.clip, "keep": 0.8, "min_pixels": SMALLEST_REGION},
        },
        "plan": [
            {"method": "mask_ddpm", "strategy": "balance", "n_balance": "auto", "ratio": 0.8},
            *(
                {"method": name, "strategy": "random", "num_samples": PER_METHOD}
                for name in methods
                if name != "mask_ddpm"
            ),
            {"max_rounds": 2, "min_pixels": 8},
        ],
        "output": {"root": f"{out}/runs", "image_format": "jpeg95"},
        "execution": {"actors": 2, "cpus_per_actor": 0.5, "torch_threads": 1, "microbatch": 8},
    }


def pairs_picture(rows: pa.Table, label_set: LabelSet) -> np.ndarray:
    """Masks in colour above the images that were made for them, uint8 [H, W, 3]: two rows per method.

    Samples of a method are evenly chosen; where it has fewer than COLUMNS, black cells fill its rows.
    """
    lines, empty = [], np.zeros((SIZE, SIZE, 3), np.uint8)
    for method in sorted(set(rows["method"].to_pylist()), key=list(suite_methods()).index):
        own = rows.filter(pc.field("method") == method)
        places = np.linspace(0, own.num_rows - 1, min(COLUMNS, own.num_rows)).round().astype(int)
        chosen = own.take(places).to_pylist()
        missing = [empty] * (COLUMNS - len(chosen))
        lines.append([encode(decode_mask(row["mask"]), label_set) for row in chosen] + missing)
        lines.append([decode_image(row["image"]) for row in chosen] + missing)
    return grid(lines, MAGNIFY)
