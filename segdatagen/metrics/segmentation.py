"""How well predicted masks agree with given ones: a confusion matrix, and IoU from it.

Matrices of several shards add up. It does not know where predictions come from.
"""

import numpy as np


def confusion(channels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by given class (rows) and predicted class (columns), int64 `[C, C]`, by torchmetrics.

    Both are integers of one shape; pixels whose given channel is below 0 are left out.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    given = torch.from_numpy(np.where(channels < 0, -1, channels).astype(np.int64))
    found = torch.from_numpy(predicted.astype(np.int64))
    matrix = multiclass_confusion_matrix(found, given, num_classes, ignore_index=-1)
    counts: np.ndarray = matrix.numpy()
    return counts


def iou_of(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 `[C]`; NaN for a class that is neither given nor predicted."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    iou: np.ndarray = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return iou


def mean_iou(matrix: np.ndarray) -> float:
    """mIoU: the mean over the classes that are given or predicted anywhere; NaN where there are none."""
    iou = iou_of(matrix)
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")


def iou_of_given(matrix: np.ndarray) -> dict[int, float]:
    """IoU of each class that is given, by channel; empty where every pixel was left out.

    A class that is predicted but not given costs those whose pixels it takes.
    """
    iou = iou_of(matrix)
    return {channel: float(iou[channel]) for channel in np.flatnonzero(matrix.sum(1)).tolist()}
