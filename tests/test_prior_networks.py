"""Networks that draw priors: published names and shapes, the published arithmetic, any size, and wrong weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from published_priors import PUBLISHED, State, random_state
from safetensors.torch import save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
)

from segdatagen.datasets.scenes import make_scene
from segdatagen.errors import UsageError
from segdatagen.images import Image
from segdatagen.labels import load_label_set
from segdatagen.priors import Prior, PriorOptions, check_prior
from segdatagen.priors.pidinet import PiDiNet, plain_weights

LABELS = load_label_set("scenes")
FILES = {"line_art": "sk_model.pth", "hed": "ControlNetHED.pth", "sketch": "table5_pidinet.pth"}
MULTIPLES = {"line_art": 4, "hed": 16, "sketch": 8}
NUM_PARAMETERS = {"line_art": 4_290_945, "hed": 14_716_168, "sketch": 710_149}
NAMES = {
    "line_art": {
        "model0.1.weight": (64, 3, 7, 7),
        "model1.0.bias": (128,),
        "model1.3.weight": (256, 128, 3, 3),
        "model2.0.conv_block.1.weight": (256, 256, 3, 3),
        "model2.2.conv_block.5.bias": (256,),
        "model3.0.weight": (256, 128, 3, 3),
        "model3.3.weight": (128, 64, 3, 3),
        "model4.1.weight": (1, 64, 7, 7),
    },
    "hed": {
        "norm": (1, 3, 1, 1),
        "block1.convs.0.weight": (64, 3, 3, 3),
        "block1.projection.weight": (1, 64, 1, 1),
        "block3.convs.2.bias": (256,),
        "block5.convs.2.weight": (512, 512, 3, 3),
        "block5.projection.bias": (1,),
    },
    "sketch": {
        "init_block.weight": (60, 3, 3, 3),
        "block1_2.conv1.weight": (60, 1, 3, 3),
        "block2_1.shortcut.weight": (120, 60, 1, 1),
        "block4_4.conv2.weight": (240, 240, 1, 1),
        "dilations.0.conv2_4.weight": (24, 24, 3, 3),
        "attentions.3.conv1.bias": (4,),
        "conv_reduces.2.conv.weight": (1, 24, 1, 1),
        "classifier.weight": (1, 4, 1, 1),
    },
}
STATES = {name: random_state(name) for name in FILES}
NETWORKS = list(FILES)


@pytest.fixture(scope="module")
def annotators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the public annotators, each stored as it is published."""
    folder = tmp_path_factory.mktemp("annotators")
    torch.save(STATES["line_art"], folder / FILES["line_art"], _use_new_zipfile_serialization=False)
    torch.save({name: tensor.half() for name, tensor in STATES["hed"].items()}, folder / FILES["hed"])
    parallel = {f"module.{name}": tensor for name, tensor in STATES["sketch"].items()}
    torch.save({"epoch": 13, "state_dict": parallel}, folder / FILES["sketch"])
    return folder


def options(name: str, weights: Path, **others: object) -> PriorOptions:
    shades = {"sketch_threshold": None} if name == "sketch" else {}
    return PriorOptions.model_validate({"name": name, "weights": str(weights), **shades, **others})


def picture_of(height: int, width: int) -> Image:
    scene = make_scene(3, max(width, 32), max(height, 32)).image
    return np.ascontiguousarray(scene[:height, :width])


def published(name: str, picture: Image) -> np.ndarray:
    """What the published network draws of a picture whose sides it takes."""
    state = STATES[name]
    if name == "hed":
        state = {key: tensor.half().float() for key, tensor in state.items()}
    with torch.inference_mode():
        levels = torch.tensor(picture).permute(2, 0, 1)[None].float()
        return PUBLISHED[name](state, levels)[0, 0].numpy().astype(np.int64)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_shapes_and_parameters_are_the_published_ones(name: str) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in STATES[name].items()}
    assert NAMES[name].items() <= shapes.items()
    assert sum(tensor.numel() for tensor in STATES[name].values()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 48), (37, 51)])
def test_drawings_are_those_of_the_published_network(name: str, size: tuple[int, int], annotators: Path) -> None:
    picture = picture_of(*size)
    drawn = Prior(options(name, annotators), LABELS).of_image(picture)
    multiple = MULTIPLES[name]
    padding = [(0, -side % multiple) for side in size]
    expected = published(name, np.pad(picture, [*padding, (0, 0)], mode="edge"))[: size[0], : size[1]]
    assert drawn.shape == picture.shape
    assert (drawn == drawn[:, :, :1]).all()
    assert expected.std() > 2
    apart = np.abs(drawn[:, :, 0] - expected)
    assert apart.max() <= 1  # a level that lies on a whole number falls to either side
    assert apart.mean() < 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_another_resolution_is_the_drawing_of_another_picture(name: str, annotators: Path) -> None:
    picture = picture_of(32, 48)
    shown = cv2.resize(picture, (96, 64), interpolation=cv2.INTER_LANCZOS4)
    drawn = Prior(options(name, annotators, resolution=64), LABELS).of_image(picture)
    expected = cv2.resize(published(name, shown).astype(np.uint8), (48, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(drawn[:, :, 0].astype(int) - expected).max() <= 1
    native = Prior(options(name, annotators), LABELS).of_image(picture)
    assert np.abs(drawn.astype(int) - native).max() > 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 17)])
def test_every_size_is_kept(name: str, size: tuple[int, int], annotators: Path) -> None:
    for resolution in (None, 40):
        prior = Prior(options(name, annotators, resolution=resolution), LABELS)
        drawn = prior.of_image(picture_of(*size))
        assert drawn.shape == (*size, 3)
        assert drawn.dtype == np.uint8
        assert prior.of_mask(make_scene(1, 32, 32).mask[: size[0], : size[1]]).shape[:2] == tuple(
            min(side, 32) for side in size
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_of_a_batch_do_not_touch_each_other(name: str, annotators: Path) -> None:
    network = Prior(options(name, annotators), LABELS)._draw._network  # type: ignore[attr-defined]
    pictures = [make_scene(seed, 48, 32).image for seed in range(3)]
    levels = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        together = network(levels)
        alone = torch.cat([network(row[None]) for row in levels])
    assert together.shape == (3, 1, 32, 48)
    assert (together - alone).abs().max() <= 1
    assert (together != alone).float().mean() < 0.01


@pytest.mark.parametrize(("name", "reach"), [("hed", 128), ("sketch", 144)])
def test_what_lies_out_of_reach_changes_nothing(name: str, reach: int, annotators: Path) -> None:
    """So neither does padding, past the last pixels. The line art normalises the picture as a whole."""
    prior = Prior(options(name, annotators), LABELS)
    strip = picture_of(32, reach + 87)
    whole, cut = prior.of_image(strip).astype(int), prior.of_image(strip[:, : reach + 21]).astype(int)
    assert np.abs(whole[:, :21] - cut[:, :21]).max() <= 1
    assert np.abs(whole[:, 21 : reach + 21] - cut[:, 21:]).max() > 1


def test_a_sketch_is_black_and_white_unless_shades_are_asked_for(annotators: Path) -> None:
    picture = picture_of(40, 56)
    shades = Prior(options("sketch", annotators), LABELS).of_image(picture)
    threshold = float(np.median(shades)) / 255
    sketch = Prior(options("sketch", annotators, sketch_threshold=threshold), LABELS).of_image(picture)
    assert set(np.unique(sketch)) == {0, 255}
    assert (shades[sketch == 255] >= np.floor(threshold * 255)).all()
    assert (shades[sketch == 0] <= threshold * 255).all()


def test_plain_convolutions_of_pidinet_load_as_they_are(annotators: Path, tmp_path: Path) -> None:
    plain = plain_weights(STATES["sketch"])
    assert plain["block3_3.conv1.weight"].shape == (240, 1, 5, 5)
    assert all(torch.equal(plain_weights(plain)[name], tensor) for name, tensor in plain.items())
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, tmp_path / "model.safetensors")
    PiDiNet().load_state_dict(plain)
    picture = picture_of(24, 32)
    first, second = (Prior(options("sketch", folder), LABELS).of_image(picture) for folder in (annotators, tmp_path))
    assert np.array_equal(first, second)


def broken_state(kind: str) -> State:
    state = dict(STATES["line_art"])
    if kind == "lacking":
        del state["model4.1.bias"]
    elif kind == "wide":
        state["model0.1.weight"] = torch.zeros(64, 1, 7, 7)
    else:
        state["model1.0.bias"] = torch.full((128,), torch.nan)
    return state


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("lacking", "1 tensors are missing, unexpected or of another shape, model4.1.bias first (1 expected, nothing"),
        ("wide", "model0.1.weight first (64 x 3 x 7 x 7 expected, 64 x 1 x 7 x 7 found)"),
        ("nan", "hold NaN or infinity in model1.0.bias"),
    ],
)
def test_broken_weights_are_refused(kind: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(broken_state(kind), path)
    with pytest.raises(UsageError) as refusal:
        Prior(options("line_art", path), LABELS)
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_another_architecture_are_refused_before_they_are_read(name: str, annotators: Path) -> None:
    for other in set(NETWORKS) - {name}:
        with pytest.raises(UsageError, match=rf"{FILES[other]} holds no weights of {name}: \d+ tensors are missing"):
            check_prior(options(name, annotators / FILES[other]))
    check_prior(options(name, annotators / FILES[name]))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither ControlNetHED.pth nor model.safetensors"):
        check_prior(options("hed", tmp_path))
    with pytest.raises(UsageError, match="there are no weights at"):
        check_prior(options("hed", tmp_path / "nothing.pth"))
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    with pytest.raises(UsageError, match=r"text.pth: no whole file of torch.save"):
        check_prior(options("hed", text))
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UsageError, match=r"text.safetensors cannot be read"):
        check_prior(options("hed", tmp_path / "text.safetensors"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="holds no tensors by name"):
        check_prior(options("hed", tmp_path / "list.pth"))


def make_depth_model(kind: str, folder: Path) -> Path:
    """A small network for depth with random weights, as save_pretrained leaves it."""
    torch.manual_seed(0)
    network: torch.nn.Module
    if kind == "depth_anything":
        backbone = Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            out_features=["stage1", "stage2"],
            reshape_hidden_states=False,
        )
        widths = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [16, 16], "fusion_hidden_size": 16}
        network = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(
                backbone_config=backbone, reassemble_factors=[2, 1], head_hidden_size=8, patch_size=14, **widths
            )
        )
        network.head.conv3.bias.data.fill_(9.0)
        processor = DPTImageProcessorPil(ensure_multiple_of=14, keep_aspect_ratio=True, image_mean=[0.4, 0.5, 0.6])
    elif kind == "dpt":
        shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 37}
        neck = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
        network = DPTForDepthEstimation(DPTConfig(image_size=32, patch_size=16, **shape, **neck))
        network.head.head[4].bias.data.fill_(9.0)
        processor = DPTImageProcessorPil(image_mean=[0.4, 0.5, 0.6])
    else:
        stages = {"hidden_sizes": [16] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
        network = GLPNForDepthEstimation(GLPNConfig(decoder_hidden_size=16, **stages))
        processor = GLPNImageProcessorPil()
    for weight in network.parameters():  # as they are initialised, depths differ by rounding alone
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def raw_depth(kind: str, folder: Path, picture: Image) -> np.ndarray:
    """What transformers says of a picture, which is prepared by hand."""
    classes = {
        "depth_anything": DepthAnythingForDepthEstimation,
        "dpt": DPTForDepthEstimation,
        "glpn": GLPNForDepthEstimation,
    }
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
    if kind != "glpn":
        pixels = (pixels - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.5
    with torch.inference_mode():
        found: np.ndarray = classes[kind].from_pretrained(folder).eval()(pixels).predicted_depth[0].numpy()
    return found


@pytest.mark.parametrize(("kind", "multiple"), [("depth_anything", 14), ("dpt", 32), ("glpn", 32)])
def test_depth_is_that_of_the_network_nearest_white(kind: str, multiple: int, tmp_path: Path) -> None:
    folder = make_depth_model(kind, tmp_path / kind)
    given = options("depth", folder)
    check_prior(given)
    prior = Prior(given, LABELS)
    height, width = 37, 71
    picture = picture_of(height, width)
    sides = [-(-side // multiple) * multiple for side in (height, width)]
    sides = [max(sides)] * 2 if kind == "dpt" else [max(side, 2 * multiple) for side in sides]
    padded = np.pad(picture, [(0, sides[0] - height), (0, sides[1] - width), (0, 0)], mode="edge")
    depth = raw_depth(kind, folder, padded)[:height, :width].astype(np.float64)
    depth = -depth if kind == "glpn" else depth  # a distance in metres
    expected = (depth - depth.min()) / (depth.max() - depth.min()) * 255
    assert expected.std() > 2
    drawn = prior.of_image(picture)
    assert drawn.shape == picture.shape
    assert np.abs(drawn[:, :, 0] - expected).max() < 1.5
    assert drawn.min() == 0
    assert drawn.max() == 255
    scaled = Prior(options("depth", folder, resolution=48), LABELS)
    assert scaled.of_image(picture).shape == picture.shape
    assert not np.array_equal(scaled.of_image(picture), drawn)


def test_wrong_depth_models_are_refused(tmp_path: Path, annotators: Path) -> None:
    folder = make_depth_model("dpt", tmp_path / "dpt")
    config = (folder / "config.json").read_text()
    for text, problem in (
        ("{}", "of no network of transformers"),
        (config.replace("DPTForDepthEstimation", "DPTForSemanticSegmentation"), "no network for depth"),
        (config.replace('"dpt"', '"vit"'), r"\(vit\), no network for depth; those are .*depth_anything.*dpt"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(UsageError, match=problem) as refusal:
            check_prior(options("depth", folder))
        assert "\n" not in str(refusal.value)
    (folder / "config.json").write_text(config.replace('"fusion_hidden_size": 16', '"fusion_hidden_size": 8'))
    with pytest.raises(UsageError, match=r"hold \d+ tensors of another shape than their network's"):
        check_prior(options("depth", folder))
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    with pytest.raises(UsageError, match=r"lack \d+ tensors of their network, dpt"):
        check_prior(options("depth", folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"it lacks model.safetensors"):
        check_prior(options("depth", folder))
    with pytest.raises(UsageError, match="is a file: a depth model is a folder"):
        check_prior(options("depth", annotators / FILES["hed"]))
