"""`data/` holds every good sample once, whatever happened before and whenever publishing was stopped."""

import itertools
import os
import shutil
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from committed import commit, make_run, plan

import segdatagen.publish
from segdatagen.errors import SegdatagenError
from segdatagen.publish import DATA, INDEX, pack, publish, read_index, slices_of
from segdatagen.run_folder import Run, open_run
from segdatagen.samples import read_ledger
from segdatagen.verify import verify_ledger


def publish_quietly(run: Run) -> segdatagen.publish.Index:
    return publish(run, lambda holder: None, lambda done, total: None).index


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
    before = changed_at(tmp_path / "run")
    assert publish_quietly(run) == index
    assert changed_at(tmp_path / "run") == before


def changed_at(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in (DATA, INDEX) for path in (run / name).iterdir()}


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


class Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop before the `step`-th change of what is published: a file that is put, or one that is deleted."""
    replace, remove = os.replace, os.remove
    changes = 0

    def count(path: str) -> None:
        nonlocal changes
        if Path(path).parent.name in (DATA, INDEX):
            changes += 1
            if changes == step:
                raise Stopped

    def counted_replace(source: str, target: str) -> None:
        count(target)
        replace(source, target)

    def counted_remove(path: str) -> None:
        count(path)
        remove(path)

    patch.setattr(os, "replace", counted_replace)
    patch.setattr(os, "remove", counted_remove)


def test_stopped_anywhere_nothing_is_lost_and_the_index_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New samples replace the undersized shards of an earlier publication, and one shard is damaged."""
    first = make_run(tmp_path / "first")
    plan(first, range(1, 21))
    for id_ in range(1, 9):
        commit(first, [id_])
    part_size = read_ledger(first.folder).parts[0].size
    monkeypatch.setattr(segdatagen.publish, "TARGET_BYTES", 3 * part_size - 99)
    shards = publish_quietly(first).shards
    assert [shard.num_rows for shard in shards] == [3, 3, 2]
    monkeypatch.setattr(segdatagen.publish, "MIN_BYTES", shards[-1].size + 1)
    damaged = tmp_path / "first" / DATA / shards[1].name
    lost = set(ids_of(damaged))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    for id_ in range(9, 21):
        commit(first, [id_])
    for step in itertools.count(1):
        folder = shutil.copytree(tmp_path / "first", tmp_path / f"{step}")
        run = open_run(str(folder))
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            try:
                publish_quietly(run)
            except Stopped:
                ended = False
            else:
                ended = True
        index = read_index(run.folder)
        assert index is not None
        whole = [folder / DATA / shard.name for shard in index.shards if shard.name != damaged.name]
        named = [id_ for shard in whole for id_ in ids_of(shard)]
        assert len(set(named)) == len(named)
        assert set(named) | lost >= set(range(1, 9))
        publish_quietly(run)
        assert published_ids(folder) == list(range(1, 21))
        if ended:
            break
    assert step - 1 == 6 + 1 + 1, "six shards and an index were put, and one shard was deleted"


def ids_of(shard: Path) -> list[int]:
    ids: list[int] = pq.read_table(shard, columns=["sample_id"])["sample_id"].to_pylist()
    return ids


def test_it_tells_what_the_run_still_lacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(1, 6))
    commit(run, [1, 2, 3])
    published = publish(run, lambda holder: None, lambda done, total: None)
    assert published.index.num_rows == 3
    assert published.missing == ("2 of 5 planned samples are missing: run the job again",)
    assert published.missing == verify_ledger(run).problems
    commit(run, [4, 5])
    assert publish(run, lambda holder: None, lambda done, total: None).missing == ()


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_what_was_published_is_not_taken_back_where_its_part_is_gone(tmp_path: Path, index_is_lost: bool) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    name = commit(run, [1, 2])
    commit(run, [3])
    index = publish_quietly(run)
    if index_is_lost:
        shutil.rmtree(tmp_path / "run" / "published")
    run.folder.delete([name])
    with pytest.raises(SegdatagenError, match=r"2 published samples are no longer in samples/, the first is 1"):
        publish_quietly(run)
    assert published_ids(tmp_path / "run") == [1, 2, 3]
    commit(run, [1, 2], attempt=2)
    again = publish_quietly(run)
    assert index_is_lost or again == index
    assert published_ids(tmp_path / "run") == [1, 2, 3]


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
    (tmp_path / "run" / "published" / "notes.json").write_text("[]")
    assert read_index(run.folder) == index
    assert [path.name for path in (tmp_path / "run" / DATA).iterdir()] == [shard.name for shard in index.shards], (
        "some readers take a folder for what most of its files are"
    )


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
