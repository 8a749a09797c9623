"""One denoising loop: at batch 1 equal to diffusers' pipelines, in a batch equal to each row alone, never crossed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiAdapter,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from tiny_denoising import (
    CALL,
    CLOSE,
    NEGATIVE,
    PROMPTS,
    SIZE,
    STEPS,
    condition,
    controlnet_of,
    copy_of,
    noise_of,
    options_of,
    ours,
    pictures,
    quiet_pipeline,
    seeded,
    seeded_network,
    text_of,
    with_scheduler,
)
from tiny_latent import make_adapter, make_pipeline
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from segdatagen.diffusion import vae
from segdatagen.diffusion.conditions import (
    Conditions,
    ControlEncoder,
    InpaintCondition,
    TextCondition,
    encode_adapter,
)
from segdatagen.diffusion.denoise import SCHEDULERS, LatentNetwork
from segdatagen.diffusion.latent_options import DECODE_BATCH, LatentSamplerOptions, SchedulerName
from segdatagen.diffusion.text import TextEncoder


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return quiet_pipeline()


@pytest.fixture(scope="module")
def text(pipeline: StableDiffusionXLPipeline) -> TextEncoder:
    return text_of(pipeline)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("negative", [NEGATIVE, None])
def test_text_to_image_is_that_of_diffusers(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, name: SchedulerName, negative: str | None
) -> None:
    theirs = with_scheduler(StableDiffusionXLPipeline, pipeline, name)
    wanted = theirs(PROMPTS[0], negative_prompt=negative, generator=seeded(7), **CALL).images
    found = ours(pipeline, condition(text, PROMPTS[:1], negative), options_of(name), [0], [7])
    assert wanted.std() > 0.05
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)


def test_a_tokenizer_that_does_not_know_its_length_sees_what_clip_sees(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder
) -> None:
    prompt = "a car and a tree " * 40
    known = text.encode([prompt]).hidden
    tokenizers = [copy.deepcopy(tokenizer) for tokenizer in text.tokenizers]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = VERY_LARGE_INTEGER
    assert torch.equal(replace(text, tokenizers=tokenizers).encode([prompt]).hidden, known)


def test_guidance_can_be_rescaled_and_left_out(pipeline: StableDiffusionXLPipeline, text: TextEncoder) -> None:
    theirs = with_scheduler(StableDiffusionXLPipeline, pipeline, "euler")
    wanted = theirs(PROMPTS[0], negative_prompt=NEGATIVE, generator=seeded(7), guidance_rescale=0.7, **CALL).images
    conditions = condition(text, PROMPTS[:1])
    found = ours(pipeline, conditions, options_of("euler", guidance_rescale=0.7), [0], [7])
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)
    wanted = theirs(PROMPTS[0], generator=seeded(7), **CALL | {"guidance_scale": 1.0}).images
    for guidance in (0.0, 1.0):
        options = LatentSamplerOptions(steps=STEPS, guidance=guidance)
        np.testing.assert_allclose(ours(pipeline, conditions, options, [0], [7]), wanted, atol=CLOSE, rtol=0)


@pytest.fixture(scope="module")
def controlnet(pipeline: StableDiffusionXLPipeline) -> ControlNetModel:
    return controlnet_of(pipeline)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_controlnet_is_that_of_diffusers(
    pipeline: StableDiffusionXLPipeline,
    text: TextEncoder,
    controlnet: ControlNetModel,
    name: SchedulerName,
    order: str,
) -> None:
    their_network, our_network = copy_of(controlnet), copy_of(controlnet)
    for network in (their_network, our_network):
        network.register_to_config(controlnet_conditioning_channel_order=order)
    theirs = with_scheduler(StableDiffusionXLControlNetPipeline, pipeline, name, controlnet=their_network)
    picture = pictures(3, 1)
    interval = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    wanted = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=picture,
        generator=seeded(7),
        controlnet_conditioning_scale=0.8,
        **interval,
        **CALL,
    ).images
    control = ControlEncoder(our_network).encode(picture, 0.8, 0.25, 0.75)
    found = ours(pipeline, condition(text, PROMPTS[:1], controls=[control]), options_of(name), [0], [7])
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)
    plain = ours(pipeline, condition(text, PROMPTS[:1]), options_of(name), [0], [7])
    assert np.abs(plain - found).max() > 100 * CLOSE, "the ControlNet changes something"


def test_a_controlnet_does_not_run_outside_its_interval(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controlnet: ControlNetModel
) -> None:
    network = copy_of(controlnet)
    steps: list[float] = []
    network.register_forward_pre_hook(lambda module, arguments: steps.append(float(arguments[1])))
    encoder = ControlEncoder(network)
    for start, end, scale, expected in (
        (0.0, 1.0, 1.0, 4),
        (0.25, 0.75, 1.0, 2),
        (0.0, 0.5, 1.0, 2),
        (0.0, 1.0, 0.0, 0),
    ):
        steps.clear()
        control = encoder.encode(pictures(3, 1), scale, start, end)
        ours(pipeline, condition(text, PROMPTS[:1], controls=[control]), options_of("euler"), [0], [7])
        assert len(steps) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_adapter_is_that_of_diffusers(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, name: SchedulerName
) -> None:
    adapter: T2IAdapter = seeded_network(make_adapter, 2)
    theirs = with_scheduler(StableDiffusionXLAdapterPipeline, pipeline, name, adapter=adapter)
    picture = pictures(3, 1)
    wanted = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=picture,
        generator=seeded(7),
        adapter_conditioning_scale=0.9,
        adapter_conditioning_factor=0.5,
        **CALL,
    ).images
    condition_ = encode_adapter(adapter, picture, 0.9, until=0.5)
    found = ours(pipeline, condition(text, PROMPTS[:1], adapters=[condition_]), options_of(name), [0], [7])
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)
    plain = ours(pipeline, condition(text, PROMPTS[:1]), options_of(name), [0], [7])
    assert np.abs(plain - found).max() > 100 * CLOSE, "the adapter changes something"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_several_adapters_are_those_of_diffusers(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, name: SchedulerName
) -> None:
    adapters: list[T2IAdapter] = [seeded_network(make_adapter, seed) for seed in (2, 3)]
    theirs = with_scheduler(StableDiffusionXLAdapterPipeline, pipeline, name, adapter=MultiAdapter(adapters))
    seen = [pictures(3, 1), pictures(4, 1)]
    wanted = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=seen,
        generator=seeded(7),
        adapter_conditioning_scale=[0.7, 0.4],
        **CALL,
    ).images
    conditions = [encode_adapter(*one) for one in zip(adapters, seen, (0.7, 0.4), strict=True)]
    found = ours(pipeline, condition(text, PROMPTS[:1], adapters=conditions), options_of(name), [0], [7])
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("in_channels", [4, 9])
def test_inpainting_is_that_of_diffusers(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, name: SchedulerName, in_channels: int
) -> None:
    """With a network for text-to-image, and with one that was trained to inpaint."""
    if in_channels == 9:
        pipeline = make_pipeline(in_channels)
        text = text_of(pipeline)
    theirs = with_scheduler(StableDiffusionXLInpaintPipeline, pipeline, name)
    picture = pictures(3, 1) * 2 - 1
    redrawn = torch.zeros(1, 1, SIZE, SIZE)
    redrawn[..., 8:24, 4:20] = 1
    latents = vae.encode(pipeline.vae, picture)
    masked = vae.encode(pipeline.vae, picture * (redrawn < 0.5))
    wanted = theirs(
        PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=latents if in_channels == 4 else picture / 2 + 0.5,
        mask_image=redrawn,
        masked_image_latents=masked,
        latents=noise_of(7),
        strength=1.0,
        generator=seeded(1),
        **CALL,
    ).images
    inpaint = InpaintCondition(
        latents,
        torch.nn.functional.interpolate(redrawn, size=latents.shape[-2:]),
        masked if in_channels == 9 else None,
    )
    found = ours(pipeline, condition(text, PROMPTS[:1], inpaint=inpaint), options_of(name), [0], [7])
    np.testing.assert_allclose(found, wanted, atol=CLOSE, rtol=0)


def test_several_variants_of_two_sources_are_never_crossed(
    pipeline: StableDiffusionXLPipeline, text: TextEncoder, controlnet: ControlNetModel
) -> None:
    """Prompt, negative prompt, adapter features, control picture and known latents of a row are those of its source.

    diffusers orders prompts a, a, b, b and adapter features a, b, a, b: with this, rows 1 and 2 would be wrong.
    """
    adapter: T2IAdapter = seeded_network(make_adapter, 2)
    encoder = ControlEncoder(copy_of(controlnet))
    known = vae.encode(pipeline.vae, pictures(5) * 2 - 1)
    redrawn = torch.zeros(2, 1, *known.shape[-2:])
    redrawn[0, :, :8] = 1
    redrawn[1, :, 8:] = 1

    def conditions(sources: list[int]) -> Conditions:
        return condition(
            text,
            [PROMPTS[source] for source in sources],
            controls=[encoder.encode(pictures(3)[sources], 0.8)],
            adapters=[encode_adapter(adapter, pictures(4)[sources], 0.9)],
            inpaint=InpaintCondition(known[sources], redrawn[sources]),
        )

    rows, seeds = [0, 0, 1, 1], [7, 8, 9, 7]
    together = ours(pipeline, conditions([0, 1]), options_of("euler"), rows, seeds)
    for place, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        alone = ours(pipeline, conditions([row]), options_of("euler"), [0], [seed])
        np.testing.assert_allclose(together[place], alone[0], atol=CLOSE, rtol=0)
        crossed = ours(pipeline, conditions([1 - row]), options_of("euler"), [0], [seed])
        assert np.abs(together[place] - crossed[0]).max() > 100 * CLOSE, "the two sources can be told apart"


def test_a_limited_interval_guides_the_steps_in_it(pipeline: StableDiffusionXLPipeline, text: TextEncoder) -> None:
    """Outside it the network sees the prompt alone, in a batch half as large."""
    batches: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    scheduler = LatentNetwork(pipeline.unet, pipeline.scheduler.config).scheduler(options_of("euler"))
    sigmas = [float(sigma) for sigma in scheduler.sigmas[:-1]]
    interval = (sigmas[3], sigmas[1])  # the second and third step
    ours(pipeline, condition(text, PROMPTS), options_of("euler", guidance_interval=interval), [0, 1, 1], [7, 8, 9])
    hook.remove()
    assert batches == [3, 6, 6, 3]


def test_decoding_in_chunks_gives_the_same_bytes(pipeline: StableDiffusionXLPipeline) -> None:
    latents = torch.cat([noise_of(seed) for seed in range(6)])
    images, finite = vae.decode(pipeline.vae, latents)
    assert images.shape == (6, SIZE, SIZE, 3)
    assert finite.all()
    for row in (0, 5):
        alone, _ = vae.decode(pipeline.vae, latents[row].expand(DECODE_BATCH, -1, -1, -1))
        np.testing.assert_array_equal(images[row], alone[0])
    latents[1, 0, 0, 0] = torch.nan
    assert vae.decode(pipeline.vae, latents)[1].tolist() == [True, False, True, True, True, True]


def test_latents_have_the_scale_of_their_vae(pipeline: StableDiffusionXLPipeline) -> None:
    """Both conventions: a factor, and a mean and deviation per channel with it."""
    images = pictures(3) * 2 - 1
    raw = torch.cat([pipeline.vae.encode(image).latent_dist.mode().detach() for image in images.split(1)])
    np.testing.assert_allclose(vae.encode(pipeline.vae, images), raw * 0.13025, rtol=1e-5)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    other = make_pipeline().vae
    other.register_to_config(latents_mean=mean, latents_std=std)
    moved = (raw - torch.tensor(mean).reshape(1, 4, 1, 1)) * 0.13025 / torch.tensor(std).reshape(1, 4, 1, 1)
    found = vae.encode(other, images)
    np.testing.assert_allclose(found, moved, rtol=1e-4, atol=1e-6)
    decoded, _ = vae.decode(other, found)
    wanted, _ = vae.decode(pipeline.vae, raw * 0.13025)
    assert np.abs(decoded.astype(int) - wanted).max() <= 1


def test_equal_prompts_are_encoded_once(text: TextEncoder) -> None:
    seen: list[int] = []
    hook = text.encoders[1].register_forward_pre_hook(
        lambda module, arguments: seen.append(len(arguments[0])),
    )
    found: TextCondition = text.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    hook.remove()
    assert seen == [1, 1]
    assert found.hidden.shape == (3, 77, 64)
    assert torch.equal(found.hidden[0], found.hidden[2])
    assert not torch.equal(found.hidden[0], found.hidden[1])
    alone = text.encode([PROMPTS[1]])
    assert found.pooled is not None
    assert alone.pooled is not None
    assert torch.equal(alone.hidden[0], found.hidden[1]), "bitwise, whatever is encoded with it"
    assert torch.equal(alone.pooled[0], found.pooled[1])


def test_pictures_are_embedded_as_if_each_were_alone(controlnet: ControlNetModel) -> None:
    encoder, shown = ControlEncoder(copy_of(controlnet)), pictures(3)
    together = encoder.encode(shown).embedded
    assert len(together) > 1
    for picture, embedded in zip(shown.split(1), together, strict=True):
        assert torch.equal(encoder.encode(picture).embedded[0], embedded)
