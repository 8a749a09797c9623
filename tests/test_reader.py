"""Published samples in memory: those of the newest index, however they are packed, as they were stored."""

from pathlib import Path

import numpy as np
import pytest
from committed import make_run
from published_samples import IGNORED, SIZE, make_published, pixels_of, publish_here, rows_of

import segdatagen.publish
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.geometry import Geometry
from segdatagen.publish import DATA, read_index
from segdatagen.reader import read_published
from segdatagen.run_folder import open_run
from segdatagen.samples import put_samples

WHOLE = Geometry(size=(SIZE, SIZE))


def test_samples_come_as_they_were_stored_in_the_order_of_their_ids(tmp_path: Path) -> None:
    ids = [70, 3, 41, 5]
    images, channels, labels = read_published(str(make_published(tmp_path / "run", [ids[:2], ids[2:]])), WHOLE)
    assert (images.dtype, channels.dtype, labels.name) == (np.uint8, np.int16, "scenes")
    for place, sample_id in enumerate(sorted(ids)):
        image, mask = pixels_of(sample_id)
        assert np.array_equal(images[place], image)
        assert np.array_equal(channels[place], np.where(mask == IGNORED, -1, mask.astype(np.int16)))


def test_how_they_are_packed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_published(tmp_path / "one", [range(1, 9)])
    monkeypatch.setattr(segdatagen.publish, "TARGET_BYTES", 1)
    many = make_published(tmp_path / "many", [[7, 2], [8], [1, 6], [3, 4, 5]])
    index = read_index(open_run(str(many)).folder)
    assert index is not None
    assert len(index.shards) == 4
    for found, expected in zip(read_published(str(many), WHOLE)[:2], read_published(str(one), WHOLE)[:2], strict=True):
        assert np.array_equal(found, expected)


def test_only_what_the_newest_index_names_counts(tmp_path: Path) -> None:
    """A killed `publish` may leave shards that no index names, and samples come twice in all of `data/`."""
    run = open_run(str(make_published(tmp_path / "run", [[1, 2]])))
    put_samples(run.folder, rows_of([9]))
    stray = next((tmp_path / "run" / DATA).glob("*.parquet"))
    kept = stray.read_bytes()
    publish_here(run)
    stray.write_bytes(kept)
    assert len(list((tmp_path / "run" / DATA).glob("*.parquet"))) == 2
    images, *_ = read_published(run.folder.uri, WHOLE)
    assert images[:, 0, 0, 0].tolist() == [1, 2, 9]


def test_larger_samples_of_the_same_proportions_are_scaled(tmp_path: Path) -> None:
    run = str(make_published(tmp_path / "run", [[4]], size=2 * SIZE))
    images, channels, _ = read_published(run, WHOLE)
    image, mask = pixels_of(4)
    assert np.array_equal(images[0], image)
    assert np.array_equal(channels[0, 1:], mask[1:])  # of the ignored first line, every second one is left
    for size in ((4 * SIZE, 4 * SIZE), (SIZE, 2 * SIZE)):
        with pytest.raises(UsageError, match=rf"64 x 64 pixels, and the training {size[0]} x {size[1]}: give it their"):
            read_published(run, Geometry(size=size, fit="crop"))


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        read_published(str(tmp_path / "nothing"), WHOLE)
    unpublished = make_run(tmp_path / "unpublished")
    with pytest.raises(UsageError, match=r"nothing is published here: publish it first, with `segdatagen publish .*`"):
        read_published(unpublished.folder.uri, WHOLE)
    publish_here(unpublished)
    with pytest.raises(UsageError, match="no good sample is published here"):
        read_published(unpublished.folder.uri, WHOLE)
    run = str(make_published(tmp_path / "run", [[1, 2]]))
    shard = next((tmp_path / "run" / DATA).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"????"))
    with pytest.raises(SegdatagenError, match=r"sample 1: .*: delete that file and publish the run again"):
        read_published(run, WHOLE)
    shard.write_bytes(b"torn")
    with pytest.raises(SegdatagenError, match=r"not a readable Parquet file .*: publish the run again"):
        read_published(run, WHOLE)
    shard.unlink()
    with pytest.raises(SegdatagenError, match=r"not a readable Parquet file .*: publish the run again"):
        read_published(run, WHOLE)
