"""Losses of object detection over priors: sums, each divided by its own count of the whole step on all processes.

The count of most is the number of priors with a box. Without any, a loss of such priors is 0, with gradients of 0, and
a loss that background takes part in is divided by 1. Half precision is computed in float32; nothing is changed in
place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, Probability
from sightline.contract.loss import Loss
from sightline.ops.boxes.codes import centreness, decode_boxes, encode_deltas, encode_distances
from sightline.ops.boxes.focal import sigmoid_focal_loss
from sightline.ops.boxes.overlaps import OVERLAPS, iou
from sightline.ops.boxes.priors import IGNORED
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.waits import find_positive

_MIN_OVERLAP = 1e-7
"""Lower bound of the overlap inside the logarithm: disjoint boxes have a loss of 16 without a gradient."""


@registry.within_bounds
def sigmoid_focal(
    logits: Tensor,
    is_target: Tensor,
    *,
    alpha: Probability | None = 0.25,
    gamma: NonNegativeFloat = 2.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the focal loss, the sum of -alpha_t (1 - p_t)^gamma log p_t, with a sigmoid per class.

    `logits` (..., K) and `is_target` (..., K) bool; an item is an entry. `alpha` weighs targets, 1 - alpha the others;
    None weighs all 1. Raises ValueError for targets of another dtype, and for an `alpha` or a `gamma` out of bounds.
    Source: Lin et al. 2017, equation 5.
    """
    return _weighted_sum(_focal(logits, is_target, alpha=alpha, gamma=gamma), weight)


def _focal(logits: Tensor, is_target: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """Compute the terms (..., K) of `sigmoid_focal`."""
    if is_target.dtype != torch.bool:
        raise ValueError(f"is_target: found {is_target.dtype}, expected torch.bool; give target == 1")
    return sigmoid_focal_loss(logits, is_target.expand(logits.shape), alpha=-1 if alpha is None else alpha, gamma=gamma)


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


@registry.within_bounds
def earth_mover(
    logits: Tensor,
    codes: Tensor,
    *,
    is_target: Tensor,
    true_codes: Tensor,
    is_counted: Tensor,
    has_box: Tensor,
    alpha: Probability | None = 0.25,
    gamma: NonNegativeFloat = 2.0,
    beta: NonNegativeFloat = 0.1,
) -> Tensor:
    """Compute the EMD loss: the sum over priors of focal and smooth L1 losses of two predictions, in the cheaper order.

    `logits` (N, 2, K) and `codes` (N, 2, 4) are predicted; targets are `is_target` (N, 2, K) bool, `true_codes`
    (N, 2, 4) where `has_box` (N, 2), and nothing at all where `is_counted` (N, 2) is False. Of equal orders it is the
    first. Source: Chu et al. 2020, equation 3.
    """
    logits, codes = promote_to_float32(logits), promote_to_float32(codes)

    def cost(*targets: Tensor) -> Tensor:
        is_target, true_codes, has_box, is_counted = targets
        of_class = _focal(logits, is_target, alpha=alpha, gamma=gamma).sum(dim=2) * is_counted
        expected = true_codes.to(codes.dtype)
        of_box = functional.smooth_l1_loss(codes, expected, reduction="none", beta=beta).sum(dim=2)
        return (of_class + torch.where(has_box, of_box, 0)).sum(dim=1)

    targets = is_target, true_codes, has_box, is_counted
    straight, crossed = cost(*targets), cost(*(target.flip(1) for target in targets))
    return torch.where(straight <= crossed, straight, crossed).sum()


def sigmoid_bce(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Compute the sum of binary cross entropies of `logits` (...) with `target` (...) from 0 to 1.

    An item is an entry.
    """
    logits = promote_to_float32(logits)
    target = target.to(logits.dtype)  # of two types, torch computes in the narrower one
    return _weighted_sum(functional.binary_cross_entropy_with_logits(logits, target, reduction="none"), weight)


def _weighted_sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    return (losses if weight is None else losses * weight).sum()


class _PositivesLoss(Loss):
    """Base of losses that are divided by the number of priors with a box."""

    def count(self, *, target: Tensor) -> Tensor:
        """Count the priors with a box; `target` (B, P) is below 0 for the others."""
        return (target >= 0).sum()


@registry.losses.add("sigmoid_focal")
class SigmoidFocal(_PositivesLoss):
    """Focal loss with a sigmoid per class, over all priors but the ignored, divided by the number of positives.

    Dividing by all samples would let background dominate.

    >>> import torch
    >>> from sightline.areas.detect.losses import SigmoidFocal
    >>> loss, target = SigmoidFocal(), torch.tensor([[0, -1, -2]])  # a prior with a box of class 0, background, ignored
    >>> loss(logits=torch.zeros(1, 3, 1), target=target)  # (0.25 + 0.75) 0.5^2 ln 2
    tensor(0.1733)
    >>> loss.count(target=target)
    tensor(1)

    Source: Lin et al. 2017, equation 5 and section 4.1.
    """

    def __init__(self, *, alpha: Probability = 0.25, gamma: NonNegativeFloat = 2.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss sum from `logits` (B, P, K), before the sigmoid; `target` (B, P)."""
        target = widen_labels(target, "target")
        weight = (target != IGNORED)[..., None].to(logits.dtype)
        return sigmoid_focal(logits, _is_class(target, logits), alpha=self.alpha, gamma=self.gamma, weight=weight)


@registry.losses.add("class_bce")
class ClassBCE(_PositivesLoss):
    """Binary cross entropy of each class at the priors that have a box; background is left to objectness.

    With `quality: iou`, the target of a box's class is the IoU of the predicted box with it, not 1.

    >>> import torch
    >>> from sightline.areas.detect.losses import ClassBCE
    >>> priors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    >>> batch = {"codes": torch.zeros(1, 2, 4), "priors": priors, "matched_boxes": priors[None]}
    >>> target = torch.tensor([[0, -1]])  # the second prior has no box
    >>> ClassBCE()(logits=torch.zeros(1, 2, 2), target=target, **batch)  # 2 ln 2, of two classes
    tensor(1.3863)

    Source: Redmon and Farhadi 2018, YOLOv3, section 2.2; Ge et al. 2021, YOLOX, for the IoU.
    """

    def __init__(self, *, quality: Literal["one", "iou"] = "one") -> None:
        super().__init__()
        self.quality = quality

    def forward(
        self, *, logits: Tensor, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor
    ) -> Tensor:
        """Compute the loss sum from `logits` (B, P, K), before the sigmoid; the IoU has no gradient."""
        image, prior = find_positive(target)
        positive_logits = logits[image, prior]
        target_scores = _is_class(target[image, prior], positive_logits).to(positive_logits.dtype)
        if self.quality == "iou":
            target_scores = (
                target_scores * _quality(codes[image, prior], priors[prior], matched_boxes[image, prior])[:, None]
            )
        return sigmoid_bce(positive_logits, target_scores)


@registry.losses.add("objectness")
class Objectness(_PositivesLoss):
    """Binary cross entropy of objectness over all priors but the ignored: target 1 if they have a box.

    Divided by the number of positives.

    >>> import torch
    >>> from sightline.areas.detect.losses import Objectness
    >>> loss, target = Objectness(), torch.tensor([[0, -1, -2]])  # a prior with a box, background, ignored
    >>> loss(objectness=torch.zeros(1, 3), target=target)  # 2 ln 2
    tensor(1.3863)
    >>> loss.count(target=target)
    tensor(1)

    Source: Redmon and Farhadi 2018, YOLOv3, section 2.1; Ge et al. 2021, YOLOX.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *, objectness: Tensor, target: Tensor) -> Tensor:
        """Compute the loss sum from `objectness` (B, P), before the sigmoid."""
        weight = (widen_labels(target, "target") != IGNORED).to(objectness.dtype)
        return sigmoid_bce(objectness, target >= 0, weight=weight)


@registry.losses.add("box_smooth_l1")
class BoxSmoothL1(_PositivesLoss):
    """Smooth L1 of the box deltas of the priors that have a box; L1 for a `beta` of 0.

    Points count as squares of one stride, whose deltas are what the head yolox predicts, and their L1 that of YOLOX.

    >>> import torch
    >>> from sightline.areas.detect.losses import BoxSmoothL1
    >>> priors, boxes = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[[5.0, 0, 15, 10]]])
    >>> batch = {"priors": priors, "matched_boxes": boxes, "target": torch.tensor([[0]])}
    >>> BoxSmoothL1()(codes=torch.zeros(1, 1, 4), **batch)  # off by half a width: 0.5 - beta / 2
    tensor(0.4444)

    Source: Girshick 2015, equation 3; beta of 1/9 is that of RetinaNet's common code.
    """

    def __init__(self, *, beta: NonNegativeFloat = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(
        self,
        *,
        codes: Tensor,
        priors: Tensor,
        target: Tensor,
        matched_boxes: Tensor,
        prior_stride: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss sum from `codes` (B, P, 4) and `matched_boxes` (B, P, 4).

        `codes` are deltas of anchors (P, 4), or distances in pixels from points (P, 2).
        Raises ValueError for points without their `prior_stride` (P,).
        """
        image, prior = find_positive(target)
        positive_priors, predicted = priors[prior], codes[image, prior]
        if priors.shape[1] == 2:
            if prior_stride is None:
                raise ValueError("box_smooth_l1: found points as priors without their strides; take box_overlap")
            half = prior_stride[prior, None] / 2
            squares = torch.cat([positive_priors - half, positive_priors + half], dim=1)
            positive_priors, predicted = squares, encode_deltas(squares, decode_boxes(positive_priors, predicted))
        return smooth_l1(predicted, encode_deltas(positive_priors, matched_boxes[image, prior]), beta=self.beta)


@registry.losses.add("box_overlap")
class BoxOverlap(Loss):
    """Overlap loss (IoU, GIoU, DIoU, CIoU, SIoU): 1 - X, -log IoU (`form: log`) or 1 - IoU^2 (`form: square`).

    `weigh: centreness` weighs each box by the centre-ness of its prior, and divides by the sum of these weights.

    >>> import torch
    >>> from sightline.areas.detect.losses import BoxOverlap
    >>> priors, boxes = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[[0.0, 0, 10, 5]]])
    >>> batch = {"priors": priors, "matched_boxes": boxes, "target": torch.tensor([[0]])}
    >>> BoxOverlap(overlap="giou")(codes=torch.zeros(1, 1, 4), **batch)  # the box is half of the predicted one
    tensor(0.5000)

    Source: Rezatofighi et al. 2019 (GIoU); Zhang et al. 2020, ATSS, for the weights.
    """

    def __init__(
        self,
        *,
        overlap: Literal["iou", "giou", "diou", "ciou", "siou"] = "giou",
        form: Literal["linear", "log", "square"] = "linear",
        weigh: Literal["none", "centreness"] = "none",
    ) -> None:
        super().__init__()
        assert_form(form, overlap)
        self.overlap, self.form, self.weigh = overlap, form, weigh

    def count(self, *, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Return the sum of the weights, or the number of boxes.

        `target` (B, P) is below 0 for priors without a box.
        """
        if self.weigh == "none":
            return (target >= 0).sum()
        image, prior = find_positive(target)
        return _compute_centreness(priors[prior], matched_boxes[image, prior]).sum()

    def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Compute the loss sum from `codes` (B, P, 4) and `matched_boxes` (B, P, 4).

        `codes` are deltas of anchors (P, 4), or distances in pixels from points (P, 2).
        """
        image, prior = find_positive(target)
        positive_priors, true = priors[prior], matched_boxes[image, prior]
        weight = _compute_centreness(positive_priors, true) if self.weigh == "centreness" else None
        return overlap_loss(
            decode_boxes(positive_priors, codes[image, prior]),
            true,
            overlap=self.overlap,
            form=self.form,
            weight=weight,
        )


@registry.losses.add("centreness")
class CentreNess(_PositivesLoss):
    """Binary cross entropy of the centre-ness of each prior that has a box.

    >>> import torch
    >>> from sightline.areas.detect.losses import CentreNess
    >>> priors, boxes = torch.tensor([[2.0, 5]]), torch.tensor([[[0.0, 0, 10, 10]]])  # a point; its centre-ness is 0.5
    >>> batch = {"priors": priors, "matched_boxes": boxes, "target": torch.tensor([[0]])}
    >>> CentreNess()(centreness=torch.tensor([[3.0]]).log(), **batch)  # of 0.75: -0.5 ln 0.75 - 0.5 ln 0.25
    tensor(0.8370)

    Source: Tian et al. 2019, equation 3.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *, centreness: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Compute the loss sum from `centreness` (B, P), before the sigmoid."""
        image, prior = find_positive(target)
        return sigmoid_bce(centreness[image, prior], _compute_centreness(priors[prior], matched_boxes[image, prior]))


@registry.losses.add("earth_mover")
class EarthMover(_PositivesLoss):
    """EMD loss: focal and smooth L1 losses of two predictions at each prior with its two boxes, in the cheaper order.

    A missing second box is background. Divided by the number of priors with a first box.

    >>> import torch
    >>> from sightline.areas.detect.losses import EarthMover
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]])  # the prior itself, and one half a width beside it
    >>> batch = {"priors": boxes[:1], "target": torch.tensor([[0]]), "matched_boxes": boxes[None, :1], "boxes": boxes}
    >>> batch |= {"second_match": torch.tensor([[1]]), "label": torch.tensor([0, 0])}
    >>> codes = torch.tensor([[[[0.5, 0, 0, 0], [0, 0, 0, 0]]]])  # the two boxes, the second first: no box loss
    >>> EarthMover()(logits=torch.zeros(1, 1, 2, 1), codes=codes, **batch)  # 2 (0.25 0.5^2 ln 2)
    tensor(0.0866)

    Source: Chu et al. 2020, Detection in Crowded Scenes, equation 3; focal loss and divisor of Purkialo/CrowdDet.
    """

    def __init__(
        self, *, alpha: Probability = 0.25, gamma: NonNegativeFloat = 2.0, beta: NonNegativeFloat = 0.1
    ) -> None:
        super().__init__()
        self.form = {"alpha": alpha, "gamma": gamma, "beta": beta}

    def forward(
        self,
        *,
        logits: Tensor,
        codes: Tensor,
        priors: Tensor,
        target: Tensor,
        matched_boxes: Tensor,
        second_match: Tensor,
        boxes: Tensor,
        label: Tensor,
    ) -> Tensor:
        """Compute the loss sum from `logits` (B, P, 2, K) and `codes` (B, P, 2, 4), deltas of `priors` (P, 4).

        `second_match` (B, P) is the row of a prior's second box among the batch's `boxes` (G, 4) and `label` (G,).
        """
        second, target = second_match, widen_labels(target, "target")
        if len(label):
            second = torch.where(second_match >= 0, widen_labels(label)[second_match.clamp(min=0)], second_match)
        classes = torch.stack([target, second], dim=2)
        differ = (target >= 0) | (target != second)
        image, prior = differ.nonzero(as_tuple=True)
        pair = classes[image, prior]
        first_box, row = matched_boxes[image, prior], second_match[image, prior].clamp(min=0)
        both = torch.stack([first_box, boxes[row].to(first_box) if len(boxes) else first_box], dim=1)
        paired = earth_mover(
            logits[image, prior],
            codes[image, prior],
            is_target=_is_class(pair, logits),
            true_codes=encode_deltas(priors[prior, None].expand_as(both), both),
            is_counted=pair != IGNORED,
            has_box=pair >= 0,
            **self.form,
        )
        weight = ((target != IGNORED) & ~differ)[:, :, None, None].to(logits.dtype)
        nothing = torch.zeros_like(logits, dtype=torch.bool)
        form = {"alpha": self.form["alpha"], "gamma": self.form["gamma"]}
        return paired + sigmoid_focal(logits, nothing, **form, weight=weight)


@registry.losses.add("box_density")
class BoxDensity(_PositivesLoss):
    """Density loss: smooth L1 of the predicted density of each prior with a box.

    The target is the box's highest IoU with another box of its image that is not ignored.

    >>> import torch
    >>> from sightline.areas.detect.losses import BoxDensity
    >>> target, matched = torch.tensor([[0, -1]]), torch.tensor([[0.25, 0.0]])
    >>> BoxDensity(beta=0.0)(density=torch.tensor([[0.75, 9.0]]), target=target, matched_density=matched)
    tensor(0.5000)

    Source: Liu et al. 2019, Adaptive NMS, section 3.3.
    """

    def __init__(self, *, beta: NonNegativeFloat = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, *, density: Tensor, target: Tensor, matched_density: Tensor) -> Tensor:
        """Compute the loss sum from `density` (B, P), not bounded, and `matched_density` (B, P), 0 to 1."""
        positive = find_positive(target)
        return smooth_l1(density[positive], matched_density[positive], beta=self.beta)


@registry.losses.add("box_iou_bce")
class BoxIouBce(_PositivesLoss):
    """IoU branch loss: binary cross entropy of `centreness` with the IoU of each predicted box as its target.

    The IoU has no gradient.

    >>> import torch
    >>> from sightline.areas.detect.losses import BoxIouBce
    >>> priors, boxes = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[[0.0, 0, 10, 5]]])  # the IoU is 0.5
    >>> batch = {"priors": priors, "matched_boxes": boxes, "target": torch.tensor([[0]]), "codes": torch.zeros(1, 1, 4)}
    >>> BoxIouBce()(centreness=torch.tensor([[3.0]]).log(), **batch)  # of 0.75: -0.5 ln 0.75 - 0.5 ln 0.25
    tensor(0.8370)

    Source: Ge et al. 2021, OTA, section 3.3, with the IoU branch of Wu et al. 2020.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, *, centreness: Tensor, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor
    ) -> Tensor:
        """Compute the loss sum from `centreness` (B, P), before the sigmoid; `codes` (B, P, 4) as in `box_overlap`."""
        image, prior = find_positive(target)
        overlap = _quality(codes[image, prior], priors[prior], matched_boxes[image, prior])
        return sigmoid_bce(centreness[image, prior], overlap)


def _is_class(target: Tensor, logits: Tensor) -> Tensor:
    """Return a mask (..., K) of the entries of the class `target` (...)."""
    return widen_labels(target, "target")[..., None] == torch.arange(logits.shape[-1], device=logits.device)


def _quality(codes: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
    """Compute the IoU (N,) of predicted boxes with their targets (N, 4), without a gradient."""
    return iou(decode_boxes(priors, codes.detach()), boxes)


def _compute_centreness(priors: Tensor, boxes: Tensor) -> Tensor:
    """Compute the centre-ness (N,) of points (N, 2), or of the middles of anchors (N, 4), in their boxes (N, 4)."""
    points = priors if priors.shape[-1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    return centreness(encode_distances(points, boxes))
