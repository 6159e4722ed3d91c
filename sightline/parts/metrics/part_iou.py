"""Part IoU of objects, from counts of points per object; no mean of batches anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.metric import Metric, SampleSums, State
from sightline.ops.dtypes import widen_labels
from sightline.parts.metrics.iou import assert_offsets


class PartCounts(NamedTuple):
    """Point counts, int64, of S shapes, C parts, and two rules (predictions among own parts, and among all).

    `labelled` (S, C); `predicted` and `common`, predicted as labelled, (S, 2, C); `confusion` (C, C) of predictions
    among own parts, rows are labels. `faults` (S, 2): the first point of a shape whose probabilities have a NaN, and
    the first whose label is none of its category's parts, counted over all shapes, -1 if there is none. With a fault
    the counts mean nothing.
    """

    labelled: Tensor
    predicted: Tensor
    common: Tensor
    confusion: Tensor
    faults: Tensor


def count_parts(
    probabilities: Tensor,
    target: Tensor,
    cloud_offsets: Tensor,
    category: Tensor,
    parts_of_category: Sequence[Sequence[int]],
) -> PartCounts:
    """Count the points of packed shapes: `probabilities` (P, C), `target` (P,), `cloud_offsets` (S + 1,).

    `category` (S,) is one of those that have parts. The prediction is the most probable part, the lowest among equals.
    """
    num_parts, sizes = probabilities.shape[1], cloud_offsets.diff()
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    is_own = torch.zeros(len(parts_of_category), num_parts, dtype=torch.bool, device=target.device)
    for number, parts in enumerate(parts_of_category):
        is_own[number, list(parts)] = True
    is_own_PC = is_own[category[owner]]
    is_outside = (target < 0) | (target >= num_parts)
    inside = target.clamp(0, num_parts - 1)
    is_foreign = is_outside | ~is_own_PC.gather(1, inside[:, None]).flatten()
    faults = torch.stack([_first(probabilities.isnan().any(dim=1), owner, sizes), _first(is_foreign, owner, sizes)], 1)
    own_prediction = probabilities.where(is_own_PC, -torch.inf).argmax(
        dim=1
    )  # torch promises the first of equal maxima
    predictions = (own_prediction, probabilities.argmax(dim=1))

    def count_points(part: Tensor, chosen: Tensor) -> Tensor:
        flat = torch.bincount(owner[chosen] * num_parts + part[chosen], minlength=len(sizes) * num_parts)
        return flat.view(len(sizes), num_parts)

    everything = torch.ones_like(target, dtype=torch.bool)
    return PartCounts(
        labelled=count_points(inside, everything),
        predicted=torch.stack([count_points(prediction, everything) for prediction in predictions], dim=1),
        common=torch.stack([count_points(inside, prediction == target) for prediction in predictions], dim=1),
        confusion=_confusion(own_prediction, inside, num_parts),
        faults=faults,
    )


def _first(is_faulty: Tensor, owner: Tensor, sizes: Tensor) -> Tensor:
    """Return the first faulty point (S,) of each shape, -1 if there is none."""
    first = torch.full_like(sizes, len(owner))
    points = is_faulty.nonzero().flatten()
    first = first.scatter_reduce(0, owner[points], points, "amin")
    return torch.where(first < len(owner), first, -1)


def _confusion(predicted: Tensor, target: Tensor, num_parts: int) -> Tensor:
    return torch.bincount(target * num_parts + predicted, minlength=num_parts**2).view(num_parts, num_parts)


_RULES = ("", "_all_parts")
"""Suffixes of two rules: predictions among the object's own parts, and among all; published numbers mix the two."""


@registry.metrics.add("part_iou")
class PartIoU(Metric):
    """Part segmentation mIoU: `instance_miou` over shapes, `class_miou` over categories, and point accuracy, 0 to 1.

    A shape's IoU is the mean over the parts of its category; a part in neither label nor prediction counts 1.
    `instance_miou` is the mean over all shapes; `class_miou` the mean over the categories that occur of the mean over
    their shapes. The prediction is the most probable part among those of the shape's category, the lowest index among
    equals; figures with the suffix `_all_parts` take it among all parts.

    >>> import torch
    >>> from sightline.parts.metrics import Meter, PartIoU
    >>> parts = {"parts_of_category": ((0, 1), (2, 3)), "class_names": ("blade", "grip", "seat", "leg")}
    >>> batch = {  # a knife of three points, a chair of two
    ...     "probabilities": torch.eye(4)[[0, 1, 1, 2, 3]],
    ...     "target": torch.tensor([0, 0, 1, 2, 3]),
    ...     "cloud_offsets": torch.tensor([0, 3, 5]),
    ...     "category": torch.tensor([0, 1]),
    ...     "sample_index": torch.tensor([0, 1]),
    ... }
    >>> meter = Meter(PartIoU(num_classes=4, category_names=("knife", "chair"), **parts))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'instance_miou': 0.75, 'class_miou': 0.75, 'point_accuracy': 0.8, 'instance_miou_all_parts': 0.75,
    'class_miou_all_parts': 0.75, 'point_accuracy_all_parts': 0.8}

    Source: Yi et al. 2016 (the measure); Qi et al. 2017 (PointNet), section 5.1 (a part that is absent in both).
    """

    slots = frozenset({"common", "answered", "labelled", "category", "seen"})
    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        parts_of_category: Sequence[Sequence[int]],
        class_names: tuple[str, ...],
        category_names: tuple[str, ...],
    ) -> None:
        self.num_classes = num_classes
        self.parts_of_category = [list(parts) for parts in parts_of_category]
        self.class_names = tuple(class_names)
        self.category_names = tuple(category_names)

    def new_state(self, *, num_samples: int = 0) -> State:
        shape = (num_samples, len(_RULES), self.num_classes)
        state = {name: torch.zeros(shape, dtype=torch.int64) for name in ("common", "answered")}
        return state | {
            "labelled": torch.zeros(num_samples, self.num_classes, dtype=torch.int64),
            "category": torch.zeros(num_samples, dtype=torch.int64),
            "seen": torch.zeros(num_samples, dtype=torch.int64),
            "confusion": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64),
        }

    def update(
        self,
        state: State,
        *,
        probabilities: Tensor,
        target: Tensor,
        cloud_offsets: Tensor,
        category: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add a batch of packed clouds: `probabilities` (P, C), `target` (P,), `cloud_offsets` (B+1,).

        `category` and `sample_index` are (B,). Raises ValueError for NaN, for labels outside the parts of the cloud's
        category, and for offsets that do not fit.
        """
        target, category = widen_labels(target), widen_labels(category, "category")
        self._assert_shapes(probabilities, target, category)
        assert_offsets(cloud_offsets, num_points=len(target), num_clouds=len(category))
        counts = count_parts(probabilities, target, cloud_offsets, category, self.parts_of_category)
        self._assert_sound(counts.faults, probabilities, target, category, sample_index)
        for name, count in (("labelled", counts.labelled), ("answered", counts.predicted), ("common", counts.common)):
            state[name][sample_index] += count
        state["confusion"] += counts.confusion
        state["category"][sample_index] = category.to(state["category"].device)
        state["seen"][sample_index] += 1

    def compute(self, state: State) -> dict[str, float]:
        numbers: dict[str, float] = {}
        is_seen = state["seen"] > 0
        for rule, suffix in enumerate(_RULES):
            ious = self._shape_ious(state, rule)[is_seen]
            by_category = category_means(ious, state["category"][is_seen], len(self.category_names))
            right = state["common"][:, rule].sum().double()
            numbers[f"instance_miou{suffix}"] = ious.mean().item()
            numbers[f"class_miou{suffix}"] = by_category.nanmean().item()
            numbers[f"point_accuracy{suffix}"] = (right / state["labelled"].sum()).item()
        return numbers

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return, by category name, `miou` over its shapes by both rules, and the `count` of its shapes."""
        is_seen = state["seen"] > 0
        category = state["category"][is_seen]
        counts = torch.bincount(category, minlength=len(self.category_names)).tolist()
        means = [
            category_means(self._shape_ious(state, rule)[is_seen], category, len(counts)).tolist()
            for rule in range(len(_RULES))
        ]
        return {
            name: {**{f"miou{suffix}": means[rule][row] for rule, suffix in enumerate(_RULES)}, "count": counts[row]}
            for row, name in enumerate(self.category_names)
        }

    def per_sample(self, state: State) -> Tensor:
        """Return the IoU (num_samples,) float64 of each shape, by predictions among its category's parts.

        NaN if unseen.
        """
        return torch.where(state["seen"] > 0, self._shape_ious(state, 0), torch.nan)

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of the means over shapes, and of the means of the categories' means."""
        is_seen = state["seen"] > 0
        ious = {suffix: self._shape_ious(state, rule)[is_seen, None] for rule, suffix in enumerate(_RULES)}
        instance = {f"instance_miou{name}": SampleSums(iou, torch.ones_like(iou)) for name, iou in ious.items()}
        return instance | {f"class_{name}": sums for name, sums in self.class_intervals(state).items()}

    def class_intervals(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of the mean over the shapes of each category, by both rules."""
        is_seen = state["seen"] > 0
        of_category = state["category"][is_seen, None] == torch.arange(len(self.category_names))
        ious = {suffix: self._shape_ious(state, rule)[is_seen, None] for rule, suffix in enumerate(_RULES)}
        return {
            f"miou{name}": SampleSums(iou * of_category, of_category, bounds=(0.0, 1.0)) for name, iou in ious.items()
        }

    def tables(self, state: State) -> dict[str, Any]:
        """Return `confusion` of the parts among those of the shape's category: rows are labels, columns predictions."""
        return {"confusion": {"classes": list(self.class_names), "counts": state["confusion"].tolist()}}

    def _shape_ious(self, state: State, rule: int) -> Tensor:
        common = state["common"][:, rule]
        union = state["answered"][:, rule] + state["labelled"] - common
        return shape_ious(common, union, state["category"], self.parts_of_category)

    def _assert_shapes(self, probabilities: Tensor, target: Tensor, category: Tensor) -> None:
        if probabilities.shape != (len(target), self.num_classes):
            raise ValueError(
                f"probabilities: found the shape {tuple(probabilities.shape)} for {len(target)} labels, expected "
                f"({len(target)}, {self.num_classes})"
            )
        is_unknown = (category < 0) | (category >= len(self.category_names))
        if bool(is_unknown.any()):
            raise ValueError(
                f"category: found {int(category[is_unknown][0])}, there are {len(self.category_names)} (0 .. "
                f"{len(self.category_names) - 1}); mend the data set"
            )

    def _assert_sound(
        self, faults: Tensor, probabilities: Tensor, target: Tensor, category: Tensor, sample_index: Tensor
    ) -> None:
        has_nan, has_foreign = (faults >= 0).unbind(dim=1)
        if bool(has_nan.any()):
            num_bad = int(probabilities.isnan().any(dim=1).sum())
            raise ValueError(
                f"probabilities: {num_bad} of {len(target)} points are NaN, first in sample "
                f"{int(sample_index[has_nan][0])}; find where with `sightline check`"
            )
        if bool(has_foreign.any()):
            cloud = int(has_foreign.nonzero()[0])
            raise ValueError(
                f"label: sample {int(sample_index[cloud])} of category {self.category_names[int(category[cloud])]} has "
                f"part {int(target[faults[cloud, 1]])}, its parts are {self.parts_of_category[int(category[cloud])]}; "
                "mend the labels"
            )


def shape_ious(common: Tensor, union: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]) -> Tensor:
    """Compute the mean IoU (S,) of each shape over the parts of its category, from counts (S, C) int64.

    0/0 counts 1.
    """
    iou = torch.where(union > 0, common.double() / union.clamp(min=1), 1.0)
    result = torch.zeros(len(category), dtype=torch.float64)
    for number, parts in enumerate(parts_of_category):
        rows = category == number
        result[rows] = iou[rows][:, list(parts)].mean(dim=1)
    return result


def category_means(ious: Tensor, category: Tensor, num_categories: int) -> Tensor:
    """Compute the mean (num_categories,) of the shapes' IoU (S,) of each category (S,), NaN if there is none."""
    means = [ious[category == number].mean() for number in range(num_categories)]
    return torch.stack(means)
