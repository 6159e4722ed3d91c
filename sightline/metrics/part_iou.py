"""Intersection over union of the parts of objects, from counts of points per object; no mean of batches anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.confusion import confusion_matrix

__all__ = ["PartIoU", "category_means", "shape_ious"]

_RULES = ("", "_all_parts")
"""Answers among the parts of the object's own category, and among all parts: published numbers mix the two."""


@registry.metrics.add("part_iou")
class PartIoU:
    """`instance_miou` over shapes, `class_miou` over categories, and the accuracy over points (0 to 1).

    A shape's IoU is the mean over the parts of its category, where a part that neither label nor answer has counts 1.
    `instance_miou` is the mean over all shapes; `class_miou` the mean over the categories that occur of the mean over
    their shapes. The answer is the most probable part among those of the shape's category, the lowest index among
    equals; figures with the suffix `_all_parts` take it among all parts.
    Source: Yi et al. 2016 (the measure); Qi et al. 2017 (PointNet), section 5.1 (a part that is absent in both).
    """

    slots = frozenset({"common", "answered", "labelled", "category", "seen"})

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
        """`probabilities` (P, C) and `target` (P,) of clouds one after another; a `category` and an index for each.

        Raises ValueError for NaN and for labels outside the parts of the cloud's category.
        """
        sizes = cloud_offsets.diff()
        owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        self._assert_sound(probabilities, target, category[owner], sample_index[owner])
        answers = torch.stack([self._among_own(probabilities, category[owner]), probabilities.argmax(dim=1)])
        state["labelled"][sample_index] += self._counts(owner, target, len(sizes))
        for rule, answer in enumerate(answers):
            state["answered"][sample_index, rule] += self._counts(owner, answer, len(sizes))
            is_right = answer == target
            state["common"][sample_index, rule] += self._counts(owner[is_right], target[is_right], len(sizes))
        state["confusion"] += confusion_matrix(answers[0], target, num_classes=self.num_classes)
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
        """Category name -> `miou` over its shapes by both rules, and the `count` of its shapes."""
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
        """The IoU of each shape (num_samples,) float64, answers among the parts of its category; NaN where unseen."""
        return torch.where(state["seen"] > 0, self._shape_ious(state, 0), torch.nan)

    def tables(self, state: State) -> dict[str, Any]:
        """`confusion` of the parts, answers among those of the shape's category: rows labels, columns answers."""
        return {"confusion": {"classes": list(self.class_names), "counts": state["confusion"].tolist()}}

    def _shape_ious(self, state: State, rule: int) -> Tensor:
        common = state["common"][:, rule]
        union = state["answered"][:, rule] + state["labelled"] - common
        return shape_ious(common, union, state["category"], self.parts_of_category)

    def _among_own(self, probabilities: Tensor, category: Tensor) -> Tensor:
        answer = torch.empty(len(probabilities), dtype=torch.int64, device=probabilities.device)
        for number, parts in enumerate(self.parts_of_category):
            rows = (category == number).nonzero().flatten()
            if len(rows):
                own = torch.tensor(sorted(parts), device=probabilities.device)
                answer[rows] = own[probabilities[rows][:, own].argmax(dim=1)]
        return answer

    def _counts(self, owner: Tensor, part: Tensor, num_clouds: int) -> Tensor:
        flat = torch.bincount(owner * self.num_classes + part, minlength=num_clouds * self.num_classes)
        return flat.view(num_clouds, self.num_classes)

    def _assert_sound(self, probabilities: Tensor, target: Tensor, category: Tensor, sample: Tensor) -> None:
        if probabilities.shape != (len(target), self.num_classes):
            raise ValueError(
                f"probabilities: found the shape {tuple(probabilities.shape)} for {len(target)} labels, expected "
                f"({len(target)}, {self.num_classes})"
            )
        if bool(probabilities.isnan().any()):
            rows = probabilities.isnan().any(dim=1)
            raise ValueError(
                f"probabilities: {int(rows.sum())} of {len(rows)} points are NaN, first in sample "
                f"{int(sample[rows][0])}; find where with `sightline check`"
            )
        is_own = torch.zeros(len(self.category_names), self.num_classes, dtype=torch.bool, device=target.device)
        for number, parts in enumerate(self.parts_of_category):
            is_own[number, parts] = True
        is_outside = (target < 0) | (target >= self.num_classes)
        is_foreign = is_outside | ~is_own[category, target.clamp(0, self.num_classes - 1)]
        if bool(is_foreign.any()):
            first = int(is_foreign.nonzero()[0])
            raise ValueError(
                f"label: sample {int(sample[first])} of category {self.category_names[int(category[first])]} has part "
                f"{int(target[first])}, its parts are {self.parts_of_category[int(category[first])]}; mend the labels"
            )


def shape_ious(common: Tensor, union: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]) -> Tensor:
    """The mean IoU (S,) of each shape over the parts of its category, from counts (S, C) int64; 0/0 counts 1."""
    iou = torch.where(union > 0, common.double() / union.clamp(min=1), 1.0)
    result = torch.zeros(len(category), dtype=torch.float64)
    for number, parts in enumerate(parts_of_category):
        rows = category == number
        result[rows] = iou[rows][:, list(parts)].mean(dim=1)
    return result


def category_means(ious: Tensor, category: Tensor, num_categories: int) -> Tensor:
    """The mean of the shapes of each category (num_categories,), NaN where there is none."""
    means = [ious[category == number].mean() for number in range(num_categories)]
    return torch.stack(means)
