"""What captions name of their masks: counts by hand, and sums that add up over shards."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.labels import load_label_set
from segdatagen.metrics.class_mentions import class_mentions, named_channels

LABELS = load_label_set("scenes")
SKY, BUILDING, ROAD, CAR, TRUCK, PERSON = 0, 1, 2, 6, 7, 8
WORDS = ("a car", "two lorries", "people", "houses", "an open sky", "nothing")


def masks(*shown: set[int]) -> np.ndarray:
    """A mask per set of channels, the rest ignored."""
    found = np.full((len(shown), 4, 4), -1, np.int16)
    for mask, channels in zip(found, shown, strict=True):
        mask.flat[: len(channels)] = sorted(channels)
    return found


def test_mentions_are_counted_by_class() -> None:
    said = ["A street with two cars and people", "a truck before houses"]
    references = ["a street with a car", "a street with a truck and a person"]
    found = class_mentions(said, masks({ROAD, CAR, SKY}, {ROAD, TRUCK, PERSON}), references, LABELS)
    assert {name: set(np.flatnonzero(rows).tolist()) for name, rows in vars(found).items()} == {
        "named": {ROAD, CAR, PERSON, TRUCK, BUILDING},
        "right": {ROAD, CAR, TRUCK},
        "shown": {ROAD, CAR, SKY, TRUCK, PERSON},
        "told": {ROAD, CAR, TRUCK, PERSON},
        "repeated": {ROAD, CAR, TRUCK},
    }
    assert found.named_are_there == 3 / 5
    assert found.there_are_named == 3 / 6
    assert found.told_of_there == 5 / 6
    assert found.told_are_named == 3 / 5


def test_background_counts_nowhere() -> None:
    labels = LABELS.model_copy(update={"background_ids": (SKY,)})
    found = class_mentions(["an open sky"], masks({SKY, CAR}), ["the sky"], labels)
    assert (found.named.sum(), found.shown.sum(), found.told.sum()) == (0, 1, 0)
    assert math.isnan(found.named_are_there)
    assert math.isnan(found.told_are_named)


def test_captions_belong_to_masks() -> None:
    with pytest.raises(ValueError, match="1 captions and 2 references for 2 masks"):
        class_mentions(["a car"], masks({CAR}, {CAR}), ["a car", "a car"], LABELS)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(WORDS)), st.sets(st.integers(0, 11)), st.sets(st.sampled_from(WORDS))),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 6),
)
def test_counts_add_up_over_shards(rows: list[tuple[set[str], set[int], set[str]]], cut: int) -> None:
    said = [" and ".join(sorted(words)) for words, _, _ in rows]
    references = [" and ".join(sorted(words)) for _, _, words in rows]
    channels = masks(*(shown for _, shown, _ in rows))
    whole = class_mentions(said, channels, references, LABELS)
    parts = [class_mentions(said[p], channels[p], references[p], LABELS) for p in (slice(0, cut), slice(cut, None))]
    for field in dataclasses.fields(whole):
        first, second = (getattr(part, field.name) for part in parts)
        assert np.array_equal(getattr(whole, field.name), first + second)
    assert (whole.right <= np.minimum(whole.named, whole.shown)).all()
    assert (whole.repeated <= np.minimum(whole.told, whole.right)).all()
    assert np.array_equal(whole.named, named_channels(said, LABELS).sum(axis=0))


def test_a_caption_that_is_the_reference_repeats_all_that_it_tells() -> None:
    said = ["a street with two cars, people and houses"]
    assert class_mentions(said, masks({ROAD, CAR, PERSON}), said, LABELS).told_are_named == 1
