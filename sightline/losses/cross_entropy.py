"""Cross entropy over classes, with label smoothing, class weights and ignored targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import Probability
from sightline.errors import ConfigError
from sightline.losses.class_weights import ClassLoss, ClassWeights

__all__ = ["CrossEntropy"]


@registry.losses.add("cross_entropy")
class CrossEntropy(ClassLoss):
    """Cross entropy with label smoothing and class weights: the sum over targets of -sum_c w_c q_c log p_c.

    q is 1 - label_smoothing on the label and the rest elsewhere. `smoothing_over` distributes the rest: evenly to the
    `others` (the code of the DGCNN family), or evenly to `all` classes, the label included (torch). Every target that
    is not ignored counts, with its class's weight; `class_weights` are numbers, or a rule for the classes' shares of
    the training data: `inverse`, `inverse_log`.
    Source: Szegedy et al. 2016, section 7 (smoothing).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_index: int | None = None,
        label_smoothing: Probability = 0.0,
        smoothing_over: Literal["others", "all"] = "others",
        class_weights: ClassWeights = None,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            "cross_entropy",
            num_classes=num_classes,
            ignore_index=ignore_index,
            class_weights=class_weights,
            class_counts=class_counts,
        )
        if label_smoothing > 0 and smoothing_over == "others" and num_classes < 2:
            raise ConfigError(
                "cross_entropy.label_smoothing: one class has no others to smooth over; take 0 or smoothing_over: all"
            )
        num_sharing = num_classes - 1 if smoothing_over == "others" else num_classes
        self.share = label_smoothing / num_sharing if label_smoothing > 0 else 0.0
        self.extra_on_label = 1.0 - label_smoothing - (self.share if smoothing_over == "others" else 0.0)

    def count(self, *, label: Tensor) -> Tensor:
        """Count the labels (...) that are not ignored (int64), or sum their class weights (float64)."""
        return self.label_weight(label)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss sum from `logits` (B, C) with `label` (B,), or (P, C) with (P,).

        Classes come last; labels are 0 .. C-1 or ignored.
        """
        self.assert_shapes(logits, label)
        is_counted = self.is_counted(label)
        target = torch.where(is_counted, label, 0)[..., None]
        negative = -F.log_softmax(logits, dim=-1)
        if self.class_weights is not None:
            negative = negative * self.class_weights.to(negative.dtype)
        loss = self.extra_on_label * negative.gather(-1, target).squeeze(-1)
        if self.share > 0:
            loss = loss + self.share * negative.sum(dim=-1)
        return torch.where(is_counted, loss, 0.0).sum()
