"""How many procedural scenes one core paints in a second, beside reading the same scenes from lossless files.

It measures `make_scene`, as the reader of `scenes` calls it, and knows nothing of how it paints.
"""

import time

import cv2

from segdatagen.benchmark.measure import Benchmark, Figures
from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.images import decode_image, decode_mask, encode_image, encode_mask

BATCH = 50
"""Scenes between two looks at the clock."""


def bench_scenes(size: int = 128, count: int = 1000) -> Figures:
    """Paint `count` square scenes of `size` pixels; the best batch shows what the machine can do undisturbed."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        scene = make_scene(scene_seed("pretrain", 0), size, size)  # Makes the tables of noise, once per process.
        rates = []
        for start in range(0, count, BATCH):
            stop = min(start + BATCH, count)
            began = time.perf_counter()
            for index in range(start, stop):
                make_scene(scene_seed("pretrain", index), size, size)
            rates.append((stop - start) / (time.perf_counter() - began))
        image, mask = encode_image(scene.image, "png"), encode_mask(scene.mask)
        began = time.perf_counter()
        for _ in range(count):
            decode_image(image)
            decode_mask(mask)
        read_rate = count / (time.perf_counter() - began)
    finally:
        cv2.setNumThreads(threads)
    rate = len(rates) / sum(1 / rate for rate in rates)
    return {
        "size": size,
        "scenes": count,
        "scenes_per_second": round(rate, 1),
        "scenes_per_second_best_batch": round(max(rates), 1),
        "scenes_read_per_second": round(read_rate, 1),
        "ratio_to_reading": round(rate / read_rate, 3),
    }


SCENES = Benchmark(
    "scenes",
    bench_scenes,
    measures="procedural scenes painted, on one core",
    reference="reading the same scenes from lossless files",
    figure="{scenes_per_second:.0f} scenes/s of {size} x {size}",
    ratio="{ratio_to_reading:.2f} of the speed",
    minutes=0.2,
)
