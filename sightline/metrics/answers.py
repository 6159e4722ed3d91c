"""Labels from probabilities, by the one rule that metrics score, predictions keep and pictures show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sightline.metrics.part_answers import part_answers

__all__ = ["answers_of"]


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
        answers, _ = part_answers(probabilities, batch["category"].repeat_interleave(sizes), parts)
    return list(answers.split(sizes.tolist()))
