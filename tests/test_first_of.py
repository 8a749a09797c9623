"""The matching image first of a few: groups hold no second right answer, and shares are those counted by hand."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.metrics.first_of import groups_of, share_first


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), max_size=24), st.integers(2, 8), st.integers(0, 3))
def test_a_group_is_an_item_and_others_of_other_keys(keys: list[int], size: int, seed: int) -> None:
    groups = groups_of(keys, size, seed)
    assert np.array_equal(groups, groups_of(keys, size, seed))
    for first, *others in groups.tolist():
        assert len(set(others)) == size - 1
        assert all(keys[place] != keys[first] for place in others)
    wanted = [place for place, key in enumerate(keys) if len(keys) - keys.count(key) >= size - 1]
    assert groups[:, 0].tolist() == wanted


def test_shares_by_hand() -> None:
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    texts = np.array([east, north, west])
    groups = np.array([[0, 1], [1, 2], [2, 0]])
    assert share_first(texts, texts, groups) == 1
    assert share_first(texts, np.array([east, west, north]), groups) == 2 / 3, "north finds itself third, not second"
    assert share_first(texts, np.array([east, east, east]), groups) == 0, "a tie is lost"
    assert math.isnan(share_first(texts, texts, np.empty((0, 2), np.int64)))


def test_vectors_that_know_nothing_are_first_as_often_as_chance() -> None:
    chance = np.random.default_rng(0)
    texts, images = (
        vectors / np.linalg.norm(vectors, axis=1)[:, None] for vectors in chance.normal(size=(2, 2000, 16))
    )
    share = share_first(texts, images, groups_of(list(range(2000)), 8, 0))
    assert abs(share - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / 2000)
