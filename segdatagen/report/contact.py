"""The samples of a report: columns for the contact sheet, small pictures beside it, and a page's data for each.

Reads each part once, in the order in which its samples are shown. It does not know how the page looks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.records import SCORE_PREFIX
from segdatagen.report.files import Chunks, ReportFolder
from segdatagen.report.outcomes import Outcomes
from segdatagen.report.pictures import THUMBNAIL_SIDE, Layers, MaskPainter, layers
from segdatagen.report.reads import few_at_a_time
from segdatagen.report.source_pictures import SourceRow
from segdatagen.run_folder import Run
from segdatagen.samples import Ledger
from segdatagen.tables import UnreadablePart, read_part

THUMBNAILS_PER_CHUNK = 64
"""A screen or two of the contact sheet. The page computes the data file of a thumbnail from this."""
PLAN_COLUMNS = ["sample_id", "method", "source_id", "source_file", "source_row", "variant", "target_class"]
PLAIN_COLUMNS = ("round", "variant", "attempt", "height", "width", "caption", "prompt")


@dataclass(frozen=True)
class Origin:
    """What the plan says of a sample, and its place in the display: by source, method and variant."""

    rank: int
    source: SourceRow
    target_class: str | None


@dataclass
class Contact:
    """Columns of the samples that are shown, in display order, and the data files of their pictures."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    thumbnails: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_undecodable: int = 0


def origins_of(plan: pa.Table, sample_ids: np.ndarray) -> dict[int, Origin]:
    """Origins of the samples that the plan knows, by their ids. `plan` has PLAN_COLUMNS."""
    rows = plan.filter(pc.is_in(plan["sample_id"], pa.array(sample_ids)))
    order = [(name, "ascending") for name in ("source_id", "method", "variant")]
    return {
        row["sample_id"]: Origin(
            rank, SourceRow(row["source_file"], row["source_row"], row["source_id"]), row["target_class"]
        )
        for rank, row in enumerate(rows.sort_by(order).to_pylist())
    }


@dataclass(frozen=True)
class _Shown:
    """One sample on its way: its place in Outcomes, its row without pixels, its thumbnail, and where its page lies."""

    index: int
    row: dict[str, Any]
    small: Layers
    whole: Layers
    page: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class ContactReader:
    """Reads the chosen samples of a run and paints them."""

    run: Run
    ledger: Ledger
    outcomes: Outcomes
    origins: Mapping[int, Origin]
    painter: MaskPainter

    def read(self, chosen: np.ndarray, out: ReportFolder, step: Callable[[int], None]) -> Contact:
        """Put the pictures of samples and return their columns. `step` is called with the number that is done."""
        contact, pages = Contact(), Chunks(out, "pages")
        shown: list[_Shown] = []
        for found, problem in self._parts(chosen):
            contact.problems += [problem] if problem else []
            for one in found:
                item = self._page(one)
                size = len(item["image"] or "") + len(item["mask"] or "")
                shown.append(replace(one, page=pages.add(item, size), whole=Layers()))
            step(len(found))
        pages.close()
        shown.sort(key=lambda one: (self._rank(one.row["sample_id"]), one.row["sample_id"]))
        for start in range(0, len(shown), THUMBNAILS_PER_CHUNK):
            smalls = [one.small for one in shown[start : start + THUMBNAILS_PER_CHUNK]]
            contact.thumbnails.append(out.put_data("thumbnails", "arrive", [[one.image, one.mask] for one in smalls]))
        contact.pages = pages.names
        contact.num_undecodable = sum(one.small.problem is not None for one in shown)
        contact.columns = self._columns(shown)
        contact.scores = _scores([one.row for one in shown])
        return contact

    def _rank(self, sample_id: int) -> int:
        """Place in the display; what stands in no plan comes last."""
        origin = self.origins.get(sample_id)
        return len(self.origins) if origin is None else origin.rank

    def _parts(self, chosen: np.ndarray) -> Iterator[tuple[list[_Shown], str | None]]:
        """The chosen samples part by part, those first that are shown first."""
        ranks = np.array([self._rank(id_) for id_ in self.outcomes.sample_ids[chosen].tolist()], np.int64)
        parts = self.outcomes.part[chosen]
        numbers = sorted(np.unique(parts).tolist(), key=lambda number: int(ranks[parts == number].min()))
        return few_at_a_time(lambda number: self._part(number, chosen[parts == number]), numbers)

    def _part(self, number: int, indices: np.ndarray) -> tuple[list[_Shown], str | None]:
        try:
            table = read_part(self.run.folder, self.ledger.parts[number].name).take(self.outcomes.row[indices])
        except UnreadablePart as error:
            return [], f"{error}: {len(indices)} of its samples are not shown"
        found = []
        for index, row in zip(indices.tolist(), table.to_pylist(), strict=True):
            del row["segment_map"]  # what is shown of segments is in their list
            small, whole = layers(row.pop("image"), row.pop("mask"), self.painter, [THUMBNAIL_SIDE, None])
            found.append(_Shown(index, row, small, whole))
        return found, None

    def _page(self, one: _Shown) -> dict[str, Any]:
        """What only the page of a sample needs. Pictures that are no larger than their thumbnail are not repeated."""
        row, origin = one.row, self.origins.get(one.row["sample_id"])
        channels = self.run.label_set.channel_table()
        pixels = zip(row["class_ids"] or (), row["class_pixels"] or (), strict=True)
        return {
            "image": None if one.whole.image == one.small.image else one.whole.image,
            "mask": None if one.whole.mask == one.small.mask else one.whole.mask,
            "problem": one.small.problem,
            "pixels": [[int(channels[id_]), count] for id_, count in pixels],
            "scores": [
                [int(channels[entry["class_id"]]), entry["score"], value]
                for entry in row.get("scores_per_class") or ()
                if (value := _finite(entry["value"])) is not None
            ],
            "segments": _segments(row["segments"] or (), channels),
            "seed": str(row["seed"]),  # a number of JavaScript has 53 bits
            "microbatch": row["microbatch"],
            "target": origin.target_class if origin else None,
            "image_hash": row["image_hash"],
            "mask_hash": row["mask_hash"],
        }

    def _columns(self, shown: Sequence[_Shown]) -> dict[str, list[Any]]:
        indices = np.array([one.index for one in shown], np.int64)
        place = np.full(len(self.outcomes.sample_ids), -1, np.int64)
        place[indices] = np.arange(len(indices))
        classes: list[list[int]] = [[] for _ in shown]
        for sample, channel in self.outcomes.shows[place[self.outcomes.shows[:, 0]] >= 0].tolist():
            classes[place[sample]].append(channel)
        plain = {name: [one.row[name] for one in shown] for name in PLAIN_COLUMNS}
        return plain | {
            "id": [str(one.row["sample_id"]) for one in shown],
            "source": [one.row["source_id"] for one in shown],
            "method": self.outcomes.method[indices].tolist(),
            "status": self.outcomes.status[indices].tolist(),
            "reason": self.outcomes.reason[indices].tolist(),
            "why": self.outcomes.why.take(pa.array(indices)).to_pylist(),
            "classes": classes,
            "seconds": [_finite(one.row["seconds"]) for one in shown],
            "page": [one.page for one in shown],
        }


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Every score column in which some row has a figure, null where a row has none or one that is not finite."""
    names = sorted({name for row in rows for name in row if name.startswith(SCORE_PREFIX)})
    columns = {name: [_finite(row.get(name)) for row in rows] for name in names}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _segments(segments: Sequence[Mapping[str, Any]], channels: np.ndarray) -> list[list[int]]:
    """Segments by class: channel, how many, and how many of them are crowds."""
    counts: dict[int, list[int]] = {}
    for segment in segments:
        count = counts.setdefault(int(channels[segment["class_id"]]), [0, 0])
        count[0] += 1
        count[1] += bool(segment["iscrowd"])
    return [[channel, *count] for channel, count in sorted(counts.items())]


def _finite(value: float | None) -> float | None:
    """A figure with six digits; None for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
