"""Training of the mask-guided DDPM of paper 001: its options, its loss, its sample grids and its weights.

Knows the network and the noise schedule; steps, averages and checkpoints are the loop's.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from segdatagen.diffusion.mask_ddpm import (
    alpha_bars,
    cosine_betas,
    from_pixels,
    generate_microbatched,
    require_steps,
)
from segdatagen.diffusion.mask_unet import MaskUNet, one_hot
from segdatagen.diffusion.mask_unet_config import MaskUNetConfig
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.records import derive_seed
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.options import TrainingOptions, require_same_network
from segdatagen.training.pictures import ENLARGED_SIDE, colour_masks, grid, spread_rows
from segdatagen.training.validation import mean_loss, read_validation
from segdatagen.weights import WEIGHTS_NAME, MaskDDPMWeights, check_mask_ddpm, load_mask_ddpm, save_mask_ddpm

IMAGES_PER_MASK = 3


class MaskDDPMTrainingOptions(TrainingOptions):
    """The YAML of `segdatagen train mask_ddpm`. Defaults are the paper's."""

    fixed: ClassVar[tuple[str, ...]] = (
        *(*TrainingOptions.fixed, "hidden", "time_embedding", "attention", "drop_probability"),
    )

    hidden: int = Field(default=128, ge=2, multiple_of=2, description="channels at full resolution")
    time_embedding: int = Field(default=256, ge=2, multiple_of=2)
    attention: bool = True
    drop_probability: float = Field(default=0.1, ge=0, le=1, description="share of steps without masks, for guidance")
    validation: str | None = Field(
        default=None, min_length=1, description="URI of a source store to measure the loss on, not that of the training"
    )
    sampler: SamplerOptions = Field(default=SamplerOptions(), description="of the sample grids")
    sample_masks: int = Field(default=8, ge=1, description="masks in a sample grid")


class MaskDDPMTraining:
    """The kind `mask_ddpm`."""

    name = "mask_ddpm"
    reads_captions = False
    frozen: Mapping[str, str] = {}
    options_type = MaskDDPMTrainingOptions

    def __init__(self, options: MaskDDPMTrainingOptions, arrays: TrainingArrays) -> None:
        self.options = options
        self.data = arrays
        self.config = MaskUNetConfig(
            num_classes=arrays.label_set.num_classes,
            hidden=options.hidden,
            time_embedding=options.time_embedding,
            attention=options.attention,
        )
        require_steps(options.sampler, self.config.diffusion_steps)
        if options.init_weights is not None:
            found = check_mask_ddpm(options.init_weights, self.config.num_classes)
            require_same_network(options.init_weights, (found.network, self.config), (found.classes, arrays.label_set))
        self._held_out: MaskDDPMTraining | None = None
        if options.validation is not None:
            others = read_validation(options.validation, options, arrays.label_set)
            always = options.model_copy(update={"validation": None, "drop_probability": 0.0})
            self._held_out = MaskDDPMTraining(always, others)
        self._bars = alpha_bars(cosine_betas(self.config.diffusion_steps)).float()

    def build(self) -> MaskUNet:
        """A `MaskUNet` of the options, for the classes of the data: new, or that of `init_weights`."""
        if self.options.init_weights is None:
            return MaskUNet(self.config)
        network, _ = load_mask_ddpm(self.options.init_weights, self.config.num_classes)
        return network.train()

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise, at steps t in 1..T-1; without masks once in a while.

        Equation 14 of Ho et al. (2020). All rows of a step go without masks together, so that the network sees
        "no mask" as it does in guidance: `mask_conv` is skipped.
        """
        clean = self._formatted(from_pixels(batch.images))
        steps = torch.stack([torch.randint(1, self.config.diffusion_steps, (), generator=g) for g in batch.row_chance])
        noise = self._formatted(draw_noise(batch.row_chance, clean.shape[1:], clean.device))
        bars = self._bars[steps].to(clean.device)[:, None, None, None]
        noisy = bars.sqrt() * clean + (1 - bars).sqrt() * noise
        features = None
        if float(torch.rand((), generator=batch.chance)) >= self.options.drop_probability:
            mask_conv: nn.Module = network.get_submodule("mask_conv")
            features = mask_conv(self._formatted(one_hot(batch.channels, self.config.num_classes)))
        predicted = network(noisy, steps.to(clean.device), features)
        return nn.functional.mse_loss(predicted.float(), noise)

    def validation_loss(self, average: nn.Module) -> float | None:
        """The loss on other sources, always with their masks."""
        return None if self._held_out is None else mean_loss(self._held_out, average)

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per mask: the mask, its image, and generated images of the same seeds every time."""
        if not isinstance(average, MaskUNet):
            raise TypeError(f"a mask-guided DDPM is a MaskUNet, not a {type(average).__name__}")
        chosen = spread_rows(len(self.data.images), self.options.sample_masks)
        masks = self.data.channels[chosen]
        columns = []
        for variant in range(IMAGES_PER_MASK):
            seeds = [derive_seed(self.options.seed, "picture", int(row), variant) for row in chosen]
            columns.append(generate_microbatched(average, masks, seeds, self.options.sampler, len(chosen)).images)
        painted = colour_masks(masks, self.data.label_set)
        rows = [[painted[i], self.data.images[chosen[i]], *(made[i] for made in columns)] for i in range(len(chosen))]
        return grid(rows, magnify=max(1, ENLARGED_SIDE // max(self.options.size)))

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/` with `README.md`, `model.safetensors` and `config.json`."""
        folder = Folder(self.options.out).child(WEIGHTS_NAME)
        options = self.options
        config = MaskDDPMWeights(
            network=self.config,
            label_set=self.data.label_set.name,
            classes=tuple(label.name for label in self.data.label_set.classes),
            size=options.size,
            training={
                "steps": summary.steps,
                "batch_size": options.batch_size,
                "images": summary.num_images,
                "data": summary.data_fingerprint,
                "loss": round(summary.loss, 5),
                **{name: round(value, 5) for name, value in summary.validation.items()},
            },
        )
        folder.put("README.md", self._model_card(average, summary).encode())
        save_mask_ddpm(folder.uri, config, average.state_dict(), options.store_dtype)
        return Saved(folder.uri)

    def _model_card(self, average: nn.Module, summary: Summary) -> str:
        options = self.options
        network = f"mask-guided DDPM, hidden {options.hidden}, attention {'on' if options.attention else 'off'}"
        rows = {"network": network, **size_rows(average, options), **training_rows(options, self.data, summary)}
        return model_card(f"Mask-guided DDPM for {self.data.label_set.name}", rows, options)

    def _formatted(self, x: Tensor) -> Tensor:
        memory_format = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=memory_format)
