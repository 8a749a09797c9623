"""Folders on a disk: whole objects or none, conditional puts, fresh listings, clean deletes."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.errors import UsageError
from segdatagen.storage import Entry, Folder, StorageError, read_any

NUM_PROCESSES = 6
PUTS_EACH = 25
LARGE = 48 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "made/on/demand"))


def run_python(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})


def files_below(path: Path) -> list[str]:
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}\.x){1,2}", fullmatch=True), st.binary(), max_size=6))
@settings(max_examples=25)
def test_what_is_put_is_read_and_listed(tmp_path_factory: pytest.TempPathFactory, objects: dict[str, bytes]) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("folder") / "f"))
    for name, data in objects.items():
        folder.put(name, data)
    assert folder.entries() == [Entry(name, len(objects[name])) for name in sorted(objects)]
    for name, data in objects.items():
        assert folder.exists(name)
        assert folder.read(name) == data
        assert read_any(folder.uri_of(name)) == data
        with folder.open(name) as file:
            file.seek(len(data) // 2)
            assert file.read() == data[len(data) // 2 :]
        assert folder.read_range(name, 1, 2) == data[1:3]


def test_a_put_replaces_and_leaves_nothing_else(folder: Folder, tmp_path: Path) -> None:
    folder.put("a/b.json", b"long before")
    folder.put("a/b.json", b"new")
    assert folder.read("a/b.json") == b"new"
    assert files_below(tmp_path) == ["made/on/demand/a/b.json"]


def test_a_file_is_put_as_its_bytes_are(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom((1 << 20) + 7))
    folder.put("a/b.bin", b"before")
    folder.put_file("a/b.bin", source)
    assert folder.read("a/b.bin") == source.read_bytes()
    assert files_below(tmp_path) == ["made/on/demand/a/b.bin", "source"]
    with pytest.raises(StorageError, match="cannot be written"):
        folder.put_file("a", source)


def test_what_is_written_piece_by_piece_is_put_whole_or_not_at_all(folder: Folder, tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"one, ")
        file.write(memoryview(b"two"))

    def fail(file: BinaryIO) -> None:
        write(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.put_written("a/b.bin", write)
    with folder.as_file("a/b.bin") as path:
        assert path.read_bytes() == b"one, two"
    with pytest.raises(StorageError, match=r"a/b.bin: no space left"):
        folder.put_written("a/b.bin", fail)
    assert folder.read("a/b.bin") == b"one, two"
    assert files_below(tmp_path) == ["made/on/demand/a/b.bin"]


def test_a_folder_is_within_itself_and_what_holds_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    for inside in ("run", "run/data", "run/absent/deep", "link", "link/data", "run/../run"):
        assert Folder(f"{tmp_path}/{inside}").is_within(run), inside
    assert Folder(f"file://{tmp_path}/run/x").is_within(run)
    for outside in (".", "runs", "run-2", "run/../other"):
        assert not Folder(f"{tmp_path}/{outside}").is_within(run), outside
    stored = Folder("s3://bucket/runs/a")
    assert Folder("s3://bucket/runs/a/export").is_within(stored)
    assert not Folder("s3://bucket/runs/ab").is_within(stored)
    assert not Folder("s3://other/runs/a").is_within(stored)
    assert not stored.is_within(run)
    assert not run.is_within(stored)


def test_objects_can_be_read_by_others(folder: Folder) -> None:
    folder.put("a", b"")
    assert os.stat(f"{folder.uri}/a").st_mode & 0o777 == 0o644


def test_file_uris_relative_paths_and_children_are_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Folder("x/y").put("z", b"1")
    assert Folder(f"file://{tmp_path}/x").child("y").read("z") == b"1"
    assert Folder("x/").exists("y/z")
    assert pickle.loads(pickle.dumps(Folder(f"{tmp_path}/x"))).read("y/z") == b"1"
    assert read_any("x/y/z") == b"1"


def test_a_listing_is_fresh_and_filtered(folder: Folder) -> None:
    assert folder.entries() == []
    assert not folder.exists()
    folder.put("b/two.parquet", b"22")
    folder.put("a/one.parquet", b"1")
    folder.put("a/note.json", b"{}")
    assert [entry.name for entry in folder.entries(".parquet")] == ["a/one.parquet", "b/two.parquet"]
    Path(folder.uri, "a/one.parquet").unlink()
    assert [entry.name for entry in folder.entries(".parquet")] == ["b/two.parquet"]


def test_what_a_dot_hides_is_not_listed(folder: Folder) -> None:
    folder.put("a", b"1")
    Path(folder.uri, ".a.k2j3").write_bytes(b"half")
    Path(folder.uri, "sub").mkdir()
    Path(folder.uri, "sub/.b.x.parquet").write_bytes(b"half")
    assert [entry.name for entry in folder.entries()] == ["a"]


def test_missing_objects_are_missing(folder: Folder) -> None:
    assert folder.read_versioned("none") is None
    for read in (folder.read, folder.open):
        with pytest.raises(FileNotFoundError):
            read("none")


def test_delete_prunes_folders_that_became_empty_and_no_others(folder: Folder, tmp_path: Path) -> None:
    for name in ("a/b/one", "a/b/two", "a/three"):
        folder.put(name, b"")
    folder.delete(["a/b/one"])
    assert Path(folder.uri, "a/b").is_dir()
    folder.delete(["a/b/two", "a/b/never-there"])
    assert not Path(folder.uri, "a/b").exists()
    assert folder.entries() == [Entry("a/three", 0)]
    folder.delete(["a/three"])
    assert not Path(folder.uri).exists()
    assert (tmp_path / "made/on").is_dir()


def test_a_conditional_put_needs_the_version_that_was_read(folder: Folder) -> None:
    assert folder.put_if_unchanged("n", b"0", None)
    assert not folder.put_if_unchanged("n", b"again", None)
    data, version = folder.read_versioned("n") or (b"", "")
    assert data == b"0"
    assert folder.put_if_unchanged("n", b"1", version)
    assert not folder.put_if_unchanged("n", b"2", version)
    assert folder.read("n") == b"1"
    assert [entry.name for entry in folder.entries()] == ["n"]


def _count_up(uri: str, number: int) -> None:
    """Add one to a counter again and again, by conditional puts alone."""
    folder, done = Folder(uri), 0
    while done < number:
        found = folder.read_versioned("counter")
        value, version = (int(found[0]), found[1]) if found else (0, None)
        done += folder.put_if_unchanged("counter", str(value + 1).encode(), version)


def test_conditional_puts_of_many_processes_lose_no_update(folder: Folder) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(folder.uri, PUTS_EACH)) for _ in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    assert folder.read("counter") == str(NUM_PROCESSES * PUTS_EACH).encode()


def _take_and_give_back(uri: str, times: int) -> None:
    """Hold an object that only one may hold again and again; raises where another one holds it too."""
    folder, done = Folder(uri), 0
    while done < times:
        if folder.put_if_unchanged("held", b"", None):
            (Path(uri).parent / "alone").touch(exist_ok=False)
            (Path(uri).parent / "alone").unlink()
            folder.delete(["held"])
            done += 1


def test_what_is_given_back_by_one_is_taken_by_one(folder: Folder) -> None:
    """The lock file goes with its object, and the folder with both, while others wait for that very lock."""
    context = multiprocessing.get_context("spawn")
    Path(folder.uri).parent.mkdir(parents=True)
    processes = [context.Process(target=_take_and_give_back, args=(folder.uri, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not Path(folder.uri).exists()


PUT_FOR_EVER = """
import sys
from segdatagen.storage import Folder
folder, size, number = Folder(sys.argv[1]), int(sys.argv[2]), 0
while True:
    number += 1
    folder.put("large.bin", bytes([number % 256]) * size)
    print(number, flush=True)
"""


@pytest.fixture
def writer(folder: Folder) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that replaces one large object without end."""
    process = run_python(PUT_FOR_EVER, folder.uri, str(LARGE))
    yield process
    process.kill()
    process.wait()


def has_half(folder: Folder) -> bool:
    """Whether a put is half done at this moment; its file may be gone before anybody looks at its size."""
    for path in Path(folder.uri).glob(".large.bin.*"):
        with contextlib.suppress(FileNotFoundError):
            if 0 < path.stat().st_size < LARGE:
                return True
    return False


def test_readers_and_a_kill_in_the_middle_of_a_put_see_whole_objects_only(
    folder: Folder, writer: "subprocess.Popen[bytes]"
) -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline()
    for _ in range(5):
        data = folder.read("large.bin")
        assert len(data) == LARGE
        assert data.count(data[:1]) == LARGE
        assert [entry.name for entry in folder.entries()] == ["large.bin"]
    deadline = time.monotonic() + 30
    while not has_half(folder):
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    data = folder.read("large.bin")
    assert len(data) == LARGE
    assert data.count(data[:1]) == LARGE
    assert folder.entries() == [Entry("large.bin", LARGE)]


def test_a_name_where_a_folder_is_cannot_be_put(folder: Folder) -> None:
    folder.put("a/b", b"1")
    with pytest.raises(StorageError, match=f"{folder.uri}/a: cannot be written"):
        folder.put("a", b"2")
    with pytest.raises(StorageError, match=f"{folder.uri}/a/b/c: cannot be written"):
        folder.put("a/b/c", b"2")
    assert files_below(Path(folder.uri)) == ["a/b"]


PUT_TOO_LARGE = """
import resource, sys
from segdatagen.storage import Folder, StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    Folder(sys.argv[1]).put("a", bytes(100_000))
except StorageError as error:
    print(error)
"""


def test_a_put_that_the_disk_refuses_halfway_leaves_what_was_there(folder: Folder) -> None:
    folder.put("a", b"before")
    child = run_python(PUT_TOO_LARGE, folder.uri)
    output, _ = child.communicate(timeout=60)
    assert output.decode().strip() == f"{folder.uri}/a: cannot be written (File too large)"
    assert folder.read("a") == b"before"
    assert files_below(Path(folder.uri)) == ["a"]


def test_what_cannot_be_written_is_refused_beforehand_and_untouched(tmp_path: Path) -> None:
    Folder(str(tmp_path / "new/deep")).require_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dead").symlink_to(tmp_path / "unmounted/disk")
    for below in ("file", "file/x", "file/x/y", "dead", "dead/x"):
        with pytest.raises(UsageError, match="cannot write here"):
            Folder(str(tmp_path / below)).require_writable()


def test_a_folder_that_cannot_be_made_ends_a_conditional_put(tmp_path: Path) -> None:
    """Below a link that leads nowhere a folder neither is nor can be made: each says that it is the other's fault."""
    (tmp_path / "dead").symlink_to(tmp_path / "unmounted/disk")
    with pytest.raises(StorageError, match=r"lease\.json"):
        Folder(str(tmp_path / "dead/run")).put_if_unchanged("lease.json", b"{}", None)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "hdfs://x", "memory://x"])
def test_other_protocols_are_refused_by_name(uri: str) -> None:
    with pytest.raises(UsageError, match=f"{uri.split(':')[0]}:// is not supported"):
        Folder(uri)


@pytest.mark.parametrize("uri", ["", "file://", "s3://", "s3:///runs"])
def test_what_names_no_folder_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"names no (folder|bucket)"):
        Folder(uri)


def test_two_colons_are_part_of_a_name(tmp_path: Path) -> None:
    run = Folder(f"{tmp_path}/a::b")
    run.child("plan").put("x", b"1")
    run.child("samples").put("y", b"2")
    assert files_below(tmp_path) == ["a::b/plan/x", "a::b/samples/y"]
    assert [entry.name for entry in run.child("plan").entries()] == ["x"]
    assert not Folder("s3://bucket/a::b/plan").is_within(Folder("s3://bucket/a"))


def test_sweep_removes_half_puts_alone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.put("samples/a.parquet", b"whole")
    assert folder.put_if_unchanged("lease.json", b"{}", None)
    half = tmp_path / "samples" / ".a.parquet.k3_x9abc"
    half.write_bytes(b"ha")
    before = {path for path in tmp_path.rglob("*") if path != half}
    folder.sweep()
    assert set(tmp_path.rglob("*")) == before


def test_a_broken_link_hides_nothing(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / "b.link").symlink_to(tmp_path / "nowhere")
    assert Folder(str(tmp_path)).entries() == [Entry("a", 4), Entry("b", 4), Entry("b.link", 0), Entry("c", 4)]


def test_a_link_to_its_own_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "back").symlink_to("..")
    (tmp_path / "other").symlink_to("images")
    with pytest.raises(StorageError, match=r"images/back links to a folder that it lies in"):
        Folder(str(tmp_path)).entries()


def test_listings_are_whole_while_somebody_puts(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for number in range(50):
        folder.put(f"part-{number:02d}", b"0")
    program = (
        "import sys; from segdatagen.storage import Folder; f = Folder(sys.argv[1])\nwhile True: f.put('more', b'1')"
    )
    process = run_python(program, str(tmp_path))
    try:
        while not folder.exists("more"):
            time.sleep(0.01)
        assert all(len(folder.entries("")) >= 50 for _ in range(2000))
    finally:
        process.kill()
        process.communicate()


def test_the_root_of_the_disk_is_a_folder() -> None:
    root = Folder("/")
    assert root.uri_of("etc/passwd") == "/etc/passwd"
    assert root.read("etc/passwd") == read_any("/etc/passwd") == Path("/etc/passwd").read_bytes()
    assert root.child("etc").exists("passwd")
    assert Folder("file:///").child("etc").read("passwd") == read_any("file:///etc/passwd") == root.read("etc/passwd")
    assert Folder("file:///").uri_of("etc/passwd") == "file:///etc/passwd"
    with pytest.raises(FileNotFoundError):
        read_any(f"/{Path(__file__).name}")
