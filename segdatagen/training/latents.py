"""What a VAE makes of a source store, and what text encoders make of its prompts: computed once, kept beside the store.

Latents are kept as mean and log-variance of both orientations of a picture, so that a training draws from them as if it
encoded. A key holds what decides them, down to the bytes of the networks. Knows neither losses nor networks that learn.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from segdatagen.diffusion.conditions import TextCondition
from segdatagen.diffusion.text import TextEncoder
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.latent_folders import WITHOUT_TENSORS, network_config
from segdatagen.model_configs import read_json
from segdatagen.sources import decoded_channels, decoded_images, open_store
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latent_weights import load_text_encoders, load_tokenizers, load_vae
from segdatagen.training.pictures import colour_masks
from segdatagen.training.record_cache import CacheInfo, RecordCache, Spread
from segdatagen.training.vae import AT_ONCE, moments
from segdatagen.weights import fingerprint_of, local_weights

Kept = Literal["images", "colour_maps"]
TEXTS_PER_SHARD = 256
CACHE_SUFFIX = ".cache"
"""Beside the store `out/scenes` lies `out/scenes.cache`."""


@dataclass(frozen=True)
class LatentCache:
    """Latents of all images of a store, or of all colour maps of its masks."""

    sources: str
    geometry: Geometry
    vae: str
    """URI of the folder of the AutoencoderKL."""
    records: RecordCache
    needs_device: bool = True

    def make(self, device: str, number: int) -> np.ndarray:
        """Shard `number`, of part `number` of the store: `[n, 2 orientations, mean and log-variance, C, h, w]`."""
        store = open_store(self.sources)
        column = "mask" if self.records.info.facts["of"] == "colour_maps" else "image"
        rows = read_part(store.folder, store.info.parts[number].name, ["source_id", column])
        if column == "mask":
            pictures = colour_masks(decoded_channels(store, rows, self.geometry), store.label_set)
        else:
            pictures = decoded_images(store, rows, self.geometry)
        network = _network(self.vae, self.records.info.facts["vae"], device)
        made = np.empty((len(pictures), *self.records.info.shape), np.dtype(self.records.info.dtype))
        for place, seen in enumerate((pictures, pictures[:, :, ::-1])):
            for start in range(0, len(seen), AT_ONCE):
                chunk = seen[start : start + AT_ONCE]
                padded = np.concatenate([chunk, chunk[-1:].repeat(AT_ONCE - len(chunk), axis=0)])
                for which, tensor in enumerate(moments(network, padded)):
                    made[start : start + len(chunk), place, which] = tensor[: len(chunk)].numpy()
        return made

    def draw(self, sources: np.ndarray, flipped: np.ndarray, chance: Sequence[torch.Generator]) -> Tensor:
        """Latents float32 `[B, C, h, w]` drawn for sources `[B]`, as the VAE makes them: not yet scaled."""
        found = torch.from_numpy(self.records.read(sources.tolist(), flipped.astype(int).tolist()).astype(np.float32))
        mean, logvar = found[:, 0], found[:, 1]
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in chance])
        return mean + (logvar / 2).exp() * noise


@dataclass(frozen=True)
class TextCache:
    """Embeddings of prompts by the two text encoders of a base that are not trained."""

    base: str
    prompts: tuple[str, ...]
    records: RecordCache
    needs_device: bool = True

    def make(self, device: str, number: int) -> np.ndarray:
        """Shard `number`: hidden states of every token and the pooled embedding of each prompt, flat."""
        encoder = _encoder(self.base, self.records.info.key, device)
        start = number * TEXTS_PER_SHARD
        made = []
        for prompt in self.prompts[start : start + TEXTS_PER_SHARD]:
            found = encoder.encode([prompt])
            parts = [part.flatten().cpu().numpy() for part in (found.hidden, found.pooled) if part is not None]
            made.append(np.concatenate(parts))
        return np.stack(made).astype(np.dtype(self.records.info.dtype))

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {prompt: place for place, prompt in enumerate(self.prompts)}

    def at(self, prompts: Sequence[str]) -> TextCondition:
        """Embeddings float32 of prompts, of those that the cache holds, on the CPU. Raises KeyError for others."""
        flat = torch.from_numpy(self.records.read([self._places[p] for p in prompts]).astype(np.float32))
        length, hidden, pooled = _text_shape(self.base)
        return TextCondition(flat[:, : length * hidden].reshape(-1, length, hidden), flat[:, -pooled:])


def latent_cache(options: LatentTrainingOptions, vae: str, of: Kept) -> LatentCache:
    """The cache of a training, there or not yet. Raises UsageError where store or VAE cannot be used."""
    store, config = open_store(options.sources), network_config(vae, "AutoencoderKL")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    require_multiples(options.size, factor, f"a latent of {vae} stands for")
    width, height = options.size
    facts = {
        "of": of,
        "vae": fingerprint_of(vae),
        "data": store.info.fingerprint,
        "size": f"{width}x{height}",
        "fit": options.fit,
    }
    info = CacheInfo(
        facts=facts,
        counts=tuple(part.num_rows for part in store.info.parts),
        shape=(2, 2, int(config["latent_channels"]), height // factor, width // factor),
        dtype=options.cache_dtype,
    )
    return LatentCache(options.sources, options.geometry, vae, RecordCache(cache_root(options), info))


def require_multiples(size: tuple[int, int], factor: int, what: str) -> None:
    """Raise UsageError unless width and height are multiples of `factor`."""
    width, height = size
    if width % factor or height % factor:
        raise UsageError(f"size: {what} {factor} x {factor} pixels: {width} x {height} are no multiples of it")


def text_cache(options: LatentTrainingOptions, base: str, prompts: Sequence[str]) -> TextCache:
    """The cache of the embeddings of distinct prompts, there or not yet."""
    length, hidden, pooled = _text_shape(base)
    folder = str(local_weights(base))
    parts = ("text_encoder", "text_encoder_2", *WITHOUT_TENSORS)
    names = {name: fingerprint_of(f"{folder}/{name}") for name in parts}
    texts = hashlib.blake2b(json.dumps(list(prompts)).encode(), digest_size=16).hexdigest()
    info = CacheInfo(
        facts={"of": "prompts", "prompts": texts, **names},
        counts=tuple(min(TEXTS_PER_SHARD, len(prompts) - s) for s in range(0, len(prompts), TEXTS_PER_SHARD)),
        shape=(length * hidden + pooled,),
        dtype=options.cache_dtype,
    )
    return TextCache(base, tuple(prompts), RecordCache(cache_root(options), info))


def cache_root(options: LatentTrainingOptions) -> Folder:
    """Where caches lie: beside the source store, or where the options say."""
    return Folder(options.cache or f"{options.sources.rstrip('/')}{CACHE_SUFFIX}")


class Cache(Protocol):
    """Records, and how each shard of them is made on a device."""

    @property
    def needs_device(self) -> bool:
        """Whether a network makes them, for which a GPU is worth waiting for."""
        ...

    @property
    def records(self) -> RecordCache:
        """The records."""
        ...

    def make(self, device: str, number: int) -> np.ndarray:
        """One shard."""
        ...


def fill(caches: Sequence[Cache], device: str, spread: Spread) -> None:
    """Make what is missing of each. No network that did stays in the memory of this process, or of its device."""
    try:
        for cache in caches:
            cache.records.fill(functools.partial(cache.make, device), spread)
    finally:
        _network.cache_clear()
        _encoder.cache_clear()


def here(numbers: Sequence[int], work: Callable[[int], int]) -> list[int]:
    """A spread that does all of it in this process."""
    return [work(number) for number in numbers]


@functools.lru_cache(maxsize=2)
def _network(vae: str, fingerprint: str, device: str) -> Any:
    """Kept for the next shard. The fingerprint is an argument so that other bytes at the same place are loaded."""
    return load_vae(vae).to(device)


@functools.lru_cache(maxsize=1)
def _encoder(base: str, key: str, device: str) -> TextEncoder:
    folder = local_weights(base)
    encoders = [encoder.to(device).eval().requires_grad_(False) for encoder in load_text_encoders(folder, base)]
    return TextEncoder(load_tokenizers(folder), encoders, False)


@functools.lru_cache(maxsize=4)
def _text_shape(base: str) -> tuple[int, int, int]:
    """Tokens of a prompt, width of their embeddings, width of the pooled one."""
    folder = Path(local_weights(base))
    configs = [read_json(folder / name / "config.json", base) for name in ("text_encoder", "text_encoder_2")]
    length = int(configs[0].get("max_position_embeddings", 77))
    return length, sum(int(c["hidden_size"]) for c in configs), int(configs[1]["projection_dim"])
