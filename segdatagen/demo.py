"""The whole way on a laptop without network: scenes, a class-balanced plan, images by five methods, a report.

Calls what the commands call, in their order. It knows no more than they do; what it writes is an ordinary source store
and an ordinary run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from PIL import Image, ImageDraw, ImageFont

from segdatagen.cluster import connect
from segdatagen.colours import encode
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import Events, Outcome, RunOptions
from segdatagen.errors import UsageError
from segdatagen.images import decode_image, decode_mask, encode_image
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import load_job
from segdatagen.judge_sources import judge_sources
from segdatagen.judged import keep_judged, read_judged
from segdatagen.labels import LabelSet
from segdatagen.publish import DATA, Index, publish
from segdatagen.report.write import ReportRequest, write_report
from segdatagen.run import run_job
from segdatagen.run_folder import Run, open_run
from segdatagen.scenes_suite import SHIPPED, SMALLEST_REGION, suite_methods
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.training.pictures import GAP, INK, grid

NUM_SCENES = 48
SAMPLES = 16
"""Of each method but the mask-DDPM, which balances the classes."""
SIZE = 64
COLUMNS = 8
MAGNIFY = 2
TITLE_HEIGHT = 22


@dataclass(frozen=True)
class DemoResult:
    """Where the run, its picture (None: no sample is good) and its report lie, and how the run ended."""

    run: str
    picture: str | None
    report: str
    outcome: Outcome


def demo(out: str, events: Events, progress: Callable[[str, int, int], None]) -> DemoResult:
    """Make the demo below `out`; a second call goes on or finds everything done. `progress` gets a title too."""
    folder = Folder(out)
    folder.require_writable()
    written_out = json.loads(json.dumps(demo_job(out)))  # what methods share would be aliases, which are hard to read
    text = yaml.safe_dump(written_out, sort_keys=False).encode()
    if folder.exists("job.yaml") and folder.read("job.yaml") != text:
        raise UsageError(f"{folder.uri_of('job.yaml')} is not that of the demo: choose another --out")
    folder.put("job.yaml", text)
    job, held_out = load_job(folder.uri_of("job.yaml")), f"{out}/held_out"
    with connect():
        for split, store in (("train", job.sources), ("val", held_out)):
            put_scenes(split, store, events, progress)
        outcome = run_job(job, RunOptions(), events)
    run = open_run(job.uri)
    if read_judged(run.folder) is None:
        keep_judged(run.folder, judge_sources(job, held_out, NUM_SCENES, lambda *n: progress("judge", *n)))
    picture = put_pairs(run, publish(run, events.waiting, lambda *n: progress("publish", *n)).index, folder)
    report = write_report(run, ReportRequest(), events.waiting, lambda *n: progress("report", *n))
    return DemoResult(job.uri, picture, report.index, outcome)


def demo_job(out: str) -> dict[str, object]:
    """The job file of the demo."""
    return {
        "name": "demo",
        "version": "v1",
        "sources": f"{out}/sources",
        "seed": 0,
        "geometry": {"size": [SIZE, SIZE], "fit": "resize"},
        "methods": suite_methods(),
        "plan": [
            {"method": "mask_ddpm", "strategy": "balance", "n_balance": "auto", "ratio": 1.0},
            *(
                {"method": method, "strategy": "random", "num_samples": SAMPLES}
                for method in suite_methods()
                if method != "mask_ddpm"
            ),
            {"max_rounds": 2, "min_pixels": 8},
        ],
        "filters": {
            "adherence": {"segmenter": SHIPPED.segmenter, "min": 0.3},
            "clip_rank": {"weights": SHIPPED.clip, "min_pixels": SMALLEST_REGION},
        },
        "output": {"root": f"{out}/runs", "image_format": "jpeg95"},
        "execution": {"actors": 2, "cpus_per_actor": 0.5, "torch_threads": 1, "microbatch": 8},
    }


def put_scenes(split: str, store: str, events: Events, progress: Callable[[str, int, int], None]) -> None:
    """Ingest scenes of a split."""
    root = f"{NUM_SCENES}@{SIZE}x{SIZE}"
    reader = open_reader("scenes", root, split, Options())
    ingest(IngestRequest("scenes", root, split, store), reader, lambda *n: progress("ingest", *n), events.waiting)


def put_pairs(run: Run, index: Index, folder: Folder) -> str | None:
    """Draw what is published into `pairs.png` of a folder: its address, None where nothing is published."""
    if not index.shards:
        return None
    rows = pa.concat_tables(
        read_part(run.folder.child(DATA), shard.name, ["method", "source_id", "image", "mask"])
        for shard in index.shards
    )
    folder.put("pairs.png", encode_image(pairs_picture(rows, run.label_set), "png"))
    return folder.uri_of("pairs.png")


def pairs_picture(rows: pa.Table, label_set: LabelSet) -> np.ndarray:
    """Per method, under its name, masks in colour above the images that were made for them, uint8 [H, W, 3].

    As many as fit in a line, one per source, evenly chosen.
    """
    parts = []
    for method in sorted(set(rows["method"].to_pylist()), key=list(suite_methods()).index):
        mine = rows.filter(pc.equal(rows["method"], method))
        _, first = np.unique(mine["source_id"].to_numpy(), return_index=True)
        count = min(COLUMNS, len(first))
        chosen = mine.take(first[np.linspace(0, len(first) - 1, count).round().astype(int)]).to_pylist()
        masks = [encode(decode_mask(row["mask"]), label_set) for row in chosen]
        images = [decode_image(row["image"]) for row in chosen]
        blank = [np.full_like(images[0], 255)] * (COLUMNS - count)
        pairs = grid([masks + blank, images + blank], MAGNIFY)
        parts += [title(method, pairs.shape[1]), pairs]
    return np.concatenate(parts)


def title(text: str, width: int) -> np.ndarray:
    """A line of text on white, uint8 [TITLE_HEIGHT, width, 3]."""
    canvas = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    ImageDraw.Draw(canvas).text((GAP, TITLE_HEIGHT / 2), text, fill=INK, font=ImageFont.load_default(15), anchor="lm")
    return np.asarray(canvas)
