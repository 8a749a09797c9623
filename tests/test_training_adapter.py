"""The kind `t2i_adapter`: the scales of its blends, which are drawn for every row."""

from pathlib import Path

import numpy as np
import torch
from tiny_latent_training import CPU, TUNED, fields
from torch import Tensor

from segdatagen.priors import blend
from segdatagen.sources import read_arrays
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.latents import fill, here
from segdatagen.training.loop import build_network
from segdatagen.training.t2i_adapter import AdapterTraining, AdapterTrainingOptions


class Watching(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, pictures: Tensor) -> list[Tensor]:
        self.seen.append(pictures)
        return []


def test_scales_of_both_priors_are_drawn_for_every_row(latent_store: Path, latent_base: Path, tmp_path: Path) -> None:
    found = fields(latent_store, tmp_path, base=str(latent_base), cache=str(tmp_path / "cache"), **TUNED["t2i_adapter"])
    options = AdapterTrainingOptions.model_validate(found | {"w1": [0.1, 0.5], "w2": [0.2, 1.0]})
    kind = AdapterTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    network, watching = build_network(kind, CPU), Watching()
    first, second = [], []
    for step in range(4):
        batch, again = (batch_of_step(kind.data, Order(0, 4, True), step, Share(), CPU) for _ in range(2))
        kind.steering(watching, kind.noisy(network, batch), batch)
        kind.noisy(network, again)
        drawn = kind._priors.at(again.sources, again.flipped)
        for row, generator in enumerate(again.row_chance):
            shares = torch.rand(2, generator=generator).tolist()
            w1, w2 = 0.1 + 0.4 * shares[0], 0.2 + 0.8 * shares[1]
            shown = np.rint(watching.seen[step][row].permute(1, 2, 0).numpy() * 255)
            assert np.array_equal(shown, blend(*drawn[row], w1, w2))
            of_image, of_mask = (place > 0 for place in drawn[row])
            first.append(shown[of_image & ~of_mask].max() / 255)  # where one prior is white, and the other black
            second.append(shown[of_mask & ~of_image].max() / 255)
    for scales, low, high in ((first, 0.1, 0.5), (second, 0.2, 1.0)):
        assert low - 0.01 <= min(scales) < max(scales) <= high + 0.01
        assert max(scales) - min(scales) > (high - low) / 3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9
