"""Weights of classes: given one by one, or from how often each class occurs in the training data."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sightline.arguments import Factor
from sightline.errors import ConfigError

__all__ = ["ClassWeights", "class_weights_of"]

logger = logging.getLogger(__name__)

ClassWeights = Literal["inverse", "inverse_log"] | tuple[Factor, ...] | None
"""A weight for each class, none (all 1), or a rule for the class's share f of all training targets: `inverse` is
1 / (f + 0.001), `inverse_log` is 1 / ln(f + 1.02). Source: Milioto et al. 2019 (RangeNet++), section III-B; Paszke et
al. 2016 (ENet), section 5.2."""
_LEAST_SHARE, _LEAST_LOG = 0.001, 1.02


def class_weights_of(
    weights: ClassWeights,
    *,
    loss: str,
    num_classes: int,
    class_counts: Sequence[int] | None,
    ignore_index: int | None,
) -> Tensor | None:
    """The weights (C,) float64 of a loss; the ignored class, and classes that never occur, weigh 0 by a rule.

    Raises ConfigError, led by the name of the loss, for another number of weights than classes, and for a rule where
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
    made = [
        0.0 if count == 0 or index == ignore_index else _by_rule(weights, count / total)
        for index, count in enumerate(class_counts)
    ]
    return torch.tensor(made, dtype=torch.float64)


def _by_rule(rule: str, share: float) -> float:
    return 1 / (share + _LEAST_SHARE) if rule == "inverse" else 1 / math.log(share + _LEAST_LOG)
