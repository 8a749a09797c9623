"""Trainings that begin with a base: what they learn, what stays as it was, and the same on Ray and with less memory."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_scenes_store, visible
from safetensors.torch import load_file
from tiny_latent_training import CPU, TUNED, base_fields, fields, tensors_of, train_here, write
from tiny_training import newest_of
from torch import Tensor

from segdatagen.diffusion.latent_models import load_adapter, load_base, load_controlnet
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.errors import UsageError
from segdatagen.images import decode_image
from segdatagen.latent_folders import check_adapter, check_base, check_controlnet
from segdatagen.priors import Prior
from segdatagen.sources import read_arrays
from segdatagen.training.base import BaseTraining, BaseTrainingOptions
from segdatagen.training.controlnet import ControlNetTraining, ControlNetTrainingOptions
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.latents import fill, here
from segdatagen.training.loop import build_network
from segdatagen.training.run import train
from segdatagen.training.t2i_adapter import AdapterTraining, AdapterTrainingOptions
from segdatagen.training.text2mask import Text2MaskTraining, Text2MaskTrainingOptions


@pytest.mark.parametrize("kind", TUNED)
def test_what_begins_with_a_base_learns_and_leaves_the_base_as_it_was(
    latent_store: Path, latent_base: Path, tmp_path: Path, kind: str
) -> None:
    before = visible(latent_base)
    found = fields(latent_store, tmp_path / "out", base=str(latent_base), learning_rate=1e-2, **TUNED[kind])
    result = train_here(kind, write(tmp_path, kind, found))
    assert visible(latent_base) == before
    assert result.weights is not None
    shape = check_base(str(latent_base))
    if kind == "text2mask":
        assert check_base(result.weights) == shape
        agreement = {"classes_present", "classes_asked"}
        assert result.figures.keys() == {"within_palette", *agreement, *(f"{name}_by_chance" for name in agreement)}
        load_base(result.weights, Numerics(), "cpu")
        changed, kept = tensors_of(result.weights), tensors_of(str(latent_base))
        assert {n.split(".")[0] for n, t in changed.items() if not torch.equal(t, kept[n])} == {"unet"}
    elif kind == "controlnet":
        check_controlnet(result.weights, shape)
        network = load_controlnet(result.weights, Numerics(), "cpu").network
        assert any(bool(layer.weight.any()) for layer in network.controlnet_down_blocks)  # no longer zero
    else:
        check_adapter(result.weights, shape)
        load_adapter(result.weights, Numerics(), "cpu")
    picture = decode_image((tmp_path / "out" / "samples" / "step-00000006.png").read_bytes())
    assert picture.shape[0] == 2 * (128 + 4) + 4
    newest = newest_of(tmp_path / "out" / "checkpoints")
    names = {name.removeprefix("model.") for name in newest.tensors if name.startswith("model.")}
    assert not any("text_model" in name or "decoder" in name for name in names)  # what is frozen is not in there
    card = Path(result.weights, "README.md").read_text()
    assert str(latent_base) in card
    again = found | {"out": str(tmp_path / "again"), "init_weights": result.weights, "steps": 1, "learning_rate": 1e-9}
    further, kept = tensors_of(train_here(kind, write(tmp_path, "again", again)).weights), tensors_of(result.weights)
    assert further.keys() == kept.keys()
    for name, tensor in further.items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-6, rtol=1e-6, msg=name)


def test_an_untrained_controlnet_changes_nothing_and_only_it_has_gradients(
    latent_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    found = fields(latent_store, tmp_path, base=str(latent_base), cache=str(tmp_path / "cache"))
    options = ControlNetTrainingOptions.model_validate(found)
    arrays = TrainingArrays(*read_arrays(options.sources, options.geometry))
    steered, alone = (
        ControlNetTraining(options, arrays),
        BaseTraining(
            BaseTrainingOptions.model_validate(
                fields(latent_store, tmp_path, init_weights=str(latent_base), train_text_encoders=False)
            ),
            arrays,
        ),
    )
    fill([*steered.caches(), *alone.caches()], "cpu", here)
    network = build_network(steered, CPU)
    batches = [batch_of_step(arrays, Order(0, 2, True), 2, Share(), CPU) for _ in range(2)]
    loss = steered.loss(network, batches[0])
    torch.testing.assert_close(loss, alone.loss(build_network(alone, CPU), batches[1]), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in steered.parts.unet.parameters())
    assert float(network.get_submodule("controlnet_mid_block").get_parameter("weight").grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_text_cache_holds_what_the_encoders_make(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    changes = {"cache": str(tmp_path / "cache"), "cache_dtype": "float32", "outlines": False}
    found = fields(latent_store, tmp_path, base=str(latent_base), **changes)
    options = ControlNetTrainingOptions.model_validate(found)
    kind = ControlNetTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    prompts = [kind.prompts.texts[4][2], "", kind.prompts.texts[0][0]]
    kept = kind.embedded(build_network(kind, CPU), prompts, CPU)
    made = load_base(str(latent_base), Numerics(), "cpu").text.encode(prompts)
    live = ControlNetTraining(options.model_copy(update={"cache_prompts": False}), kind.data)
    assert len(live.caches()) == len(kind.caches()) - 1
    found_live = live.embedded(build_network(live, CPU), prompts, CPU)
    torch.testing.assert_close(found_live.hidden, made.hidden)
    assert not found_live.hidden.requires_grad
    torch.testing.assert_close(kept.hidden, made.hidden)
    torch.testing.assert_close(kept.pooled, made.pooled)


@pytest.mark.parametrize("cached", [True, False])
def test_no_prompt_is_what_a_run_makes_of_it(
    latent_store: Path, latent_base: Path, tmp_path: Path, cached: bool
) -> None:
    """Of a base as SDXL's zeros, also in what is put; dropping the prompt of the empty string would not be seen."""
    base = tmp_path / "base"
    shutil.copytree(latent_base, base)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": True}))
    changes = {"base": str(base), "cache": str(tmp_path / "cache"), "cache_dtype": "float32", "cache_prompts": cached}
    options = Text2MaskTrainingOptions.model_validate(fields(latent_store, tmp_path, **changes))
    kind = Text2MaskTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    network, prompt = build_network(kind, CPU), kind.prompts.texts[0][0]
    found = kind.embedded(network, ["", prompt], CPU)
    text = load_base(str(base), Numerics(), "cpu").text
    asked = text.encode([prompt])
    none = text.encode_negative([None], asked)
    assert none.pooled is not None
    assert not none.hidden.any()
    for learned, drawn in ((found.hidden, [none.hidden, asked.hidden]), (found.pooled, [none.pooled, asked.pooled])):
        torch.testing.assert_close(learned, torch.cat(drawn))
    with kind.parts.models() as models:
        assert models.text.zeros_for_no_prompt
    kind.trained_parts(network).save_pretrained(tmp_path / "saved")
    assert load_base(str(tmp_path / "saved"), Numerics(), "cpu").text.zeros_for_no_prompt
    assert "none, embedded as zeros, in 10% of the rows" in kind.prompts_in_words()


def test_adapter_sees_the_blended_priors_of_the_row(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    found = fields(latent_store, tmp_path, base=str(latent_base), cache=str(tmp_path / "cache"), **TUNED["t2i_adapter"])
    options = AdapterTrainingOptions.model_validate(found | {"w1": [0.4, 0.4], "w2": [0.9, 0.9]})
    kind = AdapterTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    batch = batch_of_step(kind.data, Order(0, 4, True), 0, Share(), CPU)
    assert 0 < batch.flipped.sum() < 4
    seen: list[Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, pictures: Tensor) -> list[Tensor]:
            seen.append(pictures)
            return []

    kind.steering(Watching(), kind.noisy(build_network(kind, CPU), batch), batch)
    prior, labels = Prior(options.prior, kind.data.label_set), kind.data.label_set
    for row, (source, flipped) in enumerate(zip(batch.sources, batch.flipped, strict=True)):
        of_image = prior.of_image(kind.data.images[source])
        of_mask = prior.of_mask(labels.ids[kind.data.channels[source]].astype(np.uint8))
        blended = np.clip(np.rint(0.4 * of_image.astype(float) + 0.9 * of_mask), 0, 255)
        wanted = blended[:, ::-1] if flipped else blended
        assert np.array_equal(np.rint(seen[0][row].permute(1, 2, 0).numpy() * 255), wanted)


def test_lora_begins_as_the_base_and_is_merged_into_it(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    found = fields(
        latent_store, tmp_path / "out", base=str(latent_base), lora={"rank": 2, "alpha": 4}, learning_rate=1e-2
    )
    options = Text2MaskTrainingOptions.model_validate(found)
    kind = Text2MaskTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    network = build_network(kind, CPU)
    parameters = dict(network.named_parameters())
    assert all("lora" in name for name in parameters)
    unet = load_file(latent_base / "unet" / "diffusion_pytorch_model.safetensors")
    same = kind.trained_parts(network).unet.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in unet.items())
    result = train_here("text2mask", write(tmp_path, "lora", found))
    newest = newest_of(tmp_path / "out" / "checkpoints")
    learned = {name: t for name, t in newest.tensors.items() if name.startswith("average.layers.")}
    assert learned.keys() == {f"average.{name}" for name in parameters}
    saved = load_file(Path(str(result.weights)) / "unet" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == unet.keys()
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, unet[name])}
    assert changed
    for name in changed:
        place = f"average.layers.{name.removesuffix('.weight').replace('.', '/')}"
        a, b = (learned[f"{place}/lora_{letter}/default/weight"] for letter in "AB")
        torch.testing.assert_close(saved[name], unet[name] + 4 / 2 * b @ a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (["to_q", "to_kk"], "this UNet has no layer called to_kk$"),
        (["to_q", "attn1"], "to_q, attn1 are not all layers of weights: linear and convolutional ones are adapted$"),
    ],
)
def test_layers_that_lora_cannot_adapt_are_refused_before_anything_is_made(
    latent_store: Path, latent_base: Path, tmp_path: Path, targets: list[str], sentence: str
) -> None:
    lora, cache = {"rank": 2, "targets": targets}, tmp_path / "cache"
    wrong = fields(latent_store, tmp_path / "out", base=str(latent_base), lora=lora, cache=str(cache))
    with pytest.raises(UsageError, match=f"lora.targets: {sentence}"):
        train_here("text2mask", write(tmp_path, "wrong", wrong))
    assert not cache.exists()
    assert not (tmp_path / "out").exists()


def test_lora_of_a_base_changes_its_attention_and_nothing_else(
    latent_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    found = fields(latent_store, tmp_path / "out", init_weights=str(latent_base), lora={"rank": 2}, learning_rate=1e-2)
    learned, before = (
        tensors_of(train_here("base", write(tmp_path, "lora", found)).weights),
        tensors_of(str(latent_base)),
    )
    changed = {name for name, tensor in learned.items() if not torch.equal(tensor, before[name])}
    assert learned.keys() == before.keys()
    assert changed
    assert all(name.startswith("unet.") and ".attn" in name and ".to_" in name for name in changed)


@pytest.mark.usefixtures("ray_session")
def test_ray_fills_the_caches_and_trains_the_weights_of_the_local_loop(
    latent_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    found = fields(
        latent_store,
        tmp_path / "here",
        base=str(latent_base),
        cache=str(tmp_path / "cache_here"),
        validation=str(make_scenes_store(tmp_path / "val", 2, split="val")),
        **TUNED["t2i_adapter"],
    )
    in_process = train_here("t2i_adapter", write(tmp_path, "here", found))
    here_weights = tensors_of(in_process.weights)
    found |= {"out": str(tmp_path / "ray"), "cache": str(tmp_path / "cache_ray")}
    on_ray = train("t2i_adapter", write(tmp_path, "ray", found), False, None, lambda _: None)
    assert visible(tmp_path / "cache_ray") == visible(tmp_path / "cache_here")
    there = tensors_of(on_ray.weights)
    assert on_ray.figures == in_process.figures != {}
    assert [name for name, tensor in here_weights.items() if not torch.equal(tensor, there[name])] == []


@pytest.mark.parametrize("kind", ["base", *TUNED])
def test_less_memory_is_the_same_training(
    latent_store: Path, latent_vae: Path, latent_base: Path, tmp_path: Path, kind: str
) -> None:
    """As presets for GPUs ask for it: the losses are those of the plain training, and in bf16 they stay numbers."""
    plain = fields(
        latent_store, tmp_path / "plain", base=str(latent_base), batch_size=4, steps=3, **TUNED.get(kind, {})
    )
    if kind == "base":
        plain = base_fields(latent_store, tmp_path / "plain", latent_vae, batch_size=4, steps=3)
    frugal = plain | {"out": str(tmp_path / "frugal"), "gradient_checkpointing": True, "accumulate": 2}
    losses = []
    for name, found in (("plain", plain), ("frugal", frugal)):
        train_here(kind, write(tmp_path, name, found))
        with (tmp_path / name / "loss.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 3
    half = train_here(kind, write(tmp_path, "half", frugal | {"out": str(tmp_path / "half"), "precision": "bf16"}))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(half.weights).values())
    assert math.isfinite(half.loss)


def test_the_figures_of_text2mask_are_those_of_what_it_draws(
    latent_store: Path, latent_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn as they are, drawn in a grey that no class has, and drawn half as they are and half as nothing but road."""
    found = fields(latent_store, tmp_path, base=str(latent_base), cache=str(tmp_path / "cache"))
    options = Text2MaskTrainingOptions.model_validate(found)
    kind = Text2MaskTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    rows, labels = kind.chosen(), kind.data.label_set
    maps = kind.learned(rows)
    road = labels.names.index("road")
    grey, plain = np.full_like(maps, 250), np.broadcast_to(labels.colours[road], maps.shape)

    def figures(*drawn: np.ndarray) -> dict[str, float]:
        monkeypatch.setattr(kind, "drawn", lambda parts, rows: [list(images) for images in zip(*drawn, strict=True)])
        return kind.figures(kind.parts)

    counts = [np.bincount(mask[mask >= 0], minlength=labels.num_classes) for mask in kind.data.channels[rows]]
    present = [set(np.flatnonzero(found >= 16)) for found in counts]
    assert len(rows) == 2
    in_both = len(present[0] & present[1]) * 2 / sum(map(len, present))
    by_chance = {"classes_present_by_chance": in_both, "classes_asked_by_chance": in_both}
    assert in_both < 1
    same = {"within_palette": 1.0, "classes_present": 1.0, "classes_asked": 1.0} | by_chance
    assert figures(maps, maps) == pytest.approx(same)
    assert figures(grey, grey)["within_palette"] == 0.0
    of_road = sum(road in classes for classes in present)
    half, asked = figures(maps, plain), sum(map(len, present))
    assert half["within_palette"] == 1.0
    assert half["classes_present"] == pytest.approx((1 + of_road / asked) / 2)
    assert half["classes_asked"] == pytest.approx((asked + of_road) / (asked + len(rows)))
    missing = int(np.flatnonzero(counts[0] == 0)[0])
    for count, wrong in ((15, 0), (16, 1)):
        speckled = maps.copy()
        speckled[0].reshape(-1, 3)[:count] = labels.colours[missing]
        assert figures(speckled, maps)["classes_asked"] == pytest.approx(2 * asked / (2 * asked + wrong))


@pytest.mark.parametrize("texts", [False, True])
def test_another_base_at_the_same_place_is_another_training(
    latent_store: Path, latent_base: Path, tmp_path: Path, texts: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(latent_base, base)
    found = fields(latent_store, tmp_path / "out", base=str(base), train_text_encoders=texts)
    train_here("text2mask", write(tmp_path, "out", found))
    tokenizer = base / "tokenizer" / "tokenizer.json"
    found_words = json.loads(tokenizer.read_text())
    vocabulary = found_words["model"]["vocab"]
    first, second, *_ = sorted(vocabulary)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.write_text(json.dumps(found_words))
    with pytest.raises(UsageError, match="its base was another"):
        train_here("text2mask", write(tmp_path, "out", found))
