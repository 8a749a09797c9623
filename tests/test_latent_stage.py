"""The latent engine as a stage: every row from its own columns, encoded, pasted where only a part is drawn anew."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_memory import hold
from tiny_latent import VAE_FACTOR, make_adapter, make_controlnet, make_pipeline, save_pipeline

from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.diffusion.conditions import encode_adapter
from segdatagen.diffusion.denoise import denoise
from segdatagen.diffusion.latent_options import ControlOptions, LatentSamplerOptions, Numerics
from segdatagen.diffusion.render import describe, to_pixels
from segdatagen.diffusion.vae import decode
from segdatagen.images import decode_image, encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.method_options import InpaintOptions
from segdatagen.records import derive_seed
from segdatagen.stages.latent import LatentStage, LatentStageOptions
from segdatagen.stages.redraw import Redraws
from segdatagen.stages.stage import Batch, objects

WIDTH, HEIGHT = 48, 32
LABELS = load_label_set("scenes")
ALL_CLASSES = InpaintOptions(base="any").redrawn(LABELS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("models") / "inpainter", in_channels=9)


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ControlOptions, ControlOptions]:
    folder = tmp_path_factory.mktemp("controls")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make_controlnet(make_pipeline().unet).save_pretrained(folder / "controlnet")
        make_adapter().save_pretrained(folder / "adapter")
    return (
        ControlOptions(kind="t2i_adapter", weights=str(folder / "adapter"), scale=0.9),
        ControlOptions(kind="controlnet", weights=str(folder / "controlnet"), scale=5.0, end=0.5),
    )


def make_stage(base: Path, **more: Any) -> LatentStage:
    sampler = LatentSamplerOptions(steps=2, guidance=3.0)
    fields = {"image_format": "png", "microbatch": 2} | more
    return LatentStage(LatentStageOptions(base=str(base), size=(WIDTH, HEIGHT), sampler=sampler, **fields))


def rows(sources: list[int], seeds: list[int]) -> Batch:
    """Rows of scenes: all columns that the stage may read."""
    scenes = {n: make_scene(scene_seed("train", n), WIDTH, HEIGHT) for n in set(sources)}
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return {
        "prompt": objects([f"a street; {'car' if n else 'tree'}" for n in sources]),
        "negative_prompt": objects(["dark" if n else None for n in sources]),
        "prior": objects([encode_image(pictures[0, n], "png") for n in sources]),
        "prior_0": objects([encode_image(pictures[0, n], "png") for n in sources]),
        "prior_1": objects([encode_image(pictures[1, n], "png") for n in sources]),
        "source_image": objects([encode_image(scenes[n].image, "png") for n in sources]),
        "mask": objects([encode_mask(scenes[n].mask) for n in sources]),
        "seed": np.array(seeds, dtype=np.int64),
    }


def pixels(found: Batch) -> np.ndarray:
    return np.stack([decode_image(image) for image in found["image"]])


def test_a_row_does_not_see_its_neighbours(base: Path, controls: tuple[ControlOptions, ControlOptions]) -> None:
    """Two controls, two sources with variants: each is bitwise as alone, and follows from each of its own columns."""
    stage = make_stage(base, controls=controls)
    assert stage.reads == ("prompt", "negative_prompt", "prior_0", "prior_1", "seed")
    batch = rows([0, 0, 1, 1, 0], [1, 2, 3, 1, 4])
    together = pixels(stage(batch))
    assert together.shape == (5, HEIGHT, WIDTH, 3)
    for row in range(5):
        alone = pixels(stage({name: column[row : row + 1] for name, column in batch.items()}))
        np.testing.assert_array_equal(alone[0], together[row])
    for name in stage.reads:
        changed = {k: v.copy() for k, v in batch.items()}
        changed[name][0] = changed[name][2]
        assert np.abs(pixels(stage(changed))[0].astype(int) - together[0]).max() > 1, name


def test_what_is_told_of_a_source_is_computed_once(base: Path, controls: tuple[ControlOptions, ControlOptions]) -> None:
    stage = make_stage(base, controls=controls[:1])
    seen: list[int] = []
    stage._controls[0].register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    stage(rows([0, 0, 1, 1, 0], [1, 2, 3, 1, 4]))
    assert seen == [1, 1], "each source by itself, and once"


def test_prompts_that_differ_share_what_is_told_of_their_source(
    base: Path, controls: tuple[ControlOptions, ControlOptions]
) -> None:
    """Four weathers: adapter and ControlNet look once at each picture, and the VAE once at the real image."""
    stage, inpaint = make_stage(base, controls=controls), make_stage(base, inpaint=ALL_CLASSES)
    batch = rows([0, 0, 0, 1], [1, 2, 3, 4])
    batch["prompt"] = objects([f"a street in {weather}" for weather in ("rain", "fog", "snow", "sunshine")])
    seen: list[str] = []
    adapter, controlnet = stage._controls
    hooks = [
        adapter.register_forward_pre_hook(lambda *_: seen.append("adapter")),
        controlnet._embedding.register_forward_pre_hook(lambda *_: seen.append("controlnet")),
        inpaint._models.vae.encoder.register_forward_pre_hook(lambda *_: seen.append("vae")),
    ]
    found = [pixels(stage(batch)), pixels(inpaint(batch))]
    for hook in hooks:
        hook.remove()
    assert seen == ["adapter"] * 2 + ["controlnet"] * 2 + ["vae"] * 2
    for row in range(4):
        alone = {name: column[row : row + 1] for name, column in batch.items()}
        for one, together in zip((stage, inpaint), found, strict=True):
            np.testing.assert_array_equal(pixels(one(alone))[0], together[row])


BLOCKS = [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2, 0, 1], [3]], [[0, 1, 2, 3]]]


@pytest.mark.parametrize("kind", ["t2i_adapter", "inpaint", "inpaint with nine channels"])
def test_images_are_the_same_whatever_the_blocks(
    base: Path, inpainter: Path, controls: tuple[ControlOptions, ControlOptions], kind: str
) -> None:
    """Bitwise, as far as what is told of a source: sources stand alone, in pairs, in threes or all together."""
    if kind == "t2i_adapter":
        stage = make_stage(base, controls=controls[:1])
    else:
        stage = make_stage(inpainter if "nine" in kind else base, inpaint=ALL_CLASSES)

    def told(sources: list[int]) -> dict[int, list[torch.Tensor]]:
        batch = rows(sources, sources)
        columns = {name: batch[name].tolist() for name in stage._told}
        found = stage._conditions(columns, stage._known(columns))
        tensors = [feature for adapter in found.adapters for feature in adapter.features]
        if found.inpaint is not None:
            tensors += [part for part in (found.inpaint.latents, found.inpaint.masked) if part is not None]
        return {source: [tensor[place] for tensor in tensors] for place, source in enumerate(sources)}

    alone, *others = [
        {source: tensors for block in blocks for source, tensors in told(block).items()} for blocks in BLOCKS
    ]
    for other in others:
        for source, tensors in alone.items():
            assert tensors
            assert all(map(torch.equal, tensors, other[source]))
    pictures = {source: pixels(stage(rows([source], [source])))[0] for source in range(4)}
    for source, image in enumerate(pixels(stage(rows([0, 1, 2, 3], [0, 1, 2, 3])))):
        np.testing.assert_array_equal(image, pictures[source])


def test_inpainting_leaves_every_other_pixel_as_it_is(base: Path) -> None:
    stage = make_stage(base, inpaint=ALL_CLASSES)
    batch = rows([0, 1], [1, 2])
    scene = make_scene(scene_seed("train", 0), WIDTH, HEIGHT)
    mask = scene.mask.copy()
    mask[:, :20] = 255  # ignored: not drawn anew
    batch["mask"][0] = encode_mask(mask)
    found = pixels(stage(batch))[0]
    np.testing.assert_array_equal(found[:, :20], scene.image[:, :20])
    assert (found[:, 20:] != scene.image[:, 20:]).any(axis=-1).mean() > 0.9


def test_thin_things_are_drawn_anew_and_nothing_beside_them(base: Path) -> None:
    """Of every latent the one pixel that diffusers does not look at."""
    stage = make_stage(base, inpaint=ALL_CLASSES)
    scene = make_scene(scene_seed("train", 0), WIDTH, HEIGHT)
    mask = np.full_like(scene.mask, 255)
    mask[1::VAE_FACTOR, 1::VAE_FACTOR] = scene.mask[1::VAE_FACTOR, 1::VAE_FACTOR]
    mask[:, :20] = 255
    drawn = mask != 255
    batch = rows([0, 0], [1, 2])
    batch["mask"] = objects([encode_mask(mask)] * 2)
    first, second = pixels(stage(batch)).astype(int)
    for image in (first, second):
        np.testing.assert_array_equal(image[~drawn], scene.image[~drawn])
    assert np.abs(first[drawn] - second[drawn]).mean() > 8, "two seeds, two images"


def test_background_is_not_drawn_anew(base: Path) -> None:
    labels = LABELS.model_copy(update={"background_ids": (int(LABELS.ids[0]),)})
    batch = rows([0], [1])
    scene = make_scene(scene_seed("train", 0), WIDTH, HEIGHT)
    background = scene.mask == LABELS.ids[0]
    assert 0 < background.sum() < background.size
    found = pixels(make_stage(base, inpaint=InpaintOptions(base="any").redrawn(labels))(batch))[0]
    np.testing.assert_array_equal(found[background], scene.image[background])


def test_of_named_classes_alone_is_anything_drawn_anew(base: Path) -> None:
    redrawn = InpaintOptions(base="any", classes=("road", "Sky")).redrawn(LABELS)
    scene = make_scene(scene_seed("train", 0), WIDTH, HEIGHT)
    drawn = np.isin(scene.mask, [LABELS.ids[LABELS.channel_of(name)] for name in ("road", "sky")])
    assert 0 < drawn.sum() < drawn.size
    found = pixels(make_stage(base, inpaint=redrawn)(rows([0], [1])))[0]
    np.testing.assert_array_equal(found[~drawn], scene.image[~drawn])
    assert (found[drawn] != scene.image[drawn]).any(axis=-1).mean() > 0.9


def test_blank_images_are_drawn_again_and_the_better_one_is_stored(base: Path) -> None:
    """No image of so small a network has a deviation of 100 levels: all are drawn three times."""
    batch = rows([0, 1], [1, 2])
    stage = make_stage(base, redraws=Redraws(100.0, 2))
    found = stage(batch)
    for row in range(2):
        values = [entry["value"] for entry in found["candidates"][row]]
        assert len(values) == 2
        assert found["score_deviation"][row] > max(values)
        seeds = [derive_seed(int(batch["seed"][row]), "mask2img", *([n] if n else [])) for n in range(3)]
        (taken,) = set(seeds) - {entry["seed"] for entry in found["candidates"][row]}
        again = make_stage(base)
        again_batch = {name: column[row : row + 1] for name, column in batch.items()}
        if taken == seeds[0]:
            np.testing.assert_array_equal(pixels(again(again_batch))[0], decode_image(found["image"][row]))


def test_a_batch_that_did_not_fit_is_not_tried_again(base: Path) -> None:
    """Neither in a redraw nor in the next block; rows say what they were made with, and are what that makes."""
    stage, small = (make_stage(base, microbatch=size, redraws=Redraws(100.0, 1)) for size in (4, 2))
    refused = hold(stage._models.network.unet, 4)  # a guided pair takes two places
    for block in (rows([0, 1, 0], [1, 2, 3]), rows([1, 0, 1, 0], [4, 5, 6, 7])):
        found = stage(block)
        assert set(found["microbatch"]) == {2}
        np.testing.assert_array_equal(pixels(found), pixels(small(block)))
    assert refused == [8]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "controlnet", "start": 0.5, "end": 0.5}, "start must be less than end"),
        ({"kind": "t2i_adapter", "start": 0.5}, "a t2i_adapter starts with the first step"),
    ],
)
def test_a_control_without_steps_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ControlOptions(weights="x", **fields)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *(("t2i_adapter", option) for option in ({"scale": 2.0}, {"end": 0.5}, {"guided": True})),
        *(("controlnet", option) for option in ({"scale": 2.0}, {"start": 0.5}, {"end": 0.5}, {"guided": True})),
    ],
)
def test_every_option_of_a_control_reaches_it(
    base: Path, controls: tuple[ControlOptions, ControlOptions], kind: str, option: dict[str, Any]
) -> None:
    """The image is that of a condition which was told the option by name, and not that without the option."""
    (weights,) = (control.weights for control in controls if control.kind == kind)
    usual: dict[str, Any] = {"scale": 5.0, "start": 0.0, "end": 1.0, "guided": False}
    told = usual | option
    plain, stage = (
        make_stage(base, controls=(ControlOptions(kind=kind, weights=weights, **fields),), microbatch=1)
        for fields in (usual, told)
    )
    batch = rows([0], [1])
    pictures = to_pixels(np.stack([decode_image(prior) for prior in batch["prior"]]))
    seen: dict[str, Any]
    if kind == "controlnet":
        seen = {"controls": [stage._controls[0].encode(pictures, **told)]}
    else:
        adapted = encode_adapter(
            stage._controls[0], pictures, weight=told["scale"], until=told["end"], guided=told["guided"]
        )
        seen = {"adapters": [adapted]}
    models, options = stage._models, stage._options
    conditions = describe(models, batch["prompt"].tolist(), batch["negative_prompt"].tolist(), (HEIGHT, WIDTH))
    generators = [torch.Generator().manual_seed(derive_seed(1, "mask2img"))]
    latents = denoise(models.network, replace(conditions, **seen), torch.tensor([0]), generators, options.sampler)
    expected, _ = decode(models.vae, latents)
    found = pixels(stage(batch))
    np.testing.assert_array_equal(found, expected)
    assert (found != pixels(plain(batch))).mean() > 0.05


def test_two_methods_share_the_networks_of_a_process(base: Path, tmp_path: Path) -> None:
    place = shutil.copytree(base, tmp_path / "base")
    options = LatentStageOptions(base=str(place), size=(WIDTH, HEIGHT), sampler=LatentSamplerOptions(steps=2))
    other = options.model_copy(update={"sampler": LatentSamplerOptions(steps=3), "microbatch": 4})
    first, _ = options.load()
    assert other.load()[0] is first
    os.utime(place / "unet" / "config.json", ns=(1, 1))
    assert options.load()[0] is not first, "these may be other weights"
    halves = options.model_copy(update={"numerics": Numerics(dtype="bfloat16")})
    assert halves.load()[0] is not first
