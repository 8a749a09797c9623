"""The measurements on small inputs: their figures are whole, and both sides did the same work."""

import csv
from pathlib import Path

import cv2
import numpy as np

from segdatagen.balance import Presence, entropy
from segdatagen.benchmark.codec import bench_codec
from segdatagen.benchmark.flow import bench_flow
from segdatagen.benchmark.ingest import bench_ingest
from segdatagen.benchmark.mask_ddpm import Judge, bench_mask_ddpm, held_out_scenes
from segdatagen.benchmark.measure import Figures, record
from segdatagen.benchmark.plan import NUM_CLASSES, SIZE, bench_plan, put_random_store
from segdatagen.benchmark.resume import bench_resume
from segdatagen.benchmark.run import bench_run
from segdatagen.benchmark.scenes import bench_scenes
from segdatagen.diffusion.mask_unet import MaskUNet
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.geometry import Geometry
from segdatagen.labels import load_label_set
from segdatagen.planner import presence_of
from segdatagen.segmenters import Segmenter, SegmenterConfig, SegmenterWeights, build_segmenter, save_segmenter
from segdatagen.sources import open_store, transformed_counts
from segdatagen.weights import MaskDDPMWeights, save_mask_ddpm


def assert_a_row_can_hold(figures: Figures) -> None:
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert all(float(value) >= 0 for name, value in figures.items() if "second" in name)
    assert all(float(value) > 0 for name, value in figures.items() if "per_second" in name or "ratio" in name)


def test_codec_decodes_as_brute_force_does() -> None:
    threads = cv2.getNumThreads()
    figures = bench_codec(num_colours=20, megapixels=1.0)
    assert_a_row_can_hold(figures)
    assert figures["pixels_that_differ"] == 0
    assert cv2.getNumThreads() == threads


def test_scenes_are_counted() -> None:
    figures = bench_scenes(size=64, count=60)
    assert_a_row_can_hold(figures)
    assert (figures["size"], figures["scenes"]) == (64, 60)
    assert float(figures["scenes_per_second_best_batch"]) >= float(figures["scenes_per_second"])


def test_plan_has_as_many_rows_as_asked_and_equals_the_literal_loop() -> None:
    figures = bench_plan(num_rows=3000, num_sources=600, num_classes=20)
    assert_a_row_can_hold(figures)
    assert figures["images_that_differ"] == 0
    assert abs(int(figures["rows"]) - 3000) < 60
    assert abs(int(figures["rows_twice"]) - 6000) < 60
    assert 0.01 < float(figures["peak_rss_gib"]) < 2
    assert figures["rows_random"] == 3000
    assert abs(int(figures["rows_pixels"]) - 3000) < 60
    assert int(figures["at_least_cover"]) <= int(figures["rows_cover"]) < int(figures["algorithm_1_cover"])


def test_run_is_held_against_the_plain_loop(ray_session: None, scenes_weights: Path) -> None:
    figures = bench_run(seconds=0, weights=str(scenes_weights), segments=2, size=32)
    assert_a_row_can_hold(figures)
    assert (figures["segments"], figures["samples"], figures["rows_per_block"]) == (2, 32, 16)
    lowest, highest = float(figures["efficiency_lowest_segment"]), float(figures["efficiency_highest_segment"])
    assert lowest <= float(figures["efficiency"]) <= highest


def test_flow_counts_every_row(ray_session: None, scenes_weights: Path) -> None:
    figures = bench_flow(num_rows=128, weights=str(scenes_weights))
    assert (figures["rows"], figures["parts"]) == (128, 8)
    assert float(figures["rows_per_second"]) > 0
    assert 50 < float(figures["driver_mib_at_the_end"]) < 20_000


def test_ingest_is_held_against_the_plain_loop(ray_session: None) -> None:
    figures = bench_ingest(num_masks=1100)
    assert_a_row_can_hold(figures)
    assert (figures["masks"], figures["parts"]) == (1100, 5)
    assert 50 < float(figures["driver_mib_before"]) < 20_000
    assert 0 <= float(figures["driver_mib_growth"]) < 1000


def test_resume_finds_all_rows_committed(ray_session: None) -> None:
    figures = bench_resume(num_rows=512, rows_per_part=64)
    assert_a_row_can_hold(figures)
    assert (figures["rows"], figures["parts"]) == (512, 8)


def test_the_random_store_has_the_long_tail_that_it_claims(tmp_path: Path) -> None:
    put_random_store(str(tmp_path / "store"), 2000, NUM_CLASSES)
    store = open_store(str(tmp_path / "store"))
    presence: Presence = presence_of(store, transformed_counts(store, Geometry(size=(SIZE, SIZE))), min_pixels=1)
    shares = presence.counts / 2000
    assert presence.sizes.min() >= 1
    assert abs(shares.max() - 0.54) < 0.05
    assert shares.min() < 0.006
    assert 10 < presence.sizes.mean() < 15
    assert entropy(presence.counts) < 6.4  # Even shares would have 7.06.


def test_figures_become_rows_of_one_table(tmp_path: Path) -> None:
    record(tmp_path, "codec", {"a": 1, "b": 2.5})
    path = record(tmp_path, "codec", {"a": 3, "c": "x"})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["a"], row["b"], row["c"]) for row in rows] == [("1", "2.5", ""), ("3", "", "x")]
    assert all(row["date"] and row["commit"] and row["hardware"] and row["command"] for row in rows)


def test_samplers_are_judged_and_the_literal_algorithm_gives_the_same_images(tmp_path: Path) -> None:
    labels = load_label_set("scenes")
    model = MaskUNet(MaskUNetConfig(num_classes=labels.num_classes, hidden=2, time_embedding=4, diffusion_steps=60))
    weights = MaskDDPMWeights(network=model.config, label_set="scenes", classes=labels.names, size=(32, 32))
    save_mask_ddpm(str(tmp_path / "ddpm"), weights, model.state_dict())
    config = SegmenterConfig(num_classes=labels.num_classes, hidden=(8, 8, 8, 8), heads=(1, 1, 1, 1))
    nothing = (None,) * labels.num_classes
    judge = SegmenterWeights(
        network=config,
        label_set="scenes",
        classes=labels.names,
        size=(32, 32),
        class_losses=nothing,
        iou=nothing,
        mean_iou=None,
    )
    save_segmenter(str(tmp_path / "judge"), judge, build_segmenter(config).state_dict())
    figures = bench_mask_ddpm(str(tmp_path / "ddpm"), str(tmp_path / "judge"), num_images=10, num_literal=3)
    assert_a_row_can_hold(figures)
    assert int(figures["ancestral_largest_difference"]) <= 1
    assert 0 < float(figures["judge_miou_real"]) < 0.5, "a judge that was never trained"


def test_adherence_is_one_for_the_real_images_and_collapses_for_other_masks() -> None:
    labels = load_label_set("scenes")
    images, channels = held_out_scenes(6, (64, 64), labels)
    judge = Judge(Oracle(images, channels), images, channels)
    assert judge.adherence(images) == 1
    assert judge.adherence(images[:4]) == 1
    assert judge.mean_iou(images, np.roll(channels, 1, axis=0)) < 0.5


class Oracle(Segmenter):
    """Knows the masks of the images that it was given."""

    def __init__(self, images: np.ndarray, channels: np.ndarray) -> None:
        labels = load_label_set("scenes")
        self.config = SegmenterWeights(
            network=SegmenterConfig(num_classes=labels.num_classes),
            label_set="scenes",
            classes=labels.names,
            size=(64, 64),
            class_losses=(),
            iou=(),
            mean_iou=None,
        )
        self._known = {image.tobytes(): mask for image, mask in zip(images, channels, strict=True)}

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._known[image.tobytes()] for image in images])
