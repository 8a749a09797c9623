"""Filters as stages: scores against brute force, torch and counting by hand, whatever rows stand beside a row."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_scenes_store
from hypothesis import given
from hypothesis import strategies as st
from tiny_segmenter import make_segmenter
from torch.nn import functional

from segdatagen.geometry import Geometry
from segdatagen.image_hash import distances, perceptual_hash
from segdatagen.images import class_pixels, decode_image, decode_mask, encode_image, encode_mask
from segdatagen.labels import LabelSet, load_label_set
from segdatagen.records import derive_seed
from segdatagen.segmenters import Segmenter, scores
from segdatagen.segments import PANOPTIC
from segdatagen.source_hashes import has_index, hash_part, put_index, read_index
from segdatagen.sources import open_store, read_arrays
from segdatagen.stages.adherence import AdherenceStage
from segdatagen.stages.duplicates import DuplicatesStage
from segdatagen.stages.ignore_noisy import IgnoreNoisyStage
from segdatagen.stages.limits import LimitsStage
from segdatagen.stages.redraw import Redraws, deviation, draw_with_retries
from segdatagen.stages.stage import Batch, Stage, objects
from segdatagen.stages.target_score import TargetStage
from segdatagen.storage import Folder

LABELS = load_label_set("scenes")
GEOMETRY = Geometry(size=(32, 32))
NUM_ROWS = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes_store(tmp_path_factory.mktemp("filters") / "store", 24)


@pytest.fixture(scope="module")
def batch(store: Path) -> Batch:
    """Images of scenes with the masks of other scenes, as a generator that went wrong would leave them."""
    images, *_ = read_arrays(str(store), GEOMETRY)
    read = open_store(str(store)).read_rows
    rows = read("part-00000.parquet", range(NUM_ROWS), ["source_id", "mask", *PANOPTIC]).to_pydict()
    moved = {name: objects([*rows[name][1:], rows[name][0]]) for name in ("mask", *PANOPTIC)}
    encoded = [encode_image(image) for image in images[:NUM_ROWS]]
    return {"image": objects(encoded), "source_id": objects(rows["source_id"]), **moved}


def segmenter_at(folder: Path, labels: LabelSet = LABELS, **how: Any) -> Segmenter:
    return Segmenter(str(make_segmenter(folder, labels, **how)), labels.names, batch_size=1)


def logits_of(segmenter: Segmenter, image: bytes) -> torch.Tensor:
    """What its network says of one image, float32 [C, H, W]."""
    with torch.inference_mode():
        found: torch.Tensor = scores(segmenter._network, torch.from_numpy(decode_image(image)[None].copy()))[0]
    return found


# Drawing again


@given(st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_deviation_is_that_of_the_levels_of_each_channel(levels: list[int]) -> None:
    image = np.array(levels, np.uint8).reshape(2, 2, 3)
    by_hand = np.sqrt(sum(np.var([levels[i] for i in range(c, 12, 3)]) for c in range(3)) / 3)
    assert deviation(image) == pytest.approx(by_hand, rel=1e-6, abs=1e-6)


def test_any_one_colour_is_blank_and_half_black_half_white_deviates_most() -> None:
    assert deviation(np.full((8, 8, 3), (10, 200, 90), np.uint8)) == 0
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4] = 255
    assert deviation(halves) == 127.5


class Draws:
    """Draws noise for a seed, but for what `outcome` says: black, grey noise of a given deviation, or NaN."""

    def __init__(self, outcome: Callable[[int], float | None]) -> None:
        self.outcome = outcome
        self.calls: list[list[int]] = []

    def __call__(self, rows: np.ndarray, seeds: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.calls.append(rows.tolist())
        wanted = [self.outcome(seed) for seed in seeds]
        images = np.zeros((len(seeds), 8, 8, 3), np.uint8)
        for image, level in zip(images, wanted, strict=True):
            image[:4] = 0 if level is None else round(2 * level)
        return images, np.array([level is not None for level in wanted]), np.full(len(seeds), 4)


def attempts(seed: int, times: int) -> list[int]:
    return [derive_seed(seed, "mask2img"), *(derive_seed(seed, "mask2img", n) for n in range(1, times + 1))]


OUTCOMES = st.one_of(st.none(), st.integers(0, 20).map(float))


@given(st.lists(st.lists(OUTCOMES, min_size=4, max_size=4), min_size=1, max_size=5), st.integers(0, 3))
def test_the_first_image_that_shows_something_is_taken_or_else_the_best(
    outcomes: list[list[float | None]], times: int
) -> None:
    seeds = list(range(100, 100 + len(outcomes)))
    table = {
        derived: outcomes[place][attempt]
        for place, seed in enumerate(seeds)
        for attempt, derived in enumerate(attempts(seed, 3))
    }
    drawn = draw_with_retries(Draws(table.__getitem__), seeds, "mask2img", Redraws(10.0, times))
    for place, seed in enumerate(seeds):
        tried = outcomes[place][: times + 1]
        good = [n for n, level in enumerate(tried) if level is not None and level >= 10]
        tried = tried[: good[0] + 1] if good else tried
        best = max(range(len(tried)), key=lambda n: (-1.0 if tried[n] is None else tried[n], -n))
        assert drawn.deviations[place] == tried[best]
        assert drawn.finite[place] == (tried[best] is not None)
        assert drawn.images[place].max() == round(2 * (tried[best] or 0))
        losers = {n: tried[n] for n in range(len(tried)) if n != best}
        recorded = {entry["seed"]: entry["value"] for entry in drawn.candidates[place] or []}
        assert recorded == {attempts(seed, 3)[n]: level for n, level in losers.items()}
        alone = draw_with_retries(Draws(table.__getitem__), [seed], "mask2img", Redraws(10.0, times))
        assert np.array_equal(alone.images[0], drawn.images[place])
        assert alone.candidates == [drawn.candidates[place]]


def test_only_blank_images_are_drawn_again_and_nothing_without_the_filter() -> None:
    def outcome(seed: int) -> float:
        return 0.0 if seed in attempts(2, 3) else 40.0

    draw = Draws(outcome)
    drawn = draw_with_retries(draw, [1, 2, 3], "mask2img", Redraws(4.0, 2))
    assert draw.calls == [[0, 1, 2], [1], [1]]
    assert [None if entry is None else len(entry) for entry in drawn.candidates] == [None, 2, None]
    draw = Draws(outcome)
    drawn = draw_with_retries(draw, [1, 2, 3], "mask2img", None)
    assert (draw.calls, drawn.candidates) == ([[0, 1, 2]], [None, None, None])
    assert drawn.deviations == [40.0, 0.0, 40.0], "the score is stored all the same"


# Adherence


def test_adherence_is_the_mean_iou_of_the_classes_of_the_mask(tmp_path: Path, batch: Batch) -> None:
    segmenter = segmenter_at(tmp_path / "weights")
    made = AdherenceStage(segmenter, LABELS)(batch)
    for row in range(NUM_ROWS):
        mask = decode_mask(batch["mask"][row])
        found = LABELS.ids[logits_of(segmenter, batch["image"][row]).argmax(0).numpy()]
        labelled = mask != 255
        by_class = {}
        for id_ in set(mask[labelled].tolist()):
            given_, predicted = (mask == id_) & labelled, (found == id_) & labelled
            by_class[id_] = (given_ & predicted).sum() / (given_ | predicted).sum()
        assert made["score_adherence"][row] == pytest.approx(np.mean(list(by_class.values())))
        per_class = {entry["class_id"]: entry["value"] for entry in made["scores_per_class"][row]}
        assert per_class == pytest.approx(by_class)
        assert {entry["score"] for entry in made["scores_per_class"][row]} == {"adherence"}


def test_a_mask_that_is_found_adheres_wholly_and_one_without_labels_has_no_score(tmp_path: Path, batch: Batch) -> None:
    segmenter = segmenter_at(tmp_path / "weights")
    image = batch["image"][0]
    found = LABELS.ids[segmenter.predict(decode_image(image)[None].copy())[0]].astype(np.uint8)
    half = found.copy()
    half[:16] = 255
    none = np.full_like(found, 255)
    rows = {"image": objects([image] * 3), "mask": objects([encode_mask(mask) for mask in (found, half, none)])}
    made = AdherenceStage(segmenter, LABELS)(rows)
    assert made["score_adherence"].tolist() == [1.0, 1.0, None]
    assert made["scores_per_class"][2] == []


def test_half_of_the_only_class_is_half_an_iou(tmp_path: Path, batch: Batch) -> None:
    segmenter = segmenter_at(tmp_path / "weights")
    image = batch["image"][0]
    found = LABELS.ids[segmenter.predict(decode_image(image)[None].copy())[0]]
    most = np.bincount(found.ravel()).argmax()
    mask = np.full(found.shape, most, np.uint8)
    made = AdherenceStage(segmenter, LABELS)({"image": objects([image]), "mask": objects([encode_mask(mask)])})
    assert made["score_adherence"][0] == pytest.approx((found == most).mean())


def test_the_score_of_the_target_is_that_of_the_class_that_asked_for_the_row() -> None:
    def entries(score: str, *values: float) -> list[dict[str, object]]:
        return [{"class_id": id_, "score": score, "value": value} for id_, value in enumerate(values)]

    names = LABELS.names
    scores = [*entries("clip", 0.9, 0.8, 0.7), *entries("adherence", 0.1, 0.2, 0.3)]
    targets = [names[0], names[2], names[3], None, names[1], names[1], "no class"]
    rows = [scores, scores, scores, scores, None, entries("clip", 0.5, 0.5), scores]
    made = TargetStage(LABELS)({"target_class": objects(targets), "scores_per_class": objects(rows)})
    assert made["score_target"].tolist() == [0.1, 0.3, None, None, None, None, None]


# FreeMask


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_a_pixel_is_ignored_where_its_loss_exceeds_that_of_its_class(
    tmp_path: Path, batch: Batch, factor: float
) -> None:
    losses: list[float | None] = [0.5 + 0.3 * channel for channel in range(LABELS.num_classes)]
    shown = [int(channel) for channel in np.unique(LABELS.channel_table()[decode_mask(batch["mask"][0])])]
    unknown = shown[-1]
    losses[unknown] = None
    segmenter = segmenter_at(tmp_path / "weights", class_losses=losses)
    made = IgnoreNoisyStage(segmenter, LABELS, factor)(batch)
    table, ignored = LABELS.channel_table(), 0
    for row in range(NUM_ROWS):
        before, after = decode_mask(batch["mask"][row]), decode_mask(made["mask"][row])
        channels = torch.from_numpy(table[before].astype(np.int64))
        logits = logits_of(segmenter, batch["image"][row])
        loss = functional.cross_entropy(logits[None], channels[None], ignore_index=-1, reduction="none")[0].numpy()
        means = np.array([np.inf if mean is None else mean for mean in losses])[channels.numpy()]
        expected = np.where((loss > factor * means) & (before != 255), 255, before)
        assert np.array_equal(after, expected)
        assert after.dtype == np.uint8
        ids, pixels = class_pixels(after)
        assert made["class_ids"][row] == ids[ids != 255].tolist()
        assert made["class_pixels"][row] == pixels[ids != 255].tolist()
        labelled = (before != 255).sum()
        assert made["score_ignored"][row] == pytest.approx(((after == 255) & (before != 255)).sum() / labelled)
        assert np.array_equal(after == LABELS.ids[unknown], before == LABELS.ids[unknown]), "nothing to compare with"
        ignored += int((after != before).sum())
        segments_before, segments_after = (decode_mask(rows["segment_map"][row]) for rows in (batch, made))
        assert np.array_equal(segments_after, np.where(after != before, 0, segments_before))
        assert segments_after.dtype == segments_before.dtype
        left = {segment["id"]: segment["area"] for segment in made["segments"][row]}
        assert left == {id_: n for id_, n in zip(*np.unique(segments_after, return_counts=True), strict=True) if id_}
    assert 0 < ignored < before.size * NUM_ROWS


def test_an_ignore_id_past_255_makes_a_mask_of_16_bits(tmp_path: Path, batch: Batch) -> None:
    labels = LABELS.model_copy(update={"ignore_ids": (300, 255)})
    segmenter = segmenter_at(tmp_path / "weights", class_losses=[1e-6] * LABELS.num_classes)
    made = IgnoreNoisyStage(segmenter, labels, 1.0)(batch)
    after = decode_mask(made["mask"][0])
    assert (after.dtype, set(np.unique(after)) - set(range(256))) == (np.uint16, {300})
    assert made["score_ignored"][0] > 0.99


def test_a_mask_of_ignored_pixels_alone_stays_and_has_no_share(tmp_path: Path, batch: Batch) -> None:
    stage = IgnoreNoisyStage(segmenter_at(tmp_path / "weights"), LABELS, 1.25)
    mask = encode_mask(np.full((32, 32), 255, np.uint8))
    made = stage({"image": batch["image"][:1], "mask": objects([mask])} | dict.fromkeys(PANOPTIC, objects([None])))
    assert (made["mask"][0], made["class_ids"][0], made["score_ignored"][0]) == (mask, [], None)


# Duplicates


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_distances_count_the_bits_that_differ(one: int, others: list[int]) -> None:
    found = distances(one, np.array(others, np.uint64))
    assert found.tolist() == [(one ^ other).bit_count() for other in others]


def test_copies_of_a_source_are_nearer_than_other_scenes(store: Path) -> None:
    """The default limit of 8 bits stands between them: see DESIGN.md."""
    images, *_ = read_arrays(str(store), GEOMETRY)
    hashes = [perceptual_hash(image) for image in images]
    chance = np.random.default_rng(0)
    for image, hashed in zip(images, hashes, strict=True):
        noisy = np.clip(image + chance.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        for copy in (decode_image(encode_image(image)), noisy):
            assert (perceptual_hash(copy) ^ hashed).bit_count() < 8
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(hashes, 2)) >= 8


def test_distances_to_the_own_and_to_the_nearest_source(store: Path, tmp_path: Path, batch: Batch) -> None:
    opened, run = open_store(str(store)), Folder(str(tmp_path / "run"))
    put_index(run, [hash_part(opened.folder, GEOMETRY, part.name) for part in opened.info.parts])
    assert has_index(run, opened)
    stage = DuplicatesStage(*read_index(run))
    images, *_ = read_arrays(str(store), GEOMETRY)
    chance = np.random.default_rng(1)
    rows = [*images[:3], *chance.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)]
    own = [*opened.index["source_id"].to_pylist()[:4], "nobody"]
    made = stage({"image": objects([encode_image(row, "png") for row in rows]), "source_id": objects(own)})
    hashes = [perceptual_hash(image) for image in images]
    brute = [[(perceptual_hash(row) ^ other).bit_count() for other in hashes] for row in rows]
    assert made["score_duplicate_distance"].tolist() == [min(found) for found in brute]
    assert made["score_duplicate_distance"].tolist()[:3] == [0, 0, 0]
    assert made["score_source_distance"].tolist() == [*(brute[row][row] for row in range(4)), None]


def test_sources_without_images_give_no_distance(batch: Batch) -> None:
    made = DuplicatesStage([], np.empty(0, np.uint64))(batch)
    assert set(made["score_duplicate_distance"]) == {None}
    assert set(made["score_source_distance"]) == {None}


# All of them


@pytest.mark.parametrize("kind", ["adherence", "target", "ignore_noisy", "duplicates", "filter"])
def test_a_row_is_the_same_whatever_stands_beside_it(tmp_path: Path, batch: Batch, store: Path, kind: str) -> None:
    segmenter = segmenter_at(tmp_path / "weights")
    chance = np.random.default_rng(0)
    stages: dict[str, Stage] = {
        "adherence": AdherenceStage(segmenter, LABELS),
        "target": TargetStage(LABELS),
        "ignore_noisy": IgnoreNoisyStage(segmenter, LABELS, 1.25),
        "duplicates": DuplicatesStage(["a", "b"], chance.integers(0, 2**64, 2, dtype=np.uint64)),
        "filter": LimitsStage({"adherence.min": 0.5}),
    }
    stage = stages[kind]
    per_class = [[{"class_id": 0, "score": "adherence", "value": row / 8}] for row in range(NUM_ROWS)]
    rows = {**batch, "score_adherence": objects([0.1, None, 0.6, 0.5, 0.49]), "scores_per_class": objects(per_class)}
    rows["target_class"] = objects([LABELS.names[row % 2] for row in range(NUM_ROWS)])
    together = stage({name: rows[name] for name in stage.reads})
    assert tuple(together) == stage.writes
    order = np.array([3, 1, 4, 0, 2])
    mixed = stage({name: rows[name][order] for name in stage.reads})
    for name in stage.writes:
        assert [mixed[name][place] for place in np.argsort(order)] == list(together[name])
        for row in range(NUM_ROWS):
            alone = stage({column: rows[column][row : row + 1] for column in stage.reads})
            assert alone[name][0] == together[name][row]
    if kind == "filter":
        assert list(together["reason"]) == ["adherence below 0.5", None, None, None, "adherence below 0.5"]
