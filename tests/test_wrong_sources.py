"""Wrong sources cost one line: what is wrong, in which file, and how often; no store is left behind.

As in `test_wrong_input`: each kind of mistake once with the real command, its variants in this process.
"""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import NUM_SCENES, Refused, make_scenes_store

from segdatagen.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Three CamVid-like pairs: `images/` and `masks/` of ids 0, 3 and 8."""
    root = tmp_path / "data"
    for number in range(3):
        mask = np.full((24, 32), 0, np.uint8)
        mask[8:] = 3
        mask[12:16, number : number + 8] = 8
        save(root / "masks" / f"{number}.png", mask)
        save(root / "images" / f"{number}.png", np.full((24, 32, 3), 90 + number, np.uint8))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def ingest_words(data_format: str, root: Path, out: Path, *more: str) -> list[str]:
    return ["ingest", data_format, str(root), "--split", "train", "--out", str(out), *more]


def test_missing_folder(refused: Refused, tmp_path: Path) -> None:
    line = refused(*ingest_words("id_masks", tmp_path / "nowhere", tmp_path / "store", "--labels", "camvid"))
    assert str(tmp_path / "nowhere") in line
    assert "missing or empty folder" in line


@pytest.mark.parametrize("data_format", ["camvid", "masks"])
def test_missing_folder_of_other_formats(refused_here: Refused, tmp_path: Path, data_format: str) -> None:
    labels = [] if data_format == "camvid" else ["--labels", "camvid"]
    line = refused_here(*ingest_words(data_format, tmp_path / "nowhere", tmp_path / "store", *labels))
    assert str(tmp_path / "nowhere") in line
    assert "missing or empty folder" in line


def test_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data" / "masks").mkdir(parents=True)
    line = refused(*ingest_words("id_masks", tmp_path / "data", tmp_path / "store", "--labels", "camvid"))
    assert str(tmp_path / "data" / "masks") in line
    assert "missing or empty folder" in line


def test_missing_colormap(refused_here: Refused, data_set: Path, tmp_path: Path) -> None:
    line = refused_here(*ingest_words("colormap", data_set, tmp_path / "store"))
    assert str(data_set) in line
    assert "colormap.json" in line


def test_image_without_mask(refused: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "masks" / "1.png").unlink()
    line = refused(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "image without mask" in line
    assert "images/1.png" in line


def test_nothing_but_files_without_partner(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    for mask in (data_set / "masks").glob("*.png"):
        mask.rename(mask.with_stem(f"{mask.stem}-of-another-name"))
    words = ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid", "--skip-bad")
    line = refused_on_ray(*words)
    assert "6 of 6 files are bad" in line


def test_mask_of_another_size(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    save(data_set / "masks" / "1.png", np.zeros((12, 16), np.uint8))
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "size mismatch" in line
    assert "masks/1.png" in line
    assert "mask 16 x 12, image 32 x 24" in line


def test_rgb_mask_where_ids_are_expected(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    save(data_set / "masks" / "2.png", np.zeros((24, 32, 3), np.uint8))
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "colours where ids are expected" in line
    assert "masks/2.png" in line


def test_unknown_id(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:2, :5] = 77
    save(data_set / "masks" / "0.png", mask)
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "unknown id" in line
    assert "masks/0.png" in line
    assert "77: 10 pixels" in line


def test_unknown_colour(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "colormap.json").write_text(json.dumps({"road": [128, 64, 128], "sky": [70, 130, 180]}))
    for number in range(3):
        mask = np.full((24, 32, 3), (128, 64, 128), np.uint8)
        mask[0, : 3 * number] = (1, 2, 3)
        save(data_set / "masks" / f"{number}.png", mask)
    line = refused_on_ray(*ingest_words("colormap", data_set, tmp_path / "store"))
    assert "unknown colour in 2 (masks/1.png, masks/2.png)" in line
    assert "(1, 2, 3): 9 pixels" in line


def test_truncated_mask(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    path = data_set / "masks" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "unreadable mask" in line
    assert "masks/1.png" in line


def test_truncated_image(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    path = data_set / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "unreadable image" in line
    assert "images/1.png" in line


def test_another_data_set_at_the_same_address(refused: Refused, data_set: Path, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store")
    line = refused(*ingest_words("id_masks", data_set, out, "--labels", "camvid"))
    assert f"{out}: another source store is here (format scenes -> id_masks, label set scenes -> camvid)" in line


def test_another_number_of_scenes_at_the_same_address(refused_here: Refused, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store")
    line = refused_here("ingest", "scenes", "9@32x32", "--split", "val", "--out", out)
    assert "split train -> val, number of scenes and size" in line
    assert "-> 9@32x32" in line


def test_changed_masks_at_the_same_address(
    refused_on_ray: Refused, data_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid")
    assert main(words) == 0
    capfd.readouterr()
    save(data_set / "masks" / "1.png", np.zeros((24, 32), np.uint8))
    line = refused_on_ray(*words)
    assert f"another source store is here, of {data_set}: its sources differ" in line


def test_a_store_that_lost_a_part(refused_here: Refused, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store")
    (out / "part-00000.parquet").unlink()
    line = refused_here("ingest", "scenes", f"{NUM_SCENES}@32x32", "--split", "train", "--out", out)
    assert f"{out}: part-00000.parquet is gone: delete source.json there and ingest again" in line


def test_a_link_to_nothing_among_the_masks(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "masks" / "1.png").unlink()
    (data_set / "masks" / "1.png").symlink_to(data_set / "nowhere")
    line = refused_on_ray(*ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid"))
    assert "1 of 3 files are bad: unreadable mask in 1 (masks/1.png)" in line


def test_folder_with_other_files_is_no_place_for_a_store(refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "out" / "runs" / "part-00000.parquet"
    run.parent.mkdir(parents=True)
    run.write_bytes(b"somebody's samples")
    line = refused("ingest", "scenes", "2@32x32", "--split", "train", "--out", str(tmp_path / "out"))
    assert "holds runs/part-00000.parquet and is no source store" in line


def test_parts_of_somebody_else_are_not_replaced(refused_here: Refused, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["theirs"]}), tmp_path / "part-00000.parquet")
    line = refused_here("ingest", "scenes", "2@32x32", "--split", "train", "--out", str(tmp_path))
    assert "holds part-00000.parquet" in line


def test_parts_of_an_interrupted_ingest_are_replaced(ray_session: None, tmp_path: Path) -> None:
    whole = make_scenes_store(tmp_path / "store")
    (whole / "source.json").unlink()
    (whole / "part-00000.parquet").rename(whole / "part-00007.parquet")
    assert main(["ingest", "scenes", "2@32x32", "--split", "train", "--out", str(whole), "--json"]) == 0
    assert sorted(path.name for path in whole.iterdir()) == ["labels.yaml", "part-00000.parquet", "source.json"]


def test_unknown_format(refused_here: Refused, tmp_path: Path) -> None:
    line = refused_here(*ingest_words("cityscapes", tmp_path, tmp_path / "store"))
    assert "'cityscapes'" in line
    assert "id_masks" in line
