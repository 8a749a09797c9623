"""The measurements on small inputs: their figures are whole, and both sides did the same work."""

import csv
from pathlib import Path

import cv2

from segdatagen.balance import Presence, entropy
from segdatagen.benchmark.codec import bench_codec
from segdatagen.benchmark.flow import bench_flow
from segdatagen.benchmark.measure import Figures, record
from segdatagen.benchmark.plan import NUM_CLASSES, SIZE, bench_plan, put_random_store
from segdatagen.benchmark.resume import bench_resume
from segdatagen.benchmark.run import bench_run
from segdatagen.benchmark.scenes import bench_scenes
from segdatagen.geometry import Geometry
from segdatagen.planner import presence_of
from segdatagen.sources import open_store


def assert_a_row_can_hold(figures: Figures) -> None:
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert all(float(value) >= 0 for name, value in figures.items() if "second" in name)
    assert all(float(value) > 0 for name, value in figures.items() if "per_second" in name or "ratio" in name)


def test_codec_decodes_as_brute_force_does_and_faster() -> None:
    threads = cv2.getNumThreads()
    figures = bench_codec(num_colours=20, megapixels=1.0)
    assert_a_row_can_hold(figures)
    assert figures["pixels_that_differ"] == 0
    assert float(figures["ratio_to_brute_force"]) > 5
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


def test_resume_finds_all_rows_committed(ray_session: None) -> None:
    figures = bench_resume(num_rows=512, rows_per_part=64)
    assert_a_row_can_hold(figures)
    assert (figures["rows"], figures["parts"]) == (512, 8)


def test_the_random_store_has_the_long_tail_that_it_claims(tmp_path: Path) -> None:
    put_random_store(str(tmp_path / "store"), 2000, NUM_CLASSES)
    store = open_store(str(tmp_path / "store"))
    presence: Presence = presence_of(store, Geometry(size=(SIZE, SIZE)), min_pixels=1)
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
