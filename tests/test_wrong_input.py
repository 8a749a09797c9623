"""Wrong input costs one line: what is wrong and where, exit status 1 or 2, no traceback, and nothing is written.

Each kind of mistake is made once with the real command in a child process. Its variants call the same entry point in
this process.
"""

import ctypes
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import NUM_SCENES, Command, JobFactory, Refused, make_scenes_store, make_weights, the_line, visible

from segdatagen.cli import main
from segdatagen.lease import Lease
from segdatagen.storage import Folder

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def without_override() -> None:
    """Let permissions hold for root too, in a child process; it changes nothing for anybody else."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


# Job files


def uniform() -> dict[str, object]:
    return {"method": "mask_ddpm", "strategy": "uniform", "per_source": 1}


def test_unknown_class_in_quotas(refused: Refused, make_job: JobFactory) -> None:
    goal = {"method": "mask_ddpm", "strategy": "quotas", "quotas": {"bicycle": 3, "unicorn": 5}}
    line = refused("run", make_job(plan=[goal]))
    assert "label set scenes has no class 'unicorn'" in line
    assert "bicycle" in line


def test_unknown_class_in_quotas_of_a_plan(refused_here: Refused, make_job: JobFactory) -> None:
    goal = {"method": "mask_ddpm", "strategy": "quotas", "quotas": {"unicorn": 5}}
    assert "'unicorn'" in refused_here("plan", make_job(plan=[goal]))


def test_two_names_of_one_class_in_quotas(refused_here: Refused, make_job: JobFactory) -> None:
    goal = {"method": "mask_ddpm", "strategy": "quotas", "quotas": {"Bicycle": 3, "bicycle": 4}}
    assert "quotas: two names mean the same class of scenes: Bicycle, bicycle" in refused_here(
        "run", make_job(plan=[goal])
    )


def test_unknown_class_in_quotas_of_a_cover(refused_here: Refused, make_job: JobFactory) -> None:
    goal = {"method": "mask_ddpm", "strategy": "cover", "quotas": {"unicorn": 5}}
    assert "label set scenes has no class 'unicorn'" in refused_here("run", make_job(plan=[goal]))


AUTO = [
    {"strategy": "balance", "n_balance": "auto"},
    {"strategy": "balance_pixels", "n_pixels": "auto"},
    {"strategy": "cover", "n_balance": "auto"},
]


@pytest.mark.parametrize("goal", AUTO)
def test_balance_where_no_class_counts(refused_here: Refused, make_job: JobFactory, goal: dict) -> None:
    line = refused_here("run", make_job(plan=[{"method": "mask_ddpm", **goal}, {"min_pixels": 10**6}]))
    assert "auto needs a class with at least one source, and there is none: lower min_pixels" in line


def test_negative_n_balance_in_a_job(refused: Refused, make_job: JobFactory) -> None:
    job = make_job(plan=[{"method": "mask_ddpm", "strategy": "balance", "n_balance": -5}])
    line = refused("plan", job)
    assert f"{job}: " in line
    assert "n_balance" in line
    assert "-5" in line


TOO_MANY_ROWS = [
    ({"strategy": "quotas", "quotas": {"road": 10**9}}, "999,999,994"),
    ({"strategy": "random", "num_samples": 10**9}, "1,000,000,000"),
    ({"strategy": "balance", "n_balance": "auto", "ratio": 1e12}, "6,000,000,000,000"),
    ({"strategy": "balance_pixels", "n_pixels": "auto", "ratio": 1e12}, "6,000,000,000,000"),
    ({"strategy": "balance_pixels", "n_pixels": 10**13}, ""),
    ({"strategy": "cover", "quotas": {"road": 10**9}}, "999,999,994"),
]


def test_plan_that_no_memory_could_hold(refused: Refused, make_job: JobFactory) -> None:
    line = refused("plan", make_job(plan=[uniform() | {"per_source": 10**8}]))
    assert "the plan asks for 600,000,000 samples, more than one run can plan (20,000,000): lower its numbers" in line


@pytest.mark.parametrize(("goal", "rows"), TOO_MANY_ROWS)
def test_plan_of_every_strategy_that_no_memory_could_hold(
    refused_here: Refused, make_job: JobFactory, goal: dict, rows: str
) -> None:
    line = refused_here("plan", make_job(plan=[{"method": "mask_ddpm", **goal}]))
    assert f"the plan asks for {rows}" in line
    assert "samples, more than one run can plan (20,000,000)" in line


def test_negative_n_balance_on_the_command_line(refused: Refused, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"classes": ["road"], "images": {"a": {"pixels": {"road": 9}}}}))
    line = refused("balance", stats, "--n-balance", -5, "--json")
    assert "n_balance is -5" in line


def test_unknown_key(refused: Refused, make_job: JobFactory) -> None:
    job = make_job(execution={"actors": 1, "workers": 2})
    line = refused("run", job)
    assert f"{job}: execution.workers: unknown key; allowed are placement, actors, cpus_per_actor" in line


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "blue"}, "colour"),
        ({"methods": {"mask_ddpm": {"weights": "x", "step": 2}}}, "methods.mask_ddpm.step"),
        ({"geometry": {"size": [32, 32], "fill": 0}}, "geometry.fill"),
    ],
)
def test_unknown_key_elsewhere(refused_here: Refused, make_job: JobFactory, changes: dict, field: str) -> None:
    job = make_job(**changes)
    assert f"{job}: {field}: unknown key" in refused_here("run", job)


def test_wrong_type(refused: Refused, make_job: JobFactory) -> None:
    job = make_job(seed="many")
    line = refused("run", job)
    assert f"{job}: seed: " in line
    assert "'many'" in line


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"geometry": {"size": [60, 64]}}, "geometry: size must be multiples of 8 up to 16384, not 60 x 64"),
        ({"geometry": {"size": 64}}, "geometry.size: must be a list, not 64"),
        ({"settings": 5}, "settings: must be a mapping, not 5"),
        ({"plan": [uniform(), {"max_rounds": 1}, {"max_rounds": 2}]}, "plan.2: max_rounds: given twice"),
        ({"geometry": {"size": [6400000, 64]}}, "geometry: size must be multiples of 8 up to 16384, not 6400000 x 64"),
        (
            {"methods": {"mask_ddpm": {"weights": "x", "guidance": float("inf")}}},
            "methods.mask_ddpm.guidance: must be a finite number, not inf",
        ),
        ({"seed": True}, "seed: must be an integer, not True"),
        ({"name": "a/b"}, "name: must be letters, digits, dots, underscores and hyphens, the first a letter or digit"),
        ({"execution": {"actors": 0}}, "execution.actors: must be at least 1, not 0"),
        ({"execution": {"actors": 1.5}}, "execution.actors: must be an integer, not 1.5"),
        (
            {"execution": {"rows_per_block": "all"}},
            "execution.rows_per_block: must be an integer or must be 'auto', not 'all'",
        ),
        ({"plan": "uniform"}, "plan: must be a list, not 'uniform'"),
        ({"plan": [{"method": "mask_ddpm", "strategy": "unifrom"}]}, "plan: unknown strategy 'unifrom': choose one of"),
        ({"plan": [{"method": "mask_ddpm", "strategy": "uniform"}]}, "plan.0: per_source: missing"),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "quotas", "quotas": {"car": -1}}]},
            "plan.0: quotas.car: must be at least 0, not -1",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "random", "num_samples": -7}]},
            "plan.0: num_samples: must be at least 1, not -7",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "balance_pixels", "n_pixels": "many"}]},
            "plan.0: n_pixels: must be an integer or must be 'auto', not 'many'",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "balance_pixels", "n_pixels": 9, "ratio": 2}]},
            "plan.0: ratio has a meaning only with n_pixels: auto; leave one of the two out",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "cover"}]},
            "plan.0: cover needs n_balance or quotas, one of the two",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "cover", "n_balance": 5, "quotas": {"car": 5}}]},
            "plan.0: cover needs n_balance or quotas, one of the two",
        ),
        (
            {"plan": [{"method": "mask_ddpm", "strategy": "cover", "n_balance": 5, "max_copies": 0}]},
            "plan.0: max_copies: must be at least 1, not 0",
        ),
        ({"execution": {"max_hours": 0}}, "execution.max_hours: must be more than 0.0, not 0"),
        ({"execution": {"max_cost": -1}}, "execution.max_cost: must be more than 0.0, not -1"),
        (
            {"execution": {"max_cost": 5}, "prices": {"per_gpu_hour": 2.5}},
            "execution.max_cost: needs the price of an actor: give prices.per_cpu_hour",
        ),
        (
            {"execution": {"max_cost": 5, "gpus_per_actor": 1}, "prices": {"per_cpu_hour": 0.1}},
            "execution.max_cost: needs the price of an actor: give prices.per_gpu_hour",
        ),
        ({"prices": {"per_gpu_hour": -2}}, "prices.per_gpu_hour: must be at least 0.0, not -2"),
        ({"prices": {"per_day": 2}}, "prices.per_day: unknown key; allowed are per_gpu_hour, per_cpu_hour"),
        ({"methods": {}}, "methods: name at least one of mask_ddpm"),
        (
            {"methods": {"mask_ddpm": {"weights": "x", "sampler": "euler"}}},
            "methods.mask_ddpm.sampler: must be 'ancestral', 'ddim' or 'dpm++2m', not 'euler'",
        ),
        ({"output": None}, "output: missing"),
    ],
)
def test_wrong_value(refused_here: Refused, make_job: JobFactory, changes: dict, sentence: str) -> None:
    job = make_job(**changes)
    assert f"{job}: {sentence}" in refused_here("run", job)


def test_broken_yaml(refused: Refused, make_job: JobFactory) -> None:
    job = make_job()
    job.write_text(job.read_text() + "execution: {actors: 1\nname: again\n")
    line = refused("run", job)
    assert f"{job}: broken YAML at line " in line


def test_key_that_stands_twice(refused_here: Refused, make_job: JobFactory) -> None:
    job = make_job()
    job.write_text(job.read_text() + "\nname: again\n")
    assert "key 'name' stands twice" in refused_here("run", job)


def test_job_file_that_is_not_there(refused_here: Refused, tmp_path: Path) -> None:
    line = refused_here("run", tmp_path / "job.yaml")
    assert f"{tmp_path / 'job.yaml'}: no such file" in line


def test_job_file_that_cannot_be_read(refused: Refused, make_job: JobFactory) -> None:
    job = make_job()
    job.chmod(0)
    line = refused("run", job, preexec_fn=without_override)
    assert f"{job}: cannot be read" in line


def test_missing_weights(refused: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    line = refused("run", make_job(methods={"mask_ddpm": {"weights": str(tmp_path / "weights")}}))
    assert f"no weights at {tmp_path / 'weights'}" in line


def test_unknown_builtin_weights(refused_here: Refused, make_job: JobFactory) -> None:
    line = refused_here("run", make_job(methods={"mask_ddpm": {"weights": "builtin:nothing"}}))
    assert "builtin:nothing" in line


def test_truncated_weights(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    tensors = weights / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    line = refused_here("run", make_job(methods={"mask_ddpm": {"weights": str(weights)}}))
    assert str(tensors) in line


def test_weights_of_another_number_of_classes(refused: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights", label_set="camvid")
    line = refused("run", make_job(methods={"mask_ddpm": {"weights": str(weights)}}))
    assert str(weights) in line
    assert "11 classes of camvid" in line
    assert "has 12" in line


def test_weights_of_other_classes_of_the_same_number(
    refused_here: Refused, make_job: JobFactory, scenes_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(scenes_weights, weights)
    config = json.loads((weights / "config.json").read_text())
    config["classes"][1:3] = config["classes"][2:0:-1]
    (weights / "config.json").write_text(json.dumps(config))
    line = refused_here("run", make_job(methods={"mask_ddpm": {"weights": str(weights)}}))
    assert "whose class 1 is road: in scenes it is building" in line


def test_fewer_steps_than_the_ancestral_sampler_visits(
    refused_here: Refused, make_job: JobFactory, scenes_weights: Path
) -> None:
    method = {"weights": str(scenes_weights), "sampler": "ancestral", "steps": 50}
    line = refused_here("run", make_job(methods={"mask_ddpm": method}))
    assert "methods.mask_ddpm.steps: the ancestral sampler visits every step: 1000, not 50" in line


def test_sources_that_are_not_there(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    line = refused_here("run", make_job(sources=str(tmp_path / "store")))
    assert f"{tmp_path / 'store'}: no source store here" in line


def test_evaluation_split(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store", split="val")
    line = refused_here("run", make_job(sources=str(store)))
    assert f"{store}: split val is for evaluation" in line
    assert "allow_splits: [val]" in line


# Output


def test_unwritable_output(refused: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir(mode=0o555)
    line = refused("run", make_job(), preexec_fn=without_override)
    assert f"{root} is not a writable folder" in line


def test_unwritable_store(refused: Refused, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = ["ingest", "scenes", "4@32x32", "--split", "train", "--out", closed / "store"]
    line = refused(*words, preexec_fn=without_override)
    assert f"{closed} is not a writable folder" in line


def test_output_below_a_file(refused_here: Refused, make_job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    line = refused_here("run", make_job())
    assert f"{tmp_path / 'runs'} is not a writable folder" in line


@pytest.mark.parametrize("key", ["", "somebody"])
def test_object_store_that_does_not_answer(refused: Refused, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Without credentials, and with them where nobody listens."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, key)
    line = refused("status", "s3://bucket/runs/tiny/v1")
    assert "segdatagen: s3://bucket/runs/tiny/v1: the object store does not serve this (" in line


def test_unsupported_storage(refused_here: Refused, make_job: JobFactory) -> None:
    line = refused_here("run", make_job(output={"root": "ftp://host/runs"}))
    assert "ftp:// is not supported" in line


@pytest.fixture
def planned_run(make_job: JobFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A run that is planned."""
    assert main(["plan", str(make_job())]) == 0
    return tmp_path / "runs" / "tiny" / "v1"


def test_another_content_recipe_at_the_same_address(refused: Refused, make_job: JobFactory, planned_run: Path) -> None:
    line = refused("run", make_job(seed=7))
    assert f"{planned_run}: made by another recipe" in line
    assert "mask_ddpm.seed: 0 -> 7" in line


def test_a_plan_of_another_content_recipe(refused_here: Refused, make_job: JobFactory, planned_run: Path) -> None:
    line = refused_here("plan", make_job(geometry={"size": [40, 32]}))
    assert f"{planned_run}: made by another recipe" in line
    assert "mask_ddpm.geometry.size: [32, 32] -> [40, 32]" in line


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
    assert f"{address}: is being run by process {os.getpid()} on " in line
    assert visible(address) == {}


# Runs


def test_not_a_run_folder(refused: Refused, tmp_path: Path) -> None:
    assert f"{tmp_path}: not a run folder" in refused("status", tmp_path)


@pytest.mark.parametrize("verb", ["status", "verify", "publish", "regenerate"])
@pytest.mark.parametrize("place", ["nowhere", "empty", "a file"])
def test_not_a_run_folder_anywhere(refused_here: Refused, tmp_path: Path, verb: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("not a run")
    more = {"regenerate": [17, "--out", tmp_path / "again"], "verify": ["--deep"]}
    assert f"{tmp_path / place}: not a run folder" in refused_here(verb, tmp_path / place, *more.get(verb, []))


def test_a_run_of_another_format(refused_here: Refused, planned_run: Path) -> None:
    info = planned_run / "run.json"
    info.write_text(json.dumps({"format_version": "99"}))
    assert f"{info}: not a run of format 1" in refused_here("status", planned_run)


def test_regenerate_an_unknown_sample(refused_here: Refused, planned_run: Path, tmp_path: Path) -> None:
    line = refused_here("regenerate", planned_run, 17, "--out", tmp_path / "again")
    assert "has no sample 17" in line


# Words


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fly"], "'fly'"),
        (["run"], "JOB.yaml"),
        (["run", "job.yaml", "--fast"], "--fast"),
        (["run", "job.yaml", "--limit", "none"], "--limit"),
        (["labels", "show", "nothing"], "'nothing'"),
        (["balance", "nowhere.json", "--n-balance", "3"], "nowhere.json"),
    ],
)
def test_wrong_words(refused_here: Refused, words: list[str], named: str) -> None:
    assert named in refused_here(*words)


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "not JSON"), ('{"classes": ["road"]}', "'images'"), ('{"classes": [], "images": {}}', "'classes'")],
)
def test_wrong_statistics(refused_here: Refused, tmp_path: Path, text: str, named: str) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(text)
    assert named in refused_here("balance", stats, "--n-balance", 3)


def test_no_cluster_at_the_address(refused: Refused, make_job: JobFactory) -> None:
    line = refused("run", make_job(), "--address", "127.0.0.1:1")
    assert "127.0.0.1:1" in line


def test_more_actors_than_processors(refused_on_ray: Refused, make_job: JobFactory) -> None:
    line = refused_on_ray("run", make_job(execution={"actors": 500}))
    assert "500 actors" in line
    assert "execution.actors" in line


def test_the_job_that_all_these_change_is_good(command: Command, make_job: JobFactory, tmp_path: Path) -> None:
    done = command("plan", make_job(), "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["num_rows"] == 2 * NUM_SCENES
    assert set(visible(tmp_path)) == {"job.yaml"}
