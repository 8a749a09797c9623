"""How often the matching one of a few images comes first for a text: a figure for models that compare both.

Which images stand beside the matching one follows from a seed. Knows no model: it is given vectors.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from segdatagen.records import derive_seed


def groups_of(keys: Sequence[Hashable], size: int, seed: int) -> np.ndarray:
    """A group for each item, int64 `[N, size]`: the item, then others with another key than its own.

    Items that share a key (a caption, a class) are all right answers to it, so that one never stands against another.
    An item that has not enough others has no group.
    """
    same: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        same.setdefault(key, []).append(place)
    groups = []
    for place, key in enumerate(keys):
        others = np.setdiff1d(np.arange(len(keys)), same[key], assume_unique=True)
        if len(others) >= size - 1:
            chance = np.random.default_rng(derive_seed(seed, "group", place))
            groups.append([place, *chance.choice(others, size - 1, replace=False).tolist()])
    return np.array(groups, dtype=np.int64).reshape(-1, size)


def share_first(texts: np.ndarray, images: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose first item has the image most similar to its text; a tie is lost. NaN without groups.

    `texts` and `images` float `[N, D]`, unit vectors; `groups` as `groups_of` makes them.
    """
    if not len(groups):
        return float("nan")
    similar = np.einsum("gd,gkd->gk", texts[groups[:, 0]], images[groups])
    return float((similar[:, 0] > similar[:, 1:].max(axis=1)).mean())
