"""The experiment on scenes: its files fit together, and nothing that a column has not seen reaches it."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from segdatagen.config_files import read_config
from segdatagen.experiment.options import ALONE, ExperimentOptions
from segdatagen.goals import Balance
from segdatagen.job import load_job
from segdatagen.segmenters import build_segmenter
from segdatagen.training.mask_ddpm import MaskDDPMTrainingOptions
from segdatagen.training.segmenter import SegmenterTrainingOptions

FOLDER = REPOSITORY / "jobs" / "scenes_gain"
OUT = "out/scenes_gain"
JOBS = sorted(FOLDER.glob("*_job.yaml"))


@pytest.fixture(scope="module")
def experiment() -> ExperimentOptions:
    return read_config(ExperimentOptions, str(FOLDER / "experiment.yaml"))


def names_of(path: Path) -> tuple[str, str, str]:
    """Real images, generator and size, as a job file's name has them."""
    real, generator, ratio, _ = path.stem.split("_")
    return real, generator, ratio


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_what_its_name_says(path: Path) -> None:
    (real, generator, ratio), job = names_of(path), load_job(str(path))
    assert (job.sources, job.uri) == (f"{OUT}/{real}", f"{OUT}/runs/{real}-{generator}-{ratio}/v1")
    (goal,) = job.plan
    assert isinstance(goal, Balance)
    assert (goal.n_balance, goal.ratio) == ("auto", float(ratio.removesuffix("x")))
    assert job.methods.mask_ddpm is not None
    assert job.filters.adherence is not None
    own = read_config(MaskDDPMTrainingOptions, str(FOLDER / f"generator_{real}.yaml"))
    expected = {"own": f"{own.out}/weights", "pretrained": "builtin:scenes-mask-ddpm"}[generator]
    assert job.methods.mask_ddpm.weights == expected
    assert own.sources == job.sources
    judge = read_config(SegmenterTrainingOptions, str(FOLDER / f"judge_{real}.yaml"))
    assert job.filters.adherence.segmenter == f"{judge.out}/weights"
    assert (judge.sources, judge.init_weights, own.init_weights) == (job.sources, None, None)


def test_jobs_differ_in_what_their_names_say_alone() -> None:
    def without_names(path: Path) -> str:
        text = path.read_text().split("\nname:", 1)[1]
        for name in (*names_of(path), "generator_*/weights"):
            text = text.replace(name, "*")
        text = re.sub(r"weights: \S+, sampler", "weights: *, sampler", text)
        return re.sub(r"ratio: [12]\.0", "ratio: *", text)

    assert len(JOBS) == 8
    assert len({without_names(path) for path in JOBS}) == 1


def test_the_experiment_compares_each_run_beside_its_own_sources(experiment: ExperimentOptions) -> None:
    mixtures = {
        (real, name): options for real, wanted in experiment.real.items() for name, options in wanted.synthetic.items()
    }
    runs = {
        (real, f"{generator}-{ratio}"): load_job(str(path))
        for path in JOBS
        for real, generator, ratio in [names_of(path)]
    }
    controls = {(real, "repeated-2x"): (real, "own-2x") for real in experiment.real}
    assert mixtures.keys() == runs.keys() | controls.keys()
    for (real, name), options in mixtures.items():
        job = runs[controls.get((real, name), (real, name))]
        assert options.runs == (job.uri,)
        assert options.images == ("sources" if (real, name) in controls else "samples")
        assert experiment.real[real].sources == job.sources
    assert len({options.p_aug for options in mixtures.values()}) == 1
    cells = list(experiment.cells())
    assert len(cells) == 36
    assert sum(cell.synthetic == ALONE for cell in cells) == 6


def test_nothing_is_trained_on_the_test_scenes_and_judges_are_no_cells(experiment: ExperimentOptions) -> None:
    judges = [read_config(SegmenterTrainingOptions, str(path)) for path in FOLDER.glob("judge_*.yaml")]
    assert {judge.sources for judge in judges} == {options.sources for options in experiment.real.values()}
    for judge in judges:
        assert experiment.test not in (judge.sources, judge.validation)
        assert judge.seed not in experiment.seeds
        cell = next(experiment.cells()).options
        assert (judge.network(12), judge.steps, judge.batch_size) == (cell.network(12), cell.steps, cell.batch_size)


def test_the_segmenter_has_at_most_a_million_parameters(experiment: ExperimentOptions) -> None:
    with torch.device("meta"):
        network = build_segmenter(next(experiment.cells()).options.network(12))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count <= 1_000_000
    assert f"{count:,} parameters" in (FOLDER / "README.md").read_text()


def test_one_command_does_everything_that_the_files_name(tmp_path: Path) -> None:
    """Run with a `segdatagen` that only writes down what it is told."""
    checkout, told = tmp_path / "checkout", tmp_path / "told"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / "jobs").symlink_to(REPOSITORY / "jobs")
    spy = checkout / ".venv" / "bin" / "segdatagen"
    spy.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    spy.chmod(0o755)
    script = checkout / "all.sh"
    script.write_text((FOLDER / "all.sh").read_text().replace('cd "$(dirname "$0")/../.."', f"cd {checkout}"))
    subprocess.run(["bash", str(script)], check=True)
    commands = told.read_text().splitlines()
    files = [re.findall(r"jobs/scenes_gain/(\S+\.yaml)", line) for line in commands]
    assert sorted(name for names in files for name in names) == sorted(path.name for path in FOLDER.glob("*.yaml"))
    published = [line.removeprefix("publish ") for line in commands if line.startswith("publish ")]
    assert published == [load_job(str(FOLDER / names[0])).uri for names in files if names and "_job" in names[0]]
    stores = {line.split(" --out ")[1] for line in commands if line.startswith("ingest ")}
    assert stores == {f"{OUT}/{name}" for name in ("n46", "n183", "val", "test")}
    assert commands[-1] == "experiment jobs/scenes_gain/experiment.yaml"
