"""Text2Mask as stages: every layout of its own row, judged and drawn again, drawn once where rows share it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_memory import hold
from test_captions import store_of
from tiny_latent import save_pipeline
from tiny_text2mask import BUILDING, CAR, GRASS, LAYOUTS, ROAD, SIDE, SKY

from segdatagen.colours import encode
from segdatagen.datasets import Options
from segdatagen.diffusion.latent_options import LatentSamplerOptions
from segdatagen.geometry import Geometry
from segdatagen.image_hash import perceptual_hash
from segdatagen.images import class_pixels, decode_mask
from segdatagen.labels import load_label_set
from segdatagen.layouts import LAYOUT_SCORES, NOT_FINITE, LayoutOptions
from segdatagen.load_source import LoadSource
from segdatagen.methods import guard
from segdatagen.prompts import ClassFinder
from segdatagen.records import derive_seed
from segdatagen.stages.stage import Batch, objects
from segdatagen.stages.text2mask import LayoutSeedStage, Text2MaskStage, Text2MaskStageOptions

LABELS = load_label_set("scenes")
STREET, LAWN = LAYOUTS
NO_REAL = np.empty(0, np.uint64)
SAMPLER = LatentSamplerOptions(steps=6, guidance=1.0)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("models") / "untrained")


def make_stage(base: Path, real: np.ndarray = NO_REAL, layout: LayoutOptions | None = None) -> Text2MaskStage:
    options = Text2MaskStageOptions(
        base=str(base),
        size=(SIDE, SIDE),
        sampler=SAMPLER,
        label_set=LABELS,
        layout=layout or LayoutOptions(),
        microbatch=4,
    )
    return Text2MaskStage(options, real)


def rows(prompts: list[str], seeds: list[int]) -> Batch:
    """Rows that ask for the classes that their prompts name."""
    asked = [ClassFinder(LABELS).find(prompt) for prompt in prompts]
    return {
        "prompt": objects(prompts),
        "negative_prompt": objects([None] * len(prompts)),
        "layout_seed": objects(seeds),
        "class_ids": objects(asked),
        "class_pixels": objects([[0] * len(ids) for ids in asked]),
    }


def part(batch: Batch, places: list[int]) -> Batch:
    return {name: column[places] for name, column in batch.items()}


def test_a_batch_that_did_not_fit_is_not_tried_again(untrained: Path) -> None:
    """Neither for layouts that are drawn again nor in the next block."""
    stage = make_stage(untrained, layout=LayoutOptions(redraws=1))
    refused = hold(stage._models.network.unet, 2)
    for seeds in ([1, 2, 3], [4, 5, 6]):
        found = stage(rows([STREET, LAWN, STREET], seeds))
        assert set(found["layout_microbatch"]) == {2}
        assert all(entries is not None for entries in found["layout_candidates"]), "all were drawn twice"
    assert refused == [4]


def listed(found: Batch) -> list[dict[str, Any]]:
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def test_a_prompt_gets_its_layout_and_the_row_is_of_the_mask_that_came_out(text2mask: Path) -> None:
    stage = make_stage(text2mask)
    found = stage(rows([STREET, LAWN, STREET], [1, 2, 3]))
    assert tuple(found) == stage.writes
    assert {*found["segment_map"], *found["segments"]} == {None}, "what is drawn is semantic"
    for row, prompt in zip(listed(found), (STREET, LAWN, STREET), strict=True):
        mask = decode_mask(row["mask"])
        assert (mask == LAYOUTS[prompt]).mean() > 0.95
        assert row["reason"] is None
        ids, pixels = class_pixels(mask)
        assert row["class_ids"] == ids[ids != 255].tolist()
        assert row["class_pixels"] == pixels[ids != 255].tolist()
        assert (row["height"], row["width"]) == (SIDE, SIDE)
        assert row["score_classes_found"] == 1.0
        assert row["score_layout_distance"] is None
    assert {SKY, ROAD, CAR} <= set(found["class_ids"][0])
    assert {SKY, BUILDING, GRASS} <= set(found["class_ids"][1])


@pytest.mark.parametrize("trained", [True, False])
def test_rows_are_the_same_one_by_one_in_fours_and_in_another_order(
    text2mask: Path, untrained: Path, trained: bool
) -> None:
    """Bitwise, also where every layout is refused and drawn three times."""
    stage = make_stage(text2mask if trained else untrained)
    batch = rows([STREET, LAWN, STREET, LAWN, STREET, STREET], [1, 2, 3, 2, 4, 1])
    together = listed(stage(batch))
    in_fours = listed(stage(part(batch, [0, 1, 2, 3]))) + listed(stage(part(batch, [4, 5])))
    one_by_one = [listed(stage(part(batch, [place])))[0] for place in range(6)]
    order = [5, 2, 0, 4, 1, 3]
    mixed = dict(zip(order, listed(stage(part(batch, order))), strict=True))
    for place in range(6):
        assert together[place] == in_fours[place] == one_by_one[place] == mixed[place]
    assert together[0] == together[5]
    assert together[1] == together[3]
    if not trained:
        assert len({row["mask"] for row in together}) == 4, "another seed, another mask"
    assert all((row["reason"] is None) == trained for row in together)


def test_a_layout_that_rows_share_is_drawn_once(text2mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segdatagen.stages.text2mask as module

    drawn: list[list[int]] = []
    original = module.render_batches

    def counted(models: Any, conditions: Any, wanted: Any, *more: Any) -> Any:
        drawn.append(list(wanted.seeds))
        return original(models, conditions, wanted, *more)

    monkeypatch.setattr(module, "render_batches", counted)
    make_stage(text2mask)(rows([STREET] * 5, [1, 1, 1, 2, 2]))
    assert drawn == [[derive_seed(1, "text2mask"), derive_seed(2, "text2mask")]]


def test_a_refused_layout_is_drawn_again_with_the_next_seed_then_rejected(untrained: Path) -> None:
    """An untrained network draws no colour of the palette. What is kept is the last layout, with all its figures."""
    batch: Batch = rows([STREET, LAWN], [1, 2])
    batch |= {"status": objects(["ok"] * 2), "reason": objects([None] * 2)}
    guard(make_stage(untrained), batch)
    assert batch["status"].tolist() == ["rejected"] * 2
    assert set(batch["reason"]) == {"text2mask: off palette above 0.1"}
    loose = LayoutOptions(redraws=0, max_off_palette=1, max_speckle=1, min_classes_found=0)
    for row, seed in enumerate((1, 2)):
        losers = batch["layout_candidates"][row]
        assert [loser["seed"] for loser in losers] == [
            derive_seed(seed, "text2mask"),
            derive_seed(seed, "text2mask", 1),
        ]
        assert {loser["score"] for loser in losers} == {"off_palette"}
        assert all(loser["value"] > 0.1 for loser in losers)
        assert all(batch[name][row] is not None for name in LAYOUT_SCORES if name != "score_layout_distance")
    first = listed(make_stage(untrained, layout=loose)(rows([STREET, LAWN], [1, 2])))
    assert all(row["reason"] is None and row["layout_candidates"] is None for row in first)
    assert [row["score_off_palette"] for row in first] == [batch["layout_candidates"][n][0]["value"] for n in range(2)]


def test_a_copy_of_a_real_layout_is_refused(text2mask: Path) -> None:
    """What the network drew the last time is real now."""
    once = LayoutOptions(redraws=0)
    known = [make_stage(text2mask, layout=once)(rows([STREET], [1]))["mask"][0]]
    real = np.array([perceptual_hash(encode(decode_mask(mask), LABELS)) for mask in known], np.uint64)
    street, lawn = listed(make_stage(text2mask, real)(rows([STREET, LAWN], [1, 2])))
    assert street["reason"] == "layout distance below 6"
    assert [loser["score"] for loser in street["layout_candidates"]] == ["layout_distance"] * 2
    assert lawn["reason"] is None
    assert street["score_layout_distance"] < 6 <= lawn["score_layout_distance"]


def test_a_layout_with_nan_is_rejected(untrained: Path) -> None:
    stage = make_stage(untrained)
    with torch.no_grad():
        stage._models.vae.decoder.conv_out.bias.fill_(float("nan"))
    (row,) = listed(stage(rows([STREET], [1])))
    assert row["reason"] == NOT_FINITE
    assert {row[name] for name in LAYOUT_SCORES} == {None}
    assert {(loser["score"], loser["value"]) for loser in row["layout_candidates"]} == {(None, None)}


def test_variants_share_the_seed_of_their_layout() -> None:
    batch: Batch = {"source_id": objects(["a"] * 7 + ["b"] * 2), "variant": objects([*range(7), 0, 1])}
    seeds = LayoutSeedStage(5, 3)(batch)["layout_seed"].tolist()
    numbers = [("a", 0)] * 3 + [("a", 1)] * 3 + [("a", 2)] + [("b", 0)] * 2
    assert seeds == [derive_seed(5, "layout", *number) for number in numbers]
    assert len(set(seeds)) == 4
    assert LayoutSeedStage(6, 3)(batch)["layout_seed"].tolist() != seeds
    assert len(set(LayoutSeedStage(5, 1)(batch)["layout_seed"])) == 9


# What is asked for


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A car on the street", ["road", "car"]),
        ("Traffic lights,  and a TRAFFIC\nSIGN.", ["traffic sign", "traffic light"]),
        ("Two lorries and buses", ["truck"]),
        ("several people under an open sky", ["sky", "person"]),
        ("carpets, a skyline, streetcars", []),
        ("houses; bushes", ["building", "tree"]),
        ("", []),
    ],
)
def test_classes_that_a_text_names(text: str, names: list[str]) -> None:
    assert [LABELS.names[LABELS.channel_table()[id_]] for id_ in ClassFinder(LABELS).find(text)] == names


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("ade20k", "A picture of a dog you can pet", []),
        ("ade20k", "two women stand at the shelves, about to press a button", ["person", "shelf"]),
        ("coco_panoptic", "three men on skis", ["person", "skis"]),
        ("coco_panoptic", "knives beside two computer mice", ["knife", "mouse"]),
        ("voc", "a boy and his dog", ["dog", "person"]),
    ],
)
def test_words_of_captions_mean_what_they_mean_there(name: str, text: str, names: list[str]) -> None:
    labels = load_label_set(name)
    assert [labels.names[labels.channel_table()[id_]] for id_ in ClassFinder(labels).find(text)] == names


def test_the_longest_name_counts_and_background_is_never_named() -> None:
    shorter = LABELS.classes[10].model_copy(update={"id": 30, "name": "light", "aliases": (), "prompt": "light"})
    labels = LABELS.model_copy(update={"classes": (*LABELS.classes, shorter), "background_ids": (SKY,)})
    assert ClassFinder(labels).find("a traffic light in the sky") == [10]
    assert ClassFinder(labels).find("a light") == [30]


def test_a_caption_alone_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "ideas.txt"
    path.write_text("A tram by a house\nNothing of it\n")
    store = store_of(tmp_path / "store", "captions", str(path), Options(labels="scenes"))
    batch = {"source_file": objects(["part-00000.parquet"] * 2), "source_row": objects([0, 1])}
    found = LoadSource(store, Geometry(size=(SIDE, SIDE)), caption_is_enough=True)(batch)
    assert found["caption"].tolist() == ["A tram by a house", "Nothing of it"]
    assert found["class_ids"].tolist() == [[BUILDING], []]
    assert found["class_pixels"].tolist() == [[0], []]
    assert {*found["mask"], *found["height"], *found["reason"]} == {None}
