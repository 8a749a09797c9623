"""What a job file says of the latent engine: presets stand for their values, and what is off is no part of a recipe."""

from typing import Any

import pytest
from pydantic import ValidationError

from segdatagen.config_files import describe
from segdatagen.diffusion.latent_options import PRESETS, LatentSamplerOptions, Numerics
from segdatagen.errors import UsageError
from segdatagen.method_options import GuidedOptions, ImgSynOptions, MaskSynOptions
from segdatagen.run_folder import recipe_fingerprint

FROZEN = "ca1cd0b7955bcb062ec9df21cd471fc8"
"""Fingerprint of the options of a guided method that names nothing, before any of them could be named."""


CONTROL: dict[str, Any] = {"kind": "t2i_adapter", "weights": "w", "prior": {"name": "canny"}}


def guided(**more: Any) -> GuidedOptions:
    return GuidedOptions.model_validate({"base": "b", "controls": [CONTROL]} | more)


def fingerprint(**more: Any) -> str:
    return recipe_fingerprint(guided(**more).model_dump(mode="json"))


def test_a_recipe_that_names_no_new_option_is_what_it_was() -> None:
    assert fingerprint() == FROZEN
    assert fingerprint(numerics={"attention": "auto", "float8_weights": False}) == FROZEN
    assert fingerprint(sampler={"step_cache": None, "preset": None}) == FROZEN
    assert fingerprint(controls=[CONTROL | {"guided": False}]) == FROZEN


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"step_cache": {"every": 3}}},
        {"sampler": {"step_cache": {"every": 2}}},
        {"numerics": {"attention": "math"}},
        {"numerics": {"float8_weights": True}},
        {"sampler": {"preset": "seggen_text2mask"}},
        {"sampler": {"preset": "seggen_mask2img"}},
        {"controls": [CONTROL | {"guided": True}]},
    ],
)
def test_every_option_is_content(changes: dict[str, Any]) -> None:
    others = {fingerprint(), fingerprint(sampler={"step_cache": {"every": 4}})}
    assert fingerprint(**changes) not in others
    again = GuidedOptions.model_validate(guided(**changes).model_dump(mode="json"))
    assert again == guided(**changes), "a stored job is read as it was written"


@pytest.mark.parametrize(
    ("preset", "written_out"),
    [
        ("seggen_text2mask", {"scheduler": "euler", "steps": 200}),
        ("seggen_mask2img", {"scheduler": "euler", "steps": 40}),
        ("sga", {"steps": 30}),
    ],
)
def test_a_preset_is_what_its_paper_states(preset: str, written_out: dict[str, Any]) -> None:
    """And nothing else: what a paper leaves open is our default, and what is given beside it counts."""
    assert {str(name) for name in PRESETS} == {"seggen_text2mask", "seggen_mask2img", "sga"}
    options = LatentSamplerOptions.model_validate({"preset": preset})
    assert options == LatentSamplerOptions.model_validate(written_out)
    assert fingerprint(sampler={"preset": preset}) == fingerprint(sampler=written_out)
    beside = {"steps": 7, "guidance": 2.0, "scheduler": "unipc"}
    assert LatentSamplerOptions.model_validate({"preset": preset} | beside) == LatentSamplerOptions(**beside)


def seggen(sampler: dict[str, Any] | None, of: str) -> LatentSamplerOptions:
    """The sampler of a method, or of its Text2Mask, of a job that says this of it; None: nothing."""
    control = {"kind": "controlnet", "weights": "w", "prior": {"name": "colour_map", "of": "mask"}}
    said = {} if sampler is None else {"sampler": sampler}
    text2mask = {"weights": "t"} | (said if of == "text2mask" else {})
    options = {"base": "b", "controls": [control]} | ({} if of == "text2mask" else said)
    if of == "imgsyn":
        return ImgSynOptions.model_validate(options).sampler
    made = MaskSynOptions.model_validate(options | {"text2mask": text2mask})
    return made.text2mask.sampler if of == "text2mask" else made.sampler


@pytest.mark.parametrize(("of", "steps"), [("imgsyn", 40), ("masksyn", 40), ("text2mask", 200)])
def test_what_a_sampler_of_seggen_leaves_out_is_that_of_the_paper(of: str, steps: int) -> None:
    """And what it names is what it says."""
    ours = LatentSamplerOptions(scheduler="euler", steps=steps)
    for unnamed in (None, {}, {"preset": None}):
        assert seggen(unnamed, of) == ours
    assert seggen({"guidance": 4.0}, of) == ours.model_copy(update={"guidance": 4.0})
    assert seggen({"scheduler": "unipc"}, of) == ours.model_copy(update={"scheduler": "unipc"})
    assert seggen({"steps": 30}, of) == LatentSamplerOptions(steps=30)
    assert seggen({"preset": "sga"}, of) == LatentSamplerOptions(steps=30)
    assert seggen({"preset": "sga", "steps": 7}, of) == LatentSamplerOptions(steps=7)
    written = seggen({"guidance": 4.0}, of).model_dump(mode="json")
    assert seggen(written, of).model_dump(mode="json") == written, "a stored job is read as it was written"
    with pytest.raises(ValidationError) as error:
        seggen({"steps": 1001}, of)
    place = "text2mask.sampler" if of == "text2mask" else "sampler"
    wanted = f"{place}.steps: must be at most 1000, not 1001"
    assert describe(error.value, ImgSynOptions if of == "imgsyn" else MaskSynOptions) == wanted


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"preset": "seggen"}, "preset: must be 'seggen_text2mask', 'seggen_mask2img' or 'sga', not 'seggen'"),
        ({"preset": ["sga"]}, "preset: must be 'seggen_text2mask', 'seggen_mask2img' or 'sga', not ['sga']"),
        ({"step_cache": {"every": 0}}, "step_cache.every: must be at least 1, not 0"),
        ({"step_cache": {"every": 2.5}}, "step_cache.every: must be an integer, not 2.5"),
        ({"step_cache": {"every": True}}, "step_cache.every: must be an integer, not True"),
        ({"step_cache": {}}, "step_cache.every: missing"),
        ({"step_cache": 3}, "step_cache: must be a mapping of fields, not 3"),
    ],
)
def test_a_wrong_sampler_is_refused_in_a_line(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        LatentSamplerOptions.model_validate(data)
    assert describe(error.value, LatentSamplerOptions) == sentence


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "works"),
    [
        ("auto", "cpu", "float32", True),
        ("math", "cpu", "float32", True),
        ("flash", "cpu", "float32", True),
        ("efficient", "cpu", "float32", False),
        ("cudnn", "cpu", "bfloat16", False),
        ("flash", "cuda", "float32", False),
        ("flash", "cuda", "bfloat16", True),
        ("cudnn", "cuda", "float32", False),
        ("efficient", "cuda", "float32", True),
    ],
)
def test_attention_has_to_exist_on_the_device(attention: Any, device: str, dtype: Any, works: bool) -> None:
    numerics = Numerics(attention=attention, dtype=dtype)
    if works:
        numerics.require_usable(device)
        return
    with pytest.raises(UsageError, match=rf"^numerics.attention: {attention} needs "):
        numerics.require_usable(device)
