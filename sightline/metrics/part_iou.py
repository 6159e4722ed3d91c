"""Part IoU of objects, from counts of points per object; no mean of batches anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.part_counts import count_parts

__all__ = ["PartIoU", "category_means", "shape_ious"]

_RULES = ("", "_all_parts")
"""Suffixes of two rules: predictions among the object's own parts, and among all; published numbers mix the two."""


@registry.metrics.add("part_iou")
class PartIoU:
    """Part segmentation mIoU: `instance_miou` over shapes, `class_miou` over categories, and point accuracy, 0 to 1.

    A shape's IoU is the mean over the parts of its category; a part in neither label nor prediction counts
    1. `instance_miou` is the mean over all shapes; `class_miou` the mean over the categories that occur of the mean
    over their shapes. The prediction is the most probable part among those of the shape's category, the lowest index
    among equals; figures with the suffix `_all_parts` take it among all parts.
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

        `category` and `sample_index` are (B,). Raises ValueError for NaN and for labels outside the parts of the
        cloud's category.
        """
        self._assert_shapes(probabilities, target, category)
        counts = count_parts(probabilities, target, cloud_offsets, category, self.parts_of_category)
        self._assert_sound(counts.faults, probabilities, target, category, sample_index)
        for name, count in (("labelled", counts.labelled), ("answered", counts.predicted), ("common", counts.common)):
            state[name][sample_index] += count
        state["confusion"] += counts.confusion
        state["category"][sample_index] = category
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
