"""Paper 001 as it is written, one mask at a time: an oracle that shares no code with segdatagen.

The network is a function of the tensors of a checkpoint, by their names. The sampler runs it twice a step, with the
mask and without, through all 1000 steps. Slow on purpose: what is the same in every step is computed in every step.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NUM_STEPS = 1000
Tensors = Mapping[str, Tensor]
Predict = Callable[[Tensor, int, Tensor | None], Tensor]


def betas() -> list[float]:
    """beta_t = 1e-4 + 0.0199 (1 - cos(pi t / 999)) / 2."""
    return [1e-4 + 0.0199 * (1 - math.cos(math.pi * t / (NUM_STEPS - 1))) / 2 for t in range(NUM_STEPS)]


def sample(predict: Predict, mask: Tensor, noise: list[Tensor], guidance: float) -> Tensor:
    """Algorithm 2 of Ho et al. with sigma^2 = beta, for one one-hot mask `[1, C, H, W]`: an image `[1, 3, H, W]`.

    `noise[0]` is the image that it starts from, `noise[i]` what the i-th step adds; the last step adds nothing.
    Guidance 0 means the conditional prediction alone. The result is not clamped.
    """
    image, beta = noise[0], betas()
    alpha_hat = [float(product) for product in np.cumprod([1 - value for value in beta])]
    for i, t in enumerate(reversed(range(NUM_STEPS)), start=1):
        predicted = predict(image, t, mask)
        if guidance > 0:
            unconditional = predict(image, t, None)
            predicted = unconditional + guidance * (predicted - unconditional)
        alpha = 1 - beta[t]
        image = 1 / math.sqrt(alpha) * (image - (1 - alpha) / math.sqrt(1 - alpha_hat[t]) * predicted)
        if t > 0:
            image = image + math.sqrt(beta[t]) * noise[i]
    return image


def predict_noise(tensors: Tensors, image: Tensor, step: int, mask: Tensor | None) -> Tensor:
    """The U-Net for one image `[1, 3, H, W]` at a step, with a one-hot mask `[1, C, H, W]` or without."""
    time = embedding(step, tensors["down1.emb_layer.1.weight"].shape[1])
    first = plain(tensors, "inc", image)
    if mask is not None:
        first = first + plain(tensors, "mask_conv", mask)
    second = down(tensors, "down1", first, time)
    third = down(tensors, "down2", second, time)
    x = attention(tensors, "sa3", down(tensors, "down3", third, time))
    for name in ("bot1", "bot2", "bot3"):
        x = plain(tensors, name, x)
    x = attention(tensors, "sa4", up(tensors, "up1", x, third, time))
    x = up(tensors, "up2", x, second, time)
    x = up(tensors, "up3", x, first, time)
    return functional.conv2d(x, tensors["outc.weight"], tensors["outc.bias"])


def embedding(step: int, channels: int) -> Tensor:
    """sin || cos of step / 10000^(2k / channels), `[1, channels]`."""
    angles = [step / 10000 ** (2 * k / channels) for k in range(channels // 2)]
    return torch.tensor([[math.sin(a) for a in angles] + [math.cos(a) for a in angles]], dtype=torch.float32)


def plain(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """Conv3x3 - norm - GELU - Conv3x3 - norm, without an activation at its end."""
    name = f"{name}.double_conv"
    x = functional.conv2d(x, tensors[f"{name}.0.weight"], padding=1)
    x = functional.group_norm(x, 1, tensors[f"{name}.1.weight"], tensors[f"{name}.1.bias"])
    x = functional.conv2d(functional.gelu(x), tensors[f"{name}.3.weight"], padding=1)
    return functional.group_norm(x, 1, tensors[f"{name}.4.weight"], tensors[f"{name}.4.bias"])


def residual(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """GELU(x + DC(x))."""
    return functional.gelu(x + plain(tensors, name, x))


def add_time(tensors: Tensors, name: str, x: Tensor, time: Tensor) -> Tensor:
    """x + Linear(SiLU(time)), the same for every pixel."""
    weight, bias = tensors[f"{name}.emb_layer.1.weight"], tensors[f"{name}.emb_layer.1.bias"]
    return x + (functional.silu(time) @ weight.T + bias)[:, :, None, None]


def down(tensors: Tensors, name: str, x: Tensor, time: Tensor) -> Tensor:
    """MaxPool2 - residual - plain, then the time."""
    x = residual(tensors, f"{name}.maxpool_conv.1", functional.max_pool2d(x, 2))
    return add_time(tensors, name, plain(tensors, f"{name}.maxpool_conv.2", x), time)


def up(tensors: Tensors, name: str, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
    """Bilinear x2 with corners aligned - cat([skip, x]) - residual - plain, then the time."""
    x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = residual(tensors, f"{name}.conv.0", torch.cat([skip, x], dim=1))
    return add_time(tensors, name, plain(tensors, f"{name}.conv.1", x), time)


def attention(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """Tokens - LayerNorm - 4-head attention - residual, then LN - Linear - GELU - Linear - residual."""
    part = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    _, channels, height, width = x.shape
    tokens = x[0].reshape(channels, height * width).T
    normed = functional.layer_norm(tokens, (channels,), part["ln.weight"], part["ln.bias"])
    projected = normed @ part["mha.in_proj_weight"].T + part["mha.in_proj_bias"]
    heads = []
    for head in projected.reshape(-1, 3, 4, channels // 4).unbind(dim=2):
        queries, keys, values = head.unbind(dim=1)
        heads.append(torch.softmax(queries @ keys.T / math.sqrt(channels // 4), dim=1) @ values)
    tokens = tokens + torch.cat(heads, dim=1) @ part["mha.out_proj.weight"].T + part["mha.out_proj.bias"]
    hidden = functional.layer_norm(tokens, (channels,), part["ff_self.0.weight"], part["ff_self.0.bias"])
    hidden = functional.gelu(hidden @ part["ff_self.1.weight"].T + part["ff_self.1.bias"])
    tokens = tokens + hidden @ part["ff_self.3.weight"].T + part["ff_self.3.bias"]
    return tokens.T.reshape(1, channels, height, width)
