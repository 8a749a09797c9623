"""Schedule and samplers of the mask-guided DDPM: golden values, a Gaussian that can be solved, and diffusers."""

import functools
import itertools
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from literal_mask_ddpm import predict_noise, sample
from small_memory import hold
from torch import Tensor

from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.diffusion import mask_ddpm
from segdatagen.diffusion.mask_ddpm import (
    DYNAMIC_RATIO,
    Noise,
    alpha_bars,
    bounded_noise,
    cosine_betas,
    from_pixels,
    generate,
    generate_microbatched,
    guided_noise,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    threshold_dynamic,
    to_pixels,
    trailing_timesteps,
)
from segdatagen.diffusion.mask_unet import MaskUNet, one_hot
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.errors import UsageError
from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.stages.mask_ddpm import MaskDDPMStage, MaskDDPMStageOptions
from segdatagen.stages.stage import objects
from segdatagen.weights import load_mask_ddpm

CONFIG = MaskUNetConfig(num_classes=5, hidden=4, time_embedding=8)
TWO_STEPS = SamplerOptions(sampler="ddim", steps=2, guidance=3.0)
MASKS = np.random.default_rng(0).integers(-1, 5, (5, 16, 24)).astype(np.int16)
SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def network() -> MaskUNet:
    return seeded(MaskUNet)


def seeded(kind: type[MaskUNet], config: MaskUNetConfig = CONFIG) -> MaskUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(config).eval()


def gaussian_noise(mean: float, deviation: float) -> Noise:
    """The noise that a perfect network predicts where every pixel of the data is N(mean, deviation^2)."""
    bars = alpha_bars(cosine_betas())

    def predict(x: Tensor, t: int) -> Tensor:
        bar = float(bars[t])
        return math.sqrt(1 - bar) * (x - math.sqrt(bar) * mean) / (bar * deviation**2 + 1 - bar)

    return predict


def start(count: int = 1, height: int = 16, width: int = 16) -> tuple[Tensor, list[torch.Generator]]:
    """Noise, and the generators that it was drawn from."""
    generators = fresh_generators(count)
    return draw_noise(generators, torch.Size((3, height, width)), torch.device("cpu")), generators


def fresh_generators(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def test_schedule_has_the_published_values() -> None:
    betas = cosine_betas()
    assert betas.dtype == torch.float64
    assert [float(betas[t]) for t in (0, 999)] == pytest.approx([1e-4, 0.02])
    bars = alpha_bars(betas)
    assert [float(bars[t]) for t in (250, 500, 750)] == pytest.approx([0.75938, 0.15382, 0.004774], rel=2e-4)
    assert float(bars[999]) == pytest.approx(4.002e-5, rel=2e-4)


@given(st.integers(2, 1000).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_trailing_steps_start_at_the_noisiest_and_never_repeat(case: tuple[int, int]) -> None:
    total, steps = case
    found = trailing_timesteps(total, steps)
    assert len(found) == steps
    assert found[0] == total - 1
    assert found[-1] >= 0
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


def test_trailing_steps_are_those_of_diffusers() -> None:
    """And exact: diffusers rounds a half to either side, and has a step of -1 too many for some numbers of steps."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in range(1, 201):
        found = trailing_timesteps(1000, steps)
        places = [Fraction(1000 * (steps - i), steps) for i in range(steps)]
        assert found == [round(place) - 1 for place in places]
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        assert theirs[steps:] in ([], [-1])
        assert all(place.denominator == 2 for place, a, b in zip(places, found, theirs, strict=False) if a != b)


def sample_ddim_by_diffusers(predict: Noise, x: Tensor, steps: int, thresholding: str | None = None) -> Tensor:
    scheduler = DDIMScheduler(
        trained_betas=cosine_betas().numpy(),
        clip_sample=thresholding == "static",
        thresholding=thresholding == "dynamic",
        dynamic_thresholding_ratio=DYNAMIC_RATIO,
        sample_max_value=1e9,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(predict(x, t), t, x, use_clipped_model_output=thresholding is not None).prev_sample
    return x


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_ddim_equals_diffusers_where_steps_divide_the_schedule(steps: int) -> None:
    predict = gaussian_noise(0.3, 0.4)
    x, _ = start()
    expected = sample_ddim_by_diffusers(predict, x, steps)
    torch.testing.assert_close(sample_ddim(predict, x, cosine_betas(), steps), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("thresholding", ["static", "dynamic"])
def test_bounded_ddim_equals_diffusers(thresholding: str) -> None:
    predict = gaussian_noise(0.8, 0.6)  # a third of the pixels would end above 1
    x, _ = start()
    made = sample_ddim(bounded_noise(predict, cosine_betas(), thresholding), x, cosine_betas(), 50)
    expected = sample_ddim_by_diffusers(predict, x, 50, thresholding)
    torch.testing.assert_close(made, expected, atol=5e-4, rtol=1e-3)
    assert made.max() <= 1 + 1e-5 < sample_ddim(predict, x, cosine_betas(), 50).max()


def test_dynamic_threshold_scales_what_is_out_of_range_and_nothing_else() -> None:
    calm = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    loud = 4 * calm
    bounded = threshold_dynamic(torch.cat([calm, loud]))
    assert torch.equal(bounded[:1], calm)
    assert torch.equal(bounded[1:], threshold_dynamic(loud)), "neighbours do not matter"
    inside = loud.abs() < torch.quantile(loud.abs(), DYNAMIC_RATIO)
    torch.testing.assert_close(
        bounded[1:][inside] / loud[inside], torch.full_like(loud[inside], 1 / 3.92), rtol=0.01, atol=0
    )
    assert bounded.abs().max() == 1


def test_few_step_samplers_bound_and_the_papers_does_not() -> None:
    config = CONFIG.model_copy(update={"diffusion_steps": 20})
    network = seeded(MaskUNet, config)
    with torch.no_grad():
        network.outc.bias += 0.5  # a wrong network: images leave [-1, 1] on the way
    betas = cosine_betas(20)
    predict = guided_noise(network, torch.from_numpy(MASKS[:1]), 3.0)

    def pixels(sampler: Callable[..., Tensor], noise: Noise, *extra: Any) -> np.ndarray:
        x, _ = start(1, 16, 24)
        with torch.inference_mode():
            return to_pixels(sampler(noise, x, betas, *extra))

    def made(sampler: Any, steps: int) -> np.ndarray:
        return generate(network, MASKS[:1], fresh_generators(), SamplerOptions(sampler=sampler, steps=steps))[0]

    bounded = bounded_noise(predict, betas, "dynamic")
    for name, sampler in (("ddim", sample_ddim), ("dpm++2m", sample_dpmpp_2m)):
        assert np.array_equal(made(name, 5), pixels(sampler, bounded, 5))
        assert not np.array_equal(made(name, 5), pixels(sampler, predict, 5))
    x, generators = start(1, 16, 24)
    with torch.inference_mode():
        unclipped = to_pixels(sample_ancestral(predict, x, betas, generators))
    assert np.array_equal(made("ancestral", 20), unclipped)


def test_ddim_is_right_where_diffusers_is_not() -> None:
    """Why `sample_ddim` is ours: 300 steps of 1000 are 3.33 apart, and diffusers takes each of them as 3."""
    predict = gaussian_noise(0.3, 0.4)
    x, _ = start()
    solution = 0.3 + 0.4 * x
    ours = (sample_ddim(predict, x, cosine_betas(), 300) - solution).abs().max()
    theirs = (sample_ddim_by_diffusers(predict, x, 300) - solution).abs().max()
    assert ours < 0.02 < 0.1 < theirs, (ours, theirs)


def test_ancestral_equals_diffusers_with_the_same_noise() -> None:
    scheduler = DDPMScheduler(trained_betas=cosine_betas().numpy(), clip_sample=False, variance_type="fixed_large")
    predict = gaussian_noise(-0.2, 0.5)
    x, _ = start(height=8, width=8)
    ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    expected = x
    for t in scheduler.timesteps.tolist():
        step: Any = scheduler.step(predict(expected, t), t, expected, generator=theirs)
        expected = step.prev_sample
    made = sample_ancestral(predict, x, cosine_betas(), [ours])
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.slow
@torch.inference_mode()
def test_a_batch_is_what_the_literal_algorithm_makes_mask_by_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1000 steps, two passes a step, one mask at a time, beside one batch of all masks: trained weights, guidance 3.

    Most pixels of so small an image end outside [-1, 1], so `generate` is listened to before it clamps, too.
    """
    network, config = load_mask_ddpm("builtin:scenes-mask-ddpm", 12)
    masks = torch.stack(
        [torch.from_numpy(make_scene(scene_seed("train", i), 64, 64).mask[2::4, 2::4]).long() for i in range(2)]
    )
    predict = functools.partial(predict_noise, network.state_dict())
    literal = []
    for row in range(2):
        chance = torch.Generator().manual_seed(100 + row)
        noise = [torch.randn(3, 16, 16, generator=chance)[None] for _ in range(config.network.diffusion_steps)]
        literal.append(sample(predict, one_hot(masks[row : row + 1], 12), noise, guidance=3.0))
    expected = torch.cat(literal)
    assert int((expected.abs() < 1).sum()) > 100
    made: list[Tensor] = []

    def listen(x: Tensor) -> np.ndarray:
        made.append(x)
        return to_pixels(x)

    monkeypatch.setattr(mask_ddpm, "to_pixels", listen)
    options = SamplerOptions(sampler="ancestral", steps=1000, guidance=3.0)
    images, finite = generate(network, masks, fresh_generators(2), options)
    torch.testing.assert_close(made[0], expected, atol=1e-4 * float(expected.std()), rtol=0)
    assert finite.all()
    assert np.abs(images.astype(int) - to_pixels(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", [sample_ddim, sample_dpmpp_2m])
def test_deterministic_samplers_solve_a_gaussian(sampler: Any) -> None:
    """The flow of a Gaussian is known: noise z ends at mean + deviation * z."""
    x, _ = start()
    made = sampler(gaussian_noise(0.25, 0.3), x, cosine_betas(), 250)
    torch.testing.assert_close(made, 0.25 + 0.3 * x, atol=0.03, rtol=0)


def test_ancestral_sampler_draws_from_a_gaussian() -> None:
    x, generators = start(count=2, height=48, width=48)
    made = sample_ancestral(gaussian_noise(0.25, 0.3), x, cosine_betas(), generators)
    error = 0.3 / math.sqrt(made.numel())
    assert float(made.mean()) == pytest.approx(0.25, abs=5 * error)
    assert float(made.std()) == pytest.approx(0.3, rel=0.03)
    correlation = np.corrcoef(made.flatten().numpy(), x.flatten().numpy())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(made.numel())  # all that was drawn first is forgotten


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_a_point_is_found_in_any_number_of_steps(sampler: str) -> None:
    x, _ = start()
    kind: Any = {"ddim": sample_ddim, "dpm++2m": sample_dpmpp_2m}[sampler]
    for steps in (1, 2, 7, 30):
        made = kind(gaussian_noise(0.4, 0.0), x, cosine_betas(), steps)
        torch.testing.assert_close(made, torch.full_like(x, 0.4), atol=2e-3, rtol=0)


def test_sample_depends_on_its_mask_and_seed_not_on_its_neighbours(network: MaskUNet) -> None:
    together = generate_microbatched(network, MASKS, SEEDS, TWO_STEPS, microbatch=4)
    assert together.microbatch.tolist() == [4] * 5
    assert together.finite.all()
    for row in range(5):  # the fifth was in a padded batch before; now each is padded with itself
        alone = generate_microbatched(network, MASKS[row : row + 1], SEEDS[row : row + 1], TWO_STEPS, microbatch=4)
        assert np.array_equal(alone.images[0], together.images[row])
    order = [3, 0, 4, 2, 1]
    mixed = generate_microbatched(network, MASKS[order], [SEEDS[i] for i in order], TWO_STEPS, microbatch=4)
    assert np.array_equal(mixed.images, together.images[order])
    assert len({image.tobytes() for image in together.images}) == 5


def test_mask_seed_and_guidance_change_the_sample(network: MaskUNet) -> None:
    def make(mask: np.ndarray, seed: int, guidance: float) -> bytes:
        options = TWO_STEPS.model_copy(update={"guidance": guidance})
        return generate_microbatched(network, mask[None], [seed], options, 1).images.tobytes()

    first = make(MASKS[0], 1, 3.0)
    assert first == make(MASKS[0], 1, 3.0)
    assert len({first, make(MASKS[1], 1, 3.0), make(MASKS[0], 2, 3.0), make(MASKS[0], 1, 0.0)}) == 4


class SmallMemory(MaskUNet):
    """A network on a device that holds four images."""

    def forward(self, x: Tensor, t: Tensor, mask_features: Tensor | None = None) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("more than four images")
        return super().forward(x, t, mask_features)


def test_batch_is_halved_when_memory_runs_out_and_tells_it() -> None:
    small = seeded(SmallMemory)
    made = generate_microbatched(small, MASKS, SEEDS, TWO_STEPS, microbatch=8)
    assert made.microbatch.tolist() == [2] * 5  # a guided pair takes two places
    assert np.array_equal(made.images, generate_microbatched(small, MASKS, SEEDS, TWO_STEPS, microbatch=2).images)


def test_a_stage_does_not_try_again_what_did_not_fit(scenes_weights: Path) -> None:
    labels = load_label_set("scenes")
    sampler = SamplerOptions(sampler="ddim", steps=2, guidance=0.0)
    stages = [
        MaskDDPMStage(
            MaskDDPMStageOptions(weights=str(scenes_weights), label_set=labels, sampler=sampler, microbatch=size)
        )
        for size in (4, 2)
    ]
    refused = hold(stages[0]._model, 2)
    mask = encode_mask(np.full((32, 32), labels.ids[0], np.uint8))
    for seeds in ([1, 2, 3], [4, 5, 6]):
        batch = {"mask": objects([mask] * 3), "seed": np.array(seeds)}
        found, wanted = (stage(batch) for stage in stages)
        assert found["microbatch"].tolist() == [2] * 3
        assert found["image"].tolist() == wanted["image"].tolist()
    assert refused == [4]


def test_images_are_encoded_while_the_next_ones_are_made(scenes_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch is not begun before an image of the first is encoded; inline it never would be."""
    labels, encoded = load_label_set("scenes"), threading.Event()
    sampler = SamplerOptions(sampler="ddim", steps=1, guidance=0.0)
    options = MaskDDPMStageOptions(weights=str(scenes_weights), label_set=labels, sampler=sampler, microbatch=1)
    stage, passes, order = MaskDDPMStage(options), itertools.count(), []

    def encode(*arguments: Any) -> bytes:
        try:
            return encode_image(*arguments)
        finally:
            order.append(threading.get_ident())
            encoded.set()

    def begin(*_: Any) -> None:
        if next(passes) == 1:
            assert encoded.wait(30), "the first image was not encoded"

    monkeypatch.setattr("segdatagen.stages.encoding.encode_image", encode)
    stage._model.register_forward_pre_hook(begin)
    mask = encode_mask(np.full((32, 32), labels.ids[0], np.uint8))
    found = stage({"mask": objects([mask] * 3), "seed": np.array([1, 2, 3])})
    assert len(set(found["image"])) == len(order) == 3
    assert threading.get_ident() not in order


def test_one_image_that_does_not_fit_is_an_error() -> None:
    class NoMemory(MaskUNet):
        def forward(self, x: Tensor, t: Tensor, mask_features: Tensor | None = None) -> Tensor:
            raise torch.OutOfMemoryError("nothing fits")

    with pytest.raises(torch.OutOfMemoryError):
        generate_microbatched(seeded(NoMemory), MASKS, SEEDS, TWO_STEPS, microbatch=4)


def test_nan_is_reported_for_its_rows_alone() -> None:
    class Broken(MaskUNet):
        def forward(self, x: Tensor, t: Tensor, mask_features: Tensor | None = None) -> Tensor:
            noise = super().forward(x, t, mask_features).clone()
            noise[1, 0, 0, 0] = float("nan")
            return noise

    options = TWO_STEPS.model_copy(update={"guidance": 0.0})
    images, finite = generate(seeded(Broken), MASKS[:3], [torch.Generator().manual_seed(s) for s in (1, 2, 3)], options)
    assert finite.tolist() == [True, False, True]
    assert images[1, 0, 0, 0] == 0


def test_steps_that_the_model_does_not_have_are_refused(network: MaskUNet) -> None:
    for sampler in ("ddim", "dpm++2m"):
        with pytest.raises(UsageError, match="steps is 1001, but the model has 1000"):
            generate(network, MASKS[:1], [torch.Generator()], SamplerOptions(sampler=sampler, steps=1001))
    with pytest.raises(UsageError, match="set steps to 1000, not 50"):
        generate(network, MASKS[:1], [torch.Generator()], SamplerOptions(sampler="ancestral", steps=50))
    with pytest.raises(UsageError, match="2 masks came with 1 generators"):
        generate(network, MASKS[:2], [torch.Generator()], TWO_STEPS)


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    assert np.array_equal(to_pixels(from_pixels(pixels)), pixels.numpy())
    assert to_pixels(torch.full((1, 3, 8, 8), 1.7)).min() == 255
