"""Folders of diffusers models, looked at before they are loaded: what they hold, and whether that fits together.

A folder has the layout of `from_pretrained`: `model_index.json` and a folder per component, or one network with its
`config.json`. What is wrong is found before any process starts that would load it. Nothing is loaded here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segdatagen.errors import UsageError
from segdatagen.model_configs import read_json, require_no_code
from segdatagen.network_tensors import check_network
from segdatagen.weights import local_weights, safetensors_shapes

Family = Literal["sdxl", "sd15"]

LIBRARIES = ("diffusers", "transformers")
COMPONENTS: dict[Family, dict[str, str]] = {
    "sdxl": {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    },
    "sd15": {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    },
}
"""What a model of each family is made of, by folder."""
WITHOUT_TENSORS = ("tokenizer", "tokenizer_2")
FIRST_TENSOR = "model.diffusion_model.input_blocks.0.0.weight"
"""Of the UNet in a file as the authors of Stable Diffusion lay it out."""
TEXT_TENSORS: dict[Family, str] = {
    "sdxl": "conditioner.embedders.1.model.ln_final.weight",
    "sd15": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
}
"""A tensor that such a file of each family has, and of the other has not."""


ADAPTER_TYPES: dict[Family, dict[str, int]] = {
    "sdxl": {"full_adapter_xl": 2},
    "sd15": {"full_adapter": 1, "light_adapter": 1},
}
"""Kinds of T2I-Adapters of each family, and how many latents their first features stand for along each side."""
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")
"""Noise schedules, and what a network predicts, that every solver here can do."""
PICTURE_CHANNELS = 3
"""Of every visual prior."""


@dataclass(frozen=True)
class Shape:
    """What of a UNet others have to fit: its family, channels of its blocks, of its latents and of its text."""

    family: Family
    blocks: tuple[int, ...]
    in_channels: int
    latent_channels: int
    text_channels: int
    vae_factor: int
    """Pixels per latent, along each side."""

    @property
    def inpaints(self) -> bool:
        """Whether it was trained to inpaint: it also takes a mask and the latents of what is known."""
        return self.in_channels == 2 * self.latent_channels + 1


def check_base(uri: str, config_uri: str | None = None) -> Shape:
    """The shape of a text-to-image model. Raises UsageError, in one line, where it cannot be used.

    Where it is one file, in the layout of its authors, the folder at `config_uri` says what its networks are.
    """
    place = local_weights(uri)
    if not place.is_file():
        if config_uri is not None:
            raise UsageError(f"{uri} is a folder with configurations of its own: leave base_config out")
        shape = _shape(uri, place)
        for name, kind in COMPONENTS[shape.family].items():
            if name not in WITHOUT_TENSORS:
                check_network(place / name, kind, read_json(place / name / "config.json", uri))
        return shape
    if place.suffix != ".safetensors":
        raise UsageError(f"{uri} is no safetensors file, and pickles are not loaded: convert it first")
    if config_uri is None:
        raise UsageError(
            f"{uri} is one file: give base_config, too, the folder of a diffusers model of its kind "
            "(configurations and tokenizers; its tensors are not needed)"
        )
    shape = _shape(config_uri, local_weights(config_uri))
    _check_file(uri, place, shape)
    return shape


def _shape(uri: str, folder: Path) -> Shape:
    """What the configurations of a folder say."""
    if folder.is_file():
        raise UsageError(f"{uri} is one file: base_config is the folder of a diffusers model")
    index = read_json(folder / "model_index.json", f"{uri} is no diffusers model")
    family: Family = "sdxl" if "text_encoder_2" in index else "sd15"
    for name in COMPONENTS[family]:
        _require_component(uri, folder, name, index.get(name), family)
    unet = read_json(folder / "unet" / "config.json", f"{uri} has no unet")
    vae = read_json(folder / "vae" / "config.json", f"{uri} has no vae")
    if (unet.get("addition_embed_type") == "text_time") != (family == "sdxl"):
        raise UsageError(f"{uri}: its unet is not that of {family}: use a model of SDXL or of SD 1.5")
    _check_schedule(uri, folder)
    latent_channels = _number(f"{uri}/vae", vae, "latent_channels")
    unet_channels = _number(f"{uri}/unet", unet, "out_channels")
    if unet_channels != latent_channels:
        raise UsageError(f"{uri}: its unet has {unet_channels} latent channels, its vae {latent_channels}")
    shape = Shape(
        family=family,
        blocks=_numbers(f"{uri}/unet", unet, "block_out_channels"),
        in_channels=_number(f"{uri}/unet", unet, "in_channels"),
        latent_channels=latent_channels,
        text_channels=_number(f"{uri}/unet", unet, "cross_attention_dim"),
        vae_factor=2 ** (len(_numbers(f"{uri}/vae", vae, "block_out_channels")) - 1),
    )
    if shape.in_channels != latent_channels and not shape.inpaints:
        raise UsageError(f"{uri}: a unet of {shape.in_channels} input channels is neither for text nor for inpainting")
    return shape


def _check_schedule(uri: str, folder: Path) -> None:
    """Raise UsageError unless a base says what noise it was trained with: a solver would take its own default."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, f"{uri} has no scheduler")
    place = f"{uri}/scheduler: its scheduler_config.json"
    steps, kind = config.get("num_train_timesteps"), config.get("prediction_type", PREDICTIONS[0])
    if kind not in PREDICTIONS:
        raise UsageError(f"{place} gives prediction_type {kind!r}, and one of {', '.join(PREDICTIONS)} is needed")
    if not _is_count(steps):
        raise UsageError(f"{place} gives num_train_timesteps {steps!r}, and a whole number is needed")
    if config.get("use_beta_sigmas") or config.get("use_flow_sigmas"):
        raise UsageError(f"{place} asks for noise levels that no solver here has: use_beta_sigmas, use_flow_sigmas")
    if config.get("trained_betas") is not None:
        return
    if config.get("beta_schedule") not in SCHEDULES:
        found = config.get("beta_schedule")
        raise UsageError(f"{place} gives beta_schedule {found!r}, and one of {', '.join(SCHEDULES)} is needed")
    for name in ("beta_start", "beta_end"):
        if not isinstance(config.get(name), float):
            raise UsageError(f"{place} gives {name} {config.get(name)!r}, and a number is needed")


def _check_file(uri: str, path: Path, shape: Shape) -> None:
    """Raise UsageError unless a file holds a model of this family and UNet, by what its header says of some tensors."""
    found = safetensors_shapes(path)
    first = found.get(FIRST_TENSOR)
    if first is None:
        raise UsageError(f"{uri} is no model of SDXL or SD 1.5 in the layout of its authors: it has no {FIRST_TENSOR}")
    family = next((family for family, name in TEXT_TENSORS.items() if name in found), "another family")
    if family != shape.family:
        raise UsageError(f"{uri} is a model of {family}, and base_config is one of {shape.family}")
    text = {dims[1] for name, dims in found.items() if name.endswith(".attn2.to_k.weight")}
    if first[:2] != (shape.blocks[0], shape.in_channels) or text != {shape.text_channels}:
        raise UsageError(
            f"{uri} is no model of base_config: its unet takes {first[1]} channels to {first[0]}, with text of "
            f"{', '.join(map(str, sorted(text)))}, that of base_config {shape.in_channels} to {shape.blocks[0]}, with "
            f"text of {shape.text_channels}"
        )


def check_vae(uri: str, shape: Shape) -> None:
    """Raise UsageError unless this VAE can stand in for that of a model, like SDXL's with the fp16 fix."""
    config = network_config(uri, "AutoencoderKL")
    found = _number(uri, config, "latent_channels"), 2 ** (len(_numbers(uri, config, "block_out_channels")) - 1)
    if found != (shape.latent_channels, shape.vae_factor):
        raise UsageError(
            f"the vae {uri} makes {found[0]} latent channels at 1/{found[1]} of the size, and the base wants "
            f"{shape.latent_channels} at 1/{shape.vae_factor}"
        )


def check_controlnet(uri: str, shape: Shape) -> None:
    """Raise UsageError unless this ControlNet was made for a UNet of this shape, and for pictures of three channels."""
    config = network_config(uri, "ControlNetModel")
    found = _numbers(uri, config, "block_out_channels"), _number(uri, config, "cross_attention_dim")
    if found != (shape.blocks, shape.text_channels):
        raise UsageError(f"the ControlNet {uri} is for another base: {_differ(found, shape)}")
    _require_channels(f"the ControlNet {uri}", _number(uri, config, "conditioning_channels", PICTURE_CHANNELS))
    factor = 2 ** (len(_numbers(uri, config, "conditioning_embedding_out_channels")) - 1)
    if factor != shape.vae_factor:
        raise UsageError(
            f"the ControlNet {uri} is for another base: it brings pictures to 1/{factor} of their size, and the base "
            f"draws at 1/{shape.vae_factor}"
        )


def check_adapter(uri: str, shape: Shape) -> int:
    """The pixels that this T2I-Adapter takes as one, along each side.

    Raises UsageError unless it was made for a UNet of this family and shape, and for pictures of three channels.
    """
    config = network_config(uri, "T2IAdapter")
    kinds, kind = ADAPTER_TYPES[shape.family], config.get("adapter_type", "full_adapter")
    if kind not in kinds:
        raise UsageError(f"the T2I-Adapter {uri} is a {kind}: a base of {shape.family} takes a {' or a '.join(kinds)}")
    channels, deepest = _numbers(uri, config, "channels"), shape.blocks[-1]
    features = (*channels, channels[-1]) if kind == "light_adapter" else channels
    fitting = [shape.blocks]
    if shape.family == "sdxl":
        fitting.append((*shape.blocks, deepest))  # one more, for the middle block
    if features not in fitting:
        found = ", ".join(map(str, features))
        raise UsageError(
            f"the T2I-Adapter {uri} is for another base: its features have {found} channels, and the blocks of the "
            f"base {', '.join(map(str, shape.blocks))}"
        )
    _require_channels(f"the T2I-Adapter {uri}", _number(uri, config, "in_channels", PICTURE_CHANNELS))
    factor, wanted = _number(uri, config, "downscale_factor", 8), kinds[kind] * shape.vae_factor
    if factor != wanted:
        raise UsageError(
            f"the T2I-Adapter {uri} is for another base: its features stand for {factor} x {factor} pixels, and those "
            f"of the base for {wanted} x {wanted}"
        )
    return factor


def network_config(uri: str, wanted: str) -> dict[str, Any]:
    """`config.json` of a folder with one network. Raises UsageError unless it is of the class `wanted`."""
    folder = local_weights(uri)
    config = read_json(folder / "config.json", f"{uri} is no {wanted}")
    require_no_code(uri, config)
    if config.get("_class_name") != wanted:
        found = config.get("_class_name", "network without a name")
        raise UsageError(f"{uri} holds the class {found}, and {wanted} is needed")
    for name in ("channels", "block_out_channels"):  # diffusers reads them before it looks at them
        if name in config:
            _numbers(uri, config, name)
    check_network(folder, wanted, config)
    return config


def _require_channels(network: str, found: int) -> None:
    if found != PICTURE_CHANNELS:
        raise UsageError(f"{network} takes pictures of {found} channels, and visual priors have {PICTURE_CHANNELS}")


def _number(place: str, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of a config. Raises UsageError where there is none."""
    found = config.get(name, default)
    if not _is_count(found):
        raise UsageError(f"{place}: {name} of its config.json is {found!r}, and a whole number is needed")
    return int(found)


def _numbers(place: str, config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Whole numbers of a config, one at least. Raises UsageError where there are none."""
    found = config.get(name)
    if not isinstance(found, list) or not found or not all(map(_is_count, found)):
        raise UsageError(f"{place}: {name} of its config.json is {found!r}, and whole numbers are needed")
    return tuple(found)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require_component(uri: str, folder: Path, name: str, entry: Any, family: Family) -> None:
    wanted = COMPONENTS[family][name]
    if not isinstance(entry, list) or len(entry) != 2 or None in entry:
        raise UsageError(f"{uri} has no {name}: a model of this kind has {', '.join(COMPONENTS[family])}")
    library, found = entry
    if library not in LIBRARIES:
        raise UsageError(f"{uri}: its {name} is {library}.{found}, code of its own, which is never run")
    if str(found).removesuffix("Fast") != wanted:
        raise UsageError(f"{uri}: its {name} is of the class {found}, and {wanted} is needed")
    if name in WITHOUT_TENSORS:
        if not (folder / name).is_dir():
            raise UsageError(f"{uri} has no {name}: {folder / name} is missing")
        return
    require_no_code(uri, read_json(folder / name / "config.json", f"{uri} has no {name}"))


def _differ(found: tuple[tuple[int, ...], int], shape: Shape) -> str:
    blocks, text = found
    return (
        f"its blocks have {', '.join(map(str, blocks))} channels and its text {text}, those of the base "
        f"{', '.join(map(str, shape.blocks))} and {shape.text_channels}"
    )
