"""Mean IoU of point classes, from one confusion matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.metric import SampleSums, State
from sightline.parts.metrics.confusion import (
    LabelMetric,
    class_ious,
    confusion_matrix,
    overall_accuracy,
    recalls,
)
from sightline.parts.metrics.predicted_labels import predict_classes

_ABSENT_ZERO = "_absent_zero"
"""Ending of the means that count classes without points as 0, where others skip them."""


def assert_offsets(cloud_offsets: Tensor, *, num_points: int, num_clouds: int) -> None:
    """Raise ValueError unless `cloud_offsets` (B+1,) divide all points of a batch among its clouds."""
    bounds = cloud_offsets.tolist()
    if len(bounds) != num_clouds + 1 or bounds[0] != 0 or bounds[-1] != num_points or bounds != sorted(bounds):
        raise ValueError(
            f"cloud_offsets: found {bounds[:8]} for {num_points} points in {num_clouds} clouds; they start at 0, never "
            "fall, and end at the number of points"
        )


@registry.metrics.add("iou")
class IoU(LabelMetric):
    """Mean IoU, overall accuracy and mean class accuracy over all points that are not ignored, 0 to 1.

    `miou` is the mean over the classes of labels or predictions; a class in neither is NaN in its row and is skipped,
    or with `absent: zero` counts 0 in the mean, as the evaluators of SemanticKITTI and of Pointcept count it, and so
    does a class without labels in `mean_class_accuracy`. With `absent: both` these skip it, and the means that count it
    have names that end in `_absent_zero`. If the set puts its classes into groups (`class_groups`, the group of each
    class), `miou_GROUP` is the mean over the classes of a group. A class whose index is ignored is left out of all
    means: points with that label do not count, predicting it for another point is a miss of that point's class alone,
    and `overall_accuracy` is over the points for which it is not predicted. All come from one confusion matrix, never
    from means of batches or scenes. The prediction is the most probable class, the lowest index among equals.

    >>> import torch
    >>> from sightline.parts.metrics import IoU, Meter
    >>> batch = {  # two clouds of two points
    ...     "probabilities": torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]),
    ...     "target": torch.tensor([0, 1, 1, 1]),
    ...     "cloud_offsets": torch.tensor([0, 2, 4]),
    ...     "sample_index": torch.tensor([0, 1]),
    ... }
    >>> meter = Meter(IoU(num_classes=2))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'miou': 0.5833333333333333, 'overall_accuracy': 0.75, 'mean_class_accuracy': 0.8333333333333333}

    Source: Everingham et al. 2010, section 4.4 (IoU of a class); Behley et al. 2019, section 4 (mean over 19 classes).
    """

    slots = frozenset({"common", "union"})

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        class_groups: tuple[str, ...] | None = None,
        absent: Literal["skipped", "zero", "both"] = "skipped",
    ) -> None:
        super().__init__(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index)
        groups = () if class_groups is None else tuple(class_groups)
        assert len(groups) in (0, num_classes), f"{len(groups)} groups for {num_classes} classes"
        self.scores_absent_zero = absent != "skipped"
        self._rules = {"skipped": {"": False}, "zero": {"": True}, "both": {"": False, _ABSENT_ZERO: True}}[absent]
        self._is_ignored = torch.arange(num_classes) == (-1 if ignore_index is None else ignore_index)
        self._means = {"miou": ~self._is_ignored}
        for group in dict.fromkeys(groups):
            is_member = torch.tensor([name == group for name in groups])
            self._means[f"miou_{group}"] = is_member & ~self._is_ignored

    def new_state(self, *, num_samples: int = 0) -> State:
        slots = {name: torch.zeros(num_samples, self.num_classes, dtype=torch.int64) for name in sorted(self.slots)}
        return slots | {"confusion": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)}

    def update(
        self, state: State, *, probabilities: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        """Add a batch of packed clouds.

        `probabilities` (P, C), `target` (P,), `cloud_offsets` (B+1,), `sample_index` (B,).
        Raises ValueError for NaN, for labels outside the classes, and for offsets that do not fit.
        """
        predicted = predict_classes(probabilities, target, self.num_classes, "points")
        self.update_labels(
            state, labels=predicted, target=target, cloud_offsets=cloud_offsets, sample_index=sample_index
        )

    def update_labels(
        self, state: State, *, labels: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        """Update the state with predicted `labels` (P,) instead of probabilities."""
        assert_offsets(cloud_offsets, num_points=len(target), num_clouds=len(sample_index))
        for sample, (start, end) in zip(sample_index.tolist(), pairwise(cloud_offsets.tolist()), strict=True):
            counts = confusion_matrix(
                labels[start:end], target[start:end], num_classes=self.num_classes, ignore_index=self.ignore_index
            ).to(state["confusion"].device)
            state["confusion"] += counts
            state["common"][sample] += counts.diagonal()
            state["union"][sample] += counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()

    def compute(self, state: State) -> dict[str, float]:
        confusion = state["confusion"]
        ious, shares = self._ious(confusion), recalls(confusion)[~self._is_ignored]
        by_class = {**{name: ious[is_member] for name, is_member in self._means.items()}, "mean_class_accuracy": shares}
        means: dict[str, float] = {}
        for suffix, is_zero in self._rules.items():
            has_zeros = is_zero and bool(confusion.any())
            for name, values in by_class.items():
                means[name + suffix] = (values.nan_to_num(nan=0.0) if has_zeros else values).nanmean().item()
        accuracies = {"overall_accuracy": overall_accuracy(confusion * ~self._is_ignored)}
        accuracies["mean_class_accuracy"] = means.pop("mean_class_accuracy")
        return {"miou": means.pop("miou"), **accuracies, **means}

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

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of the means of IoU, of each scene."""
        return {
            name + suffix: SampleSums(
                state["common"][:, is_member], state["union"][:, is_member], empty=0.0 if is_zero else torch.nan
            )
            for suffix, is_zero in self._rules.items()
            for name, is_member in self._means.items()
        }

    def class_intervals(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of the `iou` of each class, of each scene."""
        common, union = (state[name] * ~self._is_ignored for name in ("common", "union"))
        return {"iou": SampleSums(common, union, bounds=(0.0, 1.0))}

    def _ious(self, confusion: Tensor) -> Tensor:
        """Return the IoU (C,) of each class.

        NaN for a class in neither labels nor predictions, and for the ignored one.
        """
        ious = class_ious(confusion)
        ious[self._is_ignored] = torch.nan
        return ious
