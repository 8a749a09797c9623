"""Low-rank adaptation of a UNet by peft: only the added layers learn, and they are merged before anybody loads them.

Hu et al. (2021), "LoRA". It does not know what the UNet is trained on.
"""

import copy

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from segdatagen.errors import UsageError
from segdatagen.latent_folders import network_config
from segdatagen.training.latent_options import LoraOptions
from segdatagen.weights import local_weights


class LowRank(nn.Module):
    """The parameters that LoRA adds, by their names in the UNet, with `/` for `.`: the UNet itself is not in here."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        found = {name.replace(".", "/"): p for name, p in unet.named_parameters() if p.requires_grad}
        self.layers = nn.ParameterDict(found)


def add_low_rank(unet: UNet2DConditionModel, options: LoraOptions) -> LowRank:
    """Add the layers to a UNet whose own parameters are frozen. Raises UsageError for a target that it has not.

    The second matrix of each is zero, so that nothing is changed yet.
    """
    layers = [f".{name}" for name, _ in unet.named_modules()]
    unknown = [target for target in options.targets if not any(name.endswith(f".{target}") for name in layers)]
    if unknown:
        raise UsageError(f"lora.targets: this UNet has no layer called {', '.join(unknown)}")
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha or options.rank, target_modules=list(options.targets), bias="none"
    )
    try:
        unet.add_adapter(config)
    except ValueError as error:
        names = ", ".join(options.targets)
        raise UsageError(
            f"lora.targets: {names} are not all layers of weights: linear and convolutional ones are adapted"
        ) from error
    return LowRank(unet)


def check_targets(uri: str, options: LoraOptions) -> None:
    """Raise UsageError as `add_low_rank` does, by the configuration of a base alone: before any tensor is read."""
    config = network_config(f"{local_weights(uri)}/unet", "UNet2DConditionModel")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        add_low_rank(unet.requires_grad_(False), options)


def merged(unet: UNet2DConditionModel, learned: LowRank) -> UNet2DConditionModel:
    """A copy of the UNet in which the layers have the learned values, and are added to the layers they belong to."""
    whole = copy.deepcopy(unet)
    parameters = dict(whole.named_parameters())
    for name, value in learned.layers.items():
        parameters[name.replace("/", ".")].data.copy_(value.data)
    for name, module in list(whole.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(whole.get_submodule(parent), child, module.get_base_layer())
    whole._hf_peft_config_loaded = False
    return whole.requires_grad_(False)
