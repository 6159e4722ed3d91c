"""Labels from probabilities, by the one rule that metrics, predictions and pictures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.ops.dtypes import widen_labels


def predict_classes(probabilities: Tensor, label: Tensor, num_classes: int, noun: str) -> Tensor:
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
