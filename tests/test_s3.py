"""The same on a real S3 server: conditional puts, lease, and a run that is killed and goes on.

The server is one Ceph gateway on the loopback, started by a script of the shared inputs; it needs the packages
ceph-mon, ceph-osd, radosgw and ceph-common.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import Command, JobFactory
from test_kill_resume import descendants, finish, kill_all, start

from segdatagen.lease import Lease, LeaseError
from segdatagen.samples import read_ledger
from segdatagen.storage import Folder

pytestmark = pytest.mark.s3
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
    folder.delete(["a/b.parquet", "a/c.json", "a/absent"])
    assert folder.entries() == []
    assert not folder.exists("a/b.parquet")


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
    process = start("run", job)
    while len(run.child("samples").entries()) < 3 and process.poll() is None:
        time.sleep(0.1)
    kill_all([process.pid, *descendants(process.pid)])
    assert process.wait() == -signal.SIGKILL
    committed = {entry.name: run.read(f"samples/{entry.name}") for entry in run.child("samples").entries()}
    assert finish(start("run", job)) == 0
    assert all(run.read(f"samples/{name}") == data for name, data in committed.items())
    ledger = read_ledger(run)
    assert (ledger.num_rows, ledger.counts["ok"]) == (48, 48)
    assert command("publish", run.uri).returncode == 0
    verified = command("verify", run.uri, "--deep")
    assert verified.returncode == 0, verified.stderr
    files = s3fs.S3FileSystem().glob(f"{run.uri}/data/*.parquet")
    table = pq.read_table(files, filesystem=s3fs.S3FileSystem())
    assert table.num_rows == len(set(table["sample_id"].to_pylist())) == 48
