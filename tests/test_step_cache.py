"""Step caching: deep blocks run at whole steps alone, nothing of a sample reaches another, and off is off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from tiny_denoising import seeded
from tiny_latent import VAE_FACTOR, make_adapter, make_controlnet, make_pipeline
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segdatagen.benchmark.architectures import build
from segdatagen.diffusion import denoise as loop
from segdatagen.diffusion.conditions import Conditions, ControlEncoder, TextCondition, encode_adapter
from segdatagen.diffusion.denoise import LatentNetwork, denoise
from segdatagen.diffusion.latent_options import LatentSamplerOptions, StepCacheOptions
from segdatagen.diffusion.step_cache import step_cache

SIZE = 32
CLOSE = 1e-4


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def unet(pipeline: StableDiffusionXLPipeline) -> Any:
    return pipeline.unet


@pytest.fixture(scope="module")
def draw(pipeline: StableDiffusionXLPipeline) -> Callable[..., Tensor]:
    network = LatentNetwork(pipeline.unet, pipeline.scheduler.config)

    def latents(conditions: Conditions, rows: list[int], seeds: list[int], **sampler: Any) -> Tensor:
        options = LatentSamplerOptions.model_validate({"steps": 6, "guidance": 4.0} | sampler)
        return denoise(network, conditions, torch.tensor(rows), [seeded(seed) for seed in seeds], options)

    return latents


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    """Random text of two sources."""

    def text(seed: int) -> TextCondition:
        return TextCondition(
            torch.randn(2, 77, 64, generator=seeded(seed)), torch.randn(2, 32, generator=seeded(seed + 1))
        )

    side = SIZE // VAE_FACTOR
    return Conditions((side, side), text(1), text(3), torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2).float())


@pytest.fixture(scope="module")
def controlled(unet: Any, conditions: Conditions) -> Conditions:
    """The same with a ControlNet and a T2I-Adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        controlnet, adapter = make_controlnet(unet), make_adapter()
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=seeded(5))
    return replace(
        conditions,
        controls=[ControlEncoder(controlnet).encode(pictures, 0.8)],
        adapters=[encode_adapter(adapter, pictures, 0.9)],
    )


@contextmanager
def calls_of(*modules: nn.Module) -> Iterator[list[int]]:
    """How often each was really run: counted at a layer inside it, which a kept result does not reach."""
    counts = [0] * len(modules)

    def count(place: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            counts[place] += 1

        return hook

    hooks = [module.resnets[0].register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
    yield counts
    for hook in hooks:
        hook.remove()


def cache(every: int) -> dict[str, Any]:
    return {"step_cache": {"every": every}}


def test_a_cache_of_every_step_changes_no_bit(draw: Callable[..., Tensor], controlled: Conditions) -> None:
    plain = draw(controlled, [0, 1], [1, 2])
    assert torch.equal(draw(controlled, [0, 1], [1, 2], **cache(1)), plain)
    draw(controlled, [0, 1], [1, 2], **cache(3))
    assert torch.equal(draw(controlled, [0, 1], [1, 2]), plain), "the networks are what they were"
    assert "forward" not in vars(controlled.controls[0].network.mid_block)


@pytest.mark.parametrize(("every", "whole"), [(1, 6), (2, 3), (3, 2), (4, 2), (100, 1)])
def test_deep_blocks_run_at_whole_steps_alone(
    unet: Any, draw: Callable[..., Tensor], controlled: Conditions, every: int, whole: int
) -> None:
    controlnet = controlled.controls[0].network
    deep = [unet.down_blocks[1], unet.mid_block, unet.up_blocks[0], controlnet.down_blocks[1], controlnet.mid_block]
    shallow = [unet.down_blocks[0], unet.up_blocks[1], controlnet.down_blocks[0]]
    with calls_of(*deep, *shallow) as counts:
        draw(controlled, [0], [1], **cache(every))
    assert counts == [whole] * len(deep) + [6] * len(shallow)


def literal(unet: Any, every: int) -> Callable[..., Tensor]:
    """The UNet's pass written out for a batch without controls, with what is kept in plain sight."""
    kept: dict[str, Any] = {"step": 0}

    def forward(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Any, **_: Any) -> Any:
        emb = unet.time_embedding(unet.get_time_embed(x, t))
        emb = emb + unet.get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)
        first = unet.conv_in(x)
        middle, skips = unet.down_blocks[0](hidden_states=first, temb=emb)
        if kept["step"] % every == 0:
            deep, more = unet.down_blocks[1](
                hidden_states=middle, temb=emb, encoder_hidden_states=encoder_hidden_states
            )
            all_skips = (first, *skips, *more)
            deep = unet.mid_block(deep, emb, encoder_hidden_states=encoder_hidden_states)
            kept["deep"] = unet.up_blocks[0](
                hidden_states=deep,
                temb=emb,
                res_hidden_states_tuple=all_skips[-2:],
                encoder_hidden_states=encoder_hidden_states,
            )
        kept["step"] += 1
        last = unet.up_blocks[1](hidden_states=kept["deep"], temb=emb, res_hidden_states_tuple=(first, skips[0]))
        return (unet.conv_out(unet.conv_act(unet.conv_norm_out(last))),)

    return forward


@pytest.mark.parametrize("every", [1, 2, 4])
def test_what_is_drawn_is_that_of_the_literal_algorithm(
    unet: Any, draw: Callable[..., Tensor], conditions: Conditions, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = draw(conditions, [0, 1], [1, 2], **cache(every))
    monkeypatch.setattr(unet, "forward", literal(unet, every))
    torch.testing.assert_close(found, draw(conditions, [0, 1], [1, 2]), atol=CLOSE, rtol=0)


def test_what_deep_blocks_of_a_controlnet_add_is_read_by_deep_blocks_alone(
    draw: Callable[..., Tensor], controlled: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a ControlNet can be cached wherever the UNet is, and no image is another one for it."""
    found = draw(controlled, [0, 1], [1, 2], **cache(3))
    monkeypatch.setattr(loop, "step_cache", lambda networks, options: step_cache(networks[:1], options))
    with calls_of(controlled.controls[0].network.mid_block) as counts:
        assert torch.equal(draw(controlled, [0, 1], [1, 2], **cache(3)), found)
    assert counts == [6]


def test_a_cached_image_is_another_one_but_not_far(draw: Callable[..., Tensor], controlled: Conditions) -> None:
    plain = draw(controlled, [0, 1], [1, 2])
    apart = [float((draw(controlled, [0, 1], [1, 2], **cache(every)) - plain).abs().mean()) for every in (2, 6)]
    assert CLOSE < apart[0] < apart[1] < float(plain.abs().mean())


def test_a_sample_depends_on_its_own_row_alone(draw: Callable[..., Tensor], controlled: Conditions) -> None:
    rows, seeds = [0, 0, 1, 1], [7, 8, 9, 7]
    together = draw(controlled, rows, seeds, **cache(3))
    for place, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        alone = draw(controlled, [row], [seed], **cache(3))
        torch.testing.assert_close(together[place], alone[0], atol=CLOSE, rtol=0)
        other = draw(controlled, [1 - row], [seed], **cache(3))
        assert (together[place] - other[0]).abs().max() > 100 * CLOSE


def test_a_step_with_another_batch_or_other_controls_is_whole(
    unet: Any, pipeline: StableDiffusionXLPipeline, draw: Callable[..., Tensor], controlled: Conditions
) -> None:
    """Guidance begins and ends, the adapter ends, the ControlNet begins: each is a new start."""
    network = LatentNetwork(pipeline.unet, pipeline.scheduler.config)
    sigmas = [float(sigma) for sigma in network.scheduler(LatentSamplerOptions(steps=6)).sigmas[:-1]]
    with calls_of(unet.mid_block) as counts:
        draw(controlled, [0], [1], guidance_interval=(sigmas[3], sigmas[1]), **cache(100))
    assert counts == [3]
    for changed in (
        replace(controlled, controls=[replace(controlled.controls[0], start=0.5)]),
        replace(controlled, adapters=[replace(controlled.adapters[0], until=0.5)]),
    ):
        with calls_of(unet.mid_block) as counts:
            draw(changed, [0], [1], **cache(100))
        assert counts == [2]


def test_features_that_are_added_in_place_are_added_once(unet: Any) -> None:
    """A UNet adds the features of an adapter to what a block returned, which is also what its last skip is."""
    block = unet.down_blocks[1]
    hidden, emb, text = torch.rand(1, 32, 8, 8), torch.rand(1, 128), torch.rand(1, 7, 64)

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        found: tuple[Tensor, tuple[Tensor, ...]] = block(hidden_states=hidden, temb=emb, encoder_hidden_states=text)
        return found

    with torch.inference_mode(), step_cache([unet], StepCacheOptions(every=3)) as cached:
        found = []
        for _ in range(3):
            cached.begin_step("the same")
            sample, skips = run()
            sample += 1
            found.append((sample.clone(), skips[-1].clone()))
    for sample, skip in found:
        assert torch.equal(sample, found[0][0])
        assert torch.equal(skip, sample)


def test_an_exception_leaves_the_networks_as_they_were(unet: Any) -> None:
    def fail() -> None:
        with step_cache([unet], StepCacheOptions(every=2)):
            assert "forward" in vars(unet.mid_block)
            raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        fail()
    assert all("forward" not in vars(block) for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks))


@pytest.mark.parametrize(("side", "unet", "controlnet"), [(1024, 0.4546, 0.2161), (768, 0.2557, 0.1216)])
def test_shallow_layers_of_sdxl_cost_a_fifteenth(side: int, unet: float, controlnet: float) -> None:
    """TFLOP of a step that is no whole one, counted without memory; a whole one: 6.761 and 3.020 at 1024 x 1024."""
    with torch.device("meta"), torch.inference_mode():
        networks = build("sdxl", "controlnet")
        told = torch.empty(1, 4, side // 8, side // 8), 1, torch.empty(1, 77, 2048)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        picture = torch.empty(1, 3, side, side)
        assert networks.controlnet is not None
        with step_cache([networks.unet, networks.controlnet], StepCacheOptions(every=2)) as cached:
            for step in range(2):
                cached.begin_step("the same")
                with FlopCounterMode(display=False) as of_unet:
                    networks.unet(*told, added_cond_kwargs=added)
                with FlopCounterMode(display=False) as of_controlnet:
                    networks.controlnet(*told, picture, added_cond_kwargs=added)
                assert cached.is_whole == (step == 0)
    found = of_unet.get_total_flops() / 1e12, of_controlnet.get_total_flops() / 1e12
    assert found == pytest.approx((unet, controlnet), rel=1e-3)
