"""Focal loss: cross entropy in which easy targets weigh little."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import NonNegativeFloat
from sightline.losses.class_weights import ClassLoss, ClassWeights

__all__ = ["FocalCrossEntropy"]


@registry.losses.add("focal_cross_entropy")
class FocalCrossEntropy(ClassLoss):
    """Focal loss with a softmax: the sum over targets of -w_c (1 - p)^gamma log p, p the probability of the class c.

    Targets that are not ignored count: `divide_by: weights` counts each with the weight of its class, `targets`
    each once (the code of SqueezeSeg). Source: Lin et al. 2017, equation 5.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_counts: tuple[int, ...] | None = None,
        ignore_index: int | None = None,
        gamma: NonNegativeFloat = 2.0,
        class_weights: ClassWeights = None,
        divide_by: Literal["weights", "targets"] = "weights",
    ) -> None:
        super().__init__(
            "focal_cross_entropy",
            num_classes=num_classes,
            ignore_index=ignore_index,
            class_weights=class_weights,
            class_counts=class_counts,
        )
        self.gamma = gamma
        self.divide_by = divide_by

    def count(self, *, label: Tensor) -> Tensor:
        """Count the labels (...) that are not ignored (int64), or sum their class weights (float64)."""
        return self.is_counted(label).sum() if self.divide_by == "targets" else self.label_weight(label)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss sum from `logits` (..., C) with `label` (...): classes last, labels 0 .. C-1 or ignored."""
        self.assert_shapes(logits, label)
        is_counted = self.is_counted(label)
        target = torch.where(is_counted, label, 0)
        log_p = F.log_softmax(logits, dim=-1).gather(-1, target[..., None]).squeeze(-1)
        loss = -((1 - log_p.exp()) ** self.gamma) * log_p
        if self.class_weights is not None:
            loss = loss * self.class_weights.to(loss.dtype)[target]
        return torch.where(is_counted, loss, 0.0).sum()
