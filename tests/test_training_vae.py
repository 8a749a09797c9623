"""The kind `vae`: its loss against the formulas, the folder that it leaves, and what it says of wrong input."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import make_scenes_store
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from segdatagen.errors import UsageError
from segdatagen.images import decode_image
from segdatagen.labels import load_label_set
from segdatagen.sources import read_arrays
from segdatagen.training import vae
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.loop import build_network
from segdatagen.training.pictures import colour_masks
from segdatagen.training.run import train
from segdatagen.training.vae import VaeTraining, VaeTrainingOptions, moments, reconstruct
from segdatagen.training_record import read_record

CPU = torch.device("cpu")


def fields(store: Path, out: Path) -> dict[str, Any]:
    return {
        "sources": str(store),
        "out": str(out),
        "size": [32, 32],
        "block_channels": [8, 16],
        "layers_per_block": 1,
        "norm_groups": 4,
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "ema_start": 4,
        "torch_threads": 1,
    }


def configure(folder: Path, name: str, store: Path, **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields(store, folder / name) | changes))
    return str(path)


def kind_of(store: Path, out: Path, **changes: Any) -> VaeTraining:
    options = VaeTrainingOptions.model_validate(fields(store, out) | changes)
    return VaeTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))


def test_training_leaves_a_folder_that_diffusers_loads(scenes_store: Path, tmp_path: Path) -> None:
    result = train("vae", configure(tmp_path, "out", scenes_store, store_dtype="float16"), True, None, lambda _: None)
    assert result.weights is not None
    loaded = AutoencoderKL.from_pretrained(result.weights, torch_dtype=torch.float32)
    record = read_record(result.weights)
    assert record is not None
    assert record.figures.keys() == {"psnr", "colour_map_accuracy", "worst_class_accuracy"} == result.figures.keys()
    assert 0 <= record.figures["colour_map_accuracy"] <= 1
    arrays = kind_of(scenes_store, tmp_path).data
    pictures = np.concatenate([arrays.images, colour_masks(arrays.channels, arrays.label_set)])
    mean, logvar = moments(loaded, pictures)
    drawn = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert float(loaded.config.scaling_factor) * float(drawn.std()) == pytest.approx(1, rel=0.02)
    picture = decode_image((tmp_path / "out" / "samples" / "step-00000006.png").read_bytes())
    assert picture.shape == (6 * (128 + 4) + 4, 5 * (128 + 4) + 4, 3)
    card = Path(result.weights, "README.md").read_text()
    for words in ("6 of batch 2", "licence", "colour_map_accuracy", "50% of the rows are colour maps"):
        assert words in card
    further = train(
        "vae", configure(tmp_path, "further", scenes_store, init_weights=result.weights), True, None, lambda _: None
    )
    assert further.loss < result.loss


def test_lower_precision_trains_and_draws(scenes_store: Path, tmp_path: Path) -> None:
    result = train("vae", configure(tmp_path, "out", scenes_store, precision="bf16"), True, None, lambda _: None)
    assert result.weights is not None
    assert (tmp_path / "out" / "samples" / "step-00000006.png").exists()


def test_behind_a_frozen_encoder_latents_stay_what_they_are(scenes_store: Path, tmp_path: Path) -> None:
    first = train("vae", configure(tmp_path, "first", scenes_store), True, None, lambda _: None)
    path = configure(tmp_path, "further", scenes_store, init_weights=first.weights, freeze_encoder=True)
    further = train("vae", path, True, None, lambda _: None)
    assert first.weights is not None
    assert further.weights is not None
    before, after = (AutoencoderKL.from_pretrained(folder) for folder in (first.weights, further.weights))
    assert after.config.scaling_factor == before.config.scaling_factor
    moved = {
        name.split(".")[0]
        for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {"decoder", "post_quant_conv"}
    assert "(decoder only)" in Path(further.weights, "README.md").read_text()


def test_a_vae_goes_on_with_the_colours_of_other_classes(scenes_store: Path, tmp_path: Path) -> None:
    """No channel of it stands for a class: it learns the palette of the sources, and its record says so."""
    first = train("vae", configure(tmp_path, "first", scenes_store), True, None, lambda _: None)
    assert first.weights is not None
    record = Path(first.weights, "training.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"classes": ["sea", "sky"], "label_set": "coast"}))
    path = configure(tmp_path, "further", scenes_store, init_weights=first.weights)
    further = train("vae", path, True, None, lambda _: None)
    assert further.weights is not None
    found = read_record(further.weights)
    assert found is not None
    assert (found.label_set, found.classes) == ("scenes", load_label_set("scenes").names)


@pytest.mark.parametrize("pixel_loss", ["l1", "l2", None])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_loss_is_that_of_the_formulas(scenes_store: Path, tmp_path: Path, share: float, pixel_loss: str | None) -> None:
    """Of l1, too, where the options do not say."""
    changes = {} if pixel_loss is None else {"pixel_loss": pixel_loss}
    kind = kind_of(scenes_store, tmp_path, colour_maps=share, edge_weight=0.5, kl_weight=0.25, **changes)
    power = 2 if pixel_loss == "l2" else 1
    network = build_network(kind, CPU)
    order = Order(0, 2, True)
    loss = kind.loss(network, batch_of_step(kind.data, order, 3, Share(), CPU))
    batch = batch_of_step(kind.data, order, 3, Share(), CPU)
    pictures = colour_masks(batch.channels.numpy(), kind.data.label_set) if share else batch.images.numpy()
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    posterior: DiagonalGaussianDistribution = network.encode(pixels).latent_dist  # type: ignore[operator]
    for generator in batch.row_chance:
        torch.rand((), generator=generator)
    noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in batch.row_chance])
    made = network.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
    edges = [(a[:, :, 1:] - a[:, :, :-1], a[:, :, :, 1:] - a[:, :, :, :-1]) for a in (made, pixels)]
    wanted = ((made - pixels).abs() ** power).mean()
    wanted = wanted + 0.5 * sum(((found - real).abs() ** power).mean() for found, real in zip(*edges, strict=True))
    wanted = wanted + 0.25 * posterior.kl().mean() / posterior.mean[0].numel()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("fifths", [0, 1, 5])
def test_the_scale_is_that_of_latents_in_the_share_of_the_options(
    scenes_store: Path, tmp_path: Path, fifths: int
) -> None:
    """As of a data set of five pictures of each source, so many of which are colour maps."""
    kind = kind_of(scenes_store, tmp_path, colour_maps=fifths / 5)
    network = build_network(kind, CPU)
    maps = colour_masks(kind.data.channels, kind.data.label_set)
    found = [moments(network, kind.data.images)] * (5 - fifths) + [moments(network, maps)] * fifths
    mean, logvar = (torch.cat([pair[place] for pair in found]).double() for place in (0, 1))
    variance = mean.var(correction=0) + logvar.exp().mean()
    assert kind.scaling_factor(network) == pytest.approx(float(variance.rsqrt()), rel=1e-5)


class Coarse(torch.nn.Module):
    """Keeps the mean of every 2 x 2 pixels: a colour map loses thin things, and what is large stays."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def encode(self, pixels: torch.Tensor) -> AutoencoderKLOutput:
        mean = self.weight * torch.nn.functional.avg_pool2d(pixels, 2)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(torch.cat([mean, mean], dim=1)))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(sample=torch.nn.functional.interpolate(latents, scale_factor=2))


def test_figures_are_those_of_brute_force(scenes_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pixels that are labelled, of classes that are there, over all chunks together."""
    monkeypatch.setattr(vae, "AT_ONCE", 4)
    kind, network = kind_of(scenes_store, tmp_path), Coarse()
    images, channels, labels = kind.data.images, kind.data.channels, kind.data.label_set
    channels[0, :8] = -1
    channels[channels == 5] = 0
    errors = [(int(a) - int(b)) ** 2 for a, b in zip(images.flat, reconstruct(network, images).flat, strict=True)]
    kept: dict[int, list[bool]] = {}
    made = reconstruct(network, colour_masks(channels, labels)).reshape(-1, 3).astype(int)
    for channel, colour in zip(channels.flat, made, strict=True):
        if channel >= 0:
            nearest = ((labels.colours.astype(int) - colour) ** 2).sum(axis=1).argmin()
            kept.setdefault(int(channel), []).append(bool(nearest == channel))
    shares = [float(np.mean(found)) for found in kept.values()]
    assert 0 < min(shares) < 0.8 < max(shares) < 1
    figures = kind.figures(network)
    assert figures["psnr"] == pytest.approx(10 * math.log10(255**2 / (sum(errors) / len(errors))))
    assert figures["colour_map_accuracy"] == pytest.approx(np.mean(np.concatenate(list(kept.values()))))
    assert figures["worst_class_accuracy"] == pytest.approx(min(shares))


def test_wrong_options_are_refused(scenes_store: Path, tmp_path: Path) -> None:
    def refuse(words: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=words):
            train("vae", configure(tmp_path, "refused", scenes_store, **changes), True, None, lambda _: None)
        assert not (tmp_path / "refused").exists()

    refuse("block_channels: 10 is not a multiple of norm_groups 4", block_channels=[8, 10])
    AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **_two_levels()).save_pretrained(tmp_path / "other")
    refuse("is another network: its layers_per_block is 2", init_weights=str(tmp_path / "other"), layers_per_block=1)
    refuse("freeze_encoder: a new encoder knows nothing, and has to be trained; give init_weights", freeze_encoder=True)
    refuse("there are no weights builtin:none", init_weights="builtin:none")


def _two_levels() -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 2,
    }


def test_a_palette_as_small_as_a_store_is_learned(tmp_path: Path) -> None:
    """A network of two levels that sees colour maps alone comes to keep most pixels of two scenes."""
    store = make_scenes_store(tmp_path / "store", 2)
    changes = {"steps": 150, "colour_maps": 1.0, "learning_rate": 5e-3, "ema_start": 1000, "block_channels": [16, 16]}
    result = train("vae", configure(tmp_path, "out", store, **changes), True, None, lambda _: None)
    assert result.figures["colour_map_accuracy"] > 0.8
