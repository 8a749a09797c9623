"""Every option of a recipe reaches a stage: who changes one builds that stage with it, and all the others as before."""

import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from conftest import JobFactory, make_weights
from pydantic import BaseModel
from tiny_latent import save_models
from tiny_segmenter import make_segmenter

from segdatagen.job import Job, load_job
from segdatagen.labels import load_label_set
from segdatagen.method_context import method_contexts
from segdatagen.methods import content_recipes, stages_of
from segdatagen.prompts import TokenBudget
from segdatagen.sources import open_store

Fields = dict[str, Any]
LABELS = load_label_set("scenes")
SKY_AND_ROAD = sorted(int(LABELS.ids[LABELS.channel_of(name)]) for name in ("sky", "road"))
STAGES = (
    *("methods.LoadSource", "latent_methods.LoadSource", "latent_methods.PromptStage"),
    *("stages.captioner.CaptionerStage", "stages.prior.PriorStage", "stages.latent.LatentStage"),
    *("stages.text2mask.LayoutSeedStage", "stages.text2mask.Text2MaskStage", "stages.mask_ddpm.MaskDDPMStage"),
    *("stages.adherence.AdherenceStage", "stages.ignore_noisy.IgnoreNoisyStage", "stages.limits.LimitsStage"),
)
"""Where those who build a stage look for it."""
BASE, OTHER = "{models}/base", "{models}/inpainter"
JUDGE, OTHER_JUDGE = "{models}/segmenter", "{models}/other_segmenter"
CONTROLNET = {"kind": "controlnet", "weights": "{models}/controlnet", "prior": {"name": "colour_map", "of": "mask"}}
ADAPTER = {"kind": "t2i_adapter", "weights": "{models}/adapter", "prior": {"name": "canny"}}
DRAWN = {"best_of": {"candidates": 2, "segmenter": JUDGE}}
LATENT = {"base": BASE, "base_config": BASE, "controls": [CONTROLNET], "sampler": {"steps": 2}} | DRAWN
METHODS: dict[str, Fields] = {
    "mask_ddpm": {"weights": "{models}/mask_ddpm", "steps": 2} | DRAWN,
    "imgsyn": LATENT,
    "masksyn": LATENT | {"text2mask": {"weights": BASE, "base_config": BASE}, "layout": {"min_distance": 0}},
    "guided": LATENT | {"controls": [ADAPTER]},
    "inpaint": LATENT | {"classes": ["sky"]},
}
SHARED: Fields = {
    "geometry": {"size": [32, 32]},
    "output": {"root": "{models}/runs"},
    "filters": {"blank": {"redraws": 1}, "ignore_noisy": {"segmenter": JUDGE}},
}

Changes = dict[str, tuple[Any, Fields]]
"""Options of a method, or fields of a job, by what they become, and what a stage is told then."""
OF_THE_JOB: Changes = {
    "job.filters.blank.redraws": (5, {"mask2img.options.redraws.times": 5}),
    "job.filters.blank.redraw_below": (7.5, {"mask2img.options.redraws.below": 7.5}),
    "job.filters.ignore_noisy.factor": (3.5, {"ignore_noisy.factor": 3.5}),
    "job.filters.ignore_noisy.segmenter": (OTHER_JUDGE, {"ignore_noisy.segmenter": OTHER_JUDGE}),
    "job.geometry.fit": ("pad", {"load.geometry.fit": "pad"}),
    "job.output.image_format": ("png", {"mask2img.options.image_format": "png"}),
    "best_of.candidates": (3, {"mask2img.best_of.count": 3}),
    "best_of.segmenter": (OTHER_JUDGE, {"mask2img.best_of.judge.segmenter": OTHER_JUDGE}),
}
OF_LATENT: Changes = {
    "base": (OTHER, {"mask2img.options.base": OTHER}),
    "base_config": (OTHER, {"mask2img.options.base_config": OTHER}),
    "controls.0.scale": (0.3, {"mask2img.options.controls.0.scale": 0.3}),
    "controls.0.prior.w1": (0.3, {"prior.options.prior.w1": 0.3, "mask2img.options.controls.0.prior.w1": 0.3}),
    "caption.kind": ("data_set", {"caption.options.kind": "data_set"}),
    "prompt.negative": ("blurry", {"prompt.options.negative": "blurry"}),
    "sampler.steps": (9, {"mask2img.options.sampler.steps": 9}),
    "numerics.channels_last": (True, {"mask2img.options.numerics.channels_last": True}),
}
OF_MASKS: Changes = {
    "job.seed": (9, {"layout.seed": 9}),
    "images_per_mask": (4, {"layout.images_per_mask": 4}),
    "caption.kind": ("classes", {"caption.options.kind": "classes"}),
    "text2mask.weights": (OTHER, {"text2mask.options.base": OTHER}),
    "text2mask.base_config": (OTHER, {"text2mask.options.base_config": OTHER}),
    "text2mask.sampler.steps": (9, {"text2mask.options.sampler.steps": 9}),
    "text2mask.numerics.channels_last": (True, {"text2mask.options.numerics.channels_last": True}),
    "layout.max_speckle": (0.25, {"text2mask.options.layout.max_speckle": 0.25}),
}
CHANGES: dict[str, Changes] = {
    "mask_ddpm": {
        "weights": ("{models}/other_ddpm", {"mask2img.options.weights": "{models}/other_ddpm"}),
        "dtype": ("bfloat16", {"mask2img.options.dtype": "bfloat16"}),
        "sampler": ("dpm++2m", {"mask2img.options.sampler.sampler": "dpm++2m"}),
        "steps": (9, {"mask2img.options.sampler.steps": 9}),
        "guidance": (1.5, {"mask2img.options.sampler.guidance": 1.5}),
        "thresholding": ("static", {"mask2img.options.sampler.thresholding": "static"}),
    },
    "imgsyn": OF_LATENT,
    "guided": OF_LATENT,
    "inpaint": OF_LATENT | {"classes": (["sky", "road"], {"mask2img.options.inpaint": SKY_AND_ROAD})},
    "masksyn": OF_LATENT | OF_MASKS,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_models(tmp_path_factory.mktemp("models"))
    for name, hidden in (("mask_ddpm", 4), ("other_ddpm", 8)):
        make_weights(folder / name, hidden=hidden)
    for name, seed in (("segmenter", 0), ("other_segmenter", 1)):
        make_segmenter(folder / name, seed=seed)
    return folder


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Job], Fields]:
    """`told(method, job)`: what each stage is built with, by its name and the path of the option."""

    def recorder(kind: Callable[..., Any]) -> Callable[..., Fields]:
        signature = inspect.signature(kind)
        return lambda *words, **named: dict(signature.bind(*words, **named).arguments)

    for name in STAGES:
        monkeypatch.setattr(f"segdatagen.{name}", recorder(resolve_name(f"segdatagen.{name}")))
    monkeypatch.setattr("segdatagen.judges._load_segmenter", lambda uri, *_: uri)
    monkeypatch.setattr("segdatagen.latent_methods.budget_of", lambda uri: TokenBudget([]))

    def build(method: str, job: Job) -> Fields:
        context = method_contexts(job, LABELS)[method]
        return dict(leaf for stage in stages_of(method, context) for leaf in leaves(stage.name, stage.build()))

    return build


def leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    """Numbers and words in a value, by their paths; what else there is, such as a tokenizer, is no option."""
    if isinstance(value, BaseModel) or is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in leaves(f"{path}.{name}", one)]
    if isinstance(value, tuple) and not all(isinstance(one, int) for one in value):
        return [leaf for place, one in enumerate(value) for leaf in leaves(f"{path}.{place}", one)]
    if isinstance(value, tuple):
        return [(path, list(value))]
    return [(path, value)] if value is None or isinstance(value, int | float | str) else []


def placed(fields: Fields, models: Path) -> Fields:
    """The same fields with the folder of the models in them."""
    found: Fields = json.loads(json.dumps(fields).replace("{models}", str(models)))
    return found


def changed(fields: Fields, path: str, value: Any) -> Fields:
    """The same fields, but for that at a path."""
    found = deepcopy(fields)
    *parents, name = path.split(".")
    inner: Any = found
    for parent in parents:
        inner = inner[int(parent)] if parent.isdigit() else inner.setdefault(parent, {})
    inner[name] = value
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_is_content_reaches_the_stage(
    make_job: JobFactory, models: Path, told: Callable[[str, Job], Fields], method: str
) -> None:
    plan = [{"method": method, "strategy": "uniform", "per_source": 1}]
    fields = SHARED | {"methods": {method: METHODS[method]}, "plan": plan}

    def job_of(said: Fields) -> Job:
        return load_job(str(make_job(**placed(said, models))))

    plain = job_of(fields)
    store = open_store(plain.sources)
    before, recipe = told(method, plain), content_recipes(plain, store)[method]
    changes = OF_THE_JOB | CHANGES[method]
    for path, (value, expected) in changes.items():
        of_job, of_method = path.removeprefix("job."), f"methods.{method}.{path}"
        job = job_of(changed(fields, of_method if of_job == path else of_job, value))
        after = told(method, job)
        differ = {place for place in before.keys() | after.keys() if after.get(place) != before.get(place)}
        assert {place: after[place] for place in expected} == placed(expected, models), path
        assert expected.keys() <= differ, path
        assert {place.split(".")[0] for place in differ} == {place.split(".")[0] for place in expected}, path
        assert content_recipes(job, store)[method] != recipe, path
    assert set(recipe["options"]) <= {path.split(".")[0] for path in changes}, "no option is left out above"
    assert {f"job.filters.{name}.{field}" for name, said in recipe["filters"].items() for field in said} <= set(changes)
