"""Which seeds belong to which split of the procedural scenes.

Knows nothing of what a seed draws. The ranges are disjoint, so no scene of one split can turn up in another.
"""

from segdatagen.errors import UsageError

SPLIT_SIZE = 100_000_000
SPLITS: dict[str, int] = {"train": 0, "val": 100_000_000, "test": 200_000_000, "pretrain": 300_000_000}
"""First seed of each split; a split holds `SPLIT_SIZE` seeds."""


def scene_seed(split: str, index: int) -> int:
    """Return the seed of scene `index` of `split`.

    Raises UsageError for an unknown split, or an index outside of 0 ... `SPLIT_SIZE` - 1.
    """
    if split not in SPLITS:
        raise UsageError(f"Data set scenes has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if not 0 <= index < SPLIT_SIZE:
        raise UsageError(
            f"Index {index} is outside of split {split!r} of scenes: it must lie in 0 ... {SPLIT_SIZE - 1}."
        )
    return SPLITS[split] + index
