"""Real samples of the published formats, by the command that a user gives, into stores that hold what was published."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from look_alikes import write

from segdatagen.cli import main
from segdatagen.datasets.folder import list_files
from segdatagen.images import decode_mask
from segdatagen.sources import SourceStore, open_store
from segdatagen.tables import read_part

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"), pytest.mark.usefixtures("ray_session")]


def ingest(words: str, out: Path) -> SourceStore:
    assert main(["ingest", *words.split(), "--out", str(out)]) == 0
    return open_store(str(out))


def rows_of(store: SourceStore) -> dict[str, dict[str, object]]:
    tables = [read_part(store.folder, part.name) for part in store.info.parts]
    return {str(row["source_id"]): row for table in tables for row in table.to_pylist()}


def class_names(store: SourceStore, row: dict[str, object]) -> set[str]:
    return {store.label_set.names[channel] for channel in store.label_set.channel_table()[row["class_ids"]]}


def test_ade20k(shared: Path, tmp_path: Path) -> None:
    for folder in ("annotations", "images"):
        (tmp_path / "ade" / folder).mkdir(parents=True)
        (tmp_path / "ade" / folder / "validation").symlink_to(shared / "data/samples/ade20k" / folder)
    store = ingest(f"ade20k {tmp_path}/ade --split validation", tmp_path / "store")
    rows = rows_of(store)
    assert len(rows) == 3
    assert {"car", "bus", "van"} <= class_names(store, rows["ADE_val_00000003"])


def test_coco_panoptic(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/samples/coco_panoptic"
    store = ingest(f"coco_panoptic {root} --split examples --images input_images", tmp_path / "store")
    annotations = json.loads((root / "panoptic_examples.json").read_text())["annotations"]
    rows = rows_of(store)
    assert [Path(annotation["file_name"]).stem for annotation in annotations] == list(rows)
    for annotation, row in zip(annotations, rows.values(), strict=True):
        assert [(s["class_id"], s["area"], s["bbox"]) for s in row["segments"]] == [
            (s["category_id"], s["area"], s["bbox"]) for s in annotation["segments_info"]
        ]
        assert sum(row["class_pixels"]) == sum(s["area"] for s in annotation["segments_info"])


def test_bdd100k(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data/samples/bdd100k"
    expected = {
        ("bdd100k", "sem_seg/masks", "semseg_mask.png"): {"car"},
        ("bdd100k_instances", "ins_seg/bitmasks", "bitmasks/quasi-video/insseg_bitmask.png"): {"car", "background"},
        ("bdd100k_panoptic", "pan_seg/bitmasks", "panseg_bdd100k/panseg_mask.png"): {
            *("ground", "static", "road", "sidewalk", "building", "banner", "pole", "street light", "traffic sign"),
            *("terrain", "vegetation", "sky", "car"),
        },
    }
    for (data_format, folder, name), classes in expected.items():
        write(tmp_path / "bdd/labels" / folder / "train/a.png", (samples / name).read_bytes())
        store = ingest(f"{data_format} {tmp_path}/bdd --split train --images none", tmp_path / data_format)
        assert class_names(store, rows_of(store)["a"]) == classes


def test_colourbook(shared: Path, tmp_path: Path) -> None:
    store = ingest(f"colormap {shared}/data/samples/colourbook_bdd --split train", tmp_path / "store")
    assert store.info.num_sources == 4


def test_parts_of_voc_and_camvid(shared: Path, tmp_path: Path) -> None:
    """A sixteenth of the masks that are here, and the first five frames."""
    voc, camvid = shared / "data/voc", shared / "data/camvid"
    store = ingest(f"masks {voc}/SegmentationClass --split train --labels voc --partition 1/16", tmp_path / "voc")
    rows = rows_of(store)
    assert len(rows) == -(-1153 // 16)
    counted = json.loads((voc / "class_pixels.json").read_text())["images"]
    for name, row in rows.items():
        assert sum(row["class_pixels"]) - counts_of_background(row) == sum(counted[name]["pixels"].values())
    store = ingest(f"camvid {camvid} --split train --partition first:5", tmp_path / "camvid")
    assert list(rows_of(store)) == list(list_files(str(camvid), "trainannot", (".png",)))[:5]
    for name, row in rows_of(store).items():
        with PIL.Image.open(camvid / f"trainannot/{name}.png") as picture:
            assert np.array_equal(decode_mask(row["mask"]), np.asarray(picture))


def counts_of_background(row: dict[str, object]) -> int:
    return dict(zip(row["class_ids"], row["class_pixels"], strict=True)).get(0, 0)
