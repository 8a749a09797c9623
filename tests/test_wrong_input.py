"""Wrong input costs one line: what is wrong and where, exit status 1 or 2, no traceback, and nothing is written.

A `row` is one of docs/wrong_input.md, and holds line and status. Each command is given wrong input once in a child
process; the other tests call its entry point in this one, which is a hundred times as fast.
"""

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
from conftest import NUM_SCENES, Command, JobFactory, Refused, make_scenes_store, make_weights, the_line, visible
from wrong_inputs import require_row

from segdatagen.cli import main
from segdatagen.lease import Lease
from segdatagen.storage import Folder

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def held_to_permissions(command: Callable[[], int]) -> int:
    """Run a command in a thread for which permissions hold, though it be root's; no other thread loses anything."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)

    def give_up_and_run() -> int:
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those past 31
        assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
        for place in (0, 1):
            sets[place] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
        return command()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(give_up_and_run).result()


# Job files


def plan_of(**goal: object) -> list[dict[str, object]]:
    return [{"method": "mask_ddpm", **goal}]


def options(**changes: object) -> dict[str, object]:
    return {"mask_ddpm": {"weights": "x", **changes}}


@pytest.mark.parametrize(
    ("row", "goal"),
    [
        ("a quota for a class that the label set does not have", {"quotas": {"bicycle": 3, "unicorn": 5}}),
        ("two quotas for one class", {"quotas": {"Bicycle": 3, "bicycle": 4}}),
        ("a quota that no memory could hold", {"quotas": {"road": 10**9}}),
        ("more images of each source than memory could hold", {"strategy": "uniform", "per_source": 10**8}),
        ("more random images than memory could hold", {"strategy": "random", "num_samples": 10**9}),
        (
            "a ratio that no memory could hold",
            {"strategy": "balance", "n_balance": "auto", "ratio": 1e12},
        ),
        (
            "a ratio of pixels that no memory could hold",
            {"strategy": "balance_pixels", "n_pixels": "auto", "ratio": 1e12},
        ),
        ("`n_pixels: 10000000000000` of small images", {"strategy": "balance_pixels", "n_pixels": 10**13}),
        ("a cover of a quota that no memory could hold", {"strategy": "cover", "quotas": {"road": 10**9}}),
        ("a cover of a class that the label set does not have", {"strategy": "cover", "quotas": {"unicorn": 5}}),
    ],
)
def test_goal_that_cannot_be_planned(refused_here: Refused, make_job: JobFactory, row: str, goal: dict) -> None:
    for verb in ("plan", "run"):
        refused_here(verb, make_job(plan=plan_of(**{"strategy": "quotas", **goal})), row=row)


AUTO = [
    {"strategy": "balance", "n_balance": "auto"},
    {"strategy": "balance_pixels", "n_pixels": "auto"},
    {"strategy": "cover", "n_balance": "auto"},
]


@pytest.mark.parametrize("goal", AUTO)
def test_balance_where_no_class_counts(refused_here: Refused, make_job: JobFactory, goal: dict) -> None:
    plan = [*plan_of(**goal), {"min_pixels": 10**6}]
    refused_here("run", make_job(plan=plan), row="`min_pixels` that no image reaches")


def test_negative_n_balance_in_a_job(refused: Refused, make_job: JobFactory) -> None:
    job = make_job(plan=plan_of(strategy="balance", n_balance=-5))
    refused("plan", job, row="`n_balance: -5`")


def test_negative_n_balance_on_the_command_line(refused: Refused, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"classes": ["road"], "images": {"a": {"pixels": {"road": 9}}}}))
    refused("balance", stats, "--n-balance", -5, "--json", row="`balance --n-balance -5`")


def test_unknown_key(refused: Refused, make_job: JobFactory) -> None:
    job = make_job(execution={"actors": 1, "workers": 2})
    refused("run", job, row="`execution: {workers: 2}`")


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("`colour: blue`", {"colour": "blue"}),
        ("`mask_ddpm: {step: 2}`", {"methods": options(step=2)}),
        ("`geometry: {fill: 0}`", {"geometry": {"size": [32, 32], "fill": 0}}),
        ("`seed: many`", {"seed": "many"}),
        ("`seed: true`", {"seed": True}),
        ("`actors: 1.5`", {"execution": {"actors": 1.5}}),
        ("`actors: 0`", {"execution": {"actors": 0}}),
        ("`rows_per_block: all`", {"execution": {"rows_per_block": "all"}}),
        ("`size: 64`", {"geometry": {"size": 64}}),
        ("`plan: uniform`", {"plan": "uniform"}),
        ("`settings: 5`", {"settings": 5}),
        ("`size: [60, 64]`", {"geometry": {"size": [60, 64]}}),
        ("`size: [6400000, 64]`", {"geometry": {"size": [6400000, 64]}}),
        ("`guidance: .inf`", {"methods": options(guidance=float("inf"))}),
        ("`sampler: euler`", {"methods": options(sampler="euler")}),
        ("`name: a/b`", {"name": "a/b"}),
        ("`strategy: unifrom`", {"plan": plan_of(strategy="unifrom")}),
        ("`strategy: uniform` without `per_source`", {"plan": plan_of(strategy="uniform")}),
        ("`quotas: {car: -1}`", {"plan": plan_of(strategy="quotas", quotas={"car": -1})}),
        ("`max_rounds: 0`", {"plan": [*plan_of(strategy="uniform", per_source=1), {"max_rounds": 0}]}),
        (
            "an unknown quota behind settings",
            {"plan": [{"max_rounds": 2}, *plan_of(strategy="quotas", quotas={"unicorn": 5})]},
        ),
        (
            "`max_rounds` in two entries of the plan",
            {"plan": [*plan_of(strategy="uniform", per_source=1), {"max_rounds": 1}, {"max_rounds": 2}]},
        ),
        ("`num_samples: -7`", {"plan": plan_of(strategy="random", num_samples=-7)}),
        ("`n_pixels: many`", {"plan": plan_of(strategy="balance_pixels", n_pixels="many")}),
        ("`n_pixels: 9, ratio: 2`", {"plan": plan_of(strategy="balance_pixels", n_pixels=9, ratio=2)}),
        ("`strategy: cover` without quotas", {"plan": plan_of(strategy="cover")}),
        ("`n_balance` and `quotas`", {"plan": plan_of(strategy="cover", n_balance=5, quotas={"car": 5})}),
        ("`max_copies: 0`", {"plan": plan_of(strategy="cover", n_balance=5, max_copies=0)}),
        ("`torch_threads: 1000000000`", {"execution": {"torch_threads": 10**9}}),
        ("`microbatch: 1000000000`", {"execution": {"microbatch": 10**9}}),
        ("`max_hours: 0`", {"execution": {"max_hours": 0}}),
        ("`max_cost: -1`", {"execution": {"max_cost": -1}}),
        ("`max_cost` without a price", {"execution": {"max_cost": 5}, "prices": {"per_gpu_hour": 2.5}}),
        (
            "`max_cost` without a price of GPUs",
            {"execution": {"max_cost": 5, "gpus_per_actor": 1}, "prices": {"per_cpu_hour": 0.1}},
        ),
        ("`per_gpu_hour: -2`", {"prices": {"per_gpu_hour": -2}}),
        ("`prices: {per_day: 2}`", {"prices": {"per_day": 2}}),
        ("`methods: {}`", {"methods": {}}),
        ("no `output`", {"output": None}),
        ("`root: ftp://host/runs`", {"output": {"root": "ftp://host/runs"}}),
        ("`weights: builtin:nothing`", {"methods": options(weights="builtin:nothing")}),
        ("sources that are not there", {"sources": "store"}),
    ],
)
def test_wrong_job(refused_here: Refused, make_job: JobFactory, row: str, changes: dict) -> None:
    refused_here("run", make_job(**changes), row=row)


@pytest.mark.parametrize(
    ("row", "text"),
    [("broken YAML", "execution: {actors: 1\nname: again\n"), ("a key that stands twice", "\nname: again\n")],
)
def test_job_that_is_no_yaml(refused_here: Refused, make_job: JobFactory, row: str, text: str) -> None:
    job = make_job()
    job.write_text(job.read_text() + text)
    refused_here("run", job, row=row)


def test_empty_job_file(refused_here: Refused, make_job: JobFactory) -> None:
    job = make_job()
    job.write_text("# nothing yet\n")
    refused_here("plan", job, row="a job file without a field")
    job.write_text("- name\n")
    refused_here("plan", job, row="a job file that is a list")


def test_folder_instead_of_a_job_file(refused_here: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here("plan", ".", row="`plan .`")


def test_job_file_that_is_not_there(refused_here: Refused, tmp_path: Path) -> None:
    refused_here("run", tmp_path / "job.yaml", row="a job file that is not there")


def test_job_file_that_cannot_be_read(refused_here: Refused, make_job: JobFactory) -> None:
    job = make_job()
    job.chmod(0)
    refused_here("run", job, row="a job file that may not be read", call=held_to_permissions)


def test_missing_weights(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    methods = options(weights=str(tmp_path / "mine"))
    refused_here("run", make_job(methods=methods), row="weights that are not there")


def test_truncated_weights(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "mine")
    tensors = weights / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    refused_here("run", make_job(methods=options(weights=str(weights))), row="weights that are cut off")


def test_weights_of_another_number_of_classes(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "mine", label_set="camvid")
    refused_here("run", make_job(methods=options(weights=str(weights))), row="weights of another number of classes")


def test_weights_of_other_classes_of_the_same_number(
    refused_here: Refused, make_job: JobFactory, scenes_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "mine"
    shutil.copytree(scenes_weights, weights)
    config = json.loads((weights / "config.json").read_text())
    config["classes"][1:3] = config["classes"][2:0:-1]
    (weights / "config.json").write_text(json.dumps(config))
    refused_here("run", make_job(methods=options(weights=str(weights))), row="weights of other classes")


def test_fewer_steps_than_the_ancestral_sampler_visits(
    refused_here: Refused, make_job: JobFactory, scenes_weights: Path
) -> None:
    methods = options(weights=str(scenes_weights), sampler="ancestral", steps=50)
    refused_here("run", make_job(methods=methods), row="fewer steps than the ancestral sampler visits")


def test_evaluation_split(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store", split="val")
    refused_here("run", make_job(sources=str(store)), row="sources of an evaluation split")


# Output


def test_unwritable_output(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    refused_here("run", make_job(), row="an output that may not be written", call=held_to_permissions)


def test_unwritable_store(refused_here: Refused, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = ["ingest", "scenes", "4@32x32", "--split", "train", "--out", closed / "store"]
    refused_here(*words, row="a store that may not be written", call=held_to_permissions)


def test_unwritable_rows_of_a_benchmark(refused_here: Refused, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = ["bench", "kills", "--out", closed]
    refused_here(*words, row="rows of a benchmark that may not be written", call=held_to_permissions)


def test_output_below_a_file(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    refused_here("run", make_job(), row="a file where the output should be")


@pytest.mark.parametrize(
    ("row", "key"), [("S3 without credentials", ""), ("an S3 server that does not answer", "somebody")]
)
def test_object_store_that_does_not_answer(
    refused_here: Refused, monkeypatch: pytest.MonkeyPatch, row: str, key: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, key)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        refused_here("status", "s3://bucket/runs/tiny/v1", row=row)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def planned_run(make_job: JobFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A run that is planned."""
    assert main(["plan", str(make_job())]) == 0
    return tmp_path / "runs" / "tiny" / "v1"


@pytest.mark.parametrize(
    ("row", "verb", "changes"),
    [
        ("another seed at the same address", "run", {"seed": 7}),
        ("another size at the same address", "plan", {"geometry": {"size": [40, 32]}}),
    ],
)
def test_another_content_recipe_at_the_same_address(
    refused_here: Refused, make_job: JobFactory, planned_run: Path, row: str, verb: str, changes: dict
) -> None:
    refused_here(verb, make_job(**changes), row=row)


def test_a_second_live_run_at_the_same_address(
    ray_session: None, make_job: JobFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = tmp_path / "runs" / "tiny" / "v1"
    with Lease(Folder(str(address)), lambda holder: None, duration=1.5):
        before = set(visible(tmp_path))
        capfd.readouterr()
        status = main(["run", str(make_job()), "--json"])
        line = the_line(status, *capfd.readouterr())
        assert set(visible(tmp_path)) == before | {"job.yaml"}  # names: the holder goes on renewing its lease
    require_row("a second run while the first one lives", line, status, tmp_path.parent)
    assert f" process {os.getpid()} on " in line
    assert visible(address) == {}


# Runs


def test_not_a_run_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("status", tmp_path / "empty", row="a folder that is no run")


@pytest.mark.parametrize("verb", ["status", "verify", "publish", "regenerate"])
@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_not_a_run_folder_anywhere(refused_here: Refused, tmp_path: Path, verb: str, place: str) -> None:
    rows = {
        "nowhere": "a run that is not there",
        "empty": "a folder that is no run",
        "file": "a file where a run should be",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a run")
    more = {"regenerate": [17, "--out", tmp_path / "again"], "verify": ["--deep"]}
    refused_here(verb, tmp_path / place, *more.get(verb, []), row=rows[place])


def test_a_run_of_another_format(refused_here: Refused, planned_run: Path) -> None:
    (planned_run / "run.json").write_text(json.dumps({"format_version": "99"}))
    refused_here("status", planned_run, row="a run of another format version")


def test_regenerate_an_unknown_sample(refused_here: Refused, planned_run: Path, tmp_path: Path) -> None:
    words = ["regenerate", planned_run, 17, "--out", tmp_path / "again"]
    refused_here(*words, row="`regenerate` of a sample that the run does not have")


# Words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("`fly`", ["fly"]),
        ("`run` without a job file", ["run"]),
        ("`run job.yaml --fast`", ["run", "job.yaml", "--fast"]),
        ("`run job.yaml --limit none`", ["run", "job.yaml", "--limit", "none"]),
        ("`run job.yaml --limit 0`", ["run", "job.yaml", "--limit", "0"]),
        ("`labels show nothing`", ["labels", "show", "nothing"]),
        ('`plan ""`', ["plan", ""]),
        ("`labels show --picture` of another format", ["labels", "show", "camvid", "--picture", "book.pdf"]),
        ("statistics that are not there", ["balance", "nowhere.json", "--n-balance", "3"]),
        ("`bench nothing`", ["bench", "nothing"]),
        ("`bench codec --trained out`", ["bench", "codec", "--trained", "out"]),
        ("`bench codec --kills 5`", ["bench", "codec", "--kills", "5"]),
        ("`train painter train.yaml`", ["train", "painter", "train.yaml"]),
        ("`verify` with `--fraction` and without `--deep`", ["verify", "nowhere", "--fraction", "0.5"]),
        ("`verify` with `--address` and without `--deep`", ["verify", "nowhere", "--address", "auto"]),
    ],
)
def test_wrong_words(refused_here: Refused, row: str, words: list[str]) -> None:
    refused_here(*words, row=row)


def test_no_cluster_at_the_address(refused: Refused, make_job: JobFactory) -> None:
    refused("run", make_job(), "--address", "127.0.0.1:1", row="an address where no cluster is")


def test_more_actors_than_processors(refused_on_ray: Refused, make_job: JobFactory) -> None:
    refused_on_ray("run", make_job(execution={"actors": 500}), row="more actors than processors")


def test_the_job_that_all_these_change_is_good(command: Command, make_job: JobFactory, tmp_path: Path) -> None:
    done = command("plan", make_job(), "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["num_rows"] == 2 * NUM_SCENES
    assert set(visible(tmp_path)) == {"job.yaml"}
