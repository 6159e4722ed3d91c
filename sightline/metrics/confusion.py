"""The confusion matrix: integer counts from which metrics of labels are computed once, at the end."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["confusion_matrix", "grouped_confusion", "mean_class_accuracy", "overall_accuracy", "recalls"]


def confusion_matrix(prediction: Tensor, label: Tensor, *, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """How often each label was answered by each class: (C, C) int64, rows are labels, columns predictions.

    `prediction` and `label` are of one shape, whole numbers 0 .. C-1; targets of `ignore_index` are not counted.
    Raises ValueError for a label or a prediction outside the classes.
    """
    group = torch.zeros_like(label)
    return grouped_confusion(
        prediction, label, group, num_groups=1, num_classes=num_classes, ignore_index=ignore_index
    )[0]


def grouped_confusion(
    prediction: Tensor,
    label: Tensor,
    group: Tensor,
    *,
    num_groups: int,
    num_classes: int,
    ignore_index: int | None = None,
) -> Tensor:
    """The `confusion_matrix` of each group (G, C, C) int64; `group` is of the same shape, 0 .. G-1. Raises as that."""
    if ignore_index is not None:
        is_counted = label != ignore_index
        prediction, label, group = prediction[is_counted], label[is_counted], group[is_counted]
    for name, values in (("label", label), ("prediction", prediction)):
        is_outside = (values < 0) | (values >= num_classes)
        if bool(is_outside.any()):
            raise ValueError(
                f"{name}: found class {int(values[is_outside][0])}, there are {num_classes} (0 .. {num_classes - 1}); "
                "check the labels, or the ignore index, of the data set"
            )
    rows = group.flatten().long() * num_classes + label.flatten().long()
    cells = rows * num_classes + prediction.flatten().long()
    return torch.bincount(cells, minlength=num_groups * num_classes**2).view(num_groups, num_classes, num_classes)


def overall_accuracy(confusion: Tensor) -> float:
    """The share of targets answered rightly, from a confusion matrix; NaN where nothing was counted."""
    return (confusion.diagonal().sum().double() / confusion.sum()).item()


def mean_class_accuracy(confusion: Tensor) -> float:
    """The mean share answered rightly over the classes that occur, from a confusion matrix; NaN where none does."""
    return recalls(confusion).nanmean().item()


def recalls(confusion: Tensor) -> Tensor:
    """Per class the share answered rightly: (C,) float64, NaN for a class that does not occur."""
    return confusion.diagonal().double() / confusion.sum(dim=1)
