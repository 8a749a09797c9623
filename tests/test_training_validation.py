"""The loss on sources that a training does not learn from: what it is, where it is written, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_scenes_store
from test_training_latent_wrong import without_captions
from tiny_latent_training import TUNED, base_fields, fields, train_here, write
from tiny_training import STEPS, Configure, configurer, kind_of, log_of
from tiny_training import fields as ddpm_fields
from torch import nn

from segdatagen.errors import UsageError
from segdatagen.images import decode_image
from segdatagen.training.data import Batch, TrainingArrays, generator_for
from segdatagen.training.latents import fill, here
from segdatagen.training.loop import build_network
from segdatagen.training.mask_ddpm import MaskDDPMTraining
from segdatagen.training.pictures import OTHER, loss_curve
from segdatagen.training.run import caches_to_fill, kind_type, read_data, read_options
from segdatagen.training.text_to_image import TextToImage
from segdatagen.training.validation import mean_loss
from segdatagen.training_record import read_record

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes that no training has seen. Only to be read."""
    return make_scenes_store(tmp_path_factory.mktemp("val") / "store", 3, split="val")


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path) -> Configure:
    return configurer(tmp_path, scenes_store)


def values_of(out: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["validation_loss"]) for row in log_of(out) if row["validation_loss"]}


def test_it_is_the_mean_of_the_rows_always_with_masks_and_the_same_for_every_training(
    scenes_store: Path, val_store: Path, tmp_path: Path
) -> None:
    found = ddpm_fields(scenes_store, tmp_path) | {"validation": str(val_store)}
    kind = kind_of(found | {"drop_probability": 1.0})
    network = build_network(kind, CPU).eval()
    others = kind_of(found | {"sources": str(val_store), "validation": None, "drop_probability": 0.0})
    expected = []
    for source in range(3):
        chance = [generator_for(0, "validation", scope, source) for scope in ("row", "step")]
        alone = Batch(others.data, CPU, chance[1], chance[:1], np.array([source]), np.zeros(1, bool))
        expected.append(float(others.loss(network, alone).detach()))
    assert len(set(expected)) == 3
    assert kind.validation_loss(network) == pytest.approx(np.mean(expected), rel=1e-6)
    assert kind_of(found | {"seed": 7, "batch_size": 3}).validation_loss(network) == kind.validation_loss(network)
    assert kind_of(ddpm_fields(scenes_store, tmp_path)).validation_loss(network) is None


def test_of_many_sources_some_are_measured_spread_over_all(scenes_store: Path, tmp_path: Path) -> None:
    kept = kind_of(ddpm_fields(scenes_store, tmp_path)).data
    seen: list[int] = []

    class Watching:
        data = TrainingArrays(
            kept.images.repeat(60, 0), kept.channels.repeat(60, 0), kept.label_set, kept.captions * 60
        )

        def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            assert not batch.flipped.any()
            seen.extend(batch.sources.tolist())
            return torch.tensor(float(batch.sources[0]))

    mean = mean_loss(Watching(), nn.Linear(1, 1))
    assert (len(seen), len(set(seen)), seen[0], seen[-1]) == (256, 256, 0, 359)
    assert mean == pytest.approx(np.mean(seen))


def test_it_is_logged_with_every_grid_and_stands_in_card_record_and_picture(
    configure: Configure, val_store: Path, tmp_path: Path
) -> None:
    result = train_here("mask_ddpm", str(configure("out", validation=str(val_store), sample_every=10)))
    values, out = values_of(tmp_path / "out"), tmp_path / "out"
    assert list(values) == [10, 20, STEPS]
    assert len(set(values.values())) == 3
    assert result.figures == {"validation_loss": values[STEPS]}
    card = (out / "weights" / "README.md").read_text()
    assert f"| validation loss | {values[STEPS]:.4f} |" in card
    assert f"validation: {val_store}" in card
    assert (decode_image((out / "loss.png").read_bytes()) == OTHER).all(axis=-1).sum() > 100
    plain = loss_curve([1, 2], [1.0, 0.5])
    assert not (plain == OTHER).all(axis=-1).any()
    assert train_here("mask_ddpm", str(tmp_path / "out.yaml")).figures == result.figures
    assert train_here("mask_ddpm", str(configure("without"))).figures == {}
    assert "validation loss" not in (tmp_path / "without" / "weights" / "README.md").read_text()


def test_an_attempt_that_ended_over_it_is_made_up_for(
    configure: Configure, val_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(configure("out", validation=str(val_store)))

    def ends(self: MaskDDPMTraining, average: nn.Module) -> float:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(MaskDDPMTraining, "validation_loss", ends)
        with pytest.raises(MemoryError):
            train_here("mask_ddpm", config)
    assert values_of(tmp_path / "out") == {}
    again = train_here("mask_ddpm", config)
    whole = train_here("mask_ddpm", str(configure("whole", validation=str(val_store))))
    assert again.figures == whole.figures
    assert list(values_of(tmp_path / "out")) == [STEPS]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("base", {"train_text_encoders": True}),
        ("text2mask", {}),
        ("text2mask", {"lora": {"rank": 2}}),
        ("controlnet", {"cache_prompts": False}),
        ("t2i_adapter", {}),
    ],
)
def test_of_latent_diffusion_it_is_that_of_the_weights_that_are_put(
    latent_store: Path, latent_base: Path, val_store: Path, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """Loaded again, by a training that starts from them: of LoRA merged, of others as they are."""
    more = {"cache": str(tmp_path / "cache"), "validation": str(val_store), "learning_rate": 1e-2, "ema_decay": 0.5}
    found = fields(latent_store, tmp_path / "out", base=str(latent_base), **TUNED.get(kind, {}), **more, **changes)
    if kind == "base":
        found = fields(latent_store, tmp_path / "out", init_weights=str(latent_base), **more, **changes)
    result = train_here(kind, write(tmp_path, "first", found))
    value = result.figures["validation_loss"]
    record = read_record(str(result.weights))
    assert record is not None
    assert record.figures["validation_loss"] == pytest.approx(value, abs=1e-5)
    again = {name: part for name, part in found.items() if name != "lora"} | {"init_weights": result.weights}
    again["out"] = str(tmp_path / "again")
    options: Any = read_options(kind, write(tmp_path, "again", again))
    started: Any = kind_type(kind)(options, read_data(options))
    fill(caches_to_fill(started), "cpu", here)
    network = build_network(started, CPU).eval()
    assert started.validation_loss(network) == pytest.approx(value, rel=1e-4)
    before: Any = kind_type(kind)(options.model_copy(update={"init_weights": found.get("init_weights")}), started.data)
    fill(caches_to_fill(before), "cpu", here)
    if kind != "t2i_adapter":  # a new one is random, and neither better nor worse
        assert abs(before.validation_loss(build_network(before, CPU).eval()) - value) > 1e-4


def test_a_new_base_measures_others_with_its_own_tokenizer(
    latent_store: Path, latent_vae: Path, val_store: Path, tmp_path: Path
) -> None:
    found = base_fields(latent_store, tmp_path / "out", latent_vae, validation=str(val_store), steps=2)
    options: Any = read_options("base", write(tmp_path, "base", found))
    kind: Any = kind_type("base")(options, read_data(options))
    fill(caches_to_fill(kind), "cpu", here)
    network = build_network(kind, CPU).eval()
    assert isinstance(network, TextToImage)
    assert np.isfinite(kind.validation_loss(network))
    assert kind.held_out.parts is kind.parts
    assert kind.held_out.budget is kind.budget
    assert kind.held_out.prompts.drop_prompt == 0
    assert kind.held_out.data.captions != kind.data.captions


def test_a_store_without_captions_is_refused_by_its_option(
    latent_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    store = make_scenes_store(tmp_path / "val", 3, split="val")
    without_captions(store)
    found = fields(
        latent_store, tmp_path / "out", base=str(latent_base), validation=str(store), cache=str(tmp_path / "c")
    )
    for kind in ("controlnet", "text2mask"):
        with pytest.raises(UsageError, match=r"^validation: .*val: 0 of 3 sources have a caption, and prompts"):
            train_here(kind, write(tmp_path, kind, found))
    assert not (tmp_path / "c").exists()
