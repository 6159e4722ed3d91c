"""Classification accuracy: over all samples, and as the mean over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.confusion import confusion_matrix, mean_class_accuracy, overall_accuracy, recalls

__all__ = ["Accuracy"]


@registry.metrics.add("accuracy")
class Accuracy:
    """Overall accuracy and mean class accuracy, 0 to 1, from one confusion matrix.

    The mean is over the classes that occur, never over batches. The prediction is the most
    probable class, the lowest index among equals. Source: Qi et al. 2017, table 1 (the two columns of ModelNet40).
    """

    higher_is_better = True

    def __init__(
        self, *, num_classes: int, class_names: tuple[str, ...] | None = None, ignore_index: int | None = None
    ) -> None:
        names = tuple(str(index) for index in range(num_classes)) if class_names is None else tuple(class_names)
        assert len(names) == num_classes, f"accuracy: {len(names)} class names for {num_classes} classes"
        self.num_classes = num_classes
        self.class_names = names
        self.ignore_index = ignore_index

    def new_state(self) -> State:
        return {"confusion": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        """Add a batch: `probabilities` (B, C) with `label` (B,), or (P, C) with (P,): classes last.

        Raises ValueError for NaN.
        """
        if probabilities.shape != (*label.shape, self.num_classes):
            raise ValueError(
                f"probabilities: found the shape {tuple(probabilities.shape)} for labels {tuple(label.shape)}, "
                f"expected {(*label.shape, self.num_classes)}"
            )
        if bool(probabilities.isnan().any()):
            raise ValueError(
                f"probabilities: {int(probabilities.isnan().any(dim=-1).sum())} of {label.numel()} rows are NaN; "
                "find where with `sightline check`"
            )
        prediction = probabilities.argmax(dim=-1)  # torch promises the first of equal maxima
        counts = confusion_matrix(prediction, label, num_classes=self.num_classes, ignore_index=self.ignore_index)
        state["confusion"] += counts.to(state["confusion"].device)

    def compute(self, state: State) -> dict[str, float]:
        return {
            "overall_accuracy": overall_accuracy(state["confusion"]),
            "mean_class_accuracy": mean_class_accuracy(state["confusion"]),
        }

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return, by class name, its `accuracy` (NaN if it does not occur) and the `count` of its targets."""
        shares = recalls(state["confusion"]).tolist()
        counts = state["confusion"].sum(dim=1).tolist()
        return {
            name: {"accuracy": share, "count": count}
            for name, share, count in zip(self.class_names, shares, counts, strict=True)
        }

    def confusion(self, state: State) -> Tensor:
        """Return the confusion matrix (C, C) int64: rows are labels, columns predictions."""
        return state["confusion"].clone()

    def tables(self, state: State) -> dict[str, Any]:
        """Return `confusion`, and the class names of its rows (labels) and columns (predictions), in plain values."""
        return {"confusion": {"classes": list(self.class_names), "counts": state["confusion"].tolist()}}
