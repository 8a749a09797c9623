"""The published networks of the annotators written a second time: as functions of their state dicts, key by key.

Slow and literal: a pixel difference convolution takes differences of pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from segdatagen.priors.hed import Hed
from segdatagen.priors.line_art import LineArt
from segdatagen.priors.pidinet import PiDiNet

State = dict[str, Tensor]

RADIAL = ("block1_2", "block2_3", "block3_3", "block4_3")
ANGULAR = ("block1_1", "block2_2", "block3_2", "block4_2")
CENTRAL = ("init_block", "block2_1", "block3_1", "block4_1")
BLOCKS = {1: 3, 2: 4, 3: 4, 4: 4}
CLOCKWISE = {(-1, -1): (-1, 0), (-1, 0): (-1, 1), (-1, 1): (0, 1), (0, 1): (1, 1)}
CLOCKWISE |= {(1, 1): (1, 0), (1, 0): (1, -1), (1, -1): (0, -1), (0, -1): (-1, -1)}
NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def random_state(name: str) -> State:
    """Random tensors with the published names and shapes, scaled so that drawings have contrast."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"line_art": LineArt, "hed": Hed, "sketch": PiDiNet}
        state: State = dict(networks[name]().state_dict())
        if name != "hed":
            state = {key: tensor * 1.7 if tensor.ndim > 1 else tensor for key, tensor in state.items()}
        for block in RADIAL if name == "sketch" else ():
            channels = state[f"{block}.conv1.weight"].shape[0]
            state[f"{block}.conv1.weight"] = torch.randn(channels, 1, 3, 3) / 3
    if name == "hed":
        state["norm"] = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1)
    return state


def line_art(state: State, levels: Tensor) -> Tensor:
    def layer(key: str, hidden: Tensor, pad: int = 0, last: bool = False, **how: int) -> Tensor:
        hidden = functional.pad(hidden, (pad,) * 4, mode="reflect") if pad else hidden
        convolve = functional.conv_transpose2d if "output_padding" in how else functional.conv2d
        hidden = convolve(hidden, state[f"{key}.weight"], state[f"{key}.bias"], **how)
        mean, variance = hidden.mean((2, 3), keepdim=True), hidden.var((2, 3), correction=0, keepdim=True)
        return hidden if last else (hidden - mean) / (variance + 1e-5).sqrt()

    hidden = layer("model0.1", levels / 255, pad=3).relu()
    for key in ("model1.0", "model1.3"):
        hidden = layer(key, hidden, stride=2, padding=1).relu()
    for number in range(3):
        inner = layer(f"model2.{number}.conv_block.1", hidden, pad=1).relu()
        hidden = hidden + layer(f"model2.{number}.conv_block.5", inner, pad=1)
    for key in ("model3.0", "model3.3"):
        hidden = layer(key, hidden, stride=2, padding=1, output_padding=1).relu()
    return 255 - (layer("model4.1", hidden, pad=3, last=True).sigmoid() * 255).floor()


def hed(state: State, levels: Tensor) -> Tensor:
    hidden, total = levels - state["norm"], torch.zeros(())
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        if block > 1:
            hidden = functional.max_pool2d(hidden, 2, 2)
        for number in range(count):
            key = f"block{block}.convs.{number}"
            hidden = functional.conv2d(hidden, state[f"{key}.weight"], state[f"{key}.bias"], padding=1).relu()
        key = f"block{block}.projection"
        seen = functional.conv2d(hidden, state[f"{key}.weight"], state[f"{key}.bias"])
        total = total + functional.interpolate(seen, levels.shape[2:], mode="bilinear", align_corners=False)
    return ((total / 5).sigmoid() * 255).floor()


def differences(state: State, block: str, hidden: Tensor) -> Tensor:
    """Su et al. (2021), equation 2: a weighted sum of differences of pixels in place of a weighted sum of pixels."""
    key = "init_block.weight" if block == "init_block" else f"{block}.conv1.weight"
    weights = state[key]
    height, width = hidden.shape[2:]
    padded = functional.pad(hidden, (2, 2, 2, 2))

    def at(place: tuple[int, int]) -> Tensor:
        y, x = place[0] + 2, place[1] + 2
        return padded[:, :, y : y + height, x : x + width]

    if block in CENTRAL:
        pairs = [(place, (0, 0), number) for number, place in enumerate(NEIGHBOURS)]
    elif block in ANGULAR:
        pairs = [(place, CLOCKWISE[place], number) for number, place in enumerate(NEIGHBOURS) if number != 4]
    else:
        around = [place for place in NEIGHBOURS if place != (0, 0)]
        pairs = [((2 * y, 2 * x), (y, x), number) for number, (y, x) in enumerate(around, 1)]
    total = torch.zeros(())
    for first, second, number in pairs:
        weight = weights.flatten(2)[:, :, number]
        difference = at(first) - at(second)
        if block == "init_block":
            total = total + torch.einsum("oi,bihw->bohw", weight, difference)
        else:
            total = total + weight[:, 0, None, None] * difference
    return total


def sketch(state: State, levels: Tensor) -> Tensor:
    def plain(key: str, hidden: Tensor, **how: int) -> Tensor:
        return functional.conv2d(hidden, state[f"{key}.weight"], state.get(f"{key}.bias"), **how)

    hidden, edges = differences(state, "init_block", levels[:, [2, 1, 0]] / 255), []
    for stage, count in BLOCKS.items():
        for number in range(1, count + 1):
            block = f"block{stage}_{number}"
            halves = stage > 1 and number == 1
            hidden = functional.max_pool2d(hidden, 2, 2) if halves else hidden
            if block in (*CENTRAL, *ANGULAR, *RADIAL):
                changed = differences(state, block, hidden)
            else:
                changed = plain(f"{block}.conv1", hidden, padding=1, groups=hidden.shape[1])
            shortcut = plain(f"{block}.shortcut", hidden) if halves else hidden
            hidden = plain(f"{block}.conv2", changed.relu()) + shortcut
        part = plain(f"dilations.{stage - 1}.conv1", hidden.relu())
        layers = [(f"dilations.{stage - 1}.conv2_{number}", 3 + 2 * number) for number in (1, 2, 3, 4)]
        part = sum((plain(key, part, dilation=by, padding=by) for key, by in layers), torch.zeros(()))
        weight = plain(f"attentions.{stage - 1}.conv1", part.relu())
        part = part * plain(f"attentions.{stage - 1}.conv2", weight, padding=1).sigmoid()
        part = plain(f"conv_reduces.{stage - 1}.conv", part)
        edges.append(functional.interpolate(part, levels.shape[2:], mode="bilinear", align_corners=False))
    return (plain("classifier", torch.cat(edges, 1)).sigmoid() * 255).floor()


PUBLISHED: dict[str, Callable[[State, Tensor], Tensor]] = {"line_art": line_art, "hed": hed, "sketch": sketch}
