"""Wrong sources cost one line: what is wrong, in which file, and how often; no store is left behind.

As in `test_wrong_input`: a `row` is one of docs/wrong_input.md; the command is a child process once.
"""

import io
import json
from pathlib import Path

import numpy as np
import PIL.ExifTags
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


def id_masks(root: Path, tmp_path: Path) -> list[str]:
    return ingest_words("id_masks", root, tmp_path / "store", "--labels", "camvid")


@pytest.mark.parametrize("data_format", ["camvid", "id_masks", "masks"])
def test_missing_folder(refused_here: Refused, tmp_path: Path, data_format: str) -> None:
    labels = [] if data_format == "camvid" else ["--labels", "camvid"]
    words = ingest_words(data_format, tmp_path / "nowhere", tmp_path / "store", *labels)
    refused_here(*words, row="a data set that is not there")


def test_empty_folder(refused_here: Refused, tmp_path: Path) -> None:
    (tmp_path / "data" / "masks").mkdir(parents=True)
    refused_here(*id_masks(tmp_path / "data", tmp_path), row="a folder without masks")


def test_missing_colormap(refused_here: Refused, data_set: Path, tmp_path: Path) -> None:
    refused_here(*ingest_words("colormap", data_set, tmp_path / "store"), row="no `colormap.json`")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("a `colormap.json` with a class that stands twice", '{"road": [1, 2, 3], "road": [4, 5, 6]}'),
        ("a `colormap.json` with a colour of two numbers", '{"road": [128, 64]}'),
    ],
)
def test_wrong_colormap(refused_here: Refused, data_set: Path, tmp_path: Path, row: str, text: str) -> None:
    (data_set / "colormap.json").write_text(text)
    refused_here(*ingest_words("colormap", data_set, tmp_path / "store"), row=row)


def test_image_without_mask(refused: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "masks" / "1.png").unlink()
    refused(*id_masks(data_set, tmp_path), row="an image without a mask")


def test_photographs_that_are_not_there(refused_here: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "labels" / "sem_seg" / "masks").mkdir(parents=True)
    (data_set / "masks").rename(data_set / "labels" / "sem_seg" / "masks" / "train")
    refused_here(*ingest_words("bdd100k", data_set, tmp_path / "store"), row="masks whose photographs are not there")


def test_the_label_set_of_another_data_set(refused_here: Refused, data_set: Path, tmp_path: Path) -> None:
    words = ingest_words("camvid", data_set, tmp_path / "store", "--labels", "voc")
    refused_here(*words, row="`ingest camvid --labels voc`")


def test_nothing_but_files_without_partner(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    for mask in (data_set / "masks").glob("*.png"):
        mask.rename(mask.with_stem(f"{mask.stem}-of-another-name"))
    words = ingest_words("id_masks", data_set, tmp_path / "store", "--labels", "camvid", "--skip-bad")
    line = refused_on_ray(*words)
    assert "6 of 6 files are bad" in line


def test_mask_of_another_size(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    save(data_set / "masks" / "1.png", np.zeros((12, 16), np.uint8))
    refused_on_ray(*id_masks(data_set, tmp_path), row="a mask of another size than its image")


def test_rgb_mask_where_ids_are_expected(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    save(data_set / "masks" / "2.png", np.zeros((24, 32, 3), np.uint8))
    refused_on_ray(*id_masks(data_set, tmp_path), row="colours where ids belong")


def test_unknown_id(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:2, :5] = 77
    save(data_set / "masks" / "0.png", mask)
    refused_on_ray(*id_masks(data_set, tmp_path), row="an id that the label set does not have")


def test_unknown_colour(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "colormap.json").write_text(json.dumps({"road": [128, 64, 128], "sky": [70, 130, 180]}))
    for number in range(3):
        mask = np.full((24, 32, 3), (128, 64, 128), np.uint8)
        mask[0, : 3 * number] = (1, 2, 3)
        save(data_set / "masks" / f"{number}.png", mask)
    words = ingest_words("colormap", data_set, tmp_path / "store")
    refused_on_ray(*words, row="a colour that `colormap.json` does not have")


@pytest.mark.parametrize(
    ("row", "folder"), [("a mask that is cut off", "masks"), ("an image that is cut off", "images")]
)
def test_truncated_file(refused_on_ray: Refused, data_set: Path, tmp_path: Path, row: str, folder: str) -> None:
    path = data_set / folder / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    refused_on_ray(*id_masks(data_set, tmp_path), row=row)


def test_another_data_set_at_the_same_address(refused_here: Refused, data_set: Path, tmp_path: Path) -> None:
    make_scenes_store(tmp_path / "store")
    refused_here(*id_masks(data_set, tmp_path), row="another data set at the same address")


def test_another_number_of_scenes_at_the_same_address(refused_here: Refused, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store")
    words = ["ingest", "scenes", "9@32x32", "--split", "val", "--out", out]
    refused_here(*words, row="another split and number of scenes at the same address")


def test_changed_masks_at_the_same_address(
    refused_on_ray: Refused, data_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = id_masks(data_set, tmp_path)
    assert main(words) == 0
    capfd.readouterr()
    save(data_set / "masks" / "1.png", np.zeros((24, 32), np.uint8))
    refused_on_ray(*words, row="masks that changed since they were ingested")


def test_a_store_that_lost_a_part(refused_here: Refused, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store")
    (out / "part-00000.parquet").unlink()
    words = ["ingest", "scenes", f"{NUM_SCENES}@32x32", "--split", "train", "--out", out]
    refused_here(*words, row="a store that lost a part")


def test_a_link_to_nothing_among_the_masks(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    (data_set / "masks" / "1.png").unlink()
    (data_set / "masks" / "1.png").symlink_to(data_set / "nowhere")
    refused_on_ray(*id_masks(data_set, tmp_path), row="a link to nothing among the masks")


def test_folder_with_other_files_is_no_place_for_a_store(refused_here: Refused, tmp_path: Path) -> None:
    run = tmp_path / "out" / "runs" / "part-00000.parquet"
    run.parent.mkdir(parents=True)
    run.write_bytes(b"somebody's samples")
    words = ["ingest", "scenes", "2@32x32", "--split", "train", "--out", tmp_path / "out"]
    refused_here(*words, row="a folder of other files where the store should be")


def test_parts_of_somebody_else_are_not_replaced(refused_here: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pq.write_table(pa.table({"text": ["theirs"]}), tmp_path / "out" / "part-00000.parquet")
    words = ["ingest", "scenes", "2@32x32", "--split", "train", "--out", tmp_path / "out"]
    refused_here(*words, row="Parquet files of somebody else where the store should be")


def test_parts_of_an_interrupted_ingest_are_replaced(ray_session: None, tmp_path: Path) -> None:
    whole = make_scenes_store(tmp_path / "store")
    (whole / "source.json").unlink()
    (whole / "part-00000.parquet").rename(whole / "part-00007.parquet")
    assert main(["ingest", "scenes", "2@32x32", "--split", "train", "--out", str(whole), "--json"]) == 0
    assert sorted(path.name for path in whole.iterdir()) == ["labels.yaml", "part-00000.parquet", "source.json"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("an unknown format", ["kitti", "data"]),
        ("a format of ids without its label set", ["id_masks", "data"]),
        ("`--snap-colours` where masks hold ids", ["camvid", "data", "--snap-colours", "40"]),
        ("scenes of no number", ["scenes", "many"]),
        ("scenes of a size that cannot be", ["scenes", "4@8x8"]),
        ("`--partition` with a folder", ["scenes", "4@32x32", "--partition", "."]),
        ("`--partition first:`", ["scenes", "4@32x32", "--partition", "first:"]),
        ("scenes that no memory could hold", ["scenes", "2@100000x100000"]),
        ("more scenes than a split has", ["scenes", "99999999999@64x64"]),
    ],
)
def test_wrong_words(refused_here: Refused, tmp_path: Path, row: str, words: list[str]) -> None:
    refused_here("ingest", *words, "--split", "train", "--out", tmp_path / "store", row=row)


@pytest.mark.parametrize(
    ("row", "split"), [("a split without a name", ""), ("a split outside of the data set", "../x")]
)
def test_wrong_split(refused_here: Refused, data_set: Path, tmp_path: Path, row: str, split: str) -> None:
    refused_here("ingest", "camvid", data_set, "--split", split, "--out", tmp_path / "store", row=row)


def test_pictures_that_would_be_read_as_something_else(refused_on_ray: Refused, data_set: Path, tmp_path: Path) -> None:
    masks, images, words = data_set / "masks", data_set / "images", id_masks(data_set, tmp_path)
    whole = {path: path.read_bytes() for path in (masks / "1.png", images / "1.png")}
    PIL.Image.open(masks / "1.png").save(masks / "1.png", "JPEG")
    refused_on_ray(*words, row="a mask that is a JPEG")
    (masks / "1.png").write_bytes(whole[masks / "1.png"])
    save(images / "1.png", np.full((24, 32), 40_000, np.uint16))
    refused_on_ray(*words, row="a photograph of more than 8 bits")
    turned = PIL.Image.Exif()
    turned[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.open(io.BytesIO(whole[images / "1.png"])).save(images / "1.png", exif=turned)
    refused_on_ray(*words, row="an image that its EXIF turns")


def test_a_palette_of_other_classes(refused_on_ray: Refused, tmp_path: Path) -> None:
    numbers = PIL.Image.fromarray(np.resize(np.arange(3, dtype=np.uint8), (24, 32)))
    numbers.putpalette([192, 128, 128, 128, 128, 128, 0, 0, 0])
    (tmp_path / "data").mkdir()
    numbers.save(tmp_path / "data" / "0.png")
    words = ingest_words("masks", tmp_path / "data", tmp_path / "store", "--labels", "voc")
    refused_on_ray(*words, row="a palette of other classes than its numbers")


def test_rows_that_are_several_data_sets_or_lie_in_groups_that_are_too_long(
    refused_on_ray: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.table({"image": [b"1"], "mask": [b"2"]})
    for name in ("coarse", "fine"):
        (tmp_path / "data" / name).mkdir(parents=True)
        pq.write_table(rows, tmp_path / "data" / name / "train-00000-of-00001.parquet")
    words = ingest_words("hf_dataset", tmp_path / "data", tmp_path / "store", "--labels", "camvid")
    refused_on_ray(*words, row="a split in several folders")
    monkeypatch.setattr("segdatagen.datasets.tables.MAX_GROUP_BYTES", 1)
    path = tmp_path / "data" / "coarse" / "train-00000-of-00001.parquet"
    words = ingest_words("parquet", path, tmp_path / "store", "--labels", "camvid")
    refused_on_ray(*words, row="a row group of more than 4 GiB")
