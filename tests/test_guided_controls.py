"""Controls that guidance leads towards: at batch 1 those of diffusers, by arithmetic the ones that guidance means."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from tiny_denoising import (
    CALL,
    CLOSE,
    NEGATIVE,
    PROMPTS,
    condition,
    controlnet_of,
    copy_of,
    options_of,
    ours,
    pictures,
    quiet_pipeline,
    seeded,
    seeded_network,
    text_of,
    with_scheduler,
)
from tiny_latent import make_adapter
from torch import Tensor

from segdatagen.diffusion.conditions import AdapterCondition, ControlCondition, ControlEncoder, encode_adapter
from segdatagen.diffusion.denoise import SCHEDULERS, LatentNetwork, denoise
from segdatagen.diffusion.latent_options import LatentSamplerOptions, SchedulerName
from segdatagen.diffusion.text import TextEncoder

GUIDANCE = 4.0
Controls = dict[str, list[ControlCondition] | list[AdapterCondition]]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return quiet_pipeline()


@pytest.fixture(scope="module")
def text(pipeline: StableDiffusionXLPipeline) -> TextEncoder:
    return text_of(pipeline)


@pytest.fixture(scope="module")
def controlnet(pipeline: StableDiffusionXLPipeline) -> ControlNetModel:
    return controlnet_of(pipeline)


@pytest.fixture(scope="module")
def controls(controlnet: ControlNetModel) -> Callable[[bool, bool], Controls]:
    """A ControlNet and a T2I-Adapter for two sources, each guided or not."""
    encoder, adapter = ControlEncoder(copy_of(controlnet)), seeded_network(make_adapter, 2)

    def make(controlnet_guided: bool, adapter_guided: bool) -> Controls:
        return {
            "controls": [encoder.encode(pictures(3), 0.8, guided=controlnet_guided)],
            "adapters": [encode_adapter(adapter, pictures(4), 0.9, guided=adapter_guided)],
        }

    return make


def in_one_pass(network: ControlNetModel) -> ControlNetModel:
    """Without the weights by resolution that diffusers' guess mode gives what a ControlNet adds."""

    def forward(*arguments: Any, **named: Any) -> Any:
        return ControlNetModel.forward(network, *arguments, **named | {"guess_mode": False})

    network.forward = forward
    return network


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_guided_controlnet_is_that_of_diffusers(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controlnet: ControlNetModel, name: SchedulerName
) -> None:
    theirs = with_scheduler(
        StableDiffusionXLControlNetPipeline, pipeline, name, controlnet=in_one_pass(copy_of(controlnet))
    )
    picture = pictures(3, 1)
    wanted = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=picture,
        generator=seeded(7),
        controlnet_conditioning_scale=0.8,
        guess_mode=True,
        **CALL,
    ).images
    encoder = ControlEncoder(copy_of(controlnet))

    def drawn(guided: bool) -> np.ndarray:
        control = encoder.encode(picture, 0.8, guided=guided)
        return ours(pipeline, condition(text, PROMPTS[:1], controls=[control]), options_of(name), [0], [7])

    np.testing.assert_allclose(drawn(guided=True), wanted, atol=CLOSE, rtol=0)
    assert np.abs(drawn(guided=False) - wanted).max() > 100 * CLOSE, "it makes a difference"


@pytest.mark.parametrize("controlnet_guided", [False, True])
@pytest.mark.parametrize("adapter_guided", [False, True])
def test_guidance_leads_from_what_is_not_guided_to_everything(
    pipeline: StableDiffusionXLPipeline,
    text: TextEncoder,
    controls: Callable[[bool, bool], Controls],
    controlnet_guided: bool,
    adapter_guided: bool,
) -> None:
    """A step of Euler's is linear in the prediction: the two that guidance starts from can be drawn by themselves."""
    rows, seeds = [0, 1, 1], [7, 8, 9]

    def drawn(prompts: list[str], guidance: float, seen: Controls) -> Tensor:
        options = LatentSamplerOptions(scheduler="euler", steps=1, guidance=guidance)
        network = LatentNetwork(pipeline.unet, pipeline.scheduler.config)
        generators = [seeded(seed) for seed in seeds]
        return denoise(network, condition(text, prompts, **seen), torch.tensor(rows), generators, options)

    given = controls(controlnet_guided, adapter_guided)
    left = {kind: [one for one in seen if not one.guided] for kind, seen in given.items()}
    without, with_everything = drawn([NEGATIVE] * 2, 1.0, left), drawn(PROMPTS, 1.0, given)
    wanted = without + GUIDANCE * (with_everything - without)
    found = drawn(PROMPTS, GUIDANCE, given)
    assert wanted.std() > 0.05
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)


def test_a_guided_controlnet_runs_for_the_half_with_the_prompt(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controlnet: ControlNetModel
) -> None:
    network = copy_of(controlnet)
    batches: list[int] = []
    network.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    encoder = ControlEncoder(network)
    for guided, expected in ((False, [6] * 4), (True, [3] * 4)):
        batches.clear()
        seen = condition(text, PROMPTS, controls=[encoder.encode(pictures(3), guided=guided)])
        ours(pipeline, seen, options_of("euler"), [0, 1, 1], [7, 8, 9])
        assert batches == expected


def test_rows_with_guided_controls_are_never_crossed(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controls: Callable[[bool, bool], Controls]
) -> None:
    seen = condition(text, PROMPTS, **controls(True, True))
    rows, seeds = [0, 0, 1, 1], [7, 8, 9, 7]
    together = ours(pipeline, seen, options_of("euler"), rows, seeds)
    for place, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        alone = ours(pipeline, seen, options_of("euler"), [row], [seed])
        np.testing.assert_allclose(together[place], alone[0], atol=CLOSE, rtol=0)
        crossed = ours(pipeline, seen, options_of("euler"), [1 - row], [seed])
        assert np.abs(together[place] - crossed[0]).max() > 100 * CLOSE


def test_a_step_cache_of_every_step_changes_no_bit_of_them(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controls: Callable[[bool, bool], Controls]
) -> None:
    """Also where some steps have no guidance, and the ControlNet runs for all rows of half the batch."""
    seen = condition(text, PROMPTS, **controls(True, True))
    seen = replace(seen, controls=[replace(one, end=0.75) for one in seen.controls])
    scheduler = LatentNetwork(pipeline.unet, pipeline.scheduler.config).scheduler(options_of("euler"))
    interval = (float(scheduler.sigmas[3]), float(scheduler.sigmas[1]))

    def drawn(**more: Any) -> np.ndarray:
        options = options_of("euler", guidance_interval=interval, **more)
        return ours(pipeline, seen, options, [0, 1], [7, 8])

    np.testing.assert_array_equal(drawn(step_cache={"every": 1}), drawn())
