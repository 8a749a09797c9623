"""The network of paper 001: its size, its names, and what guidance and ignored pixels mean to it."""

import pytest
import torch
from literal_mask_ddpm import predict_noise
from torch import Tensor

from segdatagen.diffusion.mask_ddpm import guided_noise
from segdatagen.diffusion.mask_unet import MaskUNet, one_hot, time_embedding
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.errors import UsageError

PAPER_MODULES = {
    "mask_conv": 169_856,
    "inc": 151_424,
    "down1": 1_246_976,
    "down2": 4_853_248,
    "down3": 9_572_864,
    "sa3": 1_577_984,
    "bot1": 14_159_872,
    "bot2": 18_878_464,
    "bot3": 7_079_936,
    "up1": 24_844_032,
    "sa4": 395_776,
    "up2": 6_228_864,
    "up3": 1_656_448,
    "outc": 387,
}


def paper_network(attention: bool = True) -> MaskUNet:
    with torch.device("meta"):
        return MaskUNet(MaskUNetConfig(attention=attention))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def network() -> MaskUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MaskUNet(MaskUNetConfig(num_classes=5, hidden=8, time_embedding=16)).eval()


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, 24, 16, generator=generator), torch.randint(-1, 5, (3, 24, 16), generator=generator)


def test_paper_size_has_the_published_number_of_parameters_and_tensors() -> None:
    assert count(paper_network()) == 90_816_131
    assert len(paper_network().state_dict()) == 140
    assert count(paper_network(attention=False)) == 88_842_371


def test_every_stage_has_the_published_number_of_parameters() -> None:
    assert {name: count(module) for name, module in paper_network().named_children()} == PAPER_MODULES


def test_tensors_have_the_names_of_the_authors_checkpoints() -> None:
    found = set(paper_network().state_dict())
    double = [f"double_conv.{i}.{kind}" for i, kind in ((0, "weight"), (1, "weight"), (1, "bias"))]
    double += [f"double_conv.{i}.{kind}" for i, kind in ((3, "weight"), (4, "weight"), (4, "bias"))]
    expected = {f"{stage}.{name}" for stage in ("mask_conv", "inc", "bot1", "bot2", "bot3") for name in double}
    for number in (1, 2, 3):
        expected |= {f"down{number}.maxpool_conv.{i}.{name}" for i in (1, 2) for name in double}
        expected |= {f"up{number}.conv.{i}.{name}" for i in (0, 1) for name in double}
        expected |= {f"{way}{number}.emb_layer.1.{kind}" for way in ("down", "up") for kind in ("weight", "bias")}
    for stage in ("sa3", "sa4"):
        expected |= {f"{stage}.mha.in_proj_{kind}" for kind in ("weight", "bias")}
        expected |= {f"{stage}.mha.out_proj.{kind}" for kind in ("weight", "bias")}
        expected |= {
            f"{stage}.{layer}.{kind}"
            for layer in ("ln", "ff_self.0", "ff_self.1", "ff_self.3")
            for kind in ("weight", "bias")
        }
    assert found == expected | {"outc.weight", "outc.bias"}


def test_time_embedding_is_sines_then_cosines_of_the_raw_step() -> None:
    embedded = time_embedding(torch.tensor([0, 999]), 256)
    assert embedded.shape == (2, 256)
    torch.testing.assert_close(embedded[0], torch.cat([torch.zeros(128), torch.ones(128)]))
    angle = torch.tensor(999 / 10000 ** (2 * 100 / 256), dtype=torch.float64)
    torch.testing.assert_close(embedded[1, 100].double(), angle.sin(), atol=1e-4, rtol=0)
    torch.testing.assert_close(embedded[1, 228].double(), angle.cos(), atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_network_is_the_paper_s_as_it_is_written(network: MaskUNet, step: int) -> None:
    x, channels = inputs(step)
    chance, weights = torch.Generator().manual_seed(step), network.state_dict()
    tensors = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=chance) for name, tensor in weights.items()}
    other = MaskUNet(network.config).eval()  # norms and biases are not 1 and 0, so each of them shows
    other.load_state_dict(tensors)
    masks = one_hot(channels, 5)
    guided = other(x, torch.full((3,), step), other.mask_conv(masks))
    alone = other(x, torch.full((3,), step))
    for row in range(3):
        expected = predict_noise(tensors, x[row : row + 1], step, masks[row : row + 1])
        torch.testing.assert_close(guided[row : row + 1], expected, atol=2e-5, rtol=1e-5)
        expected = predict_noise(tensors, x[row : row + 1], step, None)
        torch.testing.assert_close(alone[row : row + 1], expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_guidance_pair_equals_two_passes(network: MaskUNet) -> None:
    x, channels = inputs()
    steps = torch.full((3,), 400)
    conditional = network(x, steps, network.mask_conv(one_hot(channels, 5)))
    unconditional = network(x, steps)
    assert (conditional - unconditional).abs().max() > 0.01
    expected = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(guided_noise(network, channels, 3.0)(x, 400), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided_noise(network, channels, 0.0)(x, 400), conditional, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_of_zeros_are_the_prediction_without_mask(network: MaskUNet) -> None:
    x, _ = inputs()
    steps = torch.tensor([1, 500, 999])
    assert torch.equal(network(x, steps, torch.zeros(3, 8, 24, 16)), network(x, steps))


def test_ignored_pixel_is_an_all_zero_vector() -> None:
    channels = torch.tensor([[[2, -1], [-2, 0]]])
    hot = one_hot(channels, 3)
    assert hot.dtype == torch.float32
    assert hot[0, :, 0, 1].tolist() == hot[0, :, 1, 0].tolist() == [0, 0, 0]
    assert hot[0, :, 0, 0].tolist() == [0, 0, 1]
    assert hot[0, :, 1, 1].tolist() == [1, 0, 0]


def test_output_has_the_shape_of_the_input_at_any_multiple_of_eight(network: MaskUNet) -> None:
    for height, width in ((8, 8), (8, 40), (24, 16)):
        assert network(torch.zeros(1, 3, height, width), torch.tensor([5])).shape == (1, 3, height, width)
    with pytest.raises(UsageError, match="20x16"):
        network(torch.zeros(1, 3, 16, 20), torch.tensor([5]))


def test_unknown_channel_is_refused() -> None:
    with pytest.raises(UsageError, match="channel 5 but the model knows 5"):
        one_hot(torch.full((1, 8, 8), 5), 5)
