"""Detection losses as sums, never means: classification, objectness, box deltas, overlaps and centre-ness.

Half precision is computed in float32. Each takes a `weight` that broadcasts with its items; without items it is 0, with
gradients of 0. Nothing is changed in place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline.geometry.boxes.overlaps import OVERLAPS, promote_to_float32

__all__ = [
    "assert_form",
    "bag_losses",
    "earth_mover",
    "focal_losses",
    "overlap_loss",
    "quality_focal",
    "sigmoid_bce",
    "sigmoid_focal",
    "smooth_l1",
]

_MIN_OVERLAP = 1e-7
"""Lower bound of the overlap inside the logarithm: disjoint boxes have a loss of 16 without a gradient."""
_MIN_REMAINDER = 1e-12


def sigmoid_focal(
    logits: Tensor, is_target: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Compute the focal loss, the sum of -alpha_t (1 - p_t)^gamma log p_t, with a sigmoid per class.

    `logits` (..., K) and `is_target` (..., K) bool; an item is an entry. `alpha` weighs targets, 1 - alpha the others;
    None weighs all 1. Source: Lin et al. 2017, equation 5.
    """
    return _weighted_sum(focal_losses(promote_to_float32(logits), is_target, alpha=alpha, gamma=gamma), weight)


def focal_losses(logits: Tensor, is_target: Tensor | bool, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Compute the terms (..., K) of `sigmoid_focal` from logits (..., K), in their dtype."""
    is_target = torch.as_tensor(is_target, device=logits.device)
    of_truth = torch.where(is_target, logits, -logits)
    losses = -(gamma * functional.logsigmoid(-of_truth)).exp() * functional.logsigmoid(of_truth)
    return losses if alpha is None else losses * torch.where(is_target, alpha, 1 - alpha)


def quality_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Compute the quality focal loss: the sum of |target - p|^gamma times the BCE of `logits` (...) and `target` (...).

    `target` is from 0 to 1.

    An item is an entry, p its probability. Source: Li et al. 2020, Generalized Focal Loss, equation 4, with beta 2.
    """
    logits = promote_to_float32(logits)
    target = target.to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _weighted_sum(losses * (target - logits.sigmoid()).abs().pow(gamma), weight)


def smooth_l1(predicted: Tensor, target: Tensor, *, beta: float, weight: Tensor | None = None) -> Tensor:
    """Compute the smooth L1 loss: the sum of x^2 / (2 beta) where |x| < beta, else |x| - beta / 2, x the difference.

    With a `beta` of 0, |x|.

    An item is an entry of `predicted` (...) and `target` (...). Source: Girshick 2015, equation 3, with beta 1.
    """
    predicted = promote_to_float32(predicted)
    target = target.to(predicted.dtype)
    return _weighted_sum(functional.smooth_l1_loss(predicted, target, reduction="none", beta=beta), weight)


def overlap_loss(
    predicted: Tensor,
    target: Tensor,
    *,
    overlap: Literal["iou", "giou", "diou", "ciou", "siou"] = "giou",
    form: Literal["linear", "log", "square"] = "linear",
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the overlap loss of aligned boxes (..., 4): the sum of 1 - X, -ln X or 1 - X^2, X their overlap.

    An item is a box.

    The last two are of the IoU alone: the others may be negative. Raises ValueError for them. Source: Rezatofighi et
    al. 2019; the logarithm is that of Yu et al. 2016, the square that of YOLOX.
    """
    assert_form(form, overlap)
    overlaps = OVERLAPS[overlap](predicted, target)
    if form == "log":
        return _weighted_sum(-overlaps.clamp(min=_MIN_OVERLAP).log(), weight)
    return _weighted_sum(1 - (overlaps if form == "linear" else overlaps.square()), weight)


def assert_form(form: str, overlap: str) -> None:
    """Raise ValueError for a form that an overlap does not support because it may be negative."""
    if form != "linear" and overlap != "iou":
        raise ValueError(f"form: '{form}' is of the IoU alone, found overlap '{overlap}'; take form 'linear' or 'iou'")


def earth_mover(
    logits: Tensor,
    codes: Tensor,
    *,
    is_target: Tensor,
    true_codes: Tensor,
    is_counted: Tensor,
    has_box: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    beta: float = 0.1,
) -> Tensor:
    """Compute the EMD loss: the sum over priors of focal and smooth L1 losses of two predictions, in the cheaper order.

    `logits` (N, 2, K) and `codes` (N, 2, 4) are predicted; targets are `is_target` (N, 2, K) bool, `true_codes`
    (N, 2, 4) where `has_box` (N, 2), and nothing at all where `is_counted` (N, 2) is False. Of equal orders it is the
    first. Source: Chu et al. 2020, equation 3.
    """
    logits, codes = promote_to_float32(logits), promote_to_float32(codes)

    def cost(order: list[int]) -> Tensor:
        of_class = focal_losses(logits, is_target[:, order], alpha=alpha, gamma=gamma).sum(dim=2) * is_counted[:, order]
        wanted = true_codes[:, order].to(codes.dtype)
        of_box = functional.smooth_l1_loss(codes, wanted, reduction="none", beta=beta).sum(dim=2)
        return (of_class + torch.where(has_box[:, order], of_box, 0)).sum(dim=1)

    straight, crossed = cost([0, 1]), cost([1, 0])
    return torch.where(straight <= crossed, straight, crossed).sum()


def sigmoid_bce(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Compute the sum of binary cross entropies of `logits` (...) with `target` (...) from 0 to 1.

    An item is an entry.
    """
    logits = promote_to_float32(logits)
    target = target.to(logits.dtype)  # of two types, torch computes in the narrower one
    return _weighted_sum(functional.binary_cross_entropy_with_logits(logits, target, reduction="none"), weight)


def bag_losses(log_probabilities: Tensor) -> Tensor:
    """Compute -log of the mean-max (M,) of each bag of probabilities from their logarithms (M, N); float64.

    The mean-max is the mean weighted by 1 / (1 - P) of at most 1e12: near the plain mean of small ones, near the
    highest once it is close to 1. The limit has no part in the gradient. Source: Zhang et al. 2019, FreeAnchor,
    equation 8.

    Their mean, weighted by 1 / (1 - P) of at most 1e12: near the plain mean of small ones, near the highest once it is
    close to 1. The limit has no part in the gradient. Source: Zhang et al. 2019, FreeAnchor, equation 8.
    """
    log_p = log_probabilities.double()  # weights reach 1e12
    remainder = -log_p.expm1()
    log_weight = -(remainder + (remainder.clamp(min=_MIN_REMAINDER) - remainder).detach()).log()
    return log_weight.logsumexp(dim=1) - (log_weight + log_p).logsumexp(dim=1)


def _weighted_sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    return (losses if weight is None else losses * weight).sum()
