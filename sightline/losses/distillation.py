"""Knowledge distillation: a teacher's class probabilities, softened by a temperature, or its features as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import PositiveFloat
from sightline.errors import ConfigError
from sightline.losses.base import Loss
from sightline.losses.class_weights import ClassLoss

__all__ = ["Distillation", "FeatureDistillation"]


@registry.losses.add("distillation")
class Distillation(ClassLoss):
    """Knowledge distillation: the sum over targets of T^2 KL(softmax(teacher / T), softmax(student / T)).

    Targets that are not ignored count. Combined with the task's own loss, use the weights alpha and 1 - alpha, such as
    0.7 and 0.3. `teacher_logits` come from a task with a teacher, and get no gradient. Source: Hinton, Vinyals and Dean
    2015, section 2.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None, temperature: PositiveFloat = 4.0) -> None:
        super().__init__("distillation", num_classes=num_classes, ignore_index=ignore_index)
        self.temperature = temperature

    def count(self, *, label: Tensor) -> Tensor:
        """Count the labels (...) that are not ignored."""
        return self.label_weight(label)

    def forward(self, *, logits: Tensor, teacher_logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss sum from `logits` and `teacher_logits` (..., C); `label` (...) marks the ignored targets."""
        self.assert_shapes(logits, label)
        self.assert_shapes(teacher_logits, label)
        student = F.log_softmax(logits / self.temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits.detach() / self.temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
        return torch.where(self.is_counted(label), self.temperature**2 * divergence, 0.0).sum()


@registry.losses.add("feature_distillation")
class FeatureDistillation(Loss):
    """Feature distillation: the sum of squared differences between outputs of the same modules of student and teacher.

    Numbers are counted, so the mean is over all numbers of all modules that `teacher.features` names; its weight is
    beta. The task provides the outputs of every call of a module; those of the teacher get no gradient. Raises
    ConfigError for modules of different shapes. Source: Romero et al. 2015 (FitNets), eq. 3, without its regressor.
    """

    def count(self, *, teacher_modules: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Count the numbers in the outputs (...) of `teacher_modules`."""
        return torch.tensor(sum(output.numel() for outputs in teacher_modules.values() for output in outputs))

    def forward(
        self, *, student_modules: Mapping[str, Sequence[Tensor]], teacher_modules: Mapping[str, Sequence[Tensor]]
    ) -> Tensor:
        """Compute the loss sum from outputs (...) by module name, of the same shapes in both."""
        sums = []
        for name, outputs in teacher_modules.items():
            student_shapes, teacher_shapes = (
                [tuple(tensor.shape) for tensor in tensors] for tensors in (student_modules[name], outputs)
            )
            if student_shapes != teacher_shapes:
                raise ConfigError(
                    f"teacher.features: '{name}' returns {student_shapes}, the teacher's {teacher_shapes}; name others"
                )
            for student, teacher in zip(student_modules[name], outputs, strict=True):
                dtype = torch.promote_types(student.dtype, torch.float32)
                sums.append((student.to(dtype) - teacher.detach().to(dtype)).square().sum())
        return torch.stack(sums).sum()
