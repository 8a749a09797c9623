"""Work on Ray that raises, or that kills its worker, ends in one line and exit status 1: not in silence, nor never."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from committed import commit, make_run, plan
from conftest import JobFactory, child_environment, the_line, visible
from kept_events import Events
from ray import cloudpickle
from test_faults import run
from test_lease import put_holder
from wrong_inputs import require_row

import segdatagen.dataflow
import segdatagen.deep_verify
import segdatagen.hash_sources
import segdatagen.ingest
from segdatagen.cluster import spread
from segdatagen.datasets import Options, open_reader
from segdatagen.deep_verify import verify_parts
from segdatagen.errors import SegdatagenError
from segdatagen.geometry import Geometry
from segdatagen.hash_sources import hash_sources
from segdatagen.ingest import IngestRequest, ShardResult, ingest
from segdatagen.job import load_job
from segdatagen.lease import Holder, Lease, LeaseError
from segdatagen.method_context import method_contexts
from segdatagen.methods import Chain, build_chain
from segdatagen.samples import put_samples
from segdatagen.source_hashes import read_index
from segdatagen.sources import SourceStore, open_store
from segdatagen.storage import Folder, StorageError

GEOMETRY = Geometry(size=(32, 32))
Fault = Callable[[int], int]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def raises(number: int) -> int:
    raise KeyError("a defect\nof two lines")


def has_no_space(number: int) -> int:
    raise StorageError(f"part-{number}: no space left,\n  free some")


def kills(number: int) -> int:
    os._exit(1)


FAULTS = [
    (raises, r"KeyError: 'a defect\nof two lines'"),
    (has_no_space, "part-0: no space left, free some"),
    (kills, "its worker died, 3 times"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_what_stopped_the_work_is_said_in_one_line(ray_session: None, fault: Fault, reason: str) -> None:
    with pytest.raises(SegdatagenError) as caught:
        list(spread("reading failed", range(1), fault))
    assert str(caught.value) == f"reading failed ({reason})"


def test_every_number_comes_back_once(ray_session: None) -> None:
    assert sorted(spread("counting failed", range(20), lambda number: {"square": number**2})) == [
        (number, {"square": number**2}) for number in range(20)
    ]


def test_relative_paths_mean_the_same_in_tasks(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray that was started elsewhere, as that of a cluster, has workers that began in another folder."""
    monkeypatch.chdir(tmp_path)
    assert list(spread("looking failed", range(1), lambda number: os.getcwd())) == [(0, str(tmp_path))]


def test_a_worker_that_dies_once_costs_nothing(ray_session: None, tmp_path: Path) -> None:
    def dies_once(number: int) -> int:
        try:
            (tmp_path / f"{number}").touch(exist_ok=False)
        except FileExistsError:
            return number
        os._exit(1)

    assert sorted(spread("counting failed", range(2), dies_once)) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("fault", [raises, kills])
def test_a_deep_look_that_fails_is_no_verdict(
    ray_session: None,
    make_job: JobFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[int], int],
) -> None:
    """Not even in a process that made a run before: there, blocks whose worker died are dropped in silence."""
    run(load_job(str(make_job(plan=[{"method": "mask_ddpm", "strategy": "uniform", "per_source": 1}]))))
    looked_at = make_run(tmp_path / "run")
    plan(looked_at, [1])
    commit(looked_at, [1])
    monkeypatch.setattr(segdatagen.deep_verify, "check_part", lambda run, name: fault(0))
    with pytest.raises(SegdatagenError, match="the check itself failed"):
        verify_parts(looked_at, 1.0, None, lambda done, total: None)
    assert ray.data.DataContext.get_current().max_errored_blocks == 0


def travels(store: SourceStore, protocol: int) -> str:
    raise AssertionError(f"{store.folder.uri} travels with its table of all sources")


def test_sources_are_hashed_part_by_part(
    ray_session: None, tmp_path: Path, scenes_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, events = open_store(str(scenes_store)), Folder(str(tmp_path)), Events()
    monkeypatch.setattr(SourceStore, "__reduce_ex__", travels)
    with Lease(run, lambda holder: None) as lease:
        hash_sources(run, store, GEOMETRY, lease, events)
    assert read_index(run)[0] == store.index["source_id"].to_pylist()
    assert events.hashed == [(0, 1), (1, 1)]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_sources_that_cannot_be_hashed_are_said_in_one_line(
    ray_session: None,
    tmp_path: Path,
    scenes_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    reason: str,
) -> None:
    store, run = open_store(str(scenes_store)), Folder(str(tmp_path))
    monkeypatch.setattr(segdatagen.hash_sources, "hash_part", lambda folder, geometry, name: fault(0))
    with Lease(run, lambda holder: None) as lease, pytest.raises(SegdatagenError) as caught:
        hash_sources(run, store, GEOMETRY, lease, Events())
    assert str(caught.value) == f"{scenes_store}: the images of the sources cannot be hashed ({reason})"


def test_hashes_are_not_stored_over_those_of_another_process(
    ray_session: None, tmp_path: Path, scenes_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, events = Folder(str(tmp_path)), Events()
    with Lease(run, lambda holder: None, 0.5) as lease:
        put_holder(run, Holder("elsewhere", 7, "1", "token"))
        time.sleep(1)
        with pytest.raises(LeaseError, match="taken over by process 7 on elsewhere"):
            hash_sources(run, open_store(str(scenes_store)), GEOMETRY, lease, events)
    assert list(visible(tmp_path)) == ["lease.json"]


class Lossy(Chain):
    """A chain that loses each block once, as where a network is gone for a while."""

    def __init__(self, chain: Chain, lost: Path) -> None:
        super().__init__(chain.stages)
        self._lost = lost

    def run(self, plan_rows: pa.Table, attempt: int) -> pa.Table:
        path = self._lost / str(plan_rows["sample_id"][0])
        path.write_text("x" + (path.read_text() if path.exists() else ""))
        if path.read_text() == "x":
            raise ConnectionError("somebody pulled the plug")
        return super().run(plan_rows, attempt)


def test_many_lost_rows_are_made_again_in_whole_blocks(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    job = load_job(str(make_job(execution={"microbatch": 2, "rows_per_block": 2})))
    context = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"]
    (tmp_path / "lost").mkdir()
    lost, events = tmp_path / "lost", Events()
    made = {"mask_ddpm": lambda: Lossy(build_chain("mask_ddpm", context), lost)}
    assert run(job, events, factories=made).counts == {"ok": 12, "rejected": 0, "failed": 0}
    assert events.notes == ["12 samples did not come back: making them again"]
    assert [part.ok for part in events.parts] == [2] * 6


def test_a_run_whose_workers_write_on_other_disks_stops(
    ray_session: None, make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdatagen.cluster.SEEN_WITHIN", 1.0)
    job = load_job(str(make_job()))
    context, other = method_contexts(job, open_store(job.sources).label_set)["mask_ddpm"], str(tmp_path / "other")

    def build() -> Chain:
        segdatagen.dataflow.put_samples = lambda run, table: put_samples(Folder(other), table)
        return build_chain("mask_ddpm", context)

    with pytest.raises(SegdatagenError) as stopped:
        run(job, factories={"mask_ddpm": build})
    require_row("a `root` that is another disk for the workers of a cluster", str(stopped.value), 1, tmp_path.parent)
    assert Folder(other).entries(".parquet")
    assert not Folder(job.uri).child("samples").entries()


def test_an_ingest_whose_workers_write_on_other_disks_makes_no_store(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdatagen.cluster.SEEN_WITHIN", 1.0)
    out, other, real = str(tmp_path / "store"), str(tmp_path / "other"), segdatagen.ingest.ingest_shard

    def elsewhere(items: Any, name: str, reader: Any, request: IngestRequest, keep: bool) -> ShardResult:
        return real(items, name, reader, replace(request, out=other), keep)

    monkeypatch.setattr("segdatagen.ingest.ingest_shard", elsewhere)
    reader = open_reader("scenes", "2@32x32", "train", Options())
    with pytest.raises(SegdatagenError) as stopped:
        ingest(IngestRequest("scenes", "2@32x32", "train", out), reader, lambda *_: None, lambda holder: None)
    row = "an `--out` of `ingest` that is another disk for the workers of a cluster"
    require_row(row, str(stopped.value), 1, tmp_path.parent)
    assert [entry.name for entry in Folder(other).entries()] == ["part-00000.parquet"]
    assert Folder(out).entries() == []


PROGRAM = """
import os, sys
from segdatagen import cli, datasets

class Faulty:
    def __init__(self, reader):
        self.reader, self.label_set = reader, reader.label_set
    def list_items(self):
        return self.reader.list_items()
    def read(self, item):
        {fault}

scenes = datasets.FORMATS["scenes"].open
datasets.FORMATS["scenes"] = datasets.Format(lambda *words: Faulty(scenes(*words)))
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fault", "reason"), [("raise KeyError('a defect')", "KeyError: 'a defect'"), ("os._exit(1)", "its worker died")]
)
def test_the_command_says_it_in_one_line(ray_address: str, tmp_path: Path, fault: str, reason: str) -> None:
    program = textwrap.dedent(PROGRAM).format(fault=fault)
    out = tmp_path / "store"
    words = ["ingest", "scenes", "2@32x32", "--split", "train", "--out", str(out), "--json", "--address", ray_address]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=child_environment(), capture_output=True, text=True, timeout=120
    )
    line = the_line(done.returncode, done.stdout, done.stderr)
    assert done.returncode == 1
    assert f"2@32x32: reading failed ({reason}" in line
    assert visible(tmp_path) == {}
