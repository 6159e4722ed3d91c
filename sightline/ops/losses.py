"""Losses of boxes and classes as functions: each item's, their mean, or their sum.

Half precision is computed in float32. The mean of nothing is 0, with gradients of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.box_overlaps import assert_box_sets, ciou, diou, giou, promote_to_float32
from sightline.ops.labels import widen_labels

Reduction = Literal["none", "mean", "sum"]
Classes = Literal["present", "all"] | Sequence[int]

MIN_FOCAL_BASE = 1e-30
"""Lower bound of what focal losses raise to gamma: below 1 it has an infinite slope at 0. The bound has no gradient."""


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: Reduction = "none"
) -> Tensor:
    """Compute the focal loss of logits (...) with a sigmoid each: -alpha_t (1 - p_t)^gamma log p_t.

    `targets` (...) are bool, or numbers from 0 to 1, between which alpha_t and p_t are interpolated and the logarithm
    becomes the binary cross entropy. `alpha` weighs targets of 1, 1 - alpha those of 0; -1 weighs all 1. Raises
    ValueError for another shape, and for an `alpha` or a `gamma` out of bounds.
    Source: Lin et al. 2017, equation 5.
    """
    if inputs.shape != targets.shape:
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"inputs, targets: found the shapes {shapes}, expected equal ones: a target for each logit")
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha: found {alpha}, allowed is a number from 0 to 1, or -1 for no weights")
    if not gamma >= 0:
        raise ValueError(f"gamma: found {gamma}, allowed is a number, at least 0")
    inputs = promote_to_float32(inputs)
    if targets.dtype == torch.bool:
        of_truth = torch.where(targets, inputs, -inputs)
        losses = -(gamma * functional.logsigmoid(-of_truth)).exp() * functional.logsigmoid(of_truth)
        weight = torch.where(targets, alpha, 1 - alpha) if alpha >= 0 else None
    else:
        targets = targets.to(inputs.dtype)
        doubt = targets * (-inputs).sigmoid() + (1 - targets) * inputs.sigmoid()  # 1 - p_t, without cancellation
        entropy = functional.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
        losses = doubt.clamp(min=MIN_FOCAL_BASE).pow(gamma) * entropy
        weight = alpha * targets + (1 - alpha) * (1 - targets) if alpha >= 0 else None
    return _reduce(losses if weight is None else losses * weight, reduction)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none") -> Tensor:
    """Compute 1 - GIoU (...) of aligned boxes (..., 4), 0 to 2. Source: Rezatofighi et al. 2019."""
    assert_box_sets(boxes1, boxes2, is_aligned=True)
    return _reduce(1 - giou(boxes1, boxes2), reduction)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none") -> Tensor:
    """Compute 1 - DIoU (...) of aligned boxes (..., 4), 0 to 2. Source: Zheng et al. 2020, equation 7."""
    assert_box_sets(boxes1, boxes2, is_aligned=True)
    return _reduce(1 - diou(boxes1, boxes2), reduction)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none") -> Tensor:
    """Compute 1 - CIoU (...) of aligned boxes (..., 4). Source: Zheng et al. 2020, equation 10."""
    assert_box_sets(boxes1, boxes2, is_aligned=True)
    return _reduce(1 - ciou(boxes1, boxes2), reduction)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: found {reduction!r}, expected none, mean or sum")
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" and losses.numel() else losses.sum()


def lovasz_softmax(
    probas: Tensor,
    labels: Tensor,
    classes: Classes = "present",
    per_image: bool = False,
    ignore: int | None = None,
) -> Tensor:
    """Compute the Lovász-softmax loss of class probabilities (B, C, ...) with `labels` (B, ...), 0 to 1.

    It is the mean over the `classes` (those of the labels, all, or a list of some) of the Lovász extension of 1 - IoU:
    over the batch, or with `per_image` over each image, whose losses are averaged. Labels of `ignore` do not count.
    Raises ValueError for another shape or dtype.
    Source: Berman et al. 2018, equations 8 and 9, algorithm 1.
    """
    if probas.ndim < 2 or (len(probas), *probas.shape[2:]) != labels.shape:
        shapes = f"{tuple(probas.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"probas, labels: found the shapes {shapes}, expected (B, C, ...) and (B, ...)")
    rows = promote_to_float32(probas).movedim(1, -1).reshape(len(probas), -1, probas.shape[1])
    labels = widen_labels(labels, "labels").reshape(len(labels), -1)
    if not per_image:
        rows, labels = rows.flatten(0, 1)[None], labels.flatten()[None]
    is_counted = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    images = zip(rows, labels, is_counted, strict=True)
    losses = [masked_lovasz_of_image(row, label, counted, classes) for row, label, counted in images]
    return torch.stack(losses).mean() if losses else rows.sum()


def lovasz_of_image(probabilities: Tensor, label: Tensor) -> Tensor:
    """Compute the mean Lovász loss over the classes of `label` (P,), for `probabilities` (P, C); 0 for no pixels."""
    if not len(label):
        return probabilities.sum()
    losses = []
    for number in label.unique():
        if number < 0:  # as an index it would be the last class
            raise ValueError(f"label: found class {int(number)}; the lowest is 0, or give the ignore index")
        is_class = (label == number).to(probabilities.dtype)
        errors = (is_class - probabilities[:, number]).abs()
        ordered, order = errors.sort(descending=True, stable=True)
        losses.append(ordered.dot(_jaccard_gradient(is_class[order])))  # autocast would lower a product by @
    return torch.stack(losses).mean()


def masked_lovasz_of_image(
    probabilities: Tensor, label: Tensor, is_counted: Tensor, classes: Classes = "present"
) -> Tensor:
    """Compute `lovasz_of_image` of the pixels `is_counted` (P,) without waiting for a device, all classes at once.

    The others come last and have no error. Equal but for the order of the sum over pixels.
    """
    is_class = (label[:, None] == torch.arange(probabilities.shape[1], device=label.device)) & is_counted[:, None]
    errors = torch.where(is_counted[:, None], (is_class.to(probabilities.dtype) - probabilities).abs(), -1.0)
    ordered, order = errors.sort(dim=0, descending=True, stable=True)
    gradient = _jaccard_gradient(is_class.gather(0, order).to(probabilities.dtype))
    losses, is_used = (ordered.clamp(min=0) * gradient).sum(dim=0), is_class.any(dim=0)
    if classes != "present":
        chosen = range(len(losses)) if classes == "all" else classes
        is_used = torch.stack([torch.full_like(is_used[0], number in chosen) for number in range(len(losses))])
    return torch.where(is_used, losses, 0.0).sum() / is_used.sum().clamp(min=1)


def _jaccard_gradient(is_class: Tensor) -> Tensor:
    """Return the increase of 1 - IoU with each further error (P, ...), errors in falling order. Source: algorithm 1."""
    intersection = is_class.sum(dim=0) - is_class.cumsum(0)
    union = is_class.sum(dim=0) + (1 - is_class).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
