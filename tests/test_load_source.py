"""What every method starts from: mask and segments of a source at the size of the samples."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from conftest import JobFactory
from look_alikes import segment, write_mask, write_panoptic
from test_source_report import store_of

from segdatagen.geometry import Geometry
from segdatagen.images import decode_mask, encode_mask
from segdatagen.job import load_job
from segdatagen.load_source import LoadSource
from segdatagen.methods import begin, content_recipes, failed_rows, finish, guard
from segdatagen.records import PLAN_SCHEMA
from segdatagen.sources import SourceStore, open_store
from segdatagen.stages.stage import Batch, objects
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part

PERSON, CAT = 1, 17
CODES = np.where(np.indices((24, 48))[1] < 16, 70_000, 0)
"""A person on the left, a crowd of cats on the right, a cat of one pixel in its corner, and nothing in between."""
CODES[4:20, 28:44] = 5
CODES[0, 47] = 9
LISTED = [segment(9, CAT), segment(70_000, PERSON), segment(5, CAT, iscrowd=1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SourceStore:
    """One panoptic source."""
    folder = tmp_path_factory.mktemp("panoptic")
    return store_of(
        folder / "store", "coco_panoptic", write_panoptic(folder / "coco", {"a": (CODES, LISTED)}), "val2017"
    )


def loaded(store: SourceStore, geometry: Geometry, **options: Any) -> dict[str, Any]:
    """What the stage says of the first source."""
    batch: Batch = {"source_file": objects(["part-00000.parquet"]), "source_row": objects([0])}
    stage = LoadSource(store, geometry, **options)
    found = stage(batch)
    assert set(found) == set(stage.writes)
    return {name: values[0] for name, values in found.items()}


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
@pytest.mark.parametrize("size", [(48, 24), (24, 24), (16, 40), (96, 48)])
def test_segments_are_those_of_the_pixels_that_are_left(
    store: SourceStore, fit: Literal["crop", "pad", "resize"], size: tuple[int, int]
) -> None:
    row = loaded(store, Geometry(size=size, fit=fit))
    mask, numbers = decode_mask(row["mask"]), decode_mask(row["segment_map"])
    assert numbers.shape == mask.shape == (row["height"], row["width"]) == size[::-1]
    expected = []
    for id_, class_id, iscrowd in ((1, CAT, False), (2, PERSON, False), (3, CAT, True)):
        rows, columns = np.nonzero(numbers == id_)
        if not len(rows):
            continue
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        found = {"id": id_, "class_id": class_id, "area": len(rows), "bbox": box, "iscrowd": iscrowd}
        expected.append(found)
        assert set(mask[numbers == id_]) == {class_id}
    assert row["segments"] == expected
    assert set(mask[numbers == 0]) <= {store.label_set.ignore_ids[0]}
    assert row["segment_map"] == encode_mask(numbers)


def test_what_vanishes_is_dropped_and_what_stays_keeps_its_number(store: SourceStore) -> None:
    whole = loaded(store, Geometry(size=(48, 24)))
    assert [(s["id"], s["area"]) for s in whole["segments"]] == [(1, 1), (2, 16 * 24), (3, 256)]
    middle = loaded(store, Geometry(size=(24, 24), fit="crop"))
    assert [(s["id"], s["area"], s["bbox"]) for s in middle["segments"]] == [
        (2, 4 * 24, [0, 0, 4, 24]),
        (3, 8 * 16, [16, 4, 8, 16]),
    ]


def test_a_mask_that_will_be_another_brings_no_segments(store: SourceStore) -> None:
    row = loaded(store, Geometry(size=(48, 24)), caption_is_enough=True)
    assert row["mask"] is not None
    assert not {"segments", "segment_map"} & set(row)


def test_segments_that_do_not_fit_their_mask_fail_the_source(store: SourceStore, tmp_path: Path) -> None:
    part = "part-00000.parquet"
    table = read_part(store.folder, part)
    for data, problem in ((encode_mask(np.ones((3, 3), np.uint8)), "two sizes"), (b"nothing", "not a PNG")):
        place = table.column_names.index("segment_map")
        damaged = table.set_column(place, table.schema.field(place), pa.array([data], pa.large_binary()))
        folder = Folder(str(tmp_path / problem))
        put_table(folder, part, damaged)
        row = loaded(SourceStore(folder, store.info, store.label_set), Geometry(size=(24, 24)))
        assert row["reason"].startswith("unreadable source: ")
        assert problem in row["reason"]


def test_a_row_that_fails_keeps_no_segments(store: SourceStore) -> None:
    fields = {"sample_id": 1, "round": 0, "method": "imgsyn", "source_id": "a", "variant": 0, "seed": 1}
    fields |= {"source_file": "part-00000.parquet", "source_row": 0, "target_class": None}
    plan = PLAN_SCHEMA.empty_table().from_pylist([fields], schema=PLAN_SCHEMA)
    batch = begin(plan)
    guard(LoadSource(store, Geometry(size=(24, 24))), batch)
    assert finish(dict(batch), 1)["segments"][0].as_py()
    batch["status"] = objects(["failed"])
    for table in (finish(batch, 1), failed_rows(plan, 1, "its worker died")):
        (row,) = table.to_pylist()
        assert {row[name] for name in ("image", "mask", "segment_map", "segments")} == {None}


def test_only_panoptic_sources_have_another_recipe(
    make_job: JobFactory, scenes_weights: Path, tmp_path: Path, store: SourceStore
) -> None:
    """What keeps segments says so; masks drawn of captions, and stores without segments, keep their ids."""
    base = {"base": str(scenes_weights), "caption": {"kind": "data_set"}}
    control = {"kind": "controlnet", "weights": str(scenes_weights), "prior": {"name": "colour_map", "of": "mask"}}
    methods = {
        "mask_ddpm": {"weights": str(scenes_weights)},
        "imgsyn": base | {"controls": [control]},
        "masksyn": base | {"controls": [control], "text2mask": {"weights": str(scenes_weights)}},
    }
    plan = [{"method": method, "strategy": "uniform", "per_source": 1} for method in methods]
    job = load_job(str(make_job(methods=methods, plan=plan)))
    write_mask(tmp_path / "masks/a.png", np.full((8, 8), 3, np.uint8))
    semantic = store_of(tmp_path / "semantic", "masks", tmp_path / "masks", labels="voc")
    found = content_recipes(job, store)
    assert {name: recipe.get("segments") for name, recipe in found.items()} == {
        "mask_ddpm": "kept",
        "imgsyn": "kept",
        "masksyn": None,
    }
    assert not any("segments" in recipe for recipe in content_recipes(job, semantic).values())
    assert content_recipes(job, open_store(job.sources))["imgsyn"]["segments"] == "kept"
