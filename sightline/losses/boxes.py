"""The losses of detection: over priors, divided by the positives of the whole step on all processes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Factor, Probability
from sightline.geometry.boxes.codings import centreness, decode, encode_deltas, encode_distances
from sightline.geometry.boxes.overlaps import iou
from sightline.geometry.boxes.priors import IGNORED
from sightline.losses.base import Loss
from sightline.losses.functional_boxes import assert_form, centreness_bce, overlap_loss, sigmoid_focal, smooth_l1

__all__ = ["BoxDensity", "BoxIouBce", "BoxOverlap", "BoxSmoothL1", "CentreNess", "SigmoidFocal"]


class _OfPositives(Loss):
    """A sum that is divided by the number of priors with a box."""

    def count(self, *, target: Tensor) -> Tensor:
        """How many priors have a box; `target` (B, P) is below 0 for the others."""
        return (target >= 0).sum()


@registry.losses.add("sigmoid_focal")
class SigmoidFocal(_OfPositives):
    """The focal loss of each class on its own, over all priors but the ignored, divided by the number of positives.

    Never by that of all samples: background would drown the rest. Source: Lin et al. 2017, equation 5 and section 4.1.
    """

    def __init__(self, *, alpha: Probability = 0.25, gamma: Factor = 2.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
        """`logits` (B, P, K), before the sigmoid."""
        is_target = target[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        weight = (target != IGNORED)[..., None].to(logits.dtype)
        return sigmoid_focal(logits, is_target, alpha=self.alpha, gamma=self.gamma, weight=weight)


@registry.losses.add("box_smooth_l1")
class BoxSmoothL1(_OfPositives):
    """Smooth L1 between predicted and true deltas of the anchors that have a box; L1 for a `beta` of 0.

    Source: Girshick 2015, equation 3; beta of 1/9 is that of RetinaNet's common code.
    """

    def __init__(self, *, beta: Factor = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """`codes` (B, P, 4) are deltas of `priors` (P, 4). Raises ValueError for points (P, 2)."""
        if priors.shape[1] != 4:
            raise ValueError("box_smooth_l1: found points as priors, expected anchors; take box_overlap")
        image, prior = (target >= 0).nonzero(as_tuple=True)
        true = encode_deltas(priors[prior], matched_boxes[image, prior])
        return smooth_l1(codes[image, prior], true, beta=self.beta)


@registry.losses.add("box_overlap")
class BoxOverlap(Loss):
    """1 - overlap of predicted and true boxes, -log IoU (`form: log`) or 1 - IoU^2 (`form: square`).

    `weigh: centreness` weighs each box by the centre-ness of its prior, and divides by the sum of these weights.
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
        """The sum of the weights, or the number of boxes; `target` (B, P) is below 0 for priors without."""
        if self.weigh == "none":
            return (target >= 0).sum()
        image, prior = (target >= 0).nonzero(as_tuple=True)
        return _centreness_of(priors[prior], matched_boxes[image, prior]).sum()

    def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """`codes` (B, P, 4): deltas of anchors (P, 4), or distances in pixels from points (P, 2)."""
        image, prior = (target >= 0).nonzero(as_tuple=True)
        own, true = priors[prior], matched_boxes[image, prior]
        weight = _centreness_of(own, true) if self.weigh == "centreness" else None
        return overlap_loss(decode(own, codes[image, prior]), true, overlap=self.overlap, form=self.form, weight=weight)


@registry.losses.add("centreness")
class CentreNess(_OfPositives):
    """Binary cross entropy of the centre-ness of each prior that has a box. Source: Tian et al. 2019, equation 3."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *, centreness: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """`centreness` (B, P), before the sigmoid."""
        image, prior = (target >= 0).nonzero(as_tuple=True)
        return centreness_bce(centreness[image, prior], _centreness_of(priors[prior], matched_boxes[image, prior]))


@registry.losses.add("box_density")
class BoxDensity(_OfPositives):
    """Smooth L1 between the predicted density of each prior that has a box and the highest IoU of that with another.

    Source: Liu et al. 2019, Adaptive NMS, section 3.3.
    """

    def __init__(self, *, beta: Factor = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, *, density: Tensor, target: Tensor, matched_density: Tensor) -> Tensor:
        """`density` and `matched_density` (B, P), 0 to 1."""
        return smooth_l1(density[target >= 0], matched_density[target >= 0], beta=self.beta)


@registry.losses.add("box_iou_bce")
class BoxIouBce(_OfPositives):
    """Binary cross entropy of the IoU of each predicted box with its own, which `centreness` is to predict.

    The IoU has no gradient. Source: Ge et al. 2021, OTA, section 3.3, with the IoU branch of Wu et al. 2020.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, *, centreness: Tensor, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor
    ) -> Tensor:
        """`centreness` (B, P), before the sigmoid; `codes` (B, P, 4) as in `box_overlap`."""
        image, prior = (target >= 0).nonzero(as_tuple=True)
        with torch.no_grad():
            overlap = iou(decode(priors[prior], codes[image, prior]), matched_boxes[image, prior])
        return centreness_bce(centreness[image, prior], overlap)


def _centreness_of(priors: Tensor, boxes: Tensor) -> Tensor:
    """The centre-ness (N,) of points (N, 2), or of the middles of anchors (N, 4), in their boxes (N, 4)."""
    points = priors if priors.shape[-1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    return centreness(encode_distances(points, boxes))
