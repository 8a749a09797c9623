"""Images per second of the latent engine beside the loop around diffusers' pipeline that a user would write.

It needs neither Ray nor weights nor a network. What is timed is in `render_loops`.
"""

from collections.abc import Sequence

from segdatagen.benchmark.measure import Benchmark, Figures, torch_threads
from segdatagen.benchmark.render_cases import OPTIONS, Size, cases
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.network_tensors import quiet_diffusers


def bench_render(size: Size = "tiny", images: int = 16, microbatch: int = 8, numerics: Sequence[str] = ()) -> Figures:
    """Draw with a ControlNet and with a T2I-Adapter, sources with one variant and with four.

    `sdxl` is the published architecture at 1024 x 1024, 30 steps (T2I-Adapter) and 768 x 768, 40 steps (ControlNet),
    for a GPU; `tiny` a small one of the same classes at 64 x 64, 10 steps. On a GPU in bfloat16, else on one core.
    `images` of each case, a multiple of 4, are timed as they are, with a step cache of every third step, and with
    float8 weights. `numerics`: which of NUMERICS the engine has on; code is compiled before. Raises UsageError.
    """
    import torch

    from segdatagen.benchmark.render_loops import measure

    wanted = Numerics.model_validate(dict.fromkeys(numerics, True))
    wanted.require_usable("cuda" if torch.cuda.is_available() else "cpu")
    has_gpu = torch.cuda.is_available()
    figures: Figures = {
        "size": size,
        "device": torch.cuda.get_device_name() if has_gpu else "one core",
        "dtype": "bfloat16" if has_gpu else "float32",
        "microbatch": microbatch,
        "images": images,
        "numerics": " ".join(numerics) or "default",
    }
    ratios: dict[str, list[float]] = {name: [] for name in ("ratio_to_plain", *(f"{o}_ratio" for o in OPTIONS))}
    with torch_threads(1), quiet_diffusers():
        for case in cases(images):
            found = measure(size, case, microbatch, wanted)
            for name, of_cases in ratios.items():
                of_cases.append(float(found[name]))
            figures |= {f"{case.control}_{case.variants}_{name}": value for name, value in found.items()}
    lowest = {f"lowest_{name}": min(of_cases) for name, of_cases in ratios.items()}
    return figures | lowest | {f"highest_{name}": max(of_cases) for name, of_cases in ratios.items()}


RENDER = Benchmark(
    "render",
    bench_render,
    measures="images per second of the latent engine, with random weights",
    reference="diffusers' pipeline, one image at a time, PNG by PIL",
    figure="four variants of a source: ControlNet {controlnet_4_images_per_second:.2f} images/s "
    "({controlnet_4_side:d} x {controlnet_4_side:d}, {controlnet_4_steps:d} steps, {controlnet_4_share_of_floor:.2f} "
    "of the floor), T2I-Adapter {t2i_adapter_4_images_per_second:.2f} "
    "({t2i_adapter_4_side:d} x {t2i_adapter_4_side:d}, {t2i_adapter_4_steps:d} steps, "
    "{t2i_adapter_4_share_of_floor:.2f}); with a step cache of 3 {lowest_step_cache_ratio:.2f} to "
    "{highest_step_cache_ratio:.2f} times that, with float8 weights {lowest_float8_ratio:.2f} to "
    "{highest_float8_ratio:.2f}",
    ratio="{lowest_ratio_to_plain:.2f} to {highest_ratio_to_plain:.2f} times as fast",
    minutes=4,
)
