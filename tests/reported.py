"""A run to look at: samples of two methods with every outcome, scores, sizes and texts that try to break a page.

As in `committed`, nothing of it needs Ray or a model. Images are flat, masks have two halves: a test knows each pixel.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from committed import make_run, plan

from segdatagen.images import class_pixels, decode_image, encode_image, encode_mask
from segdatagen.records import SAMPLE_SCHEMA, bytes_hash
from segdatagen.report.write import ReportRequest, ReportResult, write_report
from segdatagen.run_folder import Run, begin_attempt, end_attempt
from segdatagen.tables import put_table

FIRST_ID = 2**62
"""Ids as real ones are: too large for a number of JavaScript."""
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'> \"quoted\" & \u2028 日本"
SCORED = SAMPLE_SCHEMA.append(pa.field("score_noise", pa.float32()))


@dataclass(frozen=True)
class Made:
    """One sample, as a test expects to see it."""

    sample_id: int
    method: str = "mask_ddpm"
    status: str = "ok"
    reason: str | None = None
    size: tuple[int, int] = (48, 32)  # width, height
    channels: tuple[int, int] = (0, 1)  # left and right half
    colour: tuple[int, int, int] = (0, 0, 0)
    score: float | None = None
    caption: str | None = None
    segments: tuple[tuple[int, bool], ...] = ()  # channel, and whether it is a crowd

    @property
    def seconds(self) -> float:
        """What it took: in another order than that of the ids."""
        return 0.5 + self.sample_id * 7 % 11


def made_samples() -> list[Made]:
    """48 samples: 34 ok, 8 rejected, 6 failed; a quarter by another method; every fifth larger than a thumbnail."""
    found = []
    for number in range(48):
        status = "failed" if number % 8 == 7 else "rejected" if number % 5 == 2 else "ok"
        reasons = {
            "failed": f"load: unreadable source: broken at byte {number * 100}",
            "rejected": f"clip: score 0.{number} is below 0.25" if number % 2 else f"blank: {HOSTILE}",
            "ok": None,
        }
        found.append(
            Made(
                sample_id=FIRST_ID + number,
                method="inpaint" if number % 4 == 3 else "mask_ddpm",
                status=status,
                reason=reasons[status],
                size=(400, 300) if number % 5 == 0 else (48, 32 + number % 3),
                channels=(number % 12, (number * 5 + 1) % 12) if number % 12 != (number * 5 + 1) % 12 else (0, 1),
                colour=(number * 5, 255 - number * 5, number * 3 % 256),
                score=None if status == "failed" or number == 0 else round(number / 48, 3),
                caption=HOSTILE if number == 1 else None,
            )
        )
        if number % 4 == 0:
            one, other = found[-1].channels
            found[-1] = replace(found[-1], segments=((other, False), (one, False), (one, True), (one, False)))
    return found


def make_reported_run(folder: Path, samples: Sequence[Made]) -> Run:
    """A run with these samples, one round per method, one ended attempt."""
    run = make_run(folder)
    attempt = begin_attempt(run.folder, {"actors": 2})
    for number, method in enumerate(sorted({one.method for one in samples}, reverse=True)):
        own = [one for one in samples if one.method == method]
        plan(run, [one.sample_id for one in own], number, method)
        put_made(run, own, number)
    stage_seconds = {"mask_ddpm": {"load": 1.0, "mask2img": 8.0}}
    spent = {"seconds": {"chains": 9.0}, "stage_seconds": stage_seconds}
    peaks = {"mask_ddpm": {"load": 300 * 2**20, "mask2img": 512 * 2**20}}
    end_attempt(run.folder, attempt, "complete", spent | {"stage_peak_bytes": peaks})
    return run


def put_made(run: Run, samples: Sequence[Made], number: int = 0) -> None:
    """Commit samples of one method with their scores, eight to a part."""
    for start in range(0, len(samples), 8):
        rows = [row_of(one, number) for one in samples[start : start + 8]]
        name = f"samples/method={samples[0].method}/round={number:02d}/0001-{start:016x}.parquet"
        put_table(run.folder, name, pa.Table.from_pylist(rows, schema=SCORED))


def row_of(one: Made, number: int) -> dict[str, object]:
    """The row that a chain with a filter would have left."""
    row: dict[str, object] = dict.fromkeys(SCORED.names)
    row |= {"sample_id": one.sample_id, "source_id": f"source-{one.sample_id}", "method": one.method, "round": number}
    row |= {"variant": 0, "attempt": 1, "status": one.status, "reason": one.reason, "seed": one.sample_id - 1}
    row |= {"caption": one.caption, "seconds": one.seconds, "score_clip": one.score}
    if one.status != "failed":
        image, mask = image_of(one), mask_of(one)
        ids, pixels = class_pixels(mask)
        stored = {"image": encode_image(image, "png"), "mask": encode_mask(mask)}
        row |= stored | {"height": mask.shape[0], "width": mask.shape[1], "microbatch": 4}
        row |= {"class_ids": ids.tolist(), "class_pixels": pixels.tolist()}
        if one.segments:
            row |= {"segment_map": encode_mask(np.ones_like(mask)), "segments": segments_of(one)}
        if one.score is not None:
            row["scores_per_class"] = [{"class_id": one.channels[0], "score": "clip", "value": one.score}]
        row |= {f"{name}_hash": bytes_hash(data) for name, data in stored.items()}
    return row


def segments_of(one: Made) -> list[dict[str, Any]]:
    """The segments of a sample: ids of `scenes` are its channels."""
    measured = {"area": 1, "bbox": [0, 0, 1, 1]}
    listed = enumerate(one.segments, 1)
    return [{"id": n, "class_id": channel, "iscrowd": iscrowd} | measured for n, (channel, iscrowd) in listed]


def image_of(one: Made) -> np.ndarray:
    """The image of a sample, uint8 [H, W, 3]."""
    return np.full((one.size[1], one.size[0], 3), one.colour, np.uint8)


def mask_of(one: Made) -> np.ndarray:
    """The mask of a sample, uint8 [H, W]: ids of `scenes` are its channels."""
    mask = np.full((one.size[1], one.size[0]), one.channels[0], np.uint8)
    mask[:, one.size[0] // 2 :] = one.channels[1]
    return mask


def report(run: Run, out: str | None = None, max_samples: int = 2000) -> ReportResult:
    """Write the report of a run without a word."""
    return write_report(run, ReportRequest(out, max_samples), lambda holder: None, lambda done, total: None)


def data_of(result: ReportResult) -> dict[str, Any]:
    """What the page begins with, as the script that the index names says it."""
    index = Path(result.index)
    (name,) = re.findall(r'src="(samples-[0-9a-f]{16}\.js)"', index.read_text())
    return arguments_of(index.parent / name)


def arguments_of(script: Path) -> Any:
    """The JSON that a data file calls the page with."""
    found = re.fullmatch(r"segdatagen\.\w+\((.*)\);\n", script.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def named_files(index: Path) -> set[str]:
    """Files that a page names, itself or through its data."""
    words = re.findall(r'(?:src|href)="([^"#:]+)"', index.read_text())
    (data,) = [word for word in words if word.startswith("samples-")]
    begun = arguments_of(index.parent / data)
    return {index.name, *words, *begun["thumbnails"], *begun["pages"], *begun["sources"]["files"]}


def decoded(uri: str) -> np.ndarray:
    """The pixels of a data URI."""
    return decode_image(base64.b64decode(uri.partition(";base64,")[2]))
