"""What the segmenter of a job's `adherence` finds in real images: the measure for its scores and limits.

In generated images it should find as much, and with the masks of other images much less. It reads a source store and
weights; it knows no run, and starts no Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from segdatagen.errors import UsageError
from segdatagen.filtering import check_filters
from segdatagen.filters import Filters
from segdatagen.geometry import Geometry
from segdatagen.job import Job
from segdatagen.judges import segmenter_of
from segdatagen.metrics.segmentation import class_scores, confusion, iou_of, mean_iou
from segdatagen.sources import DECODED, SourceStore, decoded_rows, open_store

PERCENTILES = (1, 10, 50, 90, 99)


@dataclass(frozen=True)
class Found:
    """How much is found, as IoU in [0, 1]: `iou` over all pixels, the others over the `images` that show it.

    Of whole masks both are means over classes. `percentiles` are at PERCENTILES.
    """

    images: int
    iou: float
    mean: float
    percentiles: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """What is found of masks, of the masks of other images (which is chance), and of each class that masks show."""

    sources: str
    segmenter: str
    masks: Found
    other_masks: Found
    classes: dict[str, Found]


def judge_sources(job: Job, sources: str | None, max_images: int, progress: Callable[[int, int], None]) -> Verdict:
    """Judge sources of a store, the job's if None, at the job's geometry: at most so many, spread over the store.

    Images without a labelled pixel do not count. Raises UsageError where the job has no `adherence`, where the store
    or the segmenter does not fit, and where fewer than two images count.
    """
    adherence = job.filters.adherence
    if adherence is None:
        raise UsageError("the job has no filters.adherence, which would name the segmenter that judges")
    uri, weights = sources or job.sources, adherence.segmenter
    store = open_store(uri)
    check_filters(Filters(adherence=adherence), store.label_set)
    num_images = min(max_images, store.info.num_sources)
    segmenter = segmenter_of(weights, store.label_set, job.execution)
    own, other = _Tally(store.label_set.num_classes), _Tally(store.label_set.num_classes)
    before: np.ndarray | None = None
    for done, (image, channels) in enumerate(_spread(store, job.geometry, num_images), 1):
        if (channels >= 0).any():
            predicted = segmenter.predict(image[None])[0]
            own.add(channels, predicted)
            if before is not None:
                other.add(channels, before)
            before = predicted
        progress(done, num_images)
    if not other.scores:
        raise UsageError(f"{uri}: two images with labelled pixels are needed to judge by, and there are fewer")
    return Verdict(uri, weights, own.masks(), other.masks(), own.classes(store.label_set.names))


def _spread(store: SourceStore, geometry: Geometry, num_images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image uint8 [H, W, 3] and channels int16 [H, W] of so many sources at equal distances, in the store's order."""
    places = np.linspace(0, store.info.num_sources - 1, num_images).round().astype(np.int64)
    chosen = store.index.select(["source_file", "source_row"]).take(places)
    for name in pc.unique(chosen["source_file"]).to_pylist():
        rows = chosen.filter(pc.equal(chosen["source_file"], name))["source_row"].to_pylist()
        yield from zip(*decoded_rows(store, store.read_rows(name, rows, DECODED), geometry), strict=True)


class _Tally:
    """Scores of images, one by one, and the pixels of all of them."""

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.scores: list[dict[int, float]] = []

    def add(self, channels: np.ndarray, predicted: np.ndarray) -> None:
        """One mask with at least one labelled pixel, and what was predicted for an image, int `[H, W]` both."""
        self.matrix += confusion(channels, predicted, len(self.matrix))
        self.scores.append(class_scores(channels, predicted, len(self.matrix)))

    def masks(self) -> Found:
        """Of whole masks."""
        return _found(mean_iou(self.matrix), [float(np.mean(list(one.values()))) for one in self.scores])

    def classes(self, names: Sequence[str]) -> dict[str, Found]:
        """Of each class that is shown, by its name, in the order of the channels."""
        iou = iou_of(self.matrix)
        shown = {channel: [one[channel] for one in self.scores if channel in one] for channel in range(len(names))}
        return {names[channel]: _found(float(iou[channel]), values) for channel, values in shown.items() if values}


def _found(iou: float, values: Sequence[float]) -> Found:
    return Found(len(values), iou, float(np.mean(values)), tuple(np.percentile(values, PERCENTILES).tolist()))
