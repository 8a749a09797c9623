"""Visual priors of a source store, drawn once and kept beside it: of every image, of its mask's colour map, or of both.

A mirrored source has the mirrored drawing. It does not know how they are blended.
"""

from dataclasses import dataclass

import numpy as np

from segdatagen.geometry import Geometry
from segdatagen.images import decode_mask
from segdatagen.priors import Prior, PriorOptions
from segdatagen.segments import NO_SEGMENT
from segdatagen.sources import decoded_channels, decoded_images, ignore_id_of, open_store
from segdatagen.tables import read_part
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.latents import cache_root
from segdatagen.training.record_cache import CacheInfo, RecordCache
from segdatagen.weights import fingerprint_of


@dataclass(frozen=True)
class PriorCache:
    """Drawings of every source: of its image, of its mask, or two of both."""

    sources: str
    geometry: Geometry
    prior: PriorOptions
    records: RecordCache

    @property
    def needs_device(self) -> bool:
        """Where a network draws."""
        return self.prior.weights is not None

    def make(self, device: str, number: int) -> np.ndarray:
        """Shard `number`, of part `number` of the store: uint8 `[n, D, H, W, 3]`, D drawings of each source."""
        store, of = open_store(self.sources), self.prior.of
        labels, ids = store.label_set, np.append(store.label_set.ids, ignore_id_of(store.label_set))
        prior = Prior(self.prior, labels, device)
        columns = ["source_id", "mask", *["image"] * (of != "mask"), *["segment_map"] * prior.outlines]
        rows = read_part(store.folder, store.info.parts[number].name, columns)
        channels = decoded_channels(store, rows, self.geometry)
        masks = ids[channels].astype(np.uint16)  # a channel of -1, ignored, is the last
        images = masks if of == "mask" else decoded_images(store, rows, self.geometry)
        segments = rows["segment_map"].to_pylist() if prior.outlines else [None] * len(masks)
        drawn = []
        for image, mask, data in zip(images, masks, segments, strict=True):
            segment_map = None if data is None else self.geometry.apply_mask(decode_mask(data), NO_SEGMENT)
            of_image = [prior.of_image(image)] if of != "mask" else []
            drawn.append(of_image + ([prior.of_mask(mask, segment_map)] if of != "image" else []))
        return np.stack(drawn, dtype=np.uint8)

    def at(self, sources: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Drawings uint8 `[B, D, H, W, 3]` of sources, mirrored where `flipped`."""
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
        shape=(2 if prior.of == "both" else 1, height, width, 3),
        dtype="uint8",
    )
    return PriorCache(options.sources, options.geometry, prior, RecordCache(cache_root(options), info))
