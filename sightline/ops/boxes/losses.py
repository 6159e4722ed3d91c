"""Losses of aligned boxes, 1 less an overlap, by the names of torchvision, and the reduction of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from sightline.ops.boxes.overlaps import assert_boxes, assert_epsilon, ciou, diou, giou

Reduction = Literal["none", "mean", "sum"]
"""What is returned of losses: each, their mean, or their sum."""


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7
) -> Tensor:
    """Compute 1 - GIoU (...) of boxes (..., 4) and (..., 4), row by row, 0 to 2.

    `eps` is added to the areas that are divided by; with 0, boxes without an area have finite gradients, too. `mean`
    and `sum` are one number, 0 of no boxes. Raises ValueError for two shapes, which are not broadcast, and for another
    reduction. Source: Rezatofighi et al. 2019.
    """
    return _compute_loss(giou, boxes1, boxes2, reduction, eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7) -> Tensor:
    """Compute 1 - DIoU (...) of boxes (..., 4) and (..., 4), row by row, 0 to 2.

    `eps` is added to the area and the squared diagonal that are divided by; the rest is as in
    `generalized_box_iou_loss`. Source: Zheng et al. 2020, equation 7.
    """
    return _compute_loss(diou, boxes1, boxes2, reduction, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7) -> Tensor:
    """Compute 1 - CIoU (...) of boxes (..., 4) and (..., 4), row by row, 0 to 3.

    The factor of the penalty for different aspect ratios has no gradient. `eps` is added to all that is divided by; the
    rest is as in `generalized_box_iou_loss`. Source: Zheng et al. 2020, equation 10.
    """
    return _compute_loss(ciou, boxes1, boxes2, reduction, eps)


def _compute_loss(
    overlap: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor, reduction: Reduction, eps: float
) -> Tensor:
    assert_boxes(boxes1, name="boxes1")
    assert_boxes(boxes2, name="boxes2")
    assert_epsilon(eps)
    if boxes1.shape != boxes2.shape:
        shapes = f"{tuple(boxes1.shape)} and {tuple(boxes2.shape)}"
        raise ValueError(f"boxes1, boxes2: found the shapes {shapes}, expected equal ones: a target for each box")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2: found on {boxes2.device}, boxes1 on {boxes1.device}; move one to the other's device")
    return reduce_losses(1 - overlap(boxes1, boxes2, eps=eps), reduction)


def reduce_losses(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return losses (...) themselves, their mean or their sum; of none, both are 0. Raises ValueError for others."""
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: found {reduction!r}, allowed are 'none', 'mean' and 'sum'")
    return losses.mean() if reduction == "mean" and losses.numel() else losses.sum()
