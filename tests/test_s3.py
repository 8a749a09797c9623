"""The same on a real S3 server: conditional puts, lease, and a run that is killed and goes on.

The server is one Ceph gateway on the loopback, started by a script of the shared inputs; it needs the packages
ceph-mon, ceph-osd, radosgw and ceph-common.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from committed import sample_rows
from conftest import Command, JobFactory, make_weights
from look_alikes import segment, write, write_panoptic
from test_kill_resume import started, status_of
from test_table_data_sets import put_arrow, put_parquet

from segdatagen.benchmark.children import kill, processes_below, wait_until
from segdatagen.datasets import Options, open_reader
from segdatagen.errors import UsageError
from segdatagen.job import load_job
from segdatagen.lease import Lease, LeaseError
from segdatagen.prefetch import prefetch
from segdatagen.samples import LEDGER_COLUMNS, read_ledger
from segdatagen.sources import source_row
from segdatagen.storage import Folder
from segdatagen.tables import put_table, read_part
from segdatagen.weights import fingerprint_of, local_weights

pytestmark = [pytest.mark.s3, pytest.mark.ray]
BUCKET = "segdatagen"
START_ATTEMPTS = 8


@pytest.fixture(scope="module")
def s3_server(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with one bucket; its environment variables are set while the tests of this module run."""
    if shutil.which("radosgw") is None:
        pytest.skip("the S3 test server needs ceph-mon, ceph-osd, radosgw and ceph-common")
    script = shared / "s3" / "ceph-rgw.sh"
    folder = tmp_path_factory.mktemp("s3") / "server"
    exports = start_server(script, folder)
    words = [word for line in exports.splitlines() for word in line.removeprefix("export ").split()]
    settings = dict(word.split("=", 1) for word in words)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(BUCKET)
    try:
        yield f"s3://{BUCKET}"
    finally:
        subprocess.run(["bash", str(script), "stop", str(folder)], check=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def start_server(script: Path, folder: Path) -> str:
    """Start the server and return what it exports.

    Its object daemon now and then asks the monitor before that knows it, and gives up ("wrong fsid"): start again then.
    """
    for _ in range(START_ATTEMPTS):
        words = ["bash", str(script), "start", str(folder), str(free_port())]
        started = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if started.returncode == 0:
            return started.stdout
        subprocess.run(["bash", str(script), "stop", str(folder)], check=True)
    raise OSError(f"the S3 test server did not start in {START_ATTEMPTS} attempts")


def free_port() -> int:
    """A port that is free, and so is the next one: the server takes both."""
    for port in range(9300, 9900, 2):
        with socket.socket() as first, socket.socket() as second:
            if first.connect_ex(("127.0.0.1", port)) and second.connect_ex(("127.0.0.1", port + 1)):
                return port
    raise OSError("no two free ports between 9300 and 9900")


def test_objects_come_and_go(s3_server: str) -> None:
    folder = Folder(f"{s3_server}/objects")
    folder.require_writable()
    assert folder.entries() == []
    folder.put("a/b.parquet", b"one")
    folder.put("a/b.parquet", b"other")
    folder.put("a/c.json", b"{}")
    assert [(entry.name, entry.size) for entry in folder.entries()] == [("a/b.parquet", 5), ("a/c.json", 2)]
    assert [entry.name for entry in folder.entries(".json")] == ["a/c.json"]
    with folder.open("a/b.parquet") as file:
        assert file.read() == b"other"
    folder.put_file("a/b.parquet", Path(__file__))
    assert folder.read("a/b.parquet") == Path(__file__).read_bytes()
    folder.put_written("a/b.parquet", lambda file: file.write(b"piece"))
    with folder.as_file("a/b.parquet") as path:
        assert path.read_bytes() == b"piece"
    assert not path.exists()
    folder.delete(["a/b.parquet", "a/c.json", "a/absent"])
    assert folder.entries() == []
    assert not folder.exists("a/b.parquet")


def test_some_columns_or_rows_cost_little_more_than_their_bytes(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    real = s3fs.core.S3File._fetch_range

    def counted(file: s3fs.core.S3File, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return real(file, start, end)

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", counted)
    folder, images = Folder(f"{s3_server}/columns"), [os.urandom(2**16) for _ in range(64)]
    rows = sample_rows(list(range(64)), "ok", 1, 0)
    rows = rows.set_column(rows.column_names.index("image"), "image", pa.array(images, pa.large_binary()))
    for name, rows_of_group in (("part", 64), ("source", 8)):
        assert put_table(folder, f"{name}.parquet", rows, rows_of_group) > 64 * 2**16
    assert read_part(folder, "part.parquet", LEDGER_COLUMNS).num_rows == 64
    assert len(fetched) <= 3, "the footer, and columns that lie side by side"
    assert sum(fetched) <= 3 * 2**16
    fetched.clear()
    with folder.open("source.parquet") as file:
        assert pq.ParquetFile(file).read_row_groups([5], columns=["image"])["image"].to_pylist() == images[40:48]
    assert sum(fetched) <= (8 + 3) * 2**16


def test_data_sets_are_read_as_from_a_disk(s3_server: str, tmp_path: Path) -> None:
    codes = np.where(np.indices((24, 32))[1] < 16, 7, 70_000)
    pictures = {name: (codes, [segment(70_000, 200), segment(7, 1)]) for name in ("a", "b")}
    write_panoptic(tmp_path / "coco", pictures)
    put_parquet(tmp_path / "parquet/town.parquet")
    put_arrow(tmp_path / "saved")
    write(tmp_path / "captions/mine.tsv", b"a\tA red bus\nb\tA field\n")
    for entry in Folder(str(tmp_path)).entries():
        Folder(s3_server).put(f"data/{entry.name}", (tmp_path / entry.name).read_bytes())
    for data_format, root, split, options in (
        ("coco_panoptic", "coco", "val2017", {"captions": "captions/mine.tsv"}),
        ("parquet", "parquet", "train", {"labels": "camvid"}),
        ("hf_dataset", "saved", "train", {"labels": "camvid"}),
        ("captions", "captions/mine.tsv", "train", {"labels": "voc"}),
    ):
        rows = []
        for base in (str(tmp_path), f"{s3_server}/data"):
            given = {key: f"{base}/{value}" if key == "captions" else value for key, value in options.items()}
            reader = open_reader(data_format, f"{base}/{root}", split, Options(**given))
            listing = reader.list_items()
            assert not listing.orphans
            rows.append([source_row(item, reader.read(item), split, reader.label_set) for item in listing.items])
        assert rows[0] == rows[1]
        assert len(rows[0]) > 1


def test_weights_are_fetched_to_the_cache_of_a_node(
    s3_server: str, tmp_path: Path, scenes_weights: Path, make_job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a single object, in pieces: in the cache they are the bytes that they were, and the same content."""
    monkeypatch.setenv("SEGDATAGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("segdatagen.fetch_weights.PIECE_BYTES", 1000)
    folder, single = f"{s3_server}/models/ddpm", f"{s3_server}/models/ddpm/model.safetensors"
    for file in scenes_weights.iterdir():
        Folder(folder).put(file.name, file.read_bytes())
    Folder(folder).put("old.ckpt", b"a pickle")
    controls = [{"kind": "controlnet", "weights": single, "prior": {"name": "colour_map", "of": "mask"}}]
    methods = {"mask_ddpm": {"weights": folder}, "imgsyn": {"base": f"{folder}/", "controls": controls}}
    job = load_job(str(make_job(methods=methods)))
    with pytest.raises(UsageError, match="not on this machine"):
        local_weights(folder)
    rows = {row.uri: row for row in prefetch(job, None, lambda *_: None)}
    assert rows[folder].fingerprint == fingerprint_of(str(scenes_weights))
    assert fingerprint_of(single) == fingerprint_of(str(scenes_weights / "model.safetensors"))
    assert sorted(path.name for path in local_weights(folder).iterdir()) == ["config.json", "model.safetensors"]
    assert not any(row.fetched for row in prefetch(job, None, lambda *_: None))
    trained_on = make_weights(tmp_path / "trained on", hidden=6)
    for file in trained_on.iterdir():
        Folder(folder).put(file.name, file.read_bytes())
    assert all(row.fetched for row in prefetch(job, None, lambda *_: None)), "these are other weights"
    assert fingerprint_of(folder) == fingerprint_of(str(trained_on))
    assert len(list((tmp_path / "cache" / "weights").glob("[!.]*ddpm*"))) == 2, "the old ones are gone"
    absent = load_job(str(make_job(methods={"mask_ddpm": {"weights": f"{s3_server}/models/absent"}})))
    with pytest.raises(UsageError, match="there are no weights at"):
        prefetch(absent, None, lambda *_: None)


def test_conditional_put_has_one_winner(s3_server: str) -> None:
    folder = Folder(f"{s3_server}/conditional")
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda n: folder.put_if_unchanged("lock", str(n).encode(), None), range(8)))
    assert sum(first) == 1
    found = folder.read_versioned("lock")
    assert found is not None
    assert found[0] == str(first.index(True)).encode()
    with ThreadPoolExecutor(8) as pool:
        second = list(pool.map(lambda n: folder.put_if_unchanged("lock", f"again {n}".encode(), found[1]), range(8)))
    assert sum(second) == 1
    assert folder.read("lock") == f"again {second.index(True)}".encode()


def test_lease_is_renewed_and_refuses_others(s3_server: str) -> None:
    folder = Folder(f"{s3_server}/leased")
    waited = []
    with Lease(folder, waited.append, duration=3.0):
        first = folder.read("lease.json")
        with (
            pytest.raises(LeaseError, match="is being worked on by process"),
            Lease(folder, waited.append, duration=3.0),
        ):
            raise AssertionError("two held the lease")
        assert folder.read("lease.json") != first
    assert len(waited) == 1
    assert folder.read_versioned("lease.json") is None


def test_a_killed_run_goes_on(s3_server: str, make_job: JobFactory, command: Command) -> None:
    store, root = f"{s3_server}/sources", f"{s3_server}/runs"
    assert command("ingest", "scenes", "6@32x32", "--split", "train", "--out", store).returncode == 0
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 8}]
    execution = {"microbatch": 4, "rows_per_block": 4}
    job = make_job(sources=store, output={"root": root}, plan=plan, execution=execution)
    run = Folder(f"{root}/tiny/v1")
    process = started("run", job)
    wait_until(lambda: len(run.child("samples").entries()) >= 3, process, "a part")
    kill([process.pid, *processes_below(process.pid)])
    assert process.wait() == -signal.SIGKILL
    committed = {entry.name: run.read(f"samples/{entry.name}") for entry in run.child("samples").entries()}
    assert status_of(started("run", job)) == 0
    assert all(run.read(f"samples/{name}") == data for name, data in committed.items())
    ledger = read_ledger(run)
    assert (ledger.num_rows, ledger.counts["ok"]) == (48, 48)
    assert command("publish", run.uri).returncode == 0
    verified = command("verify", run.uri, "--deep")
    assert verified.returncode == 0, verified.stderr
    check_report(run, command)
    files = s3fs.S3FileSystem().glob(f"{run.uri}/data/*.parquet")
    table = pq.read_table(files, filesystem=s3fs.S3FileSystem())
    assert table.num_rows == len(set(table["sample_id"].to_pylist())) == 48


def check_report(run: Folder, command: Command) -> None:
    """A report in the bucket: written twice, only its own files are there, and a browser is told what they are."""
    for _ in range(2):
        written = command("report", run.uri)
        assert written.returncode == 0, written.stderr
        assert f"{run.uri}/report/index.html: 48 of 48 samples" in written.stdout
    names = {entry.name for entry in run.child("report").entries()}
    page = run.read("report/index.html").decode()
    assert {re.sub("-[0-9a-f]{16}", "", name) for name in names} == {
        *("index.html", "report.css", "report.js", "samples.js", "thumbnails.js", "pages.js", "sources.js")
    }
    assert len(names) == 7
    assert all(name in page for name in names if name.startswith(("report-", "samples-")))
    kinds = {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
    }
    store = s3fs.S3FileSystem()
    for name in names:
        assert store.info(f"{run.uri}/report/{name}")["ContentType"] == kinds[name.rsplit(".")[-1]]
