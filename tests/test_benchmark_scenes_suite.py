"""The benchmark of the small suite on models that nobody trained: every figure is there, shares are shares."""

import dataclasses
import math
from pathlib import Path

import pytest
from small_models import make_small_models

from segdatagen.benchmark.scenes_suite import GUIDED, SAVINGS, bench_scenes_suite, judge_suite
from segdatagen.errors import UsageError
from segdatagen.scenes_suite import SHIPPED, SuiteWeights

NUM_SCENES = 9


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> SuiteWeights:
    folder = tmp_path_factory.mktemp("suite")
    make_small_models(folder)
    names = ("base", "text2mask", "controlnet", "t2i_adapter", "captioner", "clip")
    return dataclasses.replace(SHIPPED, **{name: str(folder / name) for name in names})


@pytest.mark.slow
def test_every_model_is_judged(ray_session: None, weights: SuiteWeights) -> None:
    figures = judge_suite(NUM_SCENES, weights, image_steps=2, mask_steps=2)
    assert figures["images"] == NUM_SCENES
    speeds = {name: value for name, value in figures.items() if name.endswith("times_as_fast")}
    assert len(speeds) == len(SAVINGS)
    assert all(value > 0 for value in speeds.values())
    others = {"images", "size", "threads", *speeds}
    shares = {name: float(value) for name, value in figures.items() if name not in others}
    assert all(0 <= value <= 1 or math.isnan(value) for name, value in shares.items() if "adherence" not in name)
    assert {f"{name}_adherence" for name in (*GUIDED, "vae", "imgsyn", "masksyn", "mask_ddpm")} <= shares.keys()
    # What was trained follows its masks and nobody else's; what was not follows none.
    assert shares["mask_ddpm_adherence"] > 2 * shares["mask_ddpm_adherence_shuffled"]
    assert shares["imgsyn_adherence"] < 0.3
    assert shares["masksyn_accepted"] == 0


def test_weights_that_are_not_there_are_named_before_anything_starts(weights: SuiteWeights, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no weights at"):
        judge_suite(NUM_SCENES, dataclasses.replace(weights, clip=str(tmp_path / "clip")))
    with pytest.raises(UsageError, match=f"there are no weights at {tmp_path}/scenes-base/weights"):
        bench_scenes_suite(str(tmp_path))
