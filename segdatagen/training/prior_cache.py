"""Visual priors of a source store, drawn once and kept beside it: of every image, and of the colour map of its mask.

A mirrored source has the mirrored drawing. It does not know how they are blended.
"""

from dataclasses import dataclass

import numpy as np

from segdatagen.geometry import Geometry
from segdatagen.priors import Prior, PriorOptions
from segdatagen.sources import ignore_id_of, open_store, read_part_arrays
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latents import cache_root
from segdatagen.training.record_cache import CacheInfo, RecordCache
from segdatagen.weights import fingerprint_of


@dataclass(frozen=True)
class PriorCache:
    """Two drawings of every source, of its image and of its mask."""

    sources: str
    geometry: Geometry
    prior: PriorOptions
    records: RecordCache

    def make(self, device: str, number: int) -> np.ndarray:
        """Shard `number`, of part `number` of the store: uint8 `[n, 2, H, W, 3]`."""
        store = open_store(self.sources)
        labels, ids = store.label_set, np.append(store.label_set.ids, ignore_id_of(store.label_set))
        images, channels, _ = read_part_arrays(store, number, self.geometry)
        masks = ids[channels].astype(np.uint16)  # a channel of -1, ignored, is the last
        prior = Prior(self.prior, labels, device)
        return np.stack(
            [[prior.of_image(i), prior.of_mask(m)] for i, m in zip(images, masks, strict=True)], dtype=np.uint8
        )

    def at(self, sources: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Drawings uint8 `[B, 2, H, W, 3]` of sources, mirrored where `flipped`."""
        found = self.records.read(sources.tolist())
        found[flipped] = found[flipped][:, :, :, ::-1]
        return found


def prior_cache(options: LatentTrainingOptions, prior: PriorOptions) -> PriorCache:
    """The cache of a training, there or not yet."""
    store, (width, height) = open_store(options.sources), options.size
    info = CacheInfo(
        facts={
            "of": "priors",
            "prior": prior.model_dump_json(exclude={"w1", "w2", "weights"}),
            "weights": fingerprint_of(prior.weights) if prior.weights else "none",
            "data": store.info.fingerprint,
            "size": f"{width}x{height}",
            "fit": options.fit,
        },
        counts=tuple(part.num_rows for part in store.info.parts),
        shape=(2, height, width, 3),
        dtype="uint8",
    )
    return PriorCache(options.sources, options.geometry, prior, RecordCache(cache_root(options), info))
