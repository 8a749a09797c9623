"""Algorithm 1 of SGA as the loop that the paper prints: documentation, and the oracle of tests and `bench plan`.

Plain Python over plain lists, one generated image at a time; `balance.balance` must agree with it image for image.
The comments name the line or stage of the paper's Algorithm 1 and the two points that are easily missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from segdatagen.balance import Progress

_MASK = (1 << 64) - 1


@dataclass
class LiteralResult:
    """`generated`: (channel, source index) in order of generation; `counts`: images per class at the end."""

    generated: list[tuple[int, int]]
    counts: list[int]
    unreachable: list[int]


def literal_balance(
    images: Sequence[tuple[str, Sequence[int]]],
    class_names: Sequence[str],
    quotas: Sequence[int],
    seed: int,
    progress: Progress | None = None,
) -> LiteralResult:
    """Balance `images`, pairs of a source id and its distinct channels; `quotas[c]` images are wanted of class c.

    `progress` says where to go on from, when not from the real images alone.
    """
    real: list[list[int]] = [[] for _ in class_names]  # Stage 1: M, the images of each class
    for index, (_, channels) in enumerate(images):
        for channel in channels:
            real[channel].append(index)

    for channel, name in enumerate(class_names):  # Stage 2: sort, fewest classes first, ties by a hash
        ranked = sorted((len(images[i][1]), tie_hash(seed, name, images[i][0]), i) for i in real[channel])
        real[channel] = [index for _, _, index in ranked]

    counts = [len(sources) for sources in real]
    available = [True] * len(images)
    cycle_start = [0] * len(class_names)
    if progress is not None:
        counts, available = progress.counts.tolist(), progress.available.tolist()
        cycle_start = progress.cycle_start.tolist()

    result = LiteralResult([], counts, [])
    for channel in range(len(class_names)):  # Stage 3: balance, in label order
        cycle = [index for index in real[channel] if available[index]]
        if counts[channel] >= quotas[channel]:
            continue
        if not cycle:
            result.unreachable.append(channel)
            continue
        position = cycle_start[channel]
        while counts[channel] < quotas[channel]:
            index = cycle[position % len(cycle)]  # only real images are cycled: M[C] grows, the cycle does not
            position += 1
            result.generated.append((channel, index))
            for held in images[index][1]:  # the image counts at once for every class that it holds
                counts[held] += 1
    return result


def tie_hash(seed: int, class_name: str, source_id: str) -> int:
    """The hash of (seed, class, source) by which equal numbers of classes are ordered; see `balance.class_orders`."""
    z = xxhash.xxh3_64_intdigest(source_id.encode()) ^ xxhash.xxh3_64_intdigest(f"{seed}|{class_name}".encode())
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
