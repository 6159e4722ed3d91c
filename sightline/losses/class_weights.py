"""Base of losses over classes: counted targets, and class weights given or derived from class frequencies."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sightline.arguments import NonNegativeFloat
from sightline.errors import ConfigError
from sightline.losses.base import Loss

__all__ = ["ClassLoss", "ClassWeights", "resolve_class_weights"]

logger = logging.getLogger(__name__)

ClassWeights = Literal["inverse", "inverse_log"] | tuple[NonNegativeFloat, ...] | None
"""Class weights: a number for each class, none (all 1), or a rule for the class's share f of all training targets.

`inverse` is 1 / (f + 0.001), `inverse_log` is 1 / ln(f + 1.02). Source: Milioto et al. 2019 (RangeNet++), section
III-B; Paszke et al. 2016 (ENet), section 5.2.
"""
_MIN_SHARE, _MIN_LOG_ARGUMENT = 0.001, 1.02


class ClassLoss(Loss):
    """Loss of `logits` (..., C), classes last, against labels (...), 0 .. C-1 or ignored, with class weights."""

    class_weights: Tensor | None

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        ignore_index: int | None,
        class_weights: ClassWeights = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        weights = resolve_class_weights(
            class_weights, loss=name, num_classes=num_classes, class_counts=class_counts, ignore_index=ignore_index
        )
        self.register_buffer("class_weights", weights, persistent=False)

    def label_weight(self, label: Tensor) -> Tensor:
        """Return the number of labels (...) that are not ignored (int64), or their summed class weights (float64)."""
        is_counted = self.is_counted(label)
        if self.class_weights is None:
            return is_counted.sum()
        return self.class_weights[label[is_counted]].sum()

    def is_counted(self, label: Tensor) -> Tensor:
        """Return a mask (...) of the labels (...) that are not ignored."""
        return torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index

    def assert_shapes(self, logits: Tensor, label: Tensor) -> None:
        """Raise ValueError unless logits are (..., C) for labels (...)."""
        if logits.shape != (*label.shape, self.num_classes):
            raise ValueError(
                f"logits: found the shape {tuple(logits.shape)} for labels {tuple(label.shape)}, expected "
                f"{(*label.shape, self.num_classes)}"
            )


def resolve_class_weights(
    weights: ClassWeights,
    *,
    loss: str,
    num_classes: int,
    class_counts: Sequence[int] | None,
    ignore_index: int | None,
) -> Tensor | None:
    """Return the weights (C,) float64 of a loss; the ignored class, and classes that never occur, weigh 0 by a rule.

    Raises ConfigError, prefixed by the name of the loss, for another number of weights than classes, and for a rule if
    the data set does not state its `class_counts`.
    """
    if weights is None:
        return None
    if not isinstance(weights, str):
        if len(weights) != num_classes:
            raise ConfigError(
                f"{loss}.class_weights: found {len(weights)} for {num_classes} classes; give one each, or inverse"
            )
        return torch.tensor(weights, dtype=torch.float64)
    if class_counts is None:
        raise ConfigError(
            f"{loss}.class_weights: {weights} needs the fact class_counts, which this data set does not state; give "
            f"{num_classes} numbers"
        )
    total = max(1, sum(class_counts))
    absent = [index for index, count in enumerate(class_counts) if count == 0 and index != ignore_index]
    if absent:
        logger.warning(
            "absent-class-weight: %s.class_weights: classes %s do not occur in the training data; they weigh 0",
            loss,
            ", ".join(map(str, absent)),
        )
    values = [
        0.0 if count == 0 or index == ignore_index else _by_rule(weights, count / total)
        for index, count in enumerate(class_counts)
    ]
    return torch.tensor(values, dtype=torch.float64)


def _by_rule(rule: str, share: float) -> float:
    return 1 / (share + _MIN_SHARE) if rule == "inverse" else 1 / math.log(share + _MIN_LOG_ARGUMENT)
