"""Losses of classification: cross entropy with class weights, Lovász-softmax, and distillation of a teacher's classes.

Half-precision logits are computed in float32, as the sum of many has bf16's digits otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.ops.boxes.focal import lovasz_of_image, masked_lovasz_of_image
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.waits import is_on_host, read_list

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
        if len({*range(num_classes)} - {ignore_index}) < 2:
            raise ConfigError(
                f"{name}: the data have one class{'' if num_classes < 2 else ' that is not ignored'}, so that "
                "nothing is left to learn: every figure would be perfect; give data with at least two classes"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        weights = resolve_class_weights(
            class_weights, loss=name, num_classes=num_classes, class_counts=class_counts, ignore_index=ignore_index
        )
        self.register_buffer("class_weights", weights, persistent=False)

    def get_weights(self, like: Tensor) -> Tensor:
        """Return the class weights (C,) on the device of `like`; a run builds them there, so that nothing is copied."""
        assert self.class_weights is not None
        return self.class_weights.to(like.device)

    def label_weight(self, label: Tensor) -> Tensor:
        """Return the number of labels (...) that are not ignored (int64), or their summed class weights (float64)."""
        label = widen_labels(label)
        if self.class_weights is None and self.ignore_index is None:
            return torch.tensor(label.numel())
        is_counted = self.is_counted(label)
        if self.class_weights is None:
            return is_counted.sum()
        if is_on_host(label):
            return self.get_weights(label)[label[is_counted]].sum()
        return torch.where(is_counted, self.get_weights(label)[torch.where(is_counted, label, 0)], 0.0).sum()

    def is_counted(self, label: Tensor) -> Tensor:
        """Return a mask (...) of the labels (...) that are not ignored."""
        label = widen_labels(label)
        return torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index

    def check_labels(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return labels (...) as int64. Raises ValueError unless logits are (..., C) for them."""
        if logits.shape != (*label.shape, self.num_classes):
            raise ValueError(
                f"logits: found the shape {tuple(logits.shape)} for labels {tuple(label.shape)}, expected "
                f"{(*label.shape, self.num_classes)}"
            )
        return widen_labels(label)


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


@registry.losses.add("cross_entropy")
class CrossEntropy(ClassLoss):
    """Cross entropy with label smoothing and class weights: the sum over targets of -sum_c w_c q_c log p_c.

    q is 1 - label_smoothing on the label, and the rest evenly on the other classes, as in the code of the DGCNN family
    (torch gives the label its part of the rest, too). Every target that is not ignored counts, with its class's weight;
    `class_weights` are numbers, or a rule for the classes' shares of the training data: `inverse`, `inverse_log`.

    >>> import torch
    >>> from sightline.parts.losses.classification import CrossEntropy
    >>> loss, label = CrossEntropy(num_classes=2), torch.tensor([0, 1])
    >>> loss(logits=torch.zeros(2, 2), label=label)  # 2 ln 2: the sum over two targets of which nothing is known
    tensor(1.3863)
    >>> loss.count(label=label)
    tensor(2)

    Source: Szegedy et al. 2016, section 7 (smoothing).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_index: int | None = None,
        label_smoothing: Probability = 0.0,
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
        self.share = label_smoothing / (num_classes - 1)
        self.extra_on_label = 1.0 - label_smoothing - self.share

    def count(self, *, label: Tensor) -> Tensor:
        """Count the labels (...) that are not ignored (int64), or sum their class weights (float64)."""
        return self.label_weight(label)

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss sum from `logits` (B, C) with `label` (B,), or (P, C) with (P,).

        Classes come last; labels are 0 .. C-1 or ignored.
        """
        label = self.check_labels(logits, label)
        is_counted = None if self.ignore_index is None else self.is_counted(label)
        target = (label if is_counted is None else torch.where(is_counted, label, 0))[..., None]
        negative = -F.log_softmax(promote_to_float32(logits), dim=-1)
        if self.class_weights is not None:
            negative = negative * self.get_weights(negative).to(negative.dtype)
        loss = self.extra_on_label * negative.gather(-1, target).squeeze(-1)
        if self.share > 0:
            loss = loss + self.share * negative.sum(dim=-1)
        return (loss if is_counted is None else torch.where(is_counted, loss, 0.0)).sum()


@registry.losses.add("lovasz_softmax")
class LovaszSoftmax(ClassLoss):
    """Lovász-softmax loss: the sum over images of the mean, over the labels' classes, of the extension of 1 - IoU.

    It is 0 to 1. An image is a row of the batch, for packed points a cloud. Images with a label that is not ignored
    count; one without gives a loss and gradients of 0. From random weights it learns worse alone than combined with
    cross entropy.

    >>> import torch
    >>> from sightline.parts.losses.classification import LovaszSoftmax
    >>> label = torch.tensor([[0, 0, 1, 1]])  # an image of four pixels
    >>> logits = 100 * torch.eye(2)[[0, 0, 0, 1]][None]  # certain, and wrong of the third: IoUs of 2/3 and 1/2
    >>> LovaszSoftmax(num_classes=2)(logits=logits, label=label)
    tensor(0.4167)

    Source: Berman et al. 2018, equations 8 and 9, algorithm 1.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__("lovasz_softmax", num_classes=num_classes, ignore_index=ignore_index)

    def count(self, *, label: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Count the images of `label` (B, ...), or clouds of (P,) with `offsets` (S+1,), with a label that counts."""
        return torch.stack([self.is_counted(image).any() for image in _images(label, label, offsets)]).sum()

    def forward(self, *, logits: Tensor, label: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Compute the loss sum from `logits` (B, ..., C) with `label` (B, ...), or (P, C) with (P,) and `offsets`.

        Classes come last.
        """
        label = self.check_labels(logits, label)
        total = logits[:0].sum()  # 0, with a gradient of 0 where nothing counts
        for image, labels in zip(_images(logits, label, offsets), _images(label, label, offsets), strict=True):
            pixels, labels, is_counted = image.reshape(-1, self.num_classes), labels.flatten(), self.is_counted(labels)
            if is_free := is_on_host(labels):
                pixels, labels = pixels[is_counted.flatten()], labels[is_counted.flatten()]
            probabilities = promote_to_float32(pixels).softmax(dim=1)
            if is_free:
                total = total + lovasz_of_image(probabilities, labels)
            else:
                total = total + masked_lovasz_of_image(probabilities, labels, is_counted.flatten())
        return total


def _images(values: Tensor, label: Tensor, offsets: Tensor | None) -> list[Tensor]:
    """Split values into the rows of a batch, or into clouds if the labels are packed."""
    if label.ndim > 1:
        return list(values)
    if offsets is None:
        raise ValueError(
            f"label: found the shape {tuple(label.shape)} and no offsets; expected images or joined clouds"
        )
    return list(values.split([last - first for first, last in pairwise(read_list(offsets))]))


@registry.losses.add("distillation")
class Distillation(ClassLoss):
    """Knowledge distillation: the sum over targets of T^2 KL(softmax(teacher / T), softmax(student / T)).

    Targets that are not ignored count. Combined with the task's own loss, use the weights alpha and 1 - alpha, such as
    0.7 and 0.3. `teacher_logits` come from a task with a teacher, and get no gradient.

    >>> import torch
    >>> from sightline.parts.losses.classification import Distillation
    >>> loss = Distillation(num_classes=2, temperature=1.0)
    >>> student, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> loss(logits=student, teacher_logits=teacher, label=torch.tensor([0]))  # 0.5 ln(0.5 / 0.75) + 0.5 ln(0.5 / 0.25)
    tensor(0.1438)

    Source: Hinton, Vinyals and Dean 2015, section 2.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None, temperature: PositiveFloat = 4.0) -> None:
        super().__init__("distillation", num_classes=num_classes, ignore_index=ignore_index)
        self.temperature = temperature

    def count(self, *, label: Tensor) -> Tensor:
        """Count the labels (...) that are not ignored."""
        return self.label_weight(label)

    def forward(self, *, logits: Tensor, teacher_logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss sum from `logits` and `teacher_logits` (..., C); `label` (...) marks the ignored targets."""
        self.check_labels(logits, label)
        self.check_labels(teacher_logits, label)
        student = F.log_softmax(promote_to_float32(logits) / self.temperature, dim=-1)
        teacher = F.log_softmax(promote_to_float32(teacher_logits.detach()) / self.temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
        return torch.where(self.is_counted(label), self.temperature**2 * divergence, 0.0).sum()
