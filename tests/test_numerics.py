"""How networks compute: attention by another kernel, weights in float8, compiled code that the next actor finds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import child_environment
from diffusers import UNet2DConditionModel
from tiny_latent import make_controlnet, make_pipeline, save_pipeline
from torch.nn import functional

from segdatagen.diffusion.compiled_code import CompiledCode, device_name, require_compiler
from segdatagen.diffusion.denoise import KERNELS, attention_kernel
from segdatagen.diffusion.latent_models import LatentModels, load_base, load_controlnet
from segdatagen.diffusion.latent_options import LatentSamplerOptions, Numerics
from segdatagen.diffusion.render import Wanted, describe, render
from segdatagen.errors import UsageError
from segdatagen.stages.latent import LatentStageOptions

SIZE = (32, 32)
FLOAT8_CLOSE = 3.0
"""Mean levels of 255 that float8 weights may move an image of networks that nobody trained."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make_controlnet(make_pipeline().unet).save_pretrained(folder / "controlnet")
    save_pipeline(folder / "base")
    return folder


def models_of(folder: Path, **numerics: Any) -> LatentModels:
    return load_base(str(folder / "base"), Numerics(**numerics), "cpu")


def images_of(models: LatentModels, **sampler: Any) -> np.ndarray:
    conditions = describe(models, ["a red car; car", "a tree; tree"], [None, "dark"], SIZE)
    options = LatentSamplerOptions(**{"steps": 4, "guidance": 4.0} | sampler)
    return render(models, conditions, Wanted([0, 1, 1], [5, 6, 7]), options, 2).images


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize("name", ["math", "flash"])
def test_attention_by_another_kernel_differs_by_rounding_alone(folder: Path, name: Any) -> None:
    auto, other = images_of(models_of(folder)), images_of(models_of(folder, attention=name))
    assert apart(auto, other).max() <= 1


@pytest.mark.parametrize(("name", "others"), [("math", "flash"), ("flash", "math")])
def test_only_the_kernel_that_is_named_may_run(name: Any, others: str) -> None:
    """Inside UNet and ControlNet alone: before and after, torch chooses."""

    def allowed() -> dict[str, bool]:
        return {
            "math": torch.backends.cuda.math_sdp_enabled(),
            "flash": torch.backends.cuda.flash_sdp_enabled(),
        }

    before = allowed()
    with attention_kernel(name):
        assert allowed() == {name: True, others: False}
    with attention_kernel("auto"):
        assert allowed() == before
    assert allowed() == before
    assert set(KERNELS) | {"auto"} == {"auto", "math", "flash", "efficient", "cudnn"}


def test_kernels_of_a_cpu_are_two() -> None:
    """Close, and not the same bits: which one ran can be told."""
    query, key, value = (torch.randn(2, 4, 256, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    found = []
    for name in ("math", "flash"):
        with attention_kernel(name):
            found.append(functional.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert not torch.equal(found[0], found[1])


def test_a_kernel_that_cannot_raises() -> None:
    query = torch.rand(1, 1, 4, 8)
    with attention_kernel("cudnn"), pytest.raises(RuntimeError):
        functional.scaled_dot_product_attention(query, query, query)


def bytes_of(network: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.26), ("bfloat16", 0.52)])
def test_float8_weights_take_less_memory_and_stay_close(folder: Path, dtype: Any, share: float) -> None:
    plain, small = models_of(folder, dtype=dtype), models_of(folder, dtype=dtype, float8_weights=True)
    unet = small.network.unet
    stored = {name: parameter.dtype for name, parameter in unet.named_parameters()}
    assert stored["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"] == torch.float8_e4m3fn
    assert {dtype for name, dtype in stored.items() if "norm" not in name} == {torch.float8_e4m3fn}
    assert unet.dtype == getattr(torch, dtype), "what it computes in"
    assert bytes_of(unet) < share * bytes_of(plain.network.unet)
    found, again = images_of(small), images_of(small)
    np.testing.assert_array_equal(found, again)
    assert 0 < apart(found, images_of(plain)).mean() < FLOAT8_CLOSE
    assert {parameter.dtype for parameter in small.vae.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_nearly_what_float32_does(folder: Path, dtype: Any) -> None:
    """No NaN, which would be black; two sources and two seeds stay what they are."""
    exact, found = images_of(models_of(folder)), images_of(models_of(folder, dtype=dtype))
    assert apart(exact, found).mean() < (0.5 if dtype == "float16" else 4)
    assert apart(found[:1], found[1:]).mean() > 8


def test_a_controlnet_in_float8_encodes_and_controls(folder: Path) -> None:
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    plain, small = (
        load_controlnet(str(folder / "controlnet"), Numerics(float8_weights=is_small), "cpu")
        for is_small in (False, True)
    )
    assert bytes_of(small.network) < 0.26 * bytes_of(plain.network)
    exact, found = plain.encode(picture).embedded, small.encode(picture).embedded
    assert found.dtype == exact.dtype
    assert 0 < float((found - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


def test_float8_fused_projections_and_a_step_cache_go_together(folder: Path) -> None:
    small = models_of(folder, float8_weights=True, fuse_qkv=True, channels_last=True)
    cached = images_of(small, step_cache={"every": 2})
    np.testing.assert_array_equal(cached, images_of(small, step_cache={"every": 2}))
    assert 0 < apart(cached, images_of(small)).mean() < FLOAT8_CLOSE


# Compiled code

WORKER = """
import json, sys
import numpy as np
import torch
from torch._dynamo.utils import counters
from segdatagen.stages.latent import LatentStage, LatentStageOptions

stage = LatentStage(LatentStageOptions.model_validate_json(sys.argv[1]))
batch = {"prompt": ["a red car; car"] * 2, "negative_prompt": [None, None], "seed": [5, 6]}
images = stage({name: np.array(values, dtype=object) for name, values in batch.items()})["image"]
found = dict(counters["inductor"])
print(json.dumps({"images": [image.hex() for image in images], "counters": found}))
"""


def drawn(options: LatentStageOptions, cache: Path) -> dict[str, Any]:
    """What an actor with a node's cache of its own draws, and what its compiler counted."""
    environment = child_environment() | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, options.model_dump_json()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_shallow(base: Path, folder: Path) -> None:
    """A model with a UNet of one block down and one up, without attention: compiling takes as long as it is deep."""
    shutil.copytree(base, folder)
    config = dict(UNet2DConditionModel.load_config(folder / "unet"))
    config |= {"block_out_channels": (32,), "transformer_layers_per_block": 1, "attention_head_dim": 2}
    config |= {"down_block_types": ("DownBlock2D",), "mid_block_type": None, "up_block_types": ("UpBlock2D",)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


def stage_options(folder: Path, **more: Any) -> LatentStageOptions:
    return LatentStageOptions.model_validate(
        {"base": str(folder / "base"), "size": SIZE, "sampler": {"steps": 2}, "image_format": "png", "microbatch": 2}
        | more
    )


@pytest.mark.slow
def test_an_actor_on_another_node_finds_what_was_compiled(folder: Path, tmp_path: Path) -> None:
    """Two processes with no other cache in common: the second compiles nothing, and draws the same bytes."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C++ compiler {compiler}: install one, or name it in CXX")
    make_shallow(folder / "base", tmp_path / "base")
    kept = tmp_path / "run" / "work" / "compiled"
    options = stage_options(tmp_path, numerics={"compile": True}, compiled_code=str(kept))
    first = drawn(options, tmp_path / "first")
    assert first["counters"].get("fxgraph_cache_miss", 0) > 0
    (file,) = kept.iterdir()
    before = file.read_bytes()
    second = drawn(options, tmp_path / "second")
    assert second["images"] == first["images"]
    assert second["counters"].get("fxgraph_cache_miss", 0) == 0
    assert second["counters"]["fxgraph_cache_hit"] == first["counters"]["fxgraph_cache_miss"]
    assert file.read_bytes() == before, "what was loaded is not kept again"
    assert len(list(kept.iterdir())) == 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """torch's two functions with plain bytes: what is loaded stands in the list."""
    loaded: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"machine code", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda data: loaded.append(data) or "info")
    return loaded


def test_compiled_code_is_kept_once_and_loaded_whole(compiled: list[bytes], tmp_path: Path) -> None:
    first, second = (CompiledCode(str(tmp_path / "kept"), {"steps": 2}, "cpu") for _ in range(2))
    assert (first.load(), first.keep(), first.keep()) == (False, True, False)
    assert compiled == []
    assert (second.load(), second.keep()) == (True, False)
    assert compiled == [b"machine code"]


def test_actors_that_compile_at_the_same_time_leave_a_whole_file(compiled: list[bytes], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    actors = [CompiledCode(str(tmp_path / "kept"), {}, "cpu") for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda actor: actor.keep(), actors)) == [True] * 16
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [actors[0].name]
    assert CompiledCode(str(tmp_path / "kept"), {}, "cpu").load()


@pytest.mark.parametrize("damage", [b"", b"short", lambda whole: whole[:-1], lambda whole: whole[:-1] + b"!"])
def test_damaged_code_counts_as_none_and_is_replaced(compiled: list[bytes], tmp_path: Path, damage: Any) -> None:
    first = CompiledCode(str(tmp_path), {}, "cpu")
    first.keep()
    whole = (tmp_path / first.name).read_bytes()
    (tmp_path / first.name).write_bytes(damage(whole) if callable(damage) else damage)
    second = CompiledCode(str(tmp_path), {}, "cpu")
    assert not second.load()
    assert compiled == [], "torch is not handed what is damaged"
    assert second.keep()
    assert (tmp_path / first.name).read_bytes() == whole


def test_code_belongs_to_a_content_a_device_and_a_version_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def name(**more: Any) -> str:
        return CompiledCode(str(tmp_path), stage_options(folder, **more).content, "cpu").name

    names = {name(), name(microbatch=4), name(size=(64, 64)), name(numerics={"dtype": "bfloat16"})}
    assert len(names) == 4
    assert name(torch_threads=2) == name(compiled_code="elsewhere") == name()
    assert device_name("cpu")
    before = name()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert name() != before


def test_a_folder_that_cannot_be_written_costs_a_warning(
    compiled: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code = CompiledCode(str(tmp_path / "file" / "kept"), {}, "cpu")
    assert not code.load()
    with pytest.warns(UserWarning, match="the next actor compiles again"):
        assert not code.keep()


def test_where_nothing_can_be_compiled_a_stage_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("no such compiler\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UsageError, match=r"^numerics.compile: torch.compile does not work here \(no such compiler\)"):
        require_compiler("cpu")
