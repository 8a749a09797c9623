"""One live `ingest` per address: a second one waits or is refused, and harms nothing of the first."""

import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import Refused, child_environment, make_scenes_store, the_line, visible
from test_lease import put_holder

import segdatagen.ingest
from segdatagen.cli import main
from segdatagen.datasets import Options, open_reader
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.lease import LEASE_NAME, Holder, Lease, LeaseError, host_name
from segdatagen.sources import INFO_NAME, open_store
from segdatagen.storage import Folder

HALVES = (".lease.json.k3_x9abc", ".part-00000.parquet.abcdefgh", ".source.json.12345678")
"""Temporary files of a process that was killed while it put these."""
SCENES = ("scenes", "4@32x32", "train")
SHORT = 1.5
"""Seconds of a lease in these tests, instead of 30."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def words(out: Path, root: str = "4@32x32", split: str = "train") -> list[str]:
    return ["ingest", "scenes", root, "--split", split, "--out", str(out), "--json"]


def half_made(out: Path) -> Path:
    """A store as an ingest has it just before its end."""
    make_scenes_store(out, num_scenes=4)
    (out / INFO_NAME).unlink()
    return out


def test_a_second_live_ingest_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = half_made(tmp_path / "store")
    with Lease(Folder(str(out)), lambda holder: None, duration=SHORT):
        before = visible(out)
        status = main(words(out, split="val"))
        line = the_line(status, *capfd.readouterr())
        after = visible(out)
    assert f"{out}: is being worked on by process " in line
    before.pop(LEASE_NAME), after.pop(LEASE_NAME)  # its holder goes on renewing it
    assert after == before


@pytest.mark.parametrize(("split", "says"), [("train", None), ("val", "another source store is here (split val -> ")])
def test_a_second_ingest_that_waited_meets_the_store_of_the_first(
    ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], split: str, says: str | None
) -> None:
    out = tmp_path / "store"
    taken = threading.Event()

    def first() -> None:
        with Lease(Folder(str(out)), lambda holder: None):
            taken.set()
            time.sleep(1)
            make_scenes_store(out, num_scenes=4, split=split)

    thread = threading.Thread(target=first)
    thread.start()
    assert taken.wait(10)
    status = main(words(out))
    printed = capfd.readouterr()
    thread.join()
    if says is None:
        assert (status, json.loads(printed.out)["unchanged"]) == (0, True)
    else:
        assert says in the_line(status, *printed)
    assert visible(out) == visible(make_scenes_store(tmp_path / "alone", num_scenes=4, split=split))


def test_what_a_dead_ingest_left_is_taken_over_at_once(ray_session: None, tmp_path: Path) -> None:
    out = half_made(tmp_path / "store")
    program = "from segdatagen.lease import Lease; from segdatagen.storage import Folder; import os, sys\n"
    program += "Lease(Folder(sys.argv[1]), print).__enter__(); os._exit(9)"
    died = subprocess.run([sys.executable, "-c", program, str(out)], env=child_environment(), check=False)
    assert died.returncode == 9
    assert (out / LEASE_NAME).exists()
    for name in HALVES:
        (out / name).write_bytes(b"ha")
    (out / ".notes.original").write_text("of somebody else")
    waited: list[Holder] = []
    request = IngestRequest("scenes", "4@32x32", "val", str(out))
    reader = open_reader("scenes", "4@32x32", "val", Options())
    assert not ingest(request, reader, lambda done, total: None, waited.append)[1]
    assert not waited
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".notes.original"}
    assert visible(out) == visible(make_scenes_store(tmp_path / "alone", num_scenes=4, split="val"))


def test_a_lease_that_a_dead_ingest_left_in_a_whole_store_goes(ray_session: None, tmp_path: Path) -> None:
    out = make_scenes_store(tmp_path / "store", num_scenes=4)
    whole = visible(out)
    dead = Holder(host_name(), 2**22 + 1, "1", "token")  # a number that no process has
    put_holder(Folder(str(out)), dead)
    for name in HALVES:
        (out / name).write_bytes(b"ha")
    request, reader = IngestRequest("scenes", "4@32x32", "train", str(out)), open_reader(*SCENES, Options())
    assert ingest(request, reader, lambda done, total: None, lambda holder: None)[1], "it is there, unchanged"
    assert visible(out) == whole
    assert {path.name for path in out.iterdir()} == set(whole)


def test_an_ingest_that_lost_its_lease_leaves_everything_to_the_other(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segdatagen.ingest, "Lease", partial(Lease, duration=SHORT))
    out = tmp_path / "store"
    left: dict[str, str] = {}

    def progress(done: int, total: int) -> None:
        if done == total:
            put_holder(Folder(str(out)), Holder("elsewhere", 7, "1", "token"))
            time.sleep(SHORT)
            left.update(visible(out))

    request = IngestRequest("scenes", "4@32x32", "train", str(out))
    reader = open_reader("scenes", "4@32x32", "train", Options())
    with pytest.raises(LeaseError, match="taken over by process 7 on elsewhere"):
        ingest(request, reader, progress, lambda holder: None)
    assert visible(out) == left
    assert set(left) == {LEASE_NAME, "part-00000.parquet"}


@pytest.mark.ray
@pytest.mark.slow
def test_two_at_the_same_time_leave_one_whole_store(ray_address: str, tmp_path: Path) -> None:
    """Two data sets, one address, two real processes: one store, all of one data set."""
    out = tmp_path / "store"
    processes = {
        split: subprocess.Popen(
            [sys.executable, "-m", "segdatagen", *words(out, "300@32x32", split), "--address", ray_address],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for split in ("train", "val")
    }
    ended = {split: (process.communicate(timeout=240), process.returncode) for split, process in processes.items()}
    (winner,) = [split for split, (_, status) in ended.items() if status == 0]
    (loser,) = ended.keys() - {winner}
    (printed, complaint), status = ended[loser]
    line = the_line(status, printed, complaint)
    assert "is being worked on by process" in line or f"split {winner} -> {loser}" in line
    alone = open_store(str(make_scenes_store(tmp_path / "alone", num_scenes=300, split=winner)))
    found = open_store(str(out))
    assert found.info.split == winner
    assert found.index["source_id"].to_pylist() == alone.index["source_id"].to_pylist()
    assert sorted(visible(out)) == ["labels.yaml", *(part.name for part in found.info.parts), "source.json"]
    assert {part.name: part.size for part in found.info.parts} == {
        path.name: path.stat().st_size for path in out.glob("*.parquet")
    }


def test_a_refused_ingest_leaves_no_trace_of_its_lease(refused_on_ray: Refused, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"no picture")
    out = tmp_path / "store"
    refused_on_ray("ingest", "masks", tmp_path / "masks", "--split", "train", "--labels", "camvid", "--out", out)
    assert not out.exists()
