"""Experiments: every mixture trained alike, each training once, figures that an oracle confirms, refusals in a line."""

import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import NUM_SCENES, Refused, make_scenes_store
from published_samples import SIZE, make_published
from tiny_training import newest_of

from segdatagen.cli import main
from segdatagen.experiment.results import CellResult, Results, Spread
from segdatagen.experiment.run import ExperimentProgress, run_experiment
from segdatagen.geometry import Geometry
from segdatagen.labels import load_label_set
from segdatagen.segmenters import Segmenter
from segdatagen.sources import open_store, read_arrays

STEPS = 3
RARE = ("car", "tree")
Configure = Callable[..., Path]


def fields(folder: Path, stores: dict[str, Path], out: Path) -> dict[str, Any]:
    """An experiment of eight trainings: two sets of real images, one of them with two mixtures; two seeds."""
    synthetic = {
        "once": {"runs": [str(stores["run"])], "p_aug": 0.5},
        "twice": {"runs": [str(stores["run"]), str(stores["other_run"])], "p_aug": 0.75},
    }
    return {
        "out": str(out),
        "test": str(stores["test"]),
        "rare": list(RARE),
        "seeds": [0, 5],
        "training": {
            "size": [SIZE, SIZE],
            "steps": STEPS,
            "batch_size": 2,
            "learning_rate": 3e-3,
            "hidden": [8, 8, 8, 8],
            "depths": [1, 1, 1, 1],
            "heads": [1, 1, 1, 1],
            "decoder_hidden": 8,
            "checkpoint_every": 1,
            "torch_threads": 1,
        },
        "real": {
            "few": {"sources": str(stores["few"])},
            "more": {"sources": str(stores["more"]), "synthetic": synthetic},
        },
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, scenes_store: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experiment")
    sources = open_store(str(scenes_store)).info.fingerprint
    few = make_scenes_store(folder / "few", 3)
    of_few = open_store(str(few)).info.fingerprint
    return {
        "few": few,
        "more": scenes_store,
        "test": make_scenes_store(folder / "test", 4, split="test"),
        "run": make_published(folder / "run", [[11, 12, 13]], recipe={"sources": sources}, sources=scenes_store),
        "other_run": make_published(folder / "other_run", [[14, 15]], recipe={"sources": of_few}, sources=few),
    }


@pytest.fixture
def configure(tmp_path: Path, stores: dict[str, Path]) -> Configure:
    """`configure(seeds=[1])`: the file of an experiment into `tmp_path/out`; a field of `training` replaces its own."""

    def make(**changes: Any) -> Path:
        found = fields(tmp_path, stores, tmp_path / "out")
        found["training"] |= changes.pop("training", {})
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(found | changes))
        return path

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Path]) -> Results:
    """The experiment of `fields`, run to its end. Only to be read."""
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(fields(folder, stores, folder / "out")))
    return run_experiment(str(path), lambda found: None, local=True)


def test_every_mixture_is_trained_with_every_seed(whole: Results) -> None:
    cells = {(cell.real, cell.synthetic, cell.seed): Path(cell.out) for cell in whole.cells}
    mixtures = [("few", "alone"), ("more", "alone"), ("more", "once"), ("more", "twice")]
    assert set(cells) == {(*mixture, seed) for mixture in mixtures for seed in (0, 5)}
    assert [(row.real, row.synthetic) for row in whole.rows] == mixtures
    assert [(row.num_real, row.num_synthetic, row.p_aug) for row in whole.rows] == [
        (3, 0, 0.0),
        (NUM_SCENES, 0, 0.0),
        (NUM_SCENES, 3, 0.5),
        (NUM_SCENES, 5, 0.75),
    ]
    for (real, synthetic, seed), out in cells.items():
        assert out.parts[-3:] == (real, synthetic, f"seed-{seed}")
        checkpoint = newest_of(out / "checkpoints")
        assert (checkpoint.step, checkpoint.facts["fixed"]["seed"]) == (STEPS, seed)
        assert set(checkpoint.facts["frozen"]) == (set() if synthetic == "alone" else {"synthetic data", "p_aug"})
    weights = [(out / "weights" / "model.safetensors").read_bytes() for out in cells.values()]
    assert len(set(weights)) == len(weights)


def test_figures_are_those_of_the_stored_weights_on_the_test_images(whole: Results) -> None:
    images, channels, labels, _ = read_arrays(whole.test, Geometry(size=(SIZE, SIZE)))
    assert whole.num_test == len(images) == 4
    assert whole.classes == tuple(labels.names[channel] for channel in np.unique(channels[channels >= 0]))
    for cell in whole.cells:
        found = Segmenter(f"{cell.out}/weights", labels.names).predict(images)
        for name in whole.classes:
            given, predicted = channels == labels.channel_of(name), (found == labels.channel_of(name)) & (channels >= 0)
            expected = (given & predicted).sum() / (given | predicted).sum()
            assert cell.iou[name] == pytest.approx(expected, abs=1e-5)
        assert cell.mean_iou == pytest.approx(np.mean(list(cell.iou.values())))
        assert cell.rare_mean_iou == pytest.approx(np.mean([cell.iou[name] for name in RARE]))


def test_rows_spread_over_seeds_and_differ_from_the_same_seed_alone(whole: Results) -> None:
    def of(real: str, synthetic: str) -> list[CellResult]:
        return [cell for cell in whole.cells if (cell.real, cell.synthetic) == (real, synthetic)]

    for row in whole.rows:
        mine, alone = of(row.real, row.synthetic), of(row.real, "alone")
        for figure, spread, difference in (
            ("mean_iou", row.mean_iou, row.difference),
            ("rare_mean_iou", row.rare_mean_iou, row.rare_difference),
        ):
            values = [getattr(cell, figure) for cell in mine]
            beside = [value - getattr(cell, figure) for value, cell in zip(values, alone, strict=True)]
            for found, expected in ((spread, values), (difference, beside)):
                assert found.mean == pytest.approx(sum(expected) / 2)
                assert found.deviation == pytest.approx(abs(expected[0] - expected[1]) / np.sqrt(2))
                assert (found.least, found.greatest) == (min(expected), max(expected))
        assert row.iou["car"] == Spread.of([cell.iou["car"] for cell in mine])
    assert Spread.of([0.25]).deviation is None
    assert Spread.of([1.0, 2.0, 6.0]).deviation == statistics.stdev([1.0, 2.0, 6.0])


def test_results_are_stored_as_figures_and_as_a_page(whole: Results) -> None:
    out = Path(whole.out)
    assert Results.model_validate_json((out / "results.json").read_text()) == whole
    page = (out / "results.md").read_text()
    alone, once = (row for row in whole.rows[1:3])
    assert f"| more: 6 | none | - | {alone.mean_iou.mean:.3f} ± {alone.mean_iou.deviation:.3f} (" in page
    assert f"| more: 6 | once: 3 | 0.5 | {once.mean_iou.mean:.3f} ± {once.mean_iou.deviation:.3f} (" in page
    assert f"| {once.difference.mean:+.3f} ± {once.difference.deviation:.3f} (" in page
    assert "Made from other sources than the real images beside them: more twice." in page
    classes = page[page.index("## IoU per class, more, rare ones first") :]
    assert classes.index("**car**") < classes.index("**tree**") < classes.index("| road |")


def test_a_stopped_experiment_goes_on_and_ends_as_one_that_was_not(configure: Configure, whole: Results) -> None:
    def stop(found: ExperimentProgress) -> None:
        if (found.cell, found.report.step) == ("more once seed 0", 2):
            raise KeyboardInterrupt

    path = configure()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(str(path), stop, local=True)
    reports: list[ExperimentProgress] = []
    results = run_experiment(str(path), reports.append, local=True)
    assert (reports[0].cell, reports[0].report.step) == ("more once seed 0", 2)
    assert [found.step for found in reports] == list(range(2 * STEPS + 2, 8 * STEPS + 1))
    assert {found.steps for found in reports} == {8 * STEPS}
    assert [row.mean_iou for row in results.rows] == [row.mean_iou for row in whole.rows]
    for mine, expected in zip(results.cells, whole.cells, strict=True):
        files = [Path(cell.out) / "weights" / "model.safetensors" for cell in (mine, expected)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_ray_trains_the_same(ray_session: None, configure: Configure, whole: Results) -> None:
    reports: list[ExperimentProgress] = []
    results = run_experiment(str(configure()), reports.append)
    assert [cell.iou for cell in results.cells] == [cell.iou for cell in whole.cells]
    assert {found.cell for found in reports} == {f"{c.real} {c.synthetic} seed {c.seed}" for c in whole.cells}
    assert max(found.step for found in reports) == 8 * STEPS
    for mine, expected in zip(results.cells, whole.cells, strict=True):
        files = [Path(cell.out) / "weights" / "model.safetensors" for cell in (mine, expected)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_that_fails_on_ray_ends_in_one_line(
    refused_on_ray: Refused, configure: Configure, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is anything begun on a cluster that has no place for it."""
    path = configure(training={"use_gpu": True})
    assert "1 worker needs 1 GPU but the cluster has 0: set use_gpu to false" in refused_on_ray("experiment", path)
    path = configure(seeds=[1], training={"learning_rate": 1e30})
    assert main(["experiment", str(path)]) == 1
    *meter, line = capfd.readouterr().err.splitlines()
    assert all(shown.startswith("experiment, steps: ") for shown in meter)
    assert re.match(r"segdatagen: a training of the experiment failed \(.*(loss of step|are no numbers)", line)


def test_what_is_new_is_trained_and_nothing_else_again(configure: Configure, stores: dict[str, Path]) -> None:
    few = {"few": {"sources": str(stores["few"])}}
    run_experiment(str(configure(real=few, seeds=[1])), lambda found: None, local=True)
    more = {"few": few["few"] | {"synthetic": {"other": {"runs": [str(stores["other_run"])], "p_aug": 1}}}}
    reports: list[ExperimentProgress] = []
    results = run_experiment(str(configure(real=more, seeds=[1, 2])), reports.append, local=True)
    assert list(dict.fromkeys(found.cell for found in reports)) == [
        "few other seed 1",
        "few alone seed 2",
        "few other seed 2",
    ]
    reports.clear()
    judged = run_experiment(str(configure(real=more, seeds=[1, 2], rare=["road"])), reports.append, local=True)
    assert judged.cells != results.cells
    assert reports == []


def test_the_command_prints_a_table_or_one_object(configure: Configure, capfd: pytest.CaptureFixture[str]) -> None:
    few = configure(seeds=[3], real={"few": yaml.safe_load(configure().read_text())["real"]["few"]})
    assert main(["experiment", str(few), "--local"]) == 0
    printed = capfd.readouterr().out
    assert "few: 3" in printed
    assert "results.md" in printed
    assert main(["experiment", str(few), "--local", "--json"]) == 0
    found = Results.model_validate(json.loads(capfd.readouterr().out))
    assert [cell.seed for cell in found.cells] == [3]
    assert f"{found.rows[0].mean_iou.mean:.3f}" in printed


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("`experiment` with an unknown key", {"seedz": [1]}),
        ("`experiment` with an unknown key of its trainings", {"training": {"stepz": 3}}),
        ("`experiment` with a seed of its trainings", {"training": {"seed": 3}}),
        ("`experiment` with trainings of no size", {"training": {"size": [30, 32]}}),
        ("`experiment` with heads that do not divide", {"training": {"heads": [3, 1, 1, 1]}}),
        ("`experiment` that goes on from another network", {"training": {"init_weights": "builtin:scenes-segmenter"}}),
        ("`experiment` with a seed that stands twice", {"seeds": [0, 1, 0]}),
        ("`experiment` without a seed", {"seeds": []}),
        ("`experiment` without real images", {"real": {}}),
        ("`experiment` with a rare class that there is not", {"rare": ["unicorn"]}),
        ("`experiment` with a test store that is not there", {"test": "nothing"}),
    ],
)
def test_wrong_experiment(refused_here: Refused, configure: Configure, row: str, changes: dict[str, Any]) -> None:
    refused_here("experiment", configure(**changes), row=row)


def test_experiment_that_is_not_there(refused_here: Refused, tmp_path: Path) -> None:
    refused_here("experiment", tmp_path / "experiment.yaml", row="an experiment file that is not there")


def test_wrong_data_of_an_experiment(
    refused_here: Refused, configure: Configure, stores: dict[str, Path], tmp_path: Path
) -> None:
    few, run = str(stores["few"]), str(stores["run"])
    test = open_store(str(stores["test"])).info.fingerprint
    empty = make_scenes_store(tmp_path / "empty", 1, split="test")
    relabelled = shutil.copytree(stores["test"], tmp_path / "relabelled") / "labels.yaml"
    relabelled.write_text(relabelled.read_text().replace("version: '1'", "version: '2'"))
    make_published(tmp_path / "cheat", [[1]], recipe={"sources": test})
    larger = make_scenes_store(tmp_path / "larger", 6, split="test")
    of_larger = open_store(str(larger)).info.fingerprint
    make_published(tmp_path / "leak", [[1]], recipe={"sources": of_larger}, sources=larger)
    make_published(tmp_path / "again", [[1]], recipe={"sources": "of last week"}, sources=larger)
    make_published(tmp_path / "orphan", [[1]], recipe={"sources": "elsewhere"}, sources=tmp_path / "gone")
    make_published(tmp_path / "labels", [[1]], labels=load_label_set("camvid"))
    shown = set(np.unique(read_arrays(str(empty), Geometry(size=(SIZE, SIZE)))[1]).tolist())
    absent = next(label.name for n, label in enumerate(load_label_set("scenes").classes) if n not in shown)

    def real(**synthetic: Any) -> dict[str, Any]:
        return {"few": {"sources": few, "synthetic": synthetic}}

    for row, changes in (
        ("`experiment` with sources that are not there", {"real": {"few": {"sources": "nothing"}}}),
        ("`experiment` that tests on images it trains on", {"test": str(stores["more"])}),
        ("`experiment` with a test store of other labels", {"test": str(tmp_path / "relabelled")}),
        ("`experiment` with a negative `p_aug`", {"real": real(some={"runs": [run], "p_aug": -1})}),
        ("`experiment` with a run that is not there", {"real": real(some={"runs": ["nothing"]})}),
        ("`experiment` with a run of other labels", {"real": real(some={"runs": [str(tmp_path / "labels")]})}),
        ("`experiment` with a run of the test images", {"real": real(some={"runs": [str(tmp_path / "cheat")]})}),
        (
            "`experiment` with a run whose sources hold test images",
            {"real": real(some={"runs": [str(tmp_path / "leak")]})},
        ),
        (
            "`experiment` with a run whose sources are out of reach",
            {"real": real(some={"runs": [str(tmp_path / "orphan")]})},
        ),
        (
            "`experiment` with a run whose sources were ingested anew",
            {"real": real(some={"runs": [str(tmp_path / "again")]})},
        ),
        ("`experiment` with a mixture called `alone`", {"real": real(alone={"runs": [run]})}),
        ("`experiment` with a name that is none", {"real": {"a/b": {"sources": few}}}),
        ("`experiment` with a rare class that no test image shows", {"test": str(empty), "rare": [absent]}),
    ):
        refused_here("experiment", configure(**changes), row=row)


def test_another_experiment_at_the_same_place(
    refused_here: Refused, configure: Configure, stores: dict[str, Path]
) -> None:
    real = {"few": {"sources": str(stores["few"])}}
    run_experiment(str(configure(real=real, seeds=[1])), lambda found: None, local=True)
    path = configure(real=real, seeds=[1], training={"learning_rate": 1e-3})
    refused_here("experiment", path, row="`experiment` with another learning rate than the cells that are there")
    path = configure(real={"few": {"sources": str(stores["more"])}}, seeds=[1])
    refused_here("experiment", path, row="`experiment` with other images than the cells that are there")
