"""Confusion matrices and IoU against counting by hand, and sums over shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.metrics.segmentation import confusion, iou_of, mean_iou

NUM_CLASSES = 4


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return chance.integers(-1, NUM_CLASSES, (3, 5, 7)), chance.integers(0, NUM_CLASSES, (3, 5, 7))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_confusion_counts_every_labelled_pixel_once(seed: int) -> None:
    given_mask, predicted = masks(seed)
    counted = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for row, column in zip(given_mask.ravel(), predicted.ravel(), strict=True):
        if row >= 0:
            counted[row, column] += 1
    found = confusion(given_mask, predicted, NUM_CLASSES)
    assert np.array_equal(found, counted)
    parts = [confusion(given_mask[i], predicted[i], NUM_CLASSES) for i in range(len(given_mask))]
    assert np.array_equal(sum(parts), counted)


def test_iou_is_intersection_over_union() -> None:
    given_mask, predicted = masks(3)
    matrix = confusion(given_mask, predicted, NUM_CLASSES)
    kept = given_mask >= 0
    for channel in range(NUM_CLASSES):
        one, other = (given_mask == channel)[kept], (predicted == channel)[kept]
        assert iou_of(matrix)[channel] == pytest.approx((one & other).sum() / (one | other).sum())


def test_class_that_nothing_shows_has_no_iou_and_does_not_count() -> None:
    mask = np.array([[0, 0, 1, 1]])
    matrix = confusion(mask, np.array([[0, 1, 1, 1]]), 3)
    assert iou_of(matrix).tolist()[:2] == [1 / 2, 2 / 3]
    assert np.isnan(iou_of(matrix)[2])
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert np.isnan(mean_iou(confusion(np.full((2, 2), -1), np.zeros((2, 2)), 3)))
