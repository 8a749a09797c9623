"""Two workers of one training, as two processes that talk by gloo: where they go on, and what they must agree on."""

import multiprocessing
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from conftest import make_scenes_store
from tiny_training import CPU, STEPS, Configure, configurer, newest_of, silent, train_here

from segdatagen.errors import SegdatagenError
from segdatagen.training.data import Share
from segdatagen.training.run import TrainingRequest, read_options, train_share

TOGETHER = {"num_workers": 2, "batch_size": 4}


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


def work(rank: int, config: str, meeting: str) -> str:
    """One of two workers, from its own configuration: what it says to the user."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        train_share(
            TrainingRequest("mask_ddpm", read_options("mask_ddpm", config), "here"), Share(rank, 2), CPU, silent
        )
    except SegdatagenError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def train_by_two(meeting: Path, *configs: Path) -> list[str]:
    """What each of two workers says to the user, that of rank 0 first."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        said = [workers.submit(work, rank, str(config), str(meeting)) for rank, config in enumerate(configs)]
        done, waiting = wait(said, timeout=300, return_when=FIRST_EXCEPTION)
        if waiting:  # for the one that broke off
            for process in multiprocessing.active_children():
                process.kill()
        for one in done:
            one.result()
        return [one.result() for one in said]


def test_workers_go_on_where_the_first_one_does(configure: Configure, tmp_path: Path) -> None:
    """What the other one finds at `out`, as on a path of its own machine, is not used: other weights, an older step."""
    changes = TOGETHER | {"learning_rate_schedule": "constant"}  # the steps to come change nothing
    whole = configure("whole", **changes)
    assert train_by_two(tmp_path / "meeting-0", whole, whole) == ["", ""]
    half = configure("first", **changes, steps=STEPS - 8)
    assert train_by_two(tmp_path / "meeting-1", half, half) == ["", ""]
    train_here(configure("second", **changes, steps=8, learning_rate=0.01))
    configs = [configure(name, **changes) for name in ("first", "second")]
    assert train_by_two(tmp_path / "meeting-2", *configs) == ["", ""]
    found, expected = (newest_of(tmp_path / name / "checkpoints") for name in ("first", "whole"))
    assert (found.step, found.tensors.keys()) == (STEPS, expected.tensors.keys())
    card = (tmp_path / "first" / "weights" / "README.md").read_text()
    assert f"| steps | {STEPS} of batch 4, shared by 2 workers |" in card
    assert " images/s by 2 workers, each on the CPU; " in card
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_workers_with_other_sources_are_refused(configure: Configure, tmp_path: Path) -> None:
    other = configure("other", **TOGETHER, sources=str(make_scenes_store(tmp_path / "store", 7)))
    said = train_by_two(tmp_path / "meeting", configure("out", **TOGETHER), other)
    differ = "worker 1 of 2 does not train what the first one does (its images, masks or captions are others)"
    assert said == [f"UsageError: {differ}: give addresses that mean the same on every machine"] * 2
