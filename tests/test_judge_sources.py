"""What a segmenter finds in real images, against the stage that scores samples and pixels counted by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import JobFactory, Refused, make_scenes_store
from tiny_segmenter import make_segmenter

from segdatagen.cli import main
from segdatagen.geometry import Geometry
from segdatagen.images import encode_image, encode_mask
from segdatagen.job import load_job
from segdatagen.judge_sources import judge_sources
from segdatagen.judged import PERCENTILES, JudgedSources, read_judged
from segdatagen.labels import load_label_set
from segdatagen.segmenters import Segmenter
from segdatagen.sources import ROW_GROUP_SIZE, open_store, read_arrays
from segdatagen.stages.adherence import AdherenceStage
from segdatagen.stages.stage import objects
from segdatagen.storage import Folder
from segdatagen.tables import read_part

LABELS = load_label_set("scenes")
NUM_SCENES = 24
SIZE = (40, 32)
"""Not that of the scenes: they are judged as the job would have them."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes_store(tmp_path_factory.mktemp("judged") / "store", NUM_SCENES)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmenter(tmp_path_factory.mktemp("judge") / "segmenter")


@pytest.fixture
def job(make_job: JobFactory, store: Path, segmenter: Path) -> Path:
    filters = {"adherence": {"segmenter": str(segmenter)}}
    return make_job(sources=str(store), geometry={"size": list(SIZE), "fit": "crop"}, filters=filters)


def judged(job: Path, sources: Path | None = None, max_images: int = NUM_SCENES) -> JudgedSources:
    uri = None if sources is None else str(sources)
    return judge_sources(load_job(str(job)), uri, max_images, lambda done, of: None)


def test_scores_of_real_images_are_those_that_the_stage_gives_samples(job: Path, store: Path, segmenter: Path) -> None:
    stage = AdherenceStage(Segmenter(str(segmenter), LABELS.names, batch_size=1), LABELS)
    geometry = Geometry(size=SIZE, fit="crop")
    images, channels, *_ = read_arrays(str(store), geometry)
    masks = np.array(LABELS.ids, np.uint16)[channels]

    def scored(masks: np.ndarray, images: np.ndarray) -> list[float]:
        batch = {
            "image": objects([encode_image(image, "png") for image in images]),
            "mask": objects([encode_mask(mask.astype(np.uint8)) for mask in masks]),
        }
        return list(stage(batch)["score_adherence"])

    far = np.roll(images, NUM_SCENES // 2, axis=0)
    found = judged(job)
    for part, values in ((found.masks, scored(masks, images)), (found.other_masks, scored(masks, far))):
        assert part.images == NUM_SCENES
        assert part.mean == pytest.approx(np.mean(values))
        assert part.percentiles == pytest.approx(np.percentile(values, PERCENTILES))


def test_iou_is_over_all_pixels_and_only_classes_that_masks_show_have_any(
    job: Path, store: Path, segmenter: Path
) -> None:
    images, channels, *_ = read_arrays(str(store), Geometry(size=SIZE, fit="crop"))
    predicted = Segmenter(str(segmenter), LABELS.names).predict(images)
    found = judged(job).classes
    assert list(found) == [LABELS.names[channel] for channel in np.unique(channels)]
    for channel, one in zip(np.unique(channels), found.values(), strict=True):
        hits = ((channels == channel) & (predicted == channel)).sum()
        assert one.iou == pytest.approx(hits / ((channels == channel) | (predicted == channel)).sum())
        assert one.images == (channels == channel).any(axis=(1, 2)).sum()


def test_fewer_images_are_spread_over_the_store(job: Path, store: Path, tmp_path: Path) -> None:
    """Only the first, the middle and the last have labelled pixels left, and these are what three images are."""
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    opened = open_store(str(copy))
    (part,) = opened.info.parts
    rows = read_part(opened.folder, part.name)
    ignored = encode_mask(np.full((32, 32), LABELS.ignore_ids[0], np.uint8))
    kept = {0, round((NUM_SCENES - 1) / 2), NUM_SCENES - 1}
    masks = [mask if row in kept else ignored for row, mask in enumerate(rows["mask"].to_pylist())]
    changed = rows.set_column(rows.column_names.index("mask"), "mask", [masks])
    pq.write_table(changed, copy / part.name, row_group_size=ROW_GROUP_SIZE)
    found = judged(job, copy, 3)
    assert (found.masks.images, found.other_masks.images) == (3, 2), "the one in the middle has no partner"
    assert judged(job, copy).masks == found.masks


def test_the_command_prints_what_the_library_finds(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(job), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = judged(job)
    assert said["masks"]["mean"] == found.masks.mean
    assert said["classes"].keys() == found.classes.keys()
    assert main(["judge", str(job), "--images", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    worst = min(judged(job, max_images=5).classes.items(), key=lambda entry: entry[1].mean)
    first = next(line for line in lines if "masks of other images (chance)" in line)
    assert worst[0] in lines[lines.index(first) + 1]


def test_it_is_kept_in_the_run_of_the_job(job: Path) -> None:
    uri = load_job(str(job)).uri
    assert main(["plan", str(job)]) == 0
    assert main(["judge", str(job), "--images", "5"]) == 0
    assert read_judged(Folder(uri)) is None
    for images in (5, NUM_SCENES):
        assert main(["judge", str(job), "--images", str(images), "--keep"]) == 0
        assert read_judged(Folder(uri)) == judged(job, max_images=images)


def test_where_there_is_no_gpu_the_cpu_judges(job: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(job.read_text())
    fields["execution"] |= {"gpus_per_actor": 1}
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(fields))
    assert judged(tmp_path / "gpu.yaml") == judged(job)


def test_what_cannot_be_judged(
    refused_here: Refused, make_job: JobFactory, job: Path, tmp_path: Path, store: Path
) -> None:
    refused_here("judge", make_job("bare.yaml"), row="`judge` of a job without `adherence`")
    refused_here("judge", job, "--sources", tmp_path / "nowhere", row="`judge` of sources that are not there")
    one = make_scenes_store(tmp_path / "one", 1)
    refused_here("judge", job, "--sources", one, row="`judge` of a single image")
    other = make_segmenter(tmp_path / "camvid", load_label_set("camvid"))
    fields = yaml.safe_load(job.read_text()) | {"filters": {"adherence": {"segmenter": str(other)}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(fields))
    refused_here("judge", tmp_path / "other.yaml", row="`judge` by a segmenter of other classes")


def test_what_a_run_does_not_keep(refused_here: Refused, job: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(job.read_text())

    def job_with(**changed: object) -> Path:
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(fields | changed))
        return tmp_path / "changed.yaml"

    refused_here("judge", job, "--keep", row="`judge --keep` of a job that has not run")
    assert main(["plan", str(job)]) == 0
    larger = job_with(geometry={"size": [48, 32], "fit": "crop"})
    refused_here("judge", larger, "--keep", row="`judge --keep` at another size than the run's")
    other = make_segmenter(tmp_path / "other", seed=1)
    wrong = job_with(filters={"adherence": {"segmenter": str(other)}})
    refused_here("judge", wrong, "--keep", row="`judge --keep` by another segmenter than the run's")
    assert read_judged(Folder(load_job(str(job)).uri)) is None
