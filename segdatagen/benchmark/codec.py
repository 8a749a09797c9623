"""How fast colour maps become masks on one core, beside the nearest colour by brute force.

It measures `ColourDecoder.decode` and checks on the way that both give the same mask. What a colour map is, is known
by `colours`.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np

from segdatagen.benchmark.measure import Benchmark, Figures
from segdatagen.colours import ColourDecoder, ColourMap, encode
from segdatagen.images import Mask
from segdatagen.labels import LabelClass, LabelSet

WIDTH = 2048
REGION = 32
"""Edge of the squares of one class that the map is made of."""
NOISE = 8.0
"""Deviation per channel, as a generated colour map has it."""
CROP = 256
"""Edge of the square that brute force decodes: it takes thousands of times longer per pixel."""
REPEATS = 5


def bench_codec(num_colours: int = 150, megapixels: float = 16.0) -> Figures:
    """Decode a noisy colour map, and one of random colours, for which every look-up misses the cache.

    Rates are megapixels of 10^6 pixels per second, the best of five.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        label_set = _random_label_set(num_colours)
        began = time.perf_counter()
        decoder = ColourDecoder(label_set)
        table_seconds = time.perf_counter() - began
        noisy, random = _noisy_map(label_set, megapixels), _random_map(megapixels)
        rate = _rate(decoder.decode, noisy, REPEATS)
        random_rate = _rate(decoder.decode, random, REPEATS)
        crop = np.ascontiguousarray(noisy[:CROP, :CROP])
        brute_force_rate = _rate(lambda colour_map: _brute_force(colour_map, label_set), crop, 1)
        different = int((decoder.decode(crop) != _brute_force(crop, label_set)).sum())
    finally:
        cv2.setNumThreads(threads)
    return {
        "num_colours": num_colours,
        "megapixels": round(noisy.shape[0] * noisy.shape[1] / 1e6, 1),
        "megapixels_per_second": round(rate, 1),
        "megapixels_per_second_random": round(random_rate, 1),
        "megapixels_per_second_brute_force": round(brute_force_rate, 3),
        "ratio_to_brute_force": round(rate / brute_force_rate, 1),
        "pixels_that_differ": different,
        "seconds_to_build_table": round(table_seconds, 3),
    }


CODEC = Benchmark(
    "codec",
    bench_codec,
    measures="colour maps to masks, on one core",
    reference="the nearest colour by brute force",
    figure="{megapixels_per_second:.0f} megapixels/s with {num_colours} colours",
    ratio="{ratio_to_brute_force:.0f} times as fast",
    minutes=0.5,
)


def _random_label_set(num_colours: int) -> LabelSet:
    codes = np.random.default_rng(0).choice(1 << 24, num_colours, replace=False).tolist()
    classes = tuple(
        LabelClass(id=id_, name=f"{id_}", prompt=f"{id_}", colour=(c & 255, c >> 8 & 255, c >> 16), kind="stuff")
        for id_, c in enumerate(codes)
    )
    return LabelSet(name="benchmark", version="1", classes=classes)


def _height(megapixels: float) -> int:
    return max(CROP, round(megapixels * 1e6 / WIDTH))


def _noisy_map(label_set: LabelSet, megapixels: float) -> ColourMap:
    """Squares of random classes with sensor-like noise; the noise repeats every 256 rows."""
    rng = np.random.default_rng(1)
    height = _height(megapixels)
    classes = rng.integers(0, label_set.num_classes, (-(-height // REGION), WIDTH // REGION))
    mask = label_set.ids[classes].repeat(REGION, axis=0).repeat(REGION, axis=1)[:height].astype(np.uint16)
    noise = np.rint(rng.normal(0.0, NOISE, (CROP, WIDTH, 3))).astype(np.int16)
    colour_map = encode(mask, label_set)
    for top in range(0, height, CROP):
        rows = colour_map[top : top + CROP]
        rows[:] = np.clip(rows + noise[: len(rows)], 0, 255)
    return colour_map


def _random_map(megapixels: float) -> ColourMap:
    return np.random.default_rng(2).integers(0, 256, (_height(megapixels), WIDTH, 3), dtype=np.uint8)


def _rate(decode: Callable[[ColourMap], Mask], colour_map: ColourMap, repeats: int) -> float:
    """Megapixels per second, the best of so many."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        decode(colour_map)
        seconds.append(time.perf_counter() - began)
    return float(colour_map.shape[0] * colour_map.shape[1] / 1e6 / min(seconds))


def _brute_force(colour_map: ColourMap, label_set: LabelSet) -> Mask:
    """The nearest colour by the definition: every distance of a row of pixels, then the least."""
    colours = label_set.colours.astype(np.int32)
    rows = [((row[:, None].astype(np.int32) - colours) ** 2).sum(axis=-1).argmin(axis=1) for row in colour_map]
    return np.asarray(label_set.ids[np.stack(rows)])
