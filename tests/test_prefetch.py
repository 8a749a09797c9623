"""Weights of other hosts: fetched from a real server by `prefetch` alone, whole or not, and pinned by their bytes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, JobFactory, Refused, child_environment
from hub_server import Hub, Repository, files_below, serve
from tiny_captioner import save_llava
from tiny_latent import save_pipeline

from segdatagen.cli import main
from segdatagen.errors import UsageError
from segdatagen.fetch_weights import Wanted, fetch, survey
from segdatagen.job import load_job
from segdatagen.methods import content_recipes
from segdatagen.prefetch import prefetch, weights_of
from segdatagen.run import segments
from segdatagen.sources import open_store
from segdatagen.weights import fingerprint_of, local_weights
from segdatagen.weights_cache import cache_root, entry_path, parse_hub_uri, read_cached

NAME = "town/ddpm"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SEGDATAGEN_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def hub(cache: Path, scenes_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository: the tiny weights at the tag v1, with a pickle, a hidden file and a card beside."""
    repository = Repository()
    beside = {"pytorch_model.bin": b"pickle", ".gitattributes": b"*", "README.md": b"# Weights"}
    repository.commit(files_below(scenes_weights) | beside, tag="v1")
    with serve(Hub({NAME: repository})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def job_with(make_job: JobFactory, uri: str, **changes: Any) -> Path:
    return make_job(methods={"mask_ddpm": {"weights": uri, "sampler": "ddim", "steps": 2}}, **changes)


def fetched(uri: str, token: str | None = None) -> Wanted:
    found = survey(uri, token)
    assert isinstance(found, Wanted)
    return found


def names_of(uri: str) -> list[str]:
    return sorted(entry.name for entry in fetched(uri).entries)


def no_progress(*_: int) -> None:
    """Nobody looks."""


@pytest.mark.ray
def test_prefetch_brings_weights_that_a_run_then_uses_without_the_hub(
    hub: Hub, command: Command, make_job: JobFactory, scenes_weights: Path, cache: Path
) -> None:
    """Child processes as a user starts them; what the server was asked shows who used the network."""
    uri = f"hf://{NAME}@v1"
    job = job_with(make_job, uri)
    first = command("prefetch", job, "--json")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(first.stdout)["weights"]
    commit = hub.repositories[NAME].tags["v1"]
    assert (row["uri"], row["revision"], row["fetched"]) == (uri, commit, True)
    assert row["path"].startswith(str(cache))
    assert row["num_bytes"] == sum(path.stat().st_size for path in scenes_weights.iterdir())
    assert files_below(Path(row["path"])) == files_below(scenes_weights)
    asked = len(hub.requests)
    done = command("run", job, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"ok": 12, "rejected": 0, "failed": 0}
    again = command("prefetch", job)
    assert again.returncode == 0
    assert "already there" in again.stdout
    assert len(hub.requests) == asked, "only the first prefetch asks"


def test_the_same_weights_by_path_and_from_the_hub_are_the_same_content(
    hub: Hub, make_job: JobFactory, scenes_weights: Path, scenes_store: Path
) -> None:
    uri = f"hf://{NAME}@{hub.repositories[NAME].tags['v1']}"
    here, there = load_job(str(job_with(make_job, str(scenes_weights)))), load_job(str(job_with(make_job, uri)))
    (row,) = prefetch(there, None, no_progress)
    assert row.fingerprint == fingerprint_of(uri) == fingerprint_of(str(scenes_weights))
    store = open_store(str(scenes_store))
    assert content_recipes(there, store) == content_recipes(here, store)


def test_an_actor_refuses_a_copy_of_other_bytes(hub: Hub, make_job: JobFactory, cache: Path) -> None:
    """As that of a node that fetched a tag after it was moved: the ids of samples stand for the first bytes."""
    job = load_job(str(job_with(make_job, f"hf://{NAME}@v1")))
    prefetch(job, None, no_progress)
    (segment,) = segments(job, open_store(job.sources).label_set, {})["mask_ddpm"]
    assert segment.build().stages
    record = next(cache.rglob("weights.json"))
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"fingerprint": "0" * 32}))
    with pytest.raises(UsageError, match=r"copy of hf://town/ddpm@v1 has other bytes .*segdatagen prefetch"):
        segment.build()


def test_a_folder_and_a_single_file_of_a_repository(hub: Hub, scenes_weights: Path) -> None:
    repository = Repository()
    files = {f"nets/small/{name}": data for name, data in files_below(scenes_weights).items()}
    repository.commit(files | {"annotators/sk_model.pth": b"weights only", "nets/other.safetensors": b""}, tag="v2")
    hub.repositories["town/many"] = repository
    assert names_of("hf://town/many/nets/small@v2") == ["config.json", "model.safetensors"]
    wanted = fetched("hf://town/many/annotators/sk_model.pth@v2")
    assert [entry.name for entry in wanted.entries] == ["sk_model.pth"]
    fetch(wanted, no_progress)
    path = local_weights("hf://town/many/annotators/sk_model.pth@v2")
    assert (path.name, path.read_bytes()) == ("sk_model.pth", b"weights only")


def test_of_a_pipeline_comes_what_is_loaded(hub: Hub) -> None:
    """No copies in one file beside the index, no halves beside what is whole, no folders that no index names."""
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "image_encoder": [None, None]}
    names = {
        "model_index.json": json.dumps(index).encode(),
        "whole_in_one.safetensors": b"7 GB",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"",
        "unet/diffusion_pytorch_model.bin": b"",
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.fp16.safetensors": b"",
        "vae_decoder/model.onnx": b"",
        "vae_1_0/config.json": b"{}",
        "image_encoder/model.safetensors": b"",
    }
    repository = Repository()
    repository.commit(names, tag="v1")
    hub.repositories["town/pipeline"] = repository
    assert names_of("hf://town/pipeline@v1") == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_configurations_of_a_pipeline_come_without_tensors(hub: Hub) -> None:
    """They are what a base in one file needs beside it."""
    files = {"model_index.json": b'{"unet": ["diffusers", "U"]}', "unet/config.json": b"{}"}
    repository = Repository()
    repository.commit(files, tag="v1")
    repository.commit(files | {"unet/diffusion_pytorch_model.bin": b"pickle"}, tag="v2")
    repository.commit({"config.json": b"{}"}, tag="v3")
    hub.repositories["town/config"] = repository
    assert names_of("hf://town/config@v1") == ["model_index.json", "unet/config.json"]
    for tag in ("v2", "v3"):
        with pytest.raises(UsageError, match="holds no safetensors"):
            survey(f"hf://town/config@{tag}", None)


def test_a_killed_prefetch_leaves_nothing_that_counts_and_is_continued(
    hub: Hub, make_job: JobFactory, cache: Path, scenes_weights: Path
) -> None:
    uri = f"hf://{NAME}@v1"
    job = job_with(make_job, uri)
    hub.held = "model.safetensors"
    words = [sys.executable, "-m", "segdatagen", "prefetch", str(job)]
    child = subprocess.Popen(words, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.half_sent.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert read_cached(uri) is None
    with pytest.raises(UsageError, match="not on this machine"):
        local_weights(uri)
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]
    hub.released.set()
    before = len(hub.downloads())
    assert main(["prefetch", str(job), "--json"]) == 0
    assert "config.json" not in hub.downloads()[before:], "what came whole is not fetched again"
    assert files_below(local_weights(uri)) == files_below(scenes_weights)
    assert not list(cache.glob(".*.part"))


def test_a_tag_is_resolved_once(hub: Hub, make_job: JobFactory) -> None:
    """What is in the cache stays what it is, wherever the tag points now."""
    job = load_job(str(job_with(make_job, f"hf://{NAME}@v1")))
    (first,) = prefetch(job, None, no_progress)
    hub.repositories[NAME].commit({"model.safetensors": b"other"}, tag="v1")
    (second,) = prefetch(job, None, no_progress)
    assert (second.revision, second.fingerprint, second.fetched) == (first.revision, first.fingerprint, False)


def test_a_private_repository_needs_its_token_from_the_environment(
    hub: Hub, make_job: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME].token = "secret"
    plain = load_job(str(job_with(make_job, f"hf://{NAME}@v1")))
    with pytest.raises(UsageError, match="HF_TOKEN"):
        prefetch(plain, None, no_progress)
    named = load_job(str(job_with(make_job, f"hf://{NAME}@v1", hub={"token": "env:TOWN_TOKEN"})))
    with pytest.raises(UsageError, match="the environment has no TOWN_TOKEN"):
        prefetch(named, None, no_progress)
    monkeypatch.setenv("TOWN_TOKEN", "secret")
    assert prefetch(named, None, no_progress)[0].fetched
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert not prefetch(plain, None, no_progress)[0].fetched


def test_weights_of_filters_and_controls_count_too(make_job: JobFactory, cache: Path) -> None:
    control = {"kind": "controlnet", "weights": "hf://a/b@v1", "prior": {"name": "hed", "weights": "s3://c/d.pth"}}
    methods = {"guided": {"base": "hf://a/base@v1", "controls": [control], "numerics": {"vae": "hf://a/vae@v1"}}}
    plan = [{"method": "guided", "strategy": "uniform", "per_source": 1}]
    job = make_job(methods=methods, plan=plan, filters={"adherence": {"segmenter": "builtin:scenes-segmenter"}})
    expected = {"hf://a/base@v1", "hf://a/b@v1", "s3://c/d.pth", "hf://a/vae@v1", "builtin:scenes-segmenter"}
    assert set(weights_of(load_job(str(job)))) == expected


def test_progress_ends_where_all_is_there(hub: Hub, make_job: JobFactory, scenes_weights: Path) -> None:
    big = files_below(scenes_weights) | {"more/model.safetensors": (8).to_bytes(8, "little") + b"{}      " + bytes(0)}
    hub.repositories[NAME].commit(big, tag="v9")
    seen: list[tuple[int, int]] = []
    prefetch(load_job(str(job_with(make_job, f"hf://{NAME}@v9"))), None, lambda *done: seen.append(done))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {1}


LOAD = """
from segdatagen.captioners import Captioner, CaptionerOptions
from segdatagen.diffusion.latent_models import load_base
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.stages.prompt import budget_of
budget_of("hf://town/sdxl@v1")
load_base("hf://town/sdxl@v1", Numerics(), "cpu")
Captioner(CaptionerOptions(kind="model", weights="hf://town/captioner@v1"))
"""


def test_networks_of_other_libraries_are_loaded_without_the_hub(hub: Hub, make_job: JobFactory, tmp_path: Path) -> None:
    """diffusers and transformers have hubs of their own to ask: the same one here, in a process that reads its name."""
    save_pipeline(tmp_path / "sdxl")
    save_llava(tmp_path / "captioner")
    for name in ("sdxl", "captioner"):
        repository = Repository()
        repository.commit(files_below(tmp_path / name), tag="v1")
        hub.repositories[f"town/{name}"] = repository
    caption = {"kind": "model", "weights": "hf://town/captioner@v1"}
    plan = [{"method": "inpaint", "strategy": "uniform", "per_source": 1}]
    methods = {"inpaint": {"base": "hf://town/sdxl@v1", "caption": caption}}
    rows = prefetch(load_job(str(make_job(methods=methods, plan=plan))), None, no_progress)
    assert [row.fingerprint for row in rows] == [fingerprint_of(str(tmp_path / n)) for n in ("sdxl", "captioner")]
    asked = len(hub.requests)
    done = subprocess.run([sys.executable, "-c", LOAD], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.requests[asked:] == []


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://a/b@v1", ("a/b", "", "v1")),
        ("hf://a/b/@v1", ("a/b", "", "v1")),
        ("hf://a/b/c/d.safetensors@0123456", ("a/b", "c/d.safetensors", "0123456")),
        ("hf://a/b@refs/pr/3", ("a/b", "", "refs/pr/3")),
    ],
)
def test_what_a_uri_says(uri: str, parts: tuple[str, str, str]) -> None:
    found = parse_hub_uri(uri)
    assert (found.repository, found.path, found.revision) == parts


@pytest.mark.parametrize("uri", ["hf://a@v1", "hf://@v1", "hf://a/../b@v1", "hf://a/b/../../etc@v1", "hf:///b@v1"])
def test_a_uri_without_a_repository_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="give hf://org/name@revision"):
        parse_hub_uri(uri)


def test_copies_of_other_revisions_lie_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = ["hf://a/b@v1", "hf://a/b@v2", "hf://a-b/c@v1", "hf://a/b-c@v1", "hf://a/b/c@v1", "s3://a/b"]
    assert len({entry_path(uri) for uri in uris}) == len(uris)
    assert entry_path("s3://a/b/") == entry_path("s3://a/b")
    monkeypatch.delenv("SEGDATAGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root() == Path("/somewhere/segdatagen")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "segdatagen"


@pytest.mark.parametrize(
    ("row", "uri"),
    [
        ("weights without a revision", "hf://town/ddpm"),
        ("weights of an unknown scheme", "gs://bucket/weights"),
        ("weights of a branch", "hf://town/ddpm@main"),
        ("weights that were not fetched", "hf://town/ddpm@v1"),
    ],
)
def test_a_run_refuses_weights_that_are_not_here(
    refused_here: Refused, make_job: JobFactory, hub: Hub, row: str, uri: str
) -> None:
    refused_here("run", job_with(make_job, uri), row=row)
    assert not hub.requests, "a run asks no hub"


@pytest.mark.parametrize(
    ("row", "uri"),
    [
        ("`prefetch` of weights without a revision", "hf://town/ddpm"),
        ("`prefetch` of a branch", "hf://town/ddpm@main"),
        ("`prefetch` of a repository that does not exist", "hf://town/nothing@v1"),
        ("`prefetch` of a revision that does not exist", "hf://town/ddpm@v7"),
        ("`prefetch` of a folder that the repository does not have", "hf://town/ddpm/nets@v1"),
        ("`prefetch` of a folder with only pickles", "hf://town/pickles@v1"),
    ],
)
def test_prefetch_refuses(refused_here: Refused, make_job: JobFactory, hub: Hub, row: str, uri: str) -> None:
    pickles = Repository()
    pickles.commit({"config.json": b"{}", "pytorch_model.bin": b"pickle"}, tag="v1")
    hub.repositories["town/pickles"] = pickles
    refused_here("prefetch", job_with(make_job, uri), row=row)


def test_prefetch_without_a_network(
    refused: Refused, make_job: JobFactory, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    refused("prefetch", job_with(make_job, "hf://town/ddpm@v1"), row="`prefetch` without a network")


def test_a_token_in_a_job_file_is_refused_and_not_shown(refused_here: Refused, make_job: JobFactory) -> None:
    line = refused_here("prefetch", make_job(hub={"token": "hf_abc"}), row="`hub: {token: hf_abc}`")
    assert "hf_abc" not in line


def test_a_file_that_comes_short_is_no_weights(hub: Hub, make_job: JobFactory, scenes_weights: Path) -> None:
    broken = files_below(scenes_weights)
    broken["model.safetensors"] = broken["model.safetensors"][:-100]
    hub.repositories[NAME].commit(broken, tag="v3")
    with pytest.raises(UsageError, match="cannot be read"):
        prefetch(load_job(str(job_with(make_job, f"hf://{NAME}@v3"))), None, no_progress)
    assert read_cached(f"hf://{NAME}@v3") is None


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
nodes = [{"num_cpus": 1, "env_vars": {"SEGDATAGEN_CACHE": cache}} for cache in sys.argv[1:]]
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **nodes[0]})
cluster.add_node(**nodes[1])
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def two_nodes(hub: Hub, tmp_path: Path) -> Iterator[str]:
    """Address of a Ray cluster of two nodes on this machine, each with a cache of its own."""
    words = [sys.executable, "-c", CLUSTER, str(tmp_path / "first"), str(tmp_path / "second")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, env=child_environment(), text=True, **pipes) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.mark.ray
@pytest.mark.slow
def test_every_node_of_a_cluster_has_its_own_copy(
    two_nodes: str, command: Command, hub: Hub, make_job: JobFactory, scenes_weights: Path
) -> None:
    job = job_with(make_job, f"hf://{NAME}@v1")
    done = command("prefetch", job, "--address", two_nodes, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["weights"]
    assert [row["fetched"] for row in rows] == [True, True]
    assert len({row["path"] for row in rows}) == 2
    assert all(files_below(Path(row["path"])) == files_below(scenes_weights) for row in rows)
    asked = len(hub.requests)
    assert "already there" in command("prefetch", job, "--address", two_nodes).stdout
    assert len(hub.requests) == asked
    absent = command("prefetch", job_with(make_job, "hf://town/nothing@v1"), "--address", two_nodes)
    assert absent.returncode == 2
    assert "the hub knows no town/nothing" in absent.stderr
    record = Path(rows[0]["path"]).parent / "weights.json"
    record.write_text(record.read_text().replace(rows[0]["fingerprint"], "0" * 32))
    refused = command("prefetch", job_with(make_job, f"hf://{NAME}@v1"), "--address", two_nodes)
    assert refused.returncode == 1
    assert "has other files than node" in refused.stderr
