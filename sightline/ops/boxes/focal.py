"""Focal loss of each logit, and the Lovász-softmax loss of an image. Half precision is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.boxes.losses import Reduction, reduce_losses
from sightline.ops.dtypes import promote_to_float32

MIN_FOCAL_BASE = 1e-30
"""Lower bound of what focal losses raise to gamma: below 1 it has an infinite slope at 0. The bound has no gradient."""


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: Reduction = "none"
) -> Tensor:
    """Compute the focal loss of logits (...) with a sigmoid each: -alpha_t (1 - p_t)^gamma log p_t.

    `targets` (...) are bool, or numbers from 0 to 1, between which alpha_t and p_t are interpolated and the logarithm
    becomes the binary cross entropy. `alpha` weighs targets of 1, 1 - alpha those of 0; -1 weighs all 1. `mean` and
    `sum` are one number, 0 of no logits. Raises ValueError for another shape or reduction, and for an `alpha` or a
    `gamma` out of bounds.
    Source: Lin et al. 2017, equation 5.
    """
    if inputs.shape != targets.shape:
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"inputs, targets: found the shapes {shapes}, expected equal ones: a target for each logit")
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha: found {alpha}, allowed is a number from 0 to 1, or -1 for no weights")
    if not gamma >= 0:
        raise ValueError(f"gamma: found {gamma}, allowed is a number, at least 0")
    inputs = promote_to_float32(inputs).contiguous()  # loops of other strides differ in the last bit
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
    return reduce_losses(losses if weight is None else losses * weight, reduction)


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


def masked_lovasz_of_image(probabilities: Tensor, label: Tensor, is_counted: Tensor) -> Tensor:
    """Compute `lovasz_of_image` of the pixels `is_counted` (P,) without waiting for a device, all classes at once.

    The others come last and have no error. Equal but for the order of the sum over pixels.
    """
    is_class = (label[:, None] == torch.arange(probabilities.shape[1], device=label.device)) & is_counted[:, None]
    errors = torch.where(is_counted[:, None], (is_class.to(probabilities.dtype) - probabilities).abs(), -1.0)
    ordered, order = errors.sort(dim=0, descending=True, stable=True)
    gradient = _jaccard_gradient(is_class.gather(0, order).to(probabilities.dtype))
    losses, is_used = (ordered.clamp(min=0) * gradient).sum(dim=0), is_class.any(dim=0)
    return torch.where(is_used, losses, 0.0).sum() / is_used.sum().clamp(min=1)


def _jaccard_gradient(is_class: Tensor) -> Tensor:
    """Return the increase of 1 - IoU with each further error (P, ...), errors in falling order. Source: algorithm 1."""
    intersection = is_class.sum(dim=0) - is_class.cumsum(0)
    union = is_class.sum(dim=0) + (1 - is_class).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
