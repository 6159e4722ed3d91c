"""Classification accuracy: over all samples, and as the mean over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.metric import SampleShares, SampleSums, State
from sightline.parts.metrics.confusion import (
    LabelMetric,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    recalls,
)
from sightline.parts.metrics.predicted_labels import predict_classes


@registry.metrics.add("accuracy")
class Accuracy(LabelMetric):
    """Accuracy of classes, 0 to 1: `overall_accuracy` and `mean_class_accuracy`, from one confusion matrix.

    The mean is over the classes that occur, never over batches. The prediction is the most probable class, the lowest
    index among equals.

    >>> import torch
    >>> from sightline.parts.metrics import Accuracy, Meter
    >>> meter = Meter(Accuracy(num_classes=3))
    >>> meter.update(probabilities=torch.eye(3), label=torch.tensor([0, 1, 1]))
    >>> meter.compute()
    {'overall_accuracy': 0.6666666666666666, 'mean_class_accuracy': 0.75}

    Source: Qi et al. 2017, table 1 (the two columns of ModelNet40).
    """

    def new_state(self) -> State:
        return {"confusion": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        """Add a batch: `probabilities` (B, C) with `label` (B,), or (P, C) with (P,): classes last.

        Raises ValueError for NaN.
        """
        prediction = predict_classes(probabilities, label, self.num_classes, "rows")
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

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `overall_accuracy` and `mean_class_accuracy`, of right and wrong samples of each class."""
        right, total = state["confusion"].diagonal(), state["confusion"].sum(dim=1)
        counts, is_right = torch.cat([right, total - right]), torch.arange(2 * self.num_classes) < self.num_classes
        of_class = torch.eye(self.num_classes).repeat(2, 1)
        return {
            "overall_accuracy": SampleSums(is_right[:, None], torch.ones(len(counts), 1), counts),
            "mean_class_accuracy": SampleSums(of_class * is_right[:, None], of_class, counts),
        }

    def class_intervals(self, state: State) -> dict[str, SampleShares]:
        """Return the right samples of each class."""
        right, total = state["confusion"].diagonal(), state["confusion"].sum(dim=1)
        return {"accuracy": SampleShares(right, total, num_samples=int(total.sum()))}
