"""What the segmenter of a job's `adherence` finds in real images: the measure for its scores and limits.

Images that it was not trained on tell what it can find at best in generated ones; with the masks of other images it
should find much less. It reads a source store and weights; it starts no Ray.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from segdatagen.errors import UsageError
from segdatagen.filtering import check_filters, judges_of
from segdatagen.filters import Filters
from segdatagen.geometry import Geometry
from segdatagen.job import Job
from segdatagen.judged import PERCENTILES, IouSummary, JudgedSources
from segdatagen.judges import execution_here, segmenter_of
from segdatagen.metrics.segmentation import confusion, iou_of, iou_of_given, mean_iou
from segdatagen.run_folder import Run, check_same_content, open_run
from segdatagen.sources import DECODED, ROW_GROUP_SIZE, SourceStore, decoded_rows, open_store
from segdatagen.training.pictures import spread_rows

Decoded = tuple[np.ndarray, np.ndarray]
"""Image uint8 `[H, W, 3]` and channels int16 `[H, W]` of a source."""


def run_of(job: Job) -> Run:
    """The run of a job, to keep in it what its segmenter finds in real images.

    Raises UsageError where there is none, or where its samples have another size or were scored by another segmenter.
    """
    run = open_run(job.uri)
    check_same_content(job.uri, {}, judges_of(Filters(adherence=job.filters.adherence)))
    made_at = run.job_as(Geometry, "geometry")
    if made_at != job.geometry:
        (width, height), (wanted_width, wanted_height) = made_at.size, job.geometry.size
        raise UsageError(
            f"{job.uri}: its samples are {width} x {height} ({made_at.fit}), "
            f"not {wanted_width} x {wanted_height} ({job.geometry.fit}) as the job says"
        )
    return run


def judge_sources(
    job: Job, sources: str | None, max_images: int, progress: Callable[[int, int], None]
) -> JudgedSources:
    """Judge sources of a store, the job's if None, at the job's geometry: at most so many, spread over the store.

    The other image is half of them away, as neighbours may be frames of one film. Masks without a labelled pixel do
    not count. Raises UsageError where the job has no `adherence`, where the store or the segmenter does not fit, and
    where fewer than two images count.
    """
    adherence = job.filters.adherence
    if adherence is None:
        raise UsageError("the job has no filters.adherence, which would name the segmenter that judges")
    uri, weights = sources or job.sources, adherence.segmenter
    store = open_store(uri)
    check_filters(Filters(adherence=adherence), store.label_set)
    segmenter = segmenter_of(weights, store.label_set, execution_here(job.execution))
    own, other = _Scores(store.label_set.num_classes), _Scores(store.label_set.num_classes)
    num_images, done = min(max_images, store.info.num_sources), 0
    for pair in _far_pairs(store, job.geometry, num_images):
        predicted = [segmenter.predict(image[None])[0] for image, _ in pair]
        for place, (_, channels) in enumerate(pair):
            own.add(channels, predicted[place])
            if len(pair) == 2:
                other.add(channels, predicted[1 - place])
        done += len(pair)
        progress(done, num_images)
    if not other.of_images:
        raise UsageError(f"{uri}: two images with labelled pixels are needed to judge by, and there are fewer")
    return JudgedSources(
        sources=uri,
        segmenter=weights,
        fingerprint=judges_of(Filters(adherence=adherence))["adherence"],
        masks=own.masks(),
        other_masks=other.masks(),
        classes=own.classes(store.label_set.names),
    )


def _far_pairs(store: SourceStore, geometry: Geometry, num_images: int) -> Iterator[list[Decoded]]:
    """So many sources at equal distances, each of the first half with that of the second; of an odd number one alone.

    As many are decoded at once as a row group holds, and again as many.
    """
    places = spread_rows(store.info.num_sources, num_images)
    half = (num_images + 1) // 2
    for start in range(0, half, ROW_GROUP_SIZE):
        first = _decoded(store, geometry, places[start : min(start + ROW_GROUP_SIZE, half)])
        second = _decoded(store, geometry, places[half + start : half + start + ROW_GROUP_SIZE])
        for place, source in enumerate(first):
            yield [source, *second[place : place + 1]]


def _decoded(store: SourceStore, geometry: Geometry, places: np.ndarray) -> list[Decoded]:
    chosen = store.index.select(["source_file", "source_row"]).take(places)
    found: list[Decoded] = []
    for name in pc.unique(chosen["source_file"]).to_pylist():
        rows = chosen.filter(pc.equal(chosen["source_file"], name))["source_row"].to_pylist()
        found += zip(*decoded_rows(store, store.read_rows(name, rows, DECODED), geometry), strict=True)
    return found


class _Scores:
    """IoU of images, one by one, and the pixels of all of them."""

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.of_images: list[dict[int, float]] = []

    def add(self, channels: np.ndarray, predicted: np.ndarray) -> None:
        """One mask, and what was predicted for an image, int `[H, W]` both."""
        matrix = confusion(channels, predicted, len(self.matrix))
        if iou := iou_of_given(matrix):
            self.of_images.append(iou)
            self.matrix += matrix

    def masks(self) -> IouSummary:
        """Of whole masks."""
        return _summary(mean_iou(self.matrix), [float(np.mean(list(one.values()))) for one in self.of_images])

    def classes(self, names: Sequence[str]) -> dict[str, IouSummary]:
        """Of each class that is shown, by its name, in the order of the channels."""
        iou = iou_of(self.matrix)
        shown = {channel: [one[channel] for one in self.of_images if channel in one] for channel in range(len(names))}
        return {names[channel]: _summary(float(iou[channel]), values) for channel, values in shown.items() if values}


def _summary(iou: float, values: Sequence[float]) -> IouSummary:
    percentiles = tuple(np.percentile(values, PERCENTILES).tolist())
    return IouSummary(images=len(values), iou=iou, mean=float(np.mean(values)), percentiles=percentiles)
