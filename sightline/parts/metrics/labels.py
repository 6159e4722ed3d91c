"""Scores of labels: accuracy, IoU, the official LiDAR score, and the confusion matrix that they are made of.

Classification accuracy: over all samples, and as the mean over classes.

Confusion matrix: integer counts from which metrics of labels are computed once, at the end.

Mean IoU of point classes, from one confusion matrix.

Labels from probabilities, by the one rule that metrics, predictions and pictures share.

Mean IoU of LiDAR scans by distance, and of range-image pixels, in addition to that of all points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat
from sightline.contract.metric import Metric, SampleShares, SampleSums, State
from sightline.ops.labels import widen_labels


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


def _predict_classes(probabilities: Tensor, label: Tensor, num_classes: int, noun: str) -> Tensor:
    """Return the most probable class (...) of `probabilities` (..., C). Raises ValueError for a wrong shape and NaN."""
    if probabilities.shape != (*label.shape, num_classes):
        raise ValueError(
            f"probabilities: found the shape {tuple(probabilities.shape)} for {label.numel()} labels, expected "
            f"{(*label.shape, num_classes)}"
        )
    is_nan = probabilities.isnan()
    if bool(is_nan.any()):
        raise ValueError(
            f"probabilities: {int(is_nan.any(dim=-1).sum())} of {label.numel()} {noun} are NaN; "
            "find where with `sightline check`"
        )
    return probabilities.argmax(dim=-1)  # torch promises the first of equal maxima


def assert_offsets(cloud_offsets: Tensor, *, num_points: int, num_clouds: int) -> None:
    """Raise ValueError unless `cloud_offsets` (B+1,) divide all points of a batch among its clouds."""
    bounds = cloud_offsets.tolist()
    if len(bounds) != num_clouds + 1 or bounds[0] != 0 or bounds[-1] != num_points or bounds != sorted(bounds):
        raise ValueError(
            f"cloud_offsets: found {bounds[:8]} for {num_points} points in {num_clouds} clouds; they start at 0, never "
            "fall, and end at the number of points"
        )


class _LabelMetric(Metric):
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


@registry.metrics.add("accuracy")
class Accuracy(_LabelMetric):
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
        prediction = _predict_classes(probabilities, label, self.num_classes, "rows")
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


@registry.metrics.add("iou")
class IoU(_LabelMetric):
    """Mean IoU, overall accuracy and mean class accuracy over all points that are not ignored, 0 to 1.

    `miou` is the mean over the classes of labels or predictions; a class in neither is NaN in its row and is skipped,
    or with `absent: zero` counts 0 in the mean, as the evaluator of SemanticKITTI counts it. A class whose index is
    ignored is left out of the mean: points with that label do not count, predicting it for another point is a miss of
    that point's class alone, and `overall_accuracy` is over the points for which it is not predicted. All come from one
    confusion matrix, never from means of batches or scenes. The prediction is the most probable class, the lowest index
    among equals.

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
        absent: Literal["skipped", "zero"] = "skipped",
    ) -> None:
        super().__init__(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index)
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
        Raises ValueError for NaN, for labels outside the classes, and for offsets that do not fit.
        """
        answer = _predict_classes(probabilities, target, self.num_classes, "points")
        self.update_labels(state, labels=answer, target=target, cloud_offsets=cloud_offsets, sample_index=sample_index)

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

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of `miou`, of each scene."""
        common, union = (state[name][:, ~self._is_ignored] for name in ("common", "union"))
        return {"miou": SampleSums(common, union, empty=0.0 if self.scores_absent_zero else torch.nan)}

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


def class_ious(confusion: Tensor) -> Tensor:
    """Compute the IoU (C,) float64 of each class, TP / (TP + FP + FN); NaN for a class that neither side has."""
    common = confusion.diagonal().double()
    return common / (confusion.sum(dim=0) + confusion.sum(dim=1) - common)


def predict_labels(batch: Mapping[str, Any], predictions: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Tensor]:
    """Return the prediction for each sample of a batch, int64.

    One label (), or with `cloud_offsets` one per point (N,).
    The prediction is the most probable class; if the facts state `parts_of_category` and the batch has each cloud's
    `category`, the most probable part among those of the cloud's category.
    """
    probabilities = predictions["probabilities"]
    if "cloud_offsets" not in predictions:
        return list(probabilities.argmax(dim=1))
    sizes = predictions["cloud_offsets"].diff()
    parts = facts.get("parts_of_category")
    if parts is None or "category" not in batch:
        answers = probabilities.argmax(dim=1)
    else:
        answers = _predict_own_parts(
            probabilities, widen_labels(batch["category"], "category").repeat_interleave(sizes), parts
        )
    return list(answers.split(sizes.tolist()))


def _predict_own_parts(probabilities: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]) -> Tensor:
    """Return the most probable part (P,) of each point among those of its category (P,), the first of equals."""
    is_own = torch.zeros(len(parts_of_category), probabilities.shape[1], dtype=torch.bool, device=probabilities.device)
    for number, parts in enumerate(parts_of_category):
        is_own[number, list(parts)] = True
    return probabilities.where(is_own[category], -torch.inf).argmax(dim=1)


@registry.metrics.add("pixel_iou")
class PixelIoU(Metric):
    """Pixel mIoU and accuracy over the labelled pixels of range images, 0 to 1, by the rules of `iou`.

    They measure how well the network labels its input. A pixel shows only the nearest of the points that fall into it,
    and the others are not scored here: such figures are usually higher than those of all points, and are not to be
    compared with them. Voting does not change them: they are those of the first pass.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.parts.metrics.labels import PixelIoU
    >>> meter = Meter(PixelIoU(num_classes=3, ignore_index=0))
    >>> meter.update(seen=torch.tensor([1, 2, 1, 2]), label=torch.tensor([[[1, 1], [0, 2]]]))
    >>> meter.compute()
    {'pixel_miou': 0.5, 'pixel_accuracy': 0.6666666666666666}

    Source: as `iou`.
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        absent: Literal["skipped", "zero"] = "skipped",
    ) -> None:
        self._iou = IoU(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index, absent=absent)
        self.scores_absent_zero = self._iou.scores_absent_zero

    def new_state(self) -> State:
        return {"confusion": torch.zeros(self._iou.num_classes, self._iou.num_classes, dtype=torch.int64)}

    def update(self, state: State, *, seen: Tensor, label: Tensor) -> None:
        """Add a batch: `label` (B, H, W), and in `seen` (B * H * W,) the predicted class of each pixel.

        Raises ValueError for a `label` of another shape, and for a label or a prediction outside the classes.
        """
        if label.ndim != 3:
            raise ValueError(f"label: found the shape {tuple(label.shape)}; pixel_iou scores range images (B, H, W)")
        counts = confusion_matrix(
            seen.view(label.shape), label, num_classes=self._iou.num_classes, ignore_index=self._iou.ignore_index
        )
        state["confusion"] += counts.to(state["confusion"].device)

    def compute(self, state: State) -> dict[str, float]:
        figures = self._iou.compute(state)
        return {"pixel_miou": figures["miou"], "pixel_accuracy": figures["overall_accuracy"]}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return the `pixel_iou` by class name; NaN if there is nothing to count."""
        return {name: {"pixel_iou": row["iou"]} for name, row in self._iou.per_class(state).items()}


@registry.metrics.add("iou_by_distance")
class DistanceIoU(Metric):
    """Mean IoU by distance from the sensor: `miou_0_10m`, ... and `miou_over_50m`.

    `edges_m` are the distances in between, in rising order; a point at an edge belongs to the farther side. Rules are
    those of `iou`, for each range by its own confusion matrix; a point whose distance is NaN is in none. The table
    `by_distance` has each class. The evaluator of SemanticKITTI leaves out points exactly at an edge or at the sensor,
    and those beyond 50 m.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.parts.metrics.labels import DistanceIoU
    >>> point_range, target = torch.tensor([3.0, 9.5, 12.0, 80.0]), torch.tensor([0, 1, 1, 0])
    >>> meter = Meter(DistanceIoU(num_classes=2, edges_m=(10.0, 50.0)))
    >>> meter.update(probabilities=torch.eye(2)[[0, 0, 1, 0]], target=target, point_range=point_range)
    >>> meter.compute()
    {'miou_0_10m': 0.25, 'miou_10_50m': 1.0, 'miou_over_50m': 1.0}

    Source: Behley et al. 2019, semantic-kitti-api, evaluate_semantics_by_distance.
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        absent: Literal["skipped", "zero"] = "skipped",
        edges_m: tuple[PositiveFloat, ...] = (10.0, 20.0, 30.0, 40.0, 50.0),
    ) -> None:
        if not edges_m or any(low >= high for low, high in pairwise(edges_m)):
            raise ValueError(f"edges_m {edges_m}: give distances in rising order")
        self._iou = IoU(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index, absent=absent)
        self.scores_absent_zero = self._iou.scores_absent_zero
        self.edges_m = edges_m
        self.stretches = [f"{low:g}_{high:g}m" for low, high in pairwise((0.0, *edges_m))]
        self.stretches.append(f"over_{edges_m[-1]:g}m")

    def new_state(self) -> State:
        size = self._iou.num_classes
        return {"confusion": torch.zeros(len(self.stretches), size, size, dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, target: Tensor, point_range: Tensor) -> None:
        """Add a batch: `probabilities` (P, C), `target` (P,) and the points' distances `point_range` (P,) in metres.

        Raises ValueError for NaN and for labels outside the classes.
        """
        labels = _predict_classes(probabilities, target, self._iou.num_classes, "points")
        self.update_labels(state, labels=labels, target=target, point_range=point_range)

    def update_labels(self, state: State, *, labels: Tensor, target: Tensor, point_range: Tensor) -> None:
        """Update the state with predicted `labels` (P,) instead of probabilities."""
        stretch = torch.zeros_like(target, dtype=torch.uint8)
        for edge in self.edges_m:  # comparisons of so few edges take a fifth of a search
            stretch += (point_range >= edge).view(torch.uint8)
        stretch += point_range.isnan().view(torch.uint8) * len(self.stretches)  # a group of their own, which is dropped
        counts = confusion_matrix(
            labels,
            target,
            num_classes=self._iou.num_classes,
            ignore_index=self._iou.ignore_index,
            group=stretch,
            num_groups=len(self.stretches) + 1,
        )[:-1]
        state["confusion"] += counts.to(state["confusion"].device)

    def compute(self, state: State) -> dict[str, float]:
        return {
            f"miou_{stretch}": self._iou.compute({"confusion": confusion})["miou"]
            for stretch, confusion in zip(self.stretches, state["confusion"], strict=True)
        }

    def tables(self, state: State) -> dict[str, Any]:
        """Return `by_distance`: the ranges, each class's IoU in each (None if nothing counts), and point counts."""
        parts = [self._iou.per_class({"confusion": confusion}) for confusion in state["confusion"]]
        classes = {name: [_or_none(part[name]["iou"]) for part in parts] for name in self._iou.class_names}
        points = state["confusion"].sum(dim=(1, 2)).tolist()
        return {"by_distance": {"stretches": self.stretches, "iou": classes, "points": points}}


def _or_none(value: float) -> float | None:
    return None if value != value else value
