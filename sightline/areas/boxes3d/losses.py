"""Losses of boxes at anchors: of each frame divided by its own anchors with a box, then by the number of frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sightline.areas.boxes3d.anchors import find_direction
from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, Probability
from sightline.contract.loss import Loss
from sightline.ops.boxes.codes import encode_deltas3d
from sightline.ops.boxes.focal import sigmoid_focal_loss
from sightline.ops.boxes.priors import IGNORED
from sightline.ops.dtypes import promote_to_float32


class _FrameLoss(Loss):
    """Base of losses whose terms (B, A) are divided by the anchors with a box of each frame, then by the frames."""

    def count(self, *, target: Tensor) -> Tensor:
        """Count the frames; `target` (B, A) is below 0 for anchors without a box."""
        return target.new_full((), len(target), dtype=torch.int64)


def sum_by_frame(terms: Tensor, target: Tensor) -> Tensor:
    """Sum `terms` (B, A), those of each frame divided by its anchors with a box, at least 1."""
    num_positive = (target >= 0).sum(dim=1).clamp(min=1)
    return (terms.sum(dim=1) / num_positive).sum()


def encode_angle(codes: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the angles, number 7 of codes (..., 7), by two numbers whose difference is the sine of theirs."""
    angle, true_angle = codes[..., 6:7], true[..., 6:7]
    first = torch.cat([codes[..., :6], angle.sin() * true_angle.cos(), codes[..., 7:]], dim=-1)
    return first, torch.cat([true[..., :6], angle.cos() * true_angle.sin(), true[..., 7:]], dim=-1)


@registry.losses.add("anchor_class")
class AnchorClass(_FrameLoss):
    """Focal loss of the classes at all anchors but the ignored, divided by the anchors of the frame that have a box.

    >>> import torch
    >>> from sightline.areas.boxes3d.losses import AnchorClass
    >>> target = torch.tensor([[0, -1, -2]])  # an anchor with a box of class 0, background, ignored
    >>> AnchorClass()(logits=torch.zeros(1, 3, 1), target=target)  # (0.25 + 0.75) 0.5^2 ln 2
    tensor(0.1733)

    Source: Lang et al. 2019, equation 6, with the focal loss of Lin et al. 2017.
    """

    def __init__(self, *, alpha: Probability = 0.25, gamma: NonNegativeFloat = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss sum from `logits` (B, A, K) and `target` (B, A): class, -1 background, -2 ignored."""
        is_class = target[..., None] == torch.arange(logits.shape[2], device=target.device)
        terms = sigmoid_focal_loss(promote_to_float32(logits), is_class, alpha=self.alpha, gamma=self.gamma).sum(dim=2)
        return sum_by_frame(torch.where(target == IGNORED, 0, terms), target)


@registry.losses.add("anchor_box")
class AnchorBox(_FrameLoss):
    """Smooth L1 of the codes of anchors with a box; of the yaw, the sine of the difference counts.

    So a box is the same turned by half a circle, and `anchor_direction` tells the halves apart.

    >>> import torch
    >>> from sightline.areas.boxes3d.losses import AnchorBox
    >>> anchors = torch.tensor([[0.0, 0, 0, 3, 4, 2, 0]])
    >>> boxes = torch.tensor([[[5.0, 0, 0, 3, 4, 2, 3.1416]]])  # a diagonal away, and turned by half a circle
    >>> batch = {"anchors": anchors, "matched_boxes": boxes, "target": torch.tensor([[0]])}
    >>> AnchorBox()(codes=torch.zeros(1, 1, 7), **batch)  # 1 - beta / 2
    tensor(0.9444)

    Source: Yan et al. 2018, equation 3; Lang et al. 2019, equation 5.
    """

    def __init__(self, *, beta: NonNegativeFloat = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, *, codes: Tensor, anchors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Compute the loss sum from `codes` (B, A, 7), `anchors` (A, 7) and `matched_boxes` (B, A, 7)."""
        has_box = (target >= 0)[..., None]
        true = encode_deltas3d(anchors, torch.where(has_box, matched_boxes, anchors))
        predicted, true = encode_angle(promote_to_float32(codes), true.to(promote_to_float32(codes).dtype))
        terms = functional.smooth_l1_loss(predicted, true, reduction="none", beta=self.beta)
        return sum_by_frame(torch.where(has_box, terms, 0).sum(dim=2), target)


@registry.losses.add("anchor_direction")
class AnchorDirection(_FrameLoss):
    """Cross entropy of the half of the circle into which the box of an anchor heads.

    >>> import torch
    >>> from sightline.areas.boxes3d.losses import AnchorDirection
    >>> batch = {"matched_boxes": torch.zeros(1, 1, 7), "target": torch.tensor([[0]])}
    >>> AnchorDirection()(direction=torch.zeros(1, 1, 2), **batch)  # ln 2
    tensor(0.6931)

    Source: Yan et al. 2018, section 3.2.2.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *, direction: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
        """Compute the loss sum from `direction` (B, A, 2), logits, and `matched_boxes` (B, A, 7)."""
        true = find_direction(matched_boxes[..., 6])
        logits = promote_to_float32(direction)
        terms = functional.cross_entropy(logits.flatten(0, 1), true.flatten(), reduction="none").view(target.shape)
        return sum_by_frame(torch.where(target >= 0, terms, 0), target)
