"""Training of the VAE: one that carries both images and the colour maps of their masks (SegGen, appendix A.7).

The network is diffusers' AutoencoderKL. Losses are of pixels, of their gradients and of the latents' distribution; no
perceptual network is downloaded. Steps, averages and checkpoints are the loop's.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from pydantic import Field, model_validator
from torch import Tensor, nn

from segdatagen.colours import ColourDecoder
from segdatagen.diffusion.mask_ddpm import from_pixels
from segdatagen.diffusion.microbatch import draw_noise
from segdatagen.diffusion.pixels import to_levels
from segdatagen.errors import UsageError, placed
from segdatagen.labels import LabelSet
from segdatagen.latent_folders import network_config
from segdatagen.storage import Folder
from segdatagen.training.data import Batch, TrainingArrays
from segdatagen.training.kind import Saved, Summary
from segdatagen.training.latent_weights import load_network, put_model, record_of
from segdatagen.training.model_card import model_card, size_rows, training_rows
from segdatagen.training.options import TrainingOptions
from segdatagen.training.pictures import ENLARGED_SIDE, colour_masks, grid, palette_of, spread_rows
from segdatagen.training.validation import read_validation
from segdatagen.weights import WEIGHTS_NAME, local_weights

PICTURE_ROWS = 6
JUDGED = 512
"""Images that figures are measured on, at most; as many that the scale of the latents is measured on."""
AT_ONCE = 16
NETWORK_FIELDS = {
    "block_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "norm_groups": "norm_num_groups",
}
"""Options that decide the network, by the names that diffusers has for them."""


class VaeTrainingOptions(TrainingOptions):
    """The YAML of `segdatagen train vae`. Defaults of the network are those of Stable Diffusion's."""

    fixed: ClassVar[tuple[str, ...]] = (
        *(*TrainingOptions.fixed, "block_channels", "layers_per_block", "latent_channels", "norm_groups"),
        *("colour_maps", "pixel_loss", "edge_weight", "kl_weight", "freeze_encoder"),
    )

    block_channels: tuple[int, ...] = Field(
        default=(128, 256, 512, 512),
        min_length=2,
        max_length=4,
        description="2 to 4 numbers; n levels halve n - 1 times",
    )
    layers_per_block: int = Field(default=2, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    colour_maps: float = Field(default=0.5, ge=0, le=1, description="share of rows that are colour maps of masks")
    pixel_loss: Literal["l1", "l2"] = "l1"
    edge_weight: float = Field(default=1.0, ge=0, description="of the differences between neighbouring pixels")
    kl_weight: float = Field(default=1e-4, ge=0, description="of the mean divergence per latent value")
    freeze_encoder: bool = Field(
        default=False, description="only the decoder learns: latents, and what was trained on them, stay as they are"
    )
    validation: str | None = Field(default=None, min_length=1, description="URI of a source store for the figures")

    @model_validator(mode="after")
    def _frozen_is_trained(self) -> Self:
        if self.freeze_encoder and self.init_weights is None:
            raise ValueError("freeze_encoder: a new encoder knows nothing, and has to be trained; give init_weights")
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        wrong = [channels for channels in self.block_channels if channels < 1 or channels % self.norm_groups]
        if wrong:
            raise ValueError(f"block_channels: {wrong[0]} is not a multiple of norm_groups {self.norm_groups}")
        return self

    @property
    def network(self) -> dict[str, object]:
        """Arguments of AutoencoderKL, those of NETWORK_FIELDS."""
        return {theirs: getattr(self, ours) for ours, theirs in NETWORK_FIELDS.items()}


class VaeTraining:
    """The kind `vae`."""

    name = "vae"
    options_type = VaeTrainingOptions
    reads_captions = False
    frozen: Mapping[str, str] = {}

    def __init__(self, options: VaeTrainingOptions, arrays: TrainingArrays) -> None:
        self.options = options
        self.data = arrays
        self.judged = arrays
        if options.validation is not None:
            self.judged = read_validation(options.validation, options, arrays.label_set)
        if options.init_weights is not None:
            with placed("init_weights"):
                found = network_config(options.init_weights, "AutoencoderKL")
            for ours, theirs in NETWORK_FIELDS.items():
                wanted = _plain(getattr(options, ours))
                if _plain(found.get(theirs)) != wanted:
                    raise UsageError(
                        f"init_weights: {options.init_weights} is another network: its {ours} is {found.get(theirs)}, "
                        f"not {wanted}: give the sizes of the network that goes on"
                    )

    def build(self) -> nn.Module:
        """An AutoencoderKL of the options: new, or that of `init_weights`."""
        if self.options.init_weights is not None:
            folder = local_weights(self.options.init_weights)
            loaded = load_network(AutoencoderKL, folder, self.options.init_weights).train()
            if self.options.freeze_encoder:
                loaded.encoder.requires_grad_(False)
                if loaded.quant_conv is not None:
                    loaded.quant_conv.requires_grad_(False)
            started: nn.Module = loaded
            return started
        levels = len(self.options.block_channels)
        network: nn.Module = AutoencoderKL(
            **self.options.network,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            sample_size=max(self.options.size),
            force_upcast=False,
        )
        return network

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Pixels, differences of neighbours, and the divergence of the latents from a standard normal distribution.

        A row is the colour map of its mask with the probability `colour_maps`, else its image. A frozen encoder has no
        divergence to pay for.
        """
        options = self.options
        shares = torch.stack([torch.rand((), generator=g) for g in batch.row_chance]).to(batch.images.device)
        maps = colour_maps_of(batch.channels, self.data.label_set)
        chosen = torch.where((shares < options.colour_maps)[:, None, None, None], maps, batch.images)
        pixels = from_pixels(chosen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not options.freeze_encoder):
            posterior = network.encode(pixels).latent_dist  # type: ignore[operator]
        noise = draw_noise(batch.row_chance, posterior.mean.shape[1:], pixels.device)
        decoded = network.decode(posterior.mean + posterior.std * noise).sample.float()  # type: ignore[operator]
        loss = _distance(decoded, pixels, options.pixel_loss)
        if options.edge_weight:
            edges = (
                _distance(torch.diff(decoded, dim=d), torch.diff(pixels, dim=d), options.pixel_loss) for d in (2, 3)
            )
            loss = loss + options.edge_weight * sum(edges)
        if options.freeze_encoder:
            return loss
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence: Tensor = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return loss + options.kl_weight * divergence

    def picture(self, average: nn.Module) -> np.ndarray:
        """A row per source: image and its reconstruction, colour map and its own, the mask that this decodes to."""
        rows = spread_rows(len(self.judged.images), PICTURE_ROWS)
        images, maps = self.judged.images[rows], colour_masks(self.judged.channels[rows], self.judged.label_set)
        made, made_maps = reconstruct(average, images), reconstruct(average, maps)
        decoder, table = ColourDecoder(self.judged.label_set), self.judged.label_set.channel_table()
        decoded = [colour_masks(table[decoder.decode(one)], self.judged.label_set) for one in made_maps]
        cells = [[images[i], made[i], maps[i], made_maps[i], decoded[i]] for i in range(len(rows))]
        return grid(cells, magnify=max(1, ENLARGED_SIDE // max(self.options.size)))

    def save(self, average: nn.Module, summary: Summary) -> Saved:
        """Put `weights/`, a folder of AutoencoderKL, with the scale of its latents measured on the data.

        Behind a frozen encoder the scale stays what it was.
        """
        if not self.options.freeze_encoder:
            average.register_to_config(scaling_factor=self.scaling_factor(average))  # type: ignore[operator]
        figures = self.figures(average)
        options, labels = self.options, self.data.label_set
        judged = options.validation or f"{options.sources} (training data)"
        rows = {
            "network": f"AutoencoderKL, channels {options.block_channels}, {options.latent_channels} latent channels",
            **size_rows(average, options),
            **training_rows(options, self.data, summary),
            "losses": f"{options.pixel_loss} + {options.edge_weight:g} edges"
            f"{' (decoder only)' if options.freeze_encoder else f' + {options.kl_weight:g} KL'}; "
            f"{options.colour_maps:.0%} of the rows are colour maps",
            "scaling factor": f"{average.config.scaling_factor:.5f}",  # type: ignore[union-attr]
            **{name: f"{value:.4f} on `{judged}`" for name, value in figures.items()},
        }
        record = record_of(self.name, options, self.data, summary, figures)
        folder = Folder(options.out).child(WEIGHTS_NAME)
        card = model_card(f"VAE for images and colour maps of {labels.name}", rows, self.options)
        return Saved(put_model(folder, average, card, record, options.store_dtype), figures=figures)

    def scaling_factor(self, network: nn.Module) -> float:
        """1 / standard deviation of drawn latents over the data, images and colour maps in the share of the options."""
        sums = np.zeros(3)
        rows = spread_rows(len(self.data.images), JUDGED)
        share = self.options.colour_maps
        pictures = (
            (self.data.images[rows], 1 - share),
            (colour_masks(self.data.channels[rows], self.data.label_set), share),
        )
        for given, weight in pictures:
            for start in range(0, len(given), AT_ONCE):
                mean, logvar = moments(network, given[start : start + AT_ONCE])
                mean, variance = mean.double(), logvar.double().exp()
                found = [mean.numel(), mean.sum().item(), (mean**2 + variance).sum().item()]
                sums += weight * np.array(found)
        return float(1 / np.sqrt(sums[2] / sums[0] - (sums[1] / sums[0]) ** 2))

    def figures(self, network: nn.Module) -> dict[str, float]:
        """PSNR of images in dB, and the share of labelled pixels whose class survives in a colour map (SegGen A.7).

        `worst_class_accuracy` is that of the class that suffers most.
        """
        judged, labels = self.judged, self.judged.label_set
        rows = spread_rows(len(judged.images), JUDGED)
        decoder, table = ColourDecoder(labels), labels.channel_table()
        error, kept, all_pixels = 0.0, np.zeros(labels.num_classes), np.zeros(labels.num_classes)
        for start in range(0, len(rows), AT_ONCE):
            chosen = rows[start : start + AT_ONCE]
            images, channels = judged.images[chosen], judged.channels[chosen]
            difference = reconstruct(network, images).astype(np.float64) - images
            error += float((difference**2).mean(axis=(1, 2, 3)).sum())
            made = np.stack([table[decoder.decode(m)] for m in reconstruct(network, colour_masks(channels, labels))])
            labelled = channels >= 0
            all_pixels += np.bincount(channels[labelled], minlength=labels.num_classes)
            kept += np.bincount(channels[labelled & (made == channels)], minlength=labels.num_classes)
        seen = all_pixels > 0
        return {
            "psnr": float(10 * np.log10(255**2 / max(error / len(rows), 1e-9))),
            "colour_map_accuracy": float(kept.sum() / max(all_pixels.sum(), 1)),
            "worst_class_accuracy": float((kept[seen] / all_pixels[seen]).min(initial=1.0)),
        }


def colour_maps_of(channels: Tensor, label_set: LabelSet) -> Tensor:
    """Colour maps uint8 `[B, H, W, 3]` of channels int64 `[B, H, W]`, on the same device; see `colour_masks`."""
    return torch.from_numpy(palette_of(label_set)).to(channels.device)[
        channels.masked_fill(channels < 0, label_set.num_classes)
    ]


@torch.inference_mode()
def moments(network: nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and log-variance float32 `[N, C, h, w]` of the latents of images uint8 `[N, H, W, 3]`, on the CPU."""
    device = next(network.parameters()).device
    found = network.encode(from_pixels(torch.from_numpy(images).to(device))).latent_dist  # type: ignore[operator]
    return found.mean.float().cpu(), found.logvar.float().cpu()


@torch.inference_mode()
def reconstruct(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Images uint8 `[N, H, W, 3]` there and back, by the mode of the latents."""
    device, made = next(network.parameters()).device, []
    for start in range(0, len(images), AT_ONCE):
        pixels = from_pixels(torch.from_numpy(images[start : start + AT_ONCE]).to(device))
        latents = network.encode(pixels).latent_dist.mode()  # type: ignore[operator]
        made.append(to_levels(network.decode(latents).sample).cpu().numpy())  # type: ignore[operator]
    return np.concatenate(made)


def _distance(found: Tensor, wanted: Tensor, name: Literal["l1", "l2"]) -> Tensor:
    return nn.functional.l1_loss(found, wanted) if name == "l1" else nn.functional.mse_loss(found, wanted)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
