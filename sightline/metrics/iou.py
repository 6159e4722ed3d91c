"""Mean IoU of point classes, from one confusion matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.confusion import confusion_matrix, mean_class_accuracy, overall_accuracy, recalls

__all__ = ["IoU", "class_ious"]


@registry.metrics.add("iou")
class IoU:
    """Mean IoU, overall accuracy and mean class accuracy over all points that are not ignored, 0 to 1.

    `miou` is the mean over the classes of labels or predictions; a class in neither is NaN in its row and
    is skipped, or with `absent: zero` counts 0 in the mean, as the evaluator of SemanticKITTI counts it. A class whose
    index is ignored is left out of the mean: points with that label do not count, predicting it for another point is a
    miss of that point's class alone, and `overall_accuracy` is over the points for which it is not predicted. All come
    from one confusion matrix, never from means of batches or scenes. The prediction is the most probable class, the
    lowest index among equals. Source: Everingham et al. 2010, section 4.4 (IoU of a class); Behley et al. 2019, section
    4 (mean over 19 classes).
    """

    slots = frozenset({"common", "union"})
    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        absent: Literal["skipped", "zero"] = "skipped",
    ) -> None:
        names = tuple(str(index) for index in range(num_classes)) if class_names is None else tuple(class_names)
        assert len(names) == num_classes, f"iou: {len(names)} class names for {num_classes} classes"
        self.num_classes = num_classes
        self.class_names = names
        self.ignore_index = ignore_index
        self.scores_absent_zero = absent == "zero"
        self._is_ignored = torch.arange(num_classes) == (-1 if ignore_index is None else ignore_index)

    def new_state(self, *, num_samples: int = 0) -> State:
        slots = {name: torch.zeros(num_samples, self.num_classes, dtype=torch.int64) for name in sorted(self.slots)}
        return slots | {"confusion": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)}

    def update(
        self, state: State, *, probabilities: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        """Add a batch of packed clouds.

        `probabilities` (P, C), `target` (P,), `cloud_offsets` (B+1,), `sample_index` (B,).
        Raises ValueError for NaN and for labels outside the classes.
        """
        if probabilities.shape != (len(target), self.num_classes):
            raise ValueError(
                f"probabilities: found the shape {tuple(probabilities.shape)} for {len(target)} labels, expected "
                f"({len(target)}, {self.num_classes})"
            )
        if bool(probabilities.isnan().any()):
            num_bad = int(probabilities.isnan().any(dim=1).sum())
            raise ValueError(
                f"probabilities: {num_bad} of {len(target)} points are NaN; find where with `sightline check`"
            )
        answer = probabilities.argmax(dim=1)
        self.update_labels(state, labels=answer, target=target, cloud_offsets=cloud_offsets, sample_index=sample_index)

    def update_labels(
        self, state: State, *, labels: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        """Update the state with predicted `labels` (P,) instead of probabilities."""
        for sample, (start, end) in zip(sample_index.tolist(), pairwise(cloud_offsets.tolist()), strict=True):
            counts = confusion_matrix(
                labels[start:end], target[start:end], num_classes=self.num_classes, ignore_index=self.ignore_index
            ).to(state["confusion"].device)
            state["confusion"] += counts
            state["common"][sample] += counts.diagonal()
            state["union"][sample] += counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()

    def compute(self, state: State) -> dict[str, float]:
        confusion = state["confusion"]
        ious = self._ious(confusion)
        ious = ious[~self._is_ignored]
        if self.scores_absent_zero and bool(confusion.any()):
            ious = ious.nan_to_num(nan=0.0)
        return {
            "miou": ious.nanmean().item(),
            "overall_accuracy": overall_accuracy(confusion * ~self._is_ignored),
            "mean_class_accuracy": mean_class_accuracy(confusion),
        }

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return, by class name, `iou` and `accuracy` (NaN if nothing counts) and the `count` of its points."""
        ious, shares = self._ious(state["confusion"]).tolist(), recalls(state["confusion"]).tolist()
        counts = state["confusion"].sum(dim=1).tolist()
        return {
            name: {"iou": iou, "accuracy": share, "count": count}
            for name, iou, share, count in zip(self.class_names, ious, shares, counts, strict=True)
        }

    def per_sample(self, state: State) -> Tensor:
        """Return the mean IoU (num_samples,) float64 of each scene over the classes it has; NaN without points."""
        ious = state["common"].double() / state["union"]
        ious[:, self._is_ignored] = torch.nan
        return ious.nanmean(dim=1)

    def _ious(self, confusion: Tensor) -> Tensor:
        """Return the IoU (C,) of each class.

        NaN for a class in neither labels nor predictions, and for the ignored one.
        """
        ious = class_ious(confusion)
        ious[self._is_ignored] = torch.nan
        return ious

    def tables(self, state: State) -> dict[str, Any]:
        """Return `confusion`, and the class names of its rows (labels) and columns (predictions), in plain values."""
        return {"confusion": {"classes": list(self.class_names), "counts": state["confusion"].tolist()}}


def class_ious(confusion: Tensor) -> Tensor:
    """Compute the IoU (C,) float64 of each class, TP / (TP + FP + FN); NaN for a class that neither side has."""
    common = confusion.diagonal().double()
    return common / (confusion.sum(dim=0) + confusion.sum(dim=1) - common)
