"""Model folders: what fits is loaded as it is, what does not costs one line before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from tiny_latent import make_adapter, make_controlnet, make_pipeline, make_vae, save_pipeline

from segdatagen.diffusion import render as renderer
from segdatagen.diffusion.conditions import InpaintCondition
from segdatagen.diffusion.denoise import SCHEDULERS
from segdatagen.diffusion.latent_models import LatentModels, load_adapter, load_base, load_controlnet
from segdatagen.diffusion.latent_options import LatentSamplerOptions, Numerics
from segdatagen.diffusion.render import Wanted, describe, inpainting, render
from segdatagen.errors import UsageError
from segdatagen.latent_folders import PREDICTIONS, SCHEDULES, check_adapter, check_base, check_controlnet, check_vae

SIZE = (32, 40)
OPTIONS = LatentSamplerOptions(steps=2, guidance=4.0)
PROMPTS = ["a red car; car", "a tree; tree"]
FLOAT32 = Numerics()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def models(folder: Path) -> LatentModels:
    return load_base(str(folder), FLOAT32, "cpu")


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither bars nor warnings of the libraries: a command prints what it found."""
    load_base(str(folder), FLOAT32, "cpu")
    assert capfd.readouterr() == ("", "")


def image_of(pipeline: Any) -> np.ndarray:
    """What diffusers' own pipeline draws for the first prompt, float32 `[H, W, 3]` in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    image: np.ndarray = pipeline(
        PROMPTS[0],
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    return image


def test_a_folder_gives_the_images_of_its_pipeline(models: LatentModels) -> None:
    pipeline = make_pipeline()
    wanted = image_of(pipeline)
    found = render(models, describe(models, PROMPTS[:1], [None], SIZE), Wanted([0], [5]), OPTIONS, 1)
    assert found.images.shape == (1, *SIZE, 3)
    assert np.abs(found.images[0] - wanted * 255).max() <= 0.51


def test_a_sample_is_the_same_whatever_its_neighbours(models: LatentModels) -> None:
    """Bitwise at one batch shape: among others, alone, and in the padded last batch."""
    conditions = describe(models, PROMPTS, ["dark", None], SIZE)
    rows, seeds = [0, 0, 1, 1, 0], [1, 2, 1, 2, 3]
    together = render(models, conditions, Wanted(rows, seeds), OPTIONS, 2)
    assert together.microbatch.tolist() == [2] * 5
    for place, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        alone = render(models, conditions, Wanted([row], [seed]), OPTIONS, 2)
        np.testing.assert_array_equal(together.images[place], alone.images[0])
    assert len({image.tobytes() for image in together.images}) == 5


def test_a_batch_that_does_not_fit_is_halved_with_the_same_seeds(
    models: LatentModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = describe(models, PROMPTS, [None, None], SIZE)
    wanted = Wanted([0, 1, 0, 1], [1, 2, 3, 4])
    whole = render(models, conditions, wanted, OPTIONS, 4)
    real = renderer.denoise

    def out_of_memory(network: Any, given: Any, rows: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too large")
        return real(network, given, rows, *more)

    monkeypatch.setattr(renderer, "denoise", out_of_memory)
    halved = render(models, conditions, wanted, OPTIONS, 4)
    assert halved.microbatch.tolist() == [2] * 4
    assert np.abs(halved.images.astype(int) - whole.images).max() <= 1


def test_a_decoder_sees_as_many_images_at_once_as_it_is_told(folder: Path) -> None:
    few = load_base(str(folder), Numerics(decode_batch=2), "cpu")
    conditions, sizes = describe(few, PROMPTS[:1], [None], SIZE), []
    few.vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert len(render(few, conditions, Wanted([0] * 5, [1, 2, 3, 4, 5]), OPTIONS, 5).images) == 5
    assert sizes == [2, 2, 2]


def test_what_is_not_drawn_anew_comes_back_from_its_latents(models: LatentModels) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3)).astype(np.uint8)
    redrawn = np.zeros((1, *SIZE), dtype=bool)
    redrawn[:, :, : SIZE[1] // 2] = True
    condition: InpaintCondition = inpainting(models, images, redrawn)
    conditions = replace(describe(models, PROMPTS[:1], [None], SIZE), inpaint=condition)
    first, second = (render(models, conditions, Wanted([0], [seed]), OPTIONS, 1).images[0] for seed in (1, 2))
    far = slice(SIZE[1] // 2 + 16, None)  # of the border: the decoder sees a little of the other side
    assert np.abs(first[:, far].astype(int) - second[:, far]).max() <= 8
    assert np.abs(first[:, :16].astype(int) - second[:, :16]).max() > 8


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_latent_is_drawn_anew_where_any_of_its_pixels_is(models: LatentModels, share: float) -> None:
    random = np.random.default_rng(1)
    redrawn = random.random((2, *SIZE)) < share
    images = random.integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    found = inpainting(models, images, redrawn).redrawn
    for source in range(2):
        for row in range(SIZE[0] // 2):
            for column in range(SIZE[1] // 2):
                wanted = redrawn[source, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].any()
                assert float(found[source, 0, row, column]) == wanted


def test_half_precision_stays_close(folder: Path, models: LatentModels) -> None:
    numerics = Numerics(dtype="bfloat16", channels_last=True, fuse_qkv=True)
    half = load_base(str(folder), numerics, "cpu")
    assert half.network.unet.dtype == torch.bfloat16
    images = [
        render(m, describe(m, PROMPTS[:1], [None], SIZE), Wanted([0], [5]), OPTIONS, 1).images[0].astype(int)
        for m in (models, half)
    ]
    assert np.abs(images[0] - images[1]).mean() < 3


def test_a_vae_that_would_overflow_stays_in_float32(folder: Path, tmp_path: Path) -> None:
    """SDXL's says so; the one with the fp16 fix, which takes its place, does not."""
    numerics = Numerics(dtype="float16")
    assert load_base(str(folder), numerics, "cpu").vae.dtype == torch.float32
    fixed = make_vae()
    fixed.register_to_config(force_upcast=False)
    fixed.save_pretrained(tmp_path / "fixed")
    with_fix = numerics.model_copy(update={"vae": str(tmp_path / "fixed")})
    assert load_base(str(folder), with_fix, "cpu").vae.dtype == torch.float16


def test_half_precision_files_are_found(folder: Path, tmp_path: Path) -> None:
    """A folder may hold `*.fp16.safetensors` alone, as those of Stability do for many."""
    make_pipeline().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16", safe_serialization=True)
    assert check_base(str(tmp_path / "half")) == check_base(str(folder))
    load_base(str(tmp_path / "half"), FLOAT32, "cpu")


def test_sd15_has_one_text_encoder(folder: Path, tmp_path: Path) -> None:
    """Its images are those of diffusers' pipeline, too."""
    parts = make_pipeline()
    unet = UNet2DConditionModel.from_config(
        {
            **parts.unet.config,
            "addition_embed_type": None,
            "projection_class_embeddings_input_dim": None,
            "cross_attention_dim": 32,
        }
    ).eval()
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=unet,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "sd15", safe_serialization=True)
    models = load_base(str(tmp_path / "sd15"), FLOAT32, "cpu")
    assert models.shape.family == "sd15"
    wanted = image_of(pipeline)
    found = render(models, describe(models, PROMPTS[:1], [None], SIZE), Wanted([0], [5]), OPTIONS, 1).images[0]
    assert np.abs(found - wanted * 255).max() <= 0.51


def test_controlnet_and_adapter_come_from_their_folders(models: LatentModels, folder: Path, tmp_path: Path) -> None:
    make_controlnet(models.network.unet).save_pretrained(tmp_path / "control")
    make_adapter().save_pretrained(tmp_path / "adapter")
    shape = check_base(str(folder))
    check_controlnet(str(tmp_path / "control"), shape)
    check_adapter(str(tmp_path / "adapter"), shape)
    pictures = torch.rand(1, 3, 32, 32)
    encoder = load_controlnet(str(tmp_path / "control"), FLOAT32, "cpu")
    assert encoder.encode(pictures).embedded.shape == (1, 32, 16, 16)
    features = load_adapter(str(tmp_path / "adapter"), FLOAT32, "cpu")(pictures)
    assert [tuple(feature.shape) for feature in features] == [(1, 32, 8, 8), (1, 64, 8, 8)]


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_every_solver_can_do_the_schedules_that_are_taken(
    folder: Path, tmp_path: Path, models: LatentModels, schedule: str | None, kind: str
) -> None:
    """Named ones, and betas one by one."""
    shutil.copytree(folder, tmp_path / "base")
    own = {"trained_betas": [0.00002 * n for n in range(1, 1001)]} if schedule is None else {}
    edit(schedule_of(tmp_path / "base"), beta_schedule=schedule, prediction_type=kind, **own)
    check_base(str(tmp_path / "base"))
    config = json.loads(schedule_of(tmp_path / "base").read_text())
    x = torch.rand(1, 4, 8, 8)
    for name in SCHEDULERS:
        scheduler = replace(models.network, schedule=config).scheduler(LatentSamplerOptions(scheduler=name, steps=3))
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x, return_dict=False)[0]
            assert x.isfinite().all()


# What does not fit


def edit(path: Path, **changes: Any) -> None:
    """Replace fields of a JSON file; None removes one."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def schedule_of(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def drop(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def as_bin(path: Path) -> None:
    path.rename(path.with_name("diffusion_pytorch_model.bin"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: drop(f / "model_index.json"), "is no diffusers model: "),
        (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
        (lambda f: edit(f / "model_index.json", unet=["my_code", "MyUNet"]), "my_code.MyUNet, code of its own"),
        (
            lambda f: edit(f / "model_index.json", unet=["diffusers", "SD3Transformer2DModel"]),
            "is of the class SD3Transformer2DModel",
        ),
        (lambda f: edit(f / "model_index.json", vae=None), "has no vae"),
        (
            lambda f: edit(f / "unet" / "config.json", auto_map={"AutoModel": "x.Y"}),
            "asks for code of its own (auto_map",
        ),
        (lambda f: edit(f / "unet" / "config.json", addition_embed_type=None), "its unet is not that of sdxl"),
        (lambda f: edit(f / "unet" / "config.json", in_channels=8), "a unet of 8 input channels is neither"),
        (lambda f: edit(f / "vae" / "config.json", latent_channels=16), "its unet has 4 latent channels, its vae 16"),
        (lambda f: edit(f / "unet" / "config.json", cross_attention_dim=[64, 64]), "is [64, 64], and a whole number"),
        (lambda f: edit(f / "unet" / "config.json", cross_attention_dim=None), "base/unet: cross_attention_dim of its"),
        (lambda f: edit(f / "unet" / "config.json", out_channels=None), "out_channels of its config.json is None"),
        (lambda f: edit(f / "unet" / "config.json", in_channels=True), "in_channels of its config.json is True"),
        (lambda f: edit(f / "unet" / "config.json", block_out_channels=32), "is 32, and whole numbers are needed"),
        (lambda f: edit(f / "vae" / "config.json", latent_channels=None), "latent_channels of its config.json is None"),
        (lambda f: edit(f / "vae" / "config.json", block_out_channels=[]), "is [], and whole numbers are needed"),
        (lambda f: drop(f / "scheduler"), "has no scheduler: "),
        (lambda f: (schedule_of(f)).write_text("[]"), "holds no JSON object"),
        (lambda f: edit(schedule_of(f), num_train_timesteps=None), "gives num_train_timesteps None"),
        (lambda f: edit(schedule_of(f), beta_start=None), "gives beta_start None, and a number is needed"),
        (lambda f: edit(schedule_of(f), beta_schedule="flow"), "gives beta_schedule 'flow', and one of linear, "),
        (lambda f: edit(schedule_of(f), prediction_type="sample"), "gives prediction_type 'sample', and one of eps"),
        (lambda f: edit(schedule_of(f), use_beta_sigmas=True), "asks for noise levels that no solver here has"),
        (lambda f: drop(f / "unet" / "config.json"), "has no unet: "),
        (lambda f: drop(f / "tokenizer_2"), "has no tokenizer_2: "),
        (
            lambda f: drop(f / "unet" / "diffusion_pytorch_model.safetensors"),
            "needs weights as safetensors, and holds none",
        ),
        (
            lambda f: as_bin(f / "unet" / "diffusion_pytorch_model.safetensors"),
            "holds only diffusion_pytorch_model.bin",
        ),
    ],
)
def test_a_base_that_cannot_be_used_costs_a_line(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(UsageError) as refused:
        check_base(str(copy))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("family", "more", "features"),
    [
        ("sdxl", {"channels": [32, 64]}, [32, 64]),
        ("sdxl", {"channels": [32, 64, 64]}, [32, 64, 64]),
        ("sd15", {"adapter_type": "full_adapter", "downscale_factor": 2}, [32, 64]),
        ("sd15", {"adapter_type": "light_adapter", "channels": [32, 64], "downscale_factor": 2}, [32, 64, 64]),
    ],
)
def test_adapters_of_either_family_fit(
    folder: Path, tmp_path: Path, family: Any, more: dict[str, Any], features: list[int]
) -> None:
    """Their features have the channels of the blocks, and the size that each family adds them at."""
    adapter = make_adapter(**more)
    adapter.save_pretrained(tmp_path / "adapter")
    blocks = tuple(features) if family == "sd15" else (32, 64)
    factor = check_adapter(str(tmp_path / "adapter"), replace(check_base(str(folder)), family=family, blocks=blocks))
    found = adapter(torch.rand(1, 3, 16, 16))
    assert [feature.shape[1] for feature in found] == features
    assert found[0].shape[2:] == (16 // factor, 16 // factor)
    assert factor == (4 if family == "sdxl" else 2)


@pytest.mark.parametrize(
    ("family", "more", "sentence"),
    [
        ("sdxl", {"adapter_type": "full_adapter"}, "is a full_adapter: a base of sdxl takes a full_adapter_xl"),
        ("sd15", {}, "is a full_adapter_xl: a base of sd15 takes a full_adapter or a light_adapter"),
        ("sd15", {"adapter_type": "full_adapter", "channels": [32, 64, 64]}, "its features have 32, 64, 64 channels"),
        ("sdxl", {"in_channels": 1}, "takes pictures of 1 channels, and visual priors have 3"),
        ("sdxl", {"downscale_factor": 8}, "its features stand for 8 x 8 pixels, and those of the base for 4 x 4"),
    ],
)
def test_adapters_that_do_not_fit_cost_a_line(
    folder: Path, tmp_path: Path, family: Any, more: dict[str, Any], sentence: str
) -> None:
    make_adapter(**more).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError) as refused:
        check_adapter(str(tmp_path / "adapter"), replace(check_base(str(folder)), family=family))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"conditioning_channels": 1}, "takes pictures of 1 channels, and visual priors have 3"),
        (
            {"conditioning_embedding_out_channels": (8, 16, 32)},
            "it brings pictures to 1/4 of their size, and the base draws at 1/2",
        ),
    ],
)
def test_controlnets_of_other_pictures_cost_a_line(
    models: LatentModels, tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    config = make_controlnet(models.network.unet).config
    ControlNetModel.from_config({**config, **more}).save_pretrained(tmp_path / "control")
    with pytest.raises(UsageError) as refused:
        check_controlnet(str(tmp_path / "control"), models.shape)
    assert sentence in str(refused.value)


def test_networks_of_another_base_cost_a_line(folder: Path, tmp_path: Path) -> None:
    shape = check_base(str(folder))
    other = replace(shape, blocks=(320, 640, 1280), text_channels=2048)
    make_adapter().save_pretrained(tmp_path / "adapter")
    make_controlnet(make_pipeline().unet).save_pretrained(tmp_path / "control")
    make_vae().save_pretrained(tmp_path / "vae")
    check_vae(str(tmp_path / "vae"), shape)
    for check, name, given, sentence in (
        (
            check_adapter,
            "adapter",
            other,
            "its features have 32, 64 channels, and the blocks of the base 320, 640, 1280",
        ),
        (check_controlnet, "control", other, "its blocks have 32, 64 channels and its text 64, those of the base 320"),
        (check_controlnet, "adapter", shape, "holds the class T2IAdapter, and ControlNetModel is needed"),
        (
            check_vae,
            "vae",
            replace(shape, vae_factor=8),
            "makes 4 latent channels at 1/2 of the size, and the base wants 4",
        ),
        (check_adapter, "nothing", shape, "there are no weights at"),
    ):
        with pytest.raises(UsageError) as refused:
            check(str(tmp_path / name), given)
        assert sentence in str(refused.value)


@pytest.mark.parametrize("interval", [(5.0, 1.0), (-1.0, 2.0)])
def test_an_interval_without_levels_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="the first must be less than the second"):
        LatentSamplerOptions(guidance_interval=interval)
