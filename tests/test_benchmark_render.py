"""`bench render`: the counted operations are the published ones, and both loops draw the same images."""

import pytest
import torch
from conftest import Refused

from segdatagen.benchmark.architectures import build
from segdatagen.benchmark.render import bench_render
from segdatagen.benchmark.render_cases import OPTIONS, Case, cases
from segdatagen.benchmark.render_loops import tflop_per_image, tflops_of


@pytest.mark.parametrize(
    ("control", "side", "published"),
    [
        ("t2i_adapter", 1024, {"unet": 6.761, "t2i_adapter": 0.240, "vae": 10.47}),
        ("controlnet", 768, {"unet": 3.641, "controlnet": 1.628, "vae": 5.75}),
    ],
)
def test_operations_are_those_of_the_published_networks(control: str, side: int, published: dict[str, float]) -> None:
    """TFLOP of a forward pass of Stability's SDXL base, its ControlNet and TencentARC's adapter, without memory."""
    found = tflops_of("sdxl", control, side)  # type: ignore[arg-type]
    assert found.keys() == published.keys()
    for name, tflop in published.items():
        assert found[name] == pytest.approx(tflop, rel=0.01), name


def test_the_published_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        architecture = build("sdxl", "controlnet")
        adapter = build("sdxl", "t2i_adapter").adapter
    networks = {"unet": architecture.unet, "controlnet": architecture.controlnet, "adapter": adapter}
    counts = {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()}
    assert counts == pytest.approx({"unet": 2567.46, "controlnet": 1251.01, "adapter": 79.03}, rel=1e-4)


def test_a_source_with_more_variants_costs_fewer_operations_an_image() -> None:
    one, four = (tflop_per_image("tiny", Case("t2i_adapter", 1, variants)) for variants in (1, 4))
    with_controlnet = [tflop_per_image("tiny", Case("controlnet", 1, variants)) for variants in (1, 4)]
    assert four < one
    assert with_controlnet[0] == with_controlnet[1]


def test_each_control_is_drawn_with_one_variant_and_with_four() -> None:
    assert {(case.control, case.variants, case.sources) for case in cases(16)} == {
        *(("controlnet", 1, 16), ("controlnet", 4, 4)),
        *(("t2i_adapter", 1, 16), ("t2i_adapter", 4, 4)),
    }


def test_both_loops_draw_the_same_images_and_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [Case("controlnet", 1, 4), Case("t2i_adapter", 2, 1)]
    monkeypatch.setattr("segdatagen.benchmark.render.cases", lambda num_images: few)
    figures = bench_render(images=4, microbatch=4, numerics=["channels_last", "fuse_qkv"])
    assert figures["numerics"] == "channels_last fuse_qkv"
    for case in few:
        name = f"{case.control}_{case.variants}"
        assert float(figures[f"{name}_mean_difference_in_levels"]) < 0.5, "equal noise, equal images but for rounding"
        rate, plain = (float(figures[f"{name}_{key}"]) for key in ("images_per_second", "images_per_second_plain"))
        assert float(figures[f"{name}_ratio_to_plain"]) == pytest.approx(rate / plain, rel=0.01)
        for option in OPTIONS:
            other = float(figures[f"{name}_{option}_images_per_second"])
            assert float(figures[f"{name}_{option}_ratio"]) == pytest.approx(other / rate, rel=0.01)
    ratios = [float(value) for name, value in figures.items() if name.endswith("_ratio_to_plain") and name[0] in "ct"]
    assert (figures["lowest_ratio_to_plain"], figures["highest_ratio_to_plain"]) == (min(ratios), max(ratios))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("render", "--numerics", "compile,fp4"),
            "--numerics: fp4: only channels_last, compile, fuse_qkv can be timed",
        ),
        (("kills", "--microbatch", "4"), "--microbatch belongs to `segdatagen bench render`"),
        (("render", "--size", "huge"), "--size: 'huge' is none of tiny, sdxl"),
        (("render", "--images", "6"), "--images: 6 is no multiple of 4, and each source has four variants"),
        (("plan", "--size", "tiny"), "--size belongs to `segdatagen bench render`"),
    ],
)
def test_a_size_that_is_not_there_is_refused(refused_here: Refused, words: tuple[str, ...], said: str) -> None:
    assert said in refused_here("bench", *words)
