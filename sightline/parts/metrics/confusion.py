"""Confusion matrix of labels: its counts, the scores that are made of it, and the base of metrics that have one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.contract.metric import Metric, State
from sightline.ops.dtypes import widen_labels


def confusion_matrix(
    prediction: Tensor,
    label: Tensor,
    *,
    num_classes: int,
    ignore_index: int | None = None,
    group: Tensor | None = None,
    num_groups: int = 1,
) -> Tensor:
    """Compute the confusion matrix (C, C) int64: rows are labels, columns predictions.

    `prediction` and `label` have the same shape (...), integers 0 .. C-1; targets of `ignore_index` are not counted.
    With a `group` (...) of each target, 0 .. G-1, there is a matrix for each: (G, C, C).
    Raises ValueError for a label or a prediction outside the classes, and for shapes that differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction: found the shape {tuple(prediction.shape)}, labels have {tuple(label.shape)}")
    prediction, label = widen_labels(prediction, "prediction"), widen_labels(label)
    if not (_is_within(prediction, num_classes) and _is_within(label, num_classes)):
        if ignore_index is not None:
            is_counted = label != ignore_index
            prediction, label = prediction[is_counted], label[is_counted]
            group = None if group is None else group[is_counted]
        for name, values in (("label", label), ("prediction", prediction)):
            is_outside = (values < 0) | (values >= num_classes)
            if bool(is_outside.any()):
                raise ValueError(
                    f"{name}: found class {int(values[is_outside][0])}, there are {num_classes} (0 .. "
                    f"{num_classes - 1}); check the labels, or the ignore index, of the data set"
                )
    num_cells = num_groups * num_classes**2
    cells = torch.zeros_like(label, dtype=torch.int32 if num_cells < 2**31 else torch.int64)
    if group is not None:
        cells += group
    for values in (label, prediction):
        cells.mul_(num_classes).add_(values)
    counts = torch.bincount(cells.flatten(), minlength=num_cells).view(num_groups, num_classes, num_classes)
    if ignore_index is not None and 0 <= ignore_index < num_classes:
        counts[:, ignore_index] = 0  # counted with the others: to leave points out takes longer than to count them
    return counts[0] if group is None else counts


def _is_within(values: Tensor, num_classes: int) -> bool:
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool((low >= 0) & (high < num_classes))


def overall_accuracy(confusion: Tensor) -> float:
    """Compute the share of correct predictions from a confusion matrix (C, C); NaN if nothing was counted."""
    return (confusion.diagonal().sum().double() / confusion.sum()).item()


def mean_class_accuracy(confusion: Tensor) -> float:
    """Compute the mean recall over the classes that occur in a confusion matrix (C, C); NaN if none does."""
    return recalls(confusion).nanmean().item()


def recalls(confusion: Tensor) -> Tensor:
    """Compute the recall (C,) float64 per class from a confusion matrix (C, C); NaN for a class that does not occur."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


class LabelMetric(Metric):
    """Base of metrics with a state `confusion`, the confusion matrix of all labels."""

    higher_is_better = True

    def __init__(
        self, *, num_classes: int, class_names: tuple[str, ...] | None = None, ignore_index: int | None = None
    ) -> None:
        names = tuple(str(index) for index in range(num_classes)) if class_names is None else tuple(class_names)
        assert len(names) == num_classes, f"{len(names)} class names for {num_classes} classes"
        self.num_classes = num_classes
        self.class_names = names
        self.ignore_index = ignore_index

    def tables(self, state: State) -> dict[str, Any]:
        """Return `confusion`, and the class names of its rows (labels) and columns (predictions), in plain values."""
        return {"confusion": {"classes": list(self.class_names), "counts": state["confusion"].tolist()}}


def class_ious(confusion: Tensor) -> Tensor:
    """Compute the IoU (C,) float64 of each class, TP / (TP + FP + FN); NaN for a class that neither side has."""
    common = confusion.diagonal().double()
    return common / (confusion.sum(dim=0) + confusion.sum(dim=1) - common)
