"""What tests share: one Ray for all of them, tiny stores, weights and jobs, the real command, and the shared inputs.

Nothing here is mocked: the stores are ingested, the weights are those of a small network, the command is the product.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import ray
import torch
import yaml
from wrong_inputs import require_row

from segdatagen import cluster
from segdatagen.cli import main
from segdatagen.datasets import Options, open_reader
from segdatagen.diffusion.mask_unet import MaskUNet
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.ingest import IngestRequest, ingest_shard, seal_store
from segdatagen.labels import load_label_set
from segdatagen.weights import MaskDDPMWeights, save_mask_ddpm

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
torch.set_num_threads(1)
"""Networks of tests are tiny. With two threads on two cores that have other work, each waits for the other at every
operation: tests took forty times as long."""

REPOSITORY = Path(__file__).parents[1]
NUM_SCENES = 6
SIZE = 32
"""Width and height of the tiny scenes: the smallest that `scenes` makes."""

LANES = {"own_ray": ["pytest.mark.ray"], "ray": ["ray_session", "refused_on_ray", "pytest.mark.ray"]}
"""What the Makefile looks for in the files of tests with a mark."""

Command = Callable[..., subprocess.CompletedProcess[str]]
JobFactory = Callable[..., Path]
Refused = Callable[..., str]
OpenPage = Callable[..., "Page"]
Call = Callable[[Callable[[], int]], int]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the Ray of the test process, what starts one of its own, and what uses the browser.

    `ray` is on all that need a Ray, `own_ray` beside it where commands in child processes start theirs. Raises
    UsageError for a test whose file the Makefile would not find.
    """
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.own_ray)
        for mark, words in LANES.items():
            if item.get_closest_marker(mark) and not any(word in item.path.read_text() for word in words):
                raise pytest.UsageError(f"`make test` would leave out {item.nodeid}: name one of {words} in its file")
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared inputs: SEGDATAGEN_SHARED, or `../shared` beside the repository."""
    folder = Path(os.environ.get("SEGDATAGEN_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the shared inputs are not at {folder}: set SEGDATAGEN_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray in this process, for all tests that need one: what calls `connect` uses it as it is.

    It keeps more idle workers than it has CPUs: starting one takes longer than most of what tests have them do.
    """
    os.environ.update(RAY_num_workers_soft_limit="6")
    with cluster.connect(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a Ray for commands that need not start their own, which takes longer than most of what they do.

    Its workers have the environment of this process as it was when the first test asked.
    """
    with cluster.connect(num_cpus=2):
        address: str = ray.get_runtime_context().gcs_address
        yield address


@pytest.fixture(scope="session")
def command() -> Command:
    """`command("run", job)`: the real command in a child process, without a terminal."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = child_environment()
        words = [sys.executable, "-m", "segdatagen", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, **options)

    return run


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this checkout."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def make_scenes_store(folder: Path, num_scenes: int = NUM_SCENES, size: int = SIZE, split: str = "train") -> Path:
    """A source store of scenes, without Ray, as `ingest` writes it."""
    root = f"{num_scenes}@{size}x{size}"
    reader = open_reader("scenes", root, split, Options())
    request = IngestRequest("scenes", root, split, str(folder))
    shard = ingest_shard(reader.list_items().items, "part-00000.parquet", reader, request, keep=True)
    assert shard.part is not None
    seal_store(request, reader, [shard.part], shard.bad)
    return folder


def make_weights(folder: Path, label_set: str = "scenes", hidden: int = 4, size: int = SIZE) -> Path:
    """Weights of a tiny mask-guided DDPM that nobody trained: its images are noise, the same every time."""
    labels = load_label_set(label_set)
    network = MaskUNetConfig(num_classes=labels.num_classes, hidden=hidden, time_embedding=8, attention=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = MaskUNet(network).state_dict()
    config = MaskDDPMWeights(network=network, label_set=labels.name, classes=tuple(labels.names), size=(size, size))
    save_mask_ddpm(str(folder), config, tensors)
    return folder


def job_fields(sources: Path, weights: Path, root: Path) -> dict[str, Any]:
    """The fields of a job that takes a second: two samples of every source, two steps each."""
    return {
        "name": "tiny",
        "version": "v1",
        "sources": str(sources),
        "seed": 0,
        "geometry": {"size": [SIZE, SIZE], "fit": "resize"},
        "methods": {"mask_ddpm": {"weights": str(weights), "sampler": "ddim", "steps": 2}},
        "plan": [{"method": "mask_ddpm", "strategy": "uniform", "per_source": 2}],
        "output": {"root": str(root)},
        "execution": {"actors": 1, "microbatch": 4},
    }


@pytest.fixture(scope="session")
def scenes_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six tiny scenes. Only to be read: make another with `make_scenes_store` to change it."""
    return make_scenes_store(tmp_path_factory.mktemp("scenes") / "store")


@pytest.fixture(scope="session")
def scenes_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random weights for `scenes`. Only to be read."""
    return make_weights(tmp_path_factory.mktemp("weights") / "scenes")


@pytest.fixture(scope="session")
def text2mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Text2Mask that draws the layouts of `tiny_text2mask`. Only to be read."""
    from tiny_text2mask import save_text2mask  # it imports diffusers, which most tests do without

    return save_text2mask(tmp_path_factory.mktemp("text2mask") / "weights")


@pytest.fixture(scope="session")
def latent_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE that nobody trained. Only to be read."""
    from tiny_latent_training import save_vae

    return save_vae(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture(scope="session")
def latent_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six tiny scenes for trainings of latent diffusion: caches lie beside it."""
    return make_scenes_store(tmp_path_factory.mktemp("latent") / "store")


@pytest.fixture(scope="session")
def latent_base(latent_store: Path, latent_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that learned for one step. Only to be read."""
    from tiny_latent_training import train_base

    return train_base(latent_store, latent_vae, tmp_path_factory.mktemp("base"))


@pytest.fixture
def make_job(tmp_path: Path, scenes_store: Path, scenes_weights: Path) -> JobFactory:
    """`make_job(seed=1, execution={...})`: a job file whose run lies at `tmp_path/runs/tiny/v1`; fields replace fields.

    A field that is None is left out.
    """

    def make(file_name: str = "job.yaml", **changes: Any) -> Path:
        fields = job_fields(scenes_store, scenes_weights, tmp_path / "runs") | changes
        path = tmp_path / file_name
        path.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
        return path

    return make


def visible(folder: Path) -> dict[str, str]:
    """Every file (with the hash of its bytes) and folder below `folder`, without those that a leading dot hides."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def the_line(status: int, out: str, err: str) -> str:
    """The one sentence of a command that refused, whatever progress a slow machine has shown before it."""
    assert status in (1, 2), f"exit status {status}: {out}{err}"
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines(keepends=True) if not re.match(r"\w+: \d+ of \d+\b", line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("segdatagen: ")
    assert out == ""
    return lines[0]


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Refused:
    """`refused("plan", job)`: the line of a child process that refused, which left `tmp_path` as it was.

    With `row="..."` it has to be that of this row of `docs/wrong_input.md`.
    """

    def run(*arguments: object, row: str | None = None) -> str:
        before = visible(tmp_path)
        done = command(*arguments)
        line = the_line(done.returncode, done.stdout, done.stderr)
        assert visible(tmp_path) == before
        if row is not None:
            require_row(row, line, done.returncode, tmp_path.parent)
        return line

    return run


@pytest.fixture
def refused_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """As `refused`, in this process; `call` is what calls the command."""

    def run(*arguments: object, row: str | None = None, call: Call = lambda command: command()) -> str:
        before = visible(tmp_path)
        capfd.readouterr()
        status = call(lambda: main([str(word) for word in arguments]))
        line = the_line(status, *capfd.readouterr())
        assert visible(tmp_path) == before
        if row is not None:
            require_row(row, line, status, tmp_path.parent)
        return line

    return run


@pytest.fixture
def refused_on_ray(ray_session: None, refused_here: Refused) -> Refused:
    """As `refused_here`, on the Ray of this process."""
    return refused_here


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """One Chromium without a screen for all tests: Debian's, driven by playwright."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[OpenPage]:
    """`open_page(uri, width=390)`: a page that asks for nothing outside its folder.

    It complains of nothing either, unless it was opened with `lacks_files=True`.
    """
    asked: list[tuple[str, str]] = []
    complaints: list[str] = []

    def open_it(uri: str, width: int = 1280, height: int = 800, lacks_files: bool = False, **how: Any) -> "Page":
        page = browser.new_context(viewport={"width": width, "height": height}, **how).new_page()
        page.set_default_timeout(60_000)
        folder = uri.partition("#")[0].rpartition("/")[0]
        page.on("request", lambda request: asked.append((folder, request.url)))
        page.on("console", lambda message: None if lacks_files else complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(uri)
        return page

    yield open_it
    for context in browser.contexts:
        context.close()
    assert not complaints
    assert asked
    assert not [uri for folder, uri in asked if not uri.startswith((f"{folder}/", "data:"))]
