"""Distillation: the class probabilities of a teacher as targets, softened by a temperature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import Size
from sightline.losses.class_weights import ClassLoss

__all__ = ["Distillation"]


@registry.losses.add("distillation")
class Distillation(ClassLoss):
    """Sum over targets of T^2 KL(softmax(teacher / T), softmax(student / T)); counted are those that are not ignored.

    Beside the task's own loss, give them the weights alpha and 1 - alpha, such as 0.7 and 0.3. `teacher_logits` come
    from a task with a teacher, and get no gradient. Source: Hinton, Vinyals and Dean 2015, section 2.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None, temperature: Size = 4.0) -> None:
        super().__init__("distillation", num_classes=num_classes, ignore_index=ignore_index)
        self.temperature = temperature

    def count(self, *, label: Tensor) -> Tensor:
        """`label` (...) int64 -> how many are not ignored."""
        return self.weight_of(label)

    def forward(self, *, logits: Tensor, teacher_logits: Tensor, label: Tensor) -> Tensor:
        """`logits` and `teacher_logits` (..., C) with `label` (...), of which only the ignored ones matter."""
        self.assert_shapes(logits, label)
        self.assert_shapes(teacher_logits, label)
        student = F.log_softmax(logits / self.temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits.detach() / self.temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
        return torch.where(self.is_counted(label), self.temperature**2 * divergence, 0.0).sum()
