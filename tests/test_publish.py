"""`data/` holds every good sample once, whatever happened before and whenever publishing was stopped."""

from pathlib import Path

import pyarrow.dataset
import pytest
from committed import commit, make_run, plan

import segdatagen.publish
from segdatagen.errors import SegdatagenError
from segdatagen.publish import pack, publish, read_index, slices_of
from segdatagen.run_folder import Run
from segdatagen.samples import read_ledger


def publish_quietly(run: Run) -> segdatagen.publish.Index:
    return publish(run, lambda holder: None, lambda done, total: None)


def published_ids(run: Path) -> list[int]:
    """Ids of all Parquet files in `data/`, as any reader finds them."""
    table = pyarrow.dataset.dataset(run / "data", format="parquet").to_table(columns=["sample_id"])
    return sorted(table["sample_id"].to_pylist())


def test_only_good_samples_each_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 9))
    commit(run, [1, 2, 3])
    commit(run, [3, 4], attempt=2)
    commit(run, [5], "failed")
    commit(run, [5], "ok", attempt=2)
    commit(run, [6], "rejected")
    commit(run, [4], "failed", attempt=3)
    index = publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert index.num_rows == 5


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 4))
    commit(run, [1, 2, 3])
    index = publish_quietly(run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "data").iterdir()}
    assert publish_quietly(run) == index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "data").iterdir()} == before


def test_new_samples_rewrite_only_undersized_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 21))
    for id_ in range(1, 8):
        commit(run, [id_])
    part_size = read_ledger(run.folder).parts[0].size
    monkeypatch.setattr(segdatagen.publish, "TARGET_BYTES", 3 * part_size - 99)
    first = publish_quietly(run)
    *full, last = first.shards
    assert [shard.num_rows for shard in first.shards] == [3, 3, 1]
    monkeypatch.setattr(segdatagen.publish, "MIN_BYTES", last.size + 1)
    for id_ in range(8, 21):
        commit(run, [id_])
    second = publish_quietly(run)
    assert set(full) <= set(second.shards)
    assert not (set(first.shards) - set(full)) & set(second.shards)
    assert published_ids(tmp_path / "run") == list(range(1, 21))


def test_what_was_published_is_not_taken_back_where_its_part_is_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    name = commit(run, [1, 2])
    commit(run, [3])
    index = publish_quietly(run)
    run.folder.delete([name])
    with pytest.raises(SegdatagenError, match=r"2 published samples are no longer in samples/, the first is 1"):
        publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1, 2, 3]
    commit(run, [1, 2], attempt=2)
    assert publish_quietly(run) == index


def test_nothing_is_published_while_a_part_is_unreadable(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    name = commit(run, [1, 2])
    commit(run, [3])
    whole = (tmp_path / "run" / name).read_bytes()
    (tmp_path / "run" / name).write_bytes(whole[:-9])
    with pytest.raises(SegdatagenError, match="not a readable Parquet file"):
        publish_quietly(run)
    assert not (tmp_path / "run" / "data").exists()


def test_a_shard_damaged_at_its_size_is_written_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    shard = publish_quietly(run).shards[0]
    path = tmp_path / "run" / "data" / shard.name
    path.write_bytes(bytes(path.stat().st_size))
    assert publish_quietly(run).shards == (shard,)
    assert published_ids(tmp_path / "run") == [1, 2]


def test_a_lost_shard_is_written_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    commit(run, [1, 2])
    shard = publish_quietly(run).shards[0]
    (tmp_path / "run" / "data" / shard.name).unlink()
    assert publish_quietly(run).shards == (shard,)
    assert published_ids(tmp_path / "run") == [1, 2]


def test_newest_index_is_the_truth(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert read_index(run.folder) is None
    plan(run, range(1, 13))
    for id_ in range(1, 13):
        commit(run, [id_])
        index = publish_quietly(run)
    assert index.number > 9, "two digits sort before one"
    assert read_index(run.folder) == index


def test_packing_keeps_every_row_and_fills_shards(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 31))
    for start in range(1, 31, 3):
        commit(run, range(start, start + 3))
    ledger = read_ledger(run.folder)
    slices = slices_of(ledger, ledger.sample_ids)
    groups = pack(slices, 3 * slices[0].num_bytes)
    assert [piece for group in groups for piece in group] == slices
    assert all(len(group) >= 3 for group in groups[:-1])
    assert sum(len(piece.rows) for piece in slices) == 30
