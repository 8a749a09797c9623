"""Low-rank layers against the formula of their paper: `W + alpha / rank * B A`, alpha as the rank where it is unset."""

import copy

import pytest
import torch
from tiny_latent import make_unet

from segdatagen.training.latent_options import LoraOptions
from segdatagen.training.lora import add_low_rank, merged


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (3.0, 1.0), (6.0, 2.0), (1.0, 1 / 3)])
def test_low_rank_layers_are_added_at_their_scale(alpha: float | None, scale: float) -> None:
    unet = make_unet().requires_grad_(False)
    before = copy.deepcopy(unet.state_dict())
    learned = add_low_rank(unet, LoraOptions(rank=3, alpha=alpha, targets=("to_q",)))
    with torch.no_grad():
        for parameter in learned.layers.values():
            parameter.normal_(std=0.1)
    after = merged(unet, learned).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        if name.endswith("to_q.weight"):
            place = name.removesuffix(".weight").replace(".", "/")
            a, b = (learned.layers[f"{place}/lora_{letter}/default/weight"] for letter in "AB")
            torch.testing.assert_close(after[name], tensor + scale * b @ a)
            assert not torch.allclose(after[name], tensor, atol=1e-3)
        else:
            assert torch.equal(after[name], tensor)
