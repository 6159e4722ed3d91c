"""Labels from probabilities, by the one rule that metrics score, predictions keep and pictures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["among_own_parts", "answers_of"]


def among_own_parts(probabilities: Tensor, category: Tensor, parts_of_category: Sequence[Sequence[int]]) -> Tensor:
    """The most probable part (P,) int64 among those of each point's category, the lowest index among equals.

    `probabilities` (P, C) over all parts; `category` (P,) that of the object which a point belongs to.
    """
    answer = torch.empty(len(probabilities), dtype=torch.int64, device=probabilities.device)
    for number, parts in enumerate(parts_of_category):
        rows = (category == number).nonzero().flatten()
        if len(rows):
            own = torch.tensor(sorted(parts), device=probabilities.device)
            answer[rows] = own[probabilities[rows][:, own].argmax(dim=1)]
    return answer


def answers_of(batch: Mapping[str, Any], predictions: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Tensor]:
    """What is answered for each sample of a batch, int64: one label (), or with `cloud_offsets` one a point (N,).

    The answer is the most probable class; where the facts state `parts_of_category` and the batch says each cloud's
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
        answers = among_own_parts(probabilities, batch["category"].repeat_interleave(sizes), parts)
    return list(answers.split(sizes.tolist()))
