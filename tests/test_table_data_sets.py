"""Data sets in rows: Parquet and folders of `datasets` give the files that were put into them, in order and back."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from look_alikes import read_all, write

from segdatagen.datasets import BadItem, Options, Reader, open_reader, row_files
from segdatagen.errors import UsageError
from segdatagen.images import decode_mask, encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.storage import Folder

LABELS = load_label_set("camvid")
SHAPE = (24, 32)
NUM_ROWS = 25


def row(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    image = encode_image(rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    mask = encode_mask(rng.choice([*LABELS.ids, *LABELS.ignore_ids], SHAPE).astype(np.uint8))
    return {
        "image": {"bytes": image, "path": f"{number}.jpg"},
        "mask": {"bytes": mask, "path": None},
        "frame": 1000 - number,
        "caption": f"Street  {number}",
    }


ROWS = [row(number) for number in range(NUM_ROWS)]
TABLE = pa.Table.from_pylist(ROWS)
PLAIN = pa.table(
    {
        "photo": pa.array([r["image"]["bytes"] for r in ROWS], pa.binary()),
        "label": pa.array([r["mask"]["bytes"] for r in ROWS], pa.large_binary()),
    }
)


def put_parquet(path: Path, table: pa.Table = TABLE, group: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def put_arrow(folder: Path, table: pa.Table = TABLE, split: str = "train", files: int = 2) -> Path:
    """A folder as `Dataset.save_to_disk` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    step = -(-table.num_rows // files)
    for number, name in enumerate(names):
        part = table.slice(number * step, step)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            for batch in part.to_batches(max_chunksize=4):
                writer.write_batch(batch)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def opened(data_format: str, root: Path, split: str = "train", **options: Any) -> Reader:
    return open_reader(data_format, str(root), split, Options(**({"labels": "camvid"} | options)))


def check_all(reader: Reader, caption: bool = True) -> None:
    """All rows in order, and some again against it."""
    items = reader.list_items().items
    assert len(items) == len({item.source_id for item in items}) == NUM_ROWS
    for place in [*range(NUM_ROWS), 20, 3, 4, 24, 0]:
        source = reader.read(items[place])
        assert source.image == ROWS[place]["image"]["bytes"]
        assert np.array_equal(source.mask, decode_mask(ROWS[place]["mask"]["bytes"]))
        assert source.caption == (f"Street {place}" if caption else None)


def test_one_parquet_file(tmp_path: Path) -> None:
    reader = opened("parquet", put_parquet(tmp_path / "town.parquet"))
    check_all(reader)
    assert reader.list_items().items[11].source_id == "town-0000011"


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    put_parquet(tmp_path / "a/0000.parquet", TABLE.slice(0, 12))
    put_parquet(tmp_path / "b/0000.parquet", TABLE.slice(12))
    reader = opened("parquet", tmp_path)
    check_all(reader)
    assert [item.source_id for item in reader.list_items().items[11:13]] == ["a/0000-0000011", "b/0000-0000000"]


def test_columns_of_other_names_and_bare_bytes(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "town.parquet", PLAIN)
    check_all(opened("parquet", path, columns="image=photo,mask=label"), caption=False)
    masks_alone = read_all(opened("parquet", path, columns="image=none,mask=label"))
    assert [source.image for source in masks_alone.values()] == [None] * NUM_ROWS


def test_ids_of_a_column_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    reader = opened("parquet", put_parquet(tmp_path / "town.parquet"), columns="id=frame")
    assert [item.source_id for item in reader.list_items().items] == [str(1000 - n) for n in range(NUM_ROWS)]
    check_all(reader)


def test_a_saved_data_set_with_and_without_splits(tmp_path: Path) -> None:
    check_all(opened("hf_dataset", put_arrow(tmp_path / "alone")))
    put_arrow(tmp_path / "both/train")
    put_arrow(tmp_path / "both/test", TABLE.slice(0, 3), "test")
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    check_all(opened("hf_dataset", tmp_path / "both"))
    assert len(opened("hf_dataset", tmp_path / "both", "test").list_items().items) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "training/0000.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/validation/0000.parquet"),
    ],
)
def test_a_published_data_set_is_split_by_the_names_of_its_files(tmp_path: Path, names: tuple[str, ...]) -> None:
    put_parquet(tmp_path / names[0], TABLE.slice(0, 13))
    put_parquet(tmp_path / names[1], TABLE.slice(13))
    put_parquet(tmp_path / names[2], TABLE.slice(0, 2))
    check_all(opened("hf_dataset", tmp_path))


def test_a_reader_goes_on_where_it_was_and_travels_without_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened("parquet", put_parquet(tmp_path / "town.parquet", group=NUM_ROWS))
    starts: list[int] = []
    real = row_files.rows_of

    def counted(*arguments: Any) -> Any:
        starts.append(1)
        return real(*arguments)

    monkeypatch.setattr("segdatagen.datasets.tables.rows_of", counted)
    items = reader.list_items().items
    for item in items:
        reader.read(item)
    assert len(starts) == 1
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(items[7]).image == ROWS[7]["image"]["bytes"]
    assert len(starts) == 2


def test_a_large_row_group_is_not_read_whole(tmp_path: Path) -> None:
    payload = np.random.default_rng(0).bytes(200_000)
    table = pa.table({"image": pa.array([payload] * 400, pa.binary())})
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=400, use_dictionary=False, compression="none", write_batch_size=4)

    before = pa.total_allocated_bytes()
    peak = 0
    for number, found in enumerate(row_files.rows_of(Folder(str(tmp_path)), path.name, 0, ["image"])):
        assert number or found["image"] == payload
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 20e6 < path.stat().st_size


def test_a_file_may_lack_captions(tmp_path: Path) -> None:
    put_parquet(tmp_path / "a.parquet", TABLE.slice(0, 13))
    put_parquet(tmp_path / "b.parquet", TABLE.slice(13).set_column(3, "caption", pa.nulls(NUM_ROWS - 13)))
    found = read_all(opened("parquet", tmp_path))
    assert [source.caption is None for source in found.values()] == [False] * 13 + [True] * (NUM_ROWS - 13)


def bad_row(change: Callable[[dict[str, Any]], None]) -> pa.Table:
    rows = [row(number) for number in range(3)]
    change(rows[1])
    return pa.Table.from_pylist(rows, schema=TABLE.schema)


def no_mask(values: dict[str, Any]) -> None:
    values["mask"] = None


def only_a_path(values: dict[str, Any]) -> None:
    values["image"] = {"bytes": None, "path": "/somewhere/1.jpg"}


def truncated(values: dict[str, Any]) -> None:
    values["mask"]["bytes"] = values["mask"]["bytes"][:-60]


def unknown_id(values: dict[str, Any]) -> None:
    values["mask"]["bytes"] = encode_mask(np.full(SHAPE, 99, np.uint8))


def other_size(values: dict[str, Any]) -> None:
    values["mask"]["bytes"] = encode_mask(np.zeros((12, 16), np.uint8))


def in_colours(values: dict[str, Any]) -> None:
    values["mask"]["bytes"] = encode_image(np.zeros((*SHAPE, 3), np.uint8), "png")


@pytest.mark.parametrize(
    ("change", "problem", "detail"),
    [
        (no_mask, "unreadable mask", "nothing there"),
        (only_a_path, "unreadable image", "no bytes, only the path /somewhere/1.jpg"),
        (truncated, "unreadable mask", "not a readable image"),
        (unknown_id, "unknown id", ""),
        (other_size, "size mismatch", "mask 16 x 12, image 32 x 24"),
        (in_colours, "colours where ids are expected", ""),
    ],
)
def test_bad_rows_are_named_and_the_others_are_read(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], problem: str, detail: str
) -> None:
    reader = opened("parquet", put_parquet(tmp_path / "town.parquet", bad_row(change)))
    first, second, third = reader.list_items().items
    assert reader.read(first).mask is not None
    with pytest.raises(BadItem) as caught:
        reader.read(second)
    assert (caught.value.problem, caught.value.file_name) == (problem, "town.parquet (town-0000001)")
    assert detail in caught.value.detail
    assert reader.read(third).mask is not None


def damaged(folder: Path) -> None:
    path = put_parquet(folder / "town.parquet")
    write(path, path.read_bytes()[:-200])


def without_ids(folder: Path) -> None:
    put_parquet(folder / "town.parquet", TABLE.set_column(2, "frame", pa.array([None] * NUM_ROWS, pa.string())))


def other_columns(folder: Path) -> None:
    put_parquet(folder / "a.parquet")
    put_parquet(folder / "b.parquet", PLAIN)


def other_types(folder: Path) -> None:
    put_parquet(folder / "a.parquet")
    put_parquet(folder / "b.parquet", TABLE.set_column(1, "mask", pa.array(["none"] * NUM_ROWS)))


def without_the_id(folder: Path) -> None:
    put_parquet(folder / "a.parquet")
    put_parquet(folder / "b.parquet", TABLE.drop_columns(["frame"]))


def good(folder: Path) -> None:
    put_parquet(folder / "town.parquet")


@pytest.mark.parametrize(
    ("make", "columns", "problem"),
    [
        (damaged, None, "town.parquet: not a whole file of rows"),
        (without_ids, "id=frame", "town.parquet: row 0 has nothing in its column frame"),
        (other_columns, None, "b.parquet: no column mask, image, caption, unlike a.parquet"),
        (other_types, None, "b.parquet: column mask is string; the mask column holds encoded pictures"),
        (without_the_id, "id=frame", "b.parquet: no column frame, unlike a.parquet"),
        (
            good,
            "mask=label",
            "no column label (there are image, mask, frame, caption): name it with --columns mask=NAME",
        ),
        (good, "image=photo", "name it with --columns image=NAME, or image=none"),
        (good, "mask=frame", "column frame is int64; the mask column holds encoded pictures"),
        (good, "caption=image", "the caption column holds text"),
        (good, "id=mask", "the id column holds text or whole numbers"),
        (good, "pixels=mask", "expected image=NAME,mask=NAME"),
        (good, "mask", "expected image=NAME,mask=NAME"),
        (good, "mask=a,mask=b", "expected image=NAME,mask=NAME"),
    ],
)
def test_files_and_columns_that_do_not_fit_are_refused(
    tmp_path: Path, make: Callable[[Path], None], columns: str | None, problem: str
) -> None:
    make(tmp_path)
    with pytest.raises(UsageError) as caught:
        opened("parquet", tmp_path, columns=columns).list_items()
    assert problem in str(caught.value)


def test_folders_that_hold_no_such_data_set_are_refused(tmp_path: Path) -> None:
    for data_format in ("parquet", "hf_dataset"):
        with pytest.raises(UsageError, match="missing or empty folder"):
            opened(data_format, tmp_path / "nowhere")
        with pytest.raises(UsageError, match="needs --labels"):
            opened(data_format, tmp_path, labels=None)
    put_arrow(tmp_path / "saved", split="test")
    with pytest.raises(UsageError, match="this is split 'test', not 'train'"):
        opened("hf_dataset", tmp_path / "saved")
    (tmp_path / "saved/data-00000-of-00002.arrow").unlink()
    with pytest.raises(UsageError, match=r"data-00000-of-00002\.arrow: no such file"):
        opened("hf_dataset", tmp_path / "saved", "test")
    write(tmp_path / "both/dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(UsageError, match="no split 'val' here: it has train, test"):
        opened("hf_dataset", tmp_path / "both", "val")
    write(tmp_path / "both/dataset_dict.json", b"{")
    with pytest.raises(UsageError, match="not JSON"):
        opened("hf_dataset", tmp_path / "both", "val")
    for name in ("fine/train-00000-of-00001", "coarse/train-00000-of-00001", "coarse/test-dev-00000-of-00001"):
        put_parquet(tmp_path / f"several/{name}.parquet")
    with pytest.raises(UsageError, match=r"train lies in several folders \(coarse/, fine/\)"):
        opened("hf_dataset", tmp_path / "several")
    with pytest.raises(UsageError, match=r"or test/\*\.parquet here"):
        opened("hf_dataset", tmp_path / "several/coarse", "test")
    put_parquet(tmp_path / "parts/test-00000.parquet")
    with pytest.raises(UsageError, match=r"or train/\*\.parquet here: test-00000\.parquet"):
        opened("hf_dataset", tmp_path / "parts")


def test_a_file_cut_off_in_a_record_batch_is_refused(tmp_path: Path) -> None:
    folder = put_arrow(tmp_path / "saved", files=1)
    path = folder / "data-00000-of-00001.arrow"
    write(path, path.read_bytes()[:-3000])
    with pytest.raises(UsageError, match="not a whole file of rows"):
        opened("hf_dataset", folder).list_items()


def test_a_row_group_that_would_be_read_again_and_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_parquet(tmp_path / "town.parquet", group=NUM_ROWS)
    monkeypatch.setattr("segdatagen.datasets.tables.MAX_GROUP_BYTES", 50_000)
    with pytest.raises(UsageError, match=r"town\.parquet: row group 0 has 0\.0 GiB.*row_group_size=1000"):
        opened("parquet", path).list_items()
    check_all(opened("parquet", put_parquet(path, group=5)))


def test_columns_that_are_not_read_make_no_row_group_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unread = pa.array([np.random.default_rng(number).bytes(100_000) for number in range(NUM_ROWS)])
    path = put_parquet(tmp_path / "town.parquet", TABLE.append_column("embedding", unread), group=5)
    monkeypatch.setattr("segdatagen.datasets.tables.MAX_GROUP_BYTES", 50_000)
    check_all(opened("parquet", path))
    assert max(item.num_bytes for item in opened("parquet", path).list_items().items) < 20_000


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no rows in town\.parquet"):
        opened("parquet", put_parquet(tmp_path / "town.parquet", TABLE.slice(0, 0)).parent).list_items()
