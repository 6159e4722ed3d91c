"""Losses of the pixels of range images, for the auxiliary heads of networks that predict points."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.loss import Loss
from sightline.ops.dtypes import promote_to_float32
from sightline.parts.losses.classification import ClassLoss, ClassWeights, CrossEntropy, LovaszSoftmax

_SIZE = 3
"""Rows and columns of the neighbourhood whose classes make a boundary."""
_TINY = 1e-7


@registry.losses.add("pixel_cross_entropy")
class PixelCrossEntropy(Loss):
    """`cross_entropy` of pixels: the sum over auxiliary heads and labelled pixels; labelled pixels count, once.

    >>> import torch
    >>> from sightline.areas.scans.losses import PixelCrossEntropy
    >>> loss = PixelCrossEntropy(num_classes=3, ignore_index=0)
    >>> loss(auxiliary_logits=torch.zeros(1, 4, 1, 2, 3), pixel_label=torch.tensor([[[0, 1]]]))  # four heads: 4 ln 3
    tensor(4.3944)

    Source: Xu et al. 2023 (FRNet), section 3.4.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_index: int | None = None,
        class_weights: ClassWeights = None,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.of_labels = CrossEntropy(
            num_classes=num_classes, ignore_index=ignore_index, class_weights=class_weights, class_counts=class_counts
        )

    def count(self, *, pixel_label: Tensor) -> Tensor:
        """Count the labels (S, H, W) that are not ignored, or sum their class weights."""
        return self.of_labels.count(label=pixel_label)

    def forward(self, *, auxiliary_logits: Tensor, pixel_label: Tensor) -> Tensor:
        """Compute the loss sum from `auxiliary_logits` (S, A, H, W, C) with `pixel_label` (S, H, W)."""
        label = _repeat(pixel_label, auxiliary_logits)
        return cast(Tensor, self.of_labels(logits=auxiliary_logits, label=label))


@registry.losses.add("pixel_lovasz")
class PixelLovasz(Loss):
    """`lovasz_softmax` of pixels: the sum over auxiliary heads and images; images with a label that counts, once.

    >>> import torch
    >>> from sightline.areas.scans.losses import PixelLovasz
    >>> label = torch.tensor([[[0, 0, 1, 1]]])
    >>> logits = 100 * torch.eye(2)[[0, 0, 0, 1]].expand(1, 2, 1, 4, 2)  # two heads
    >>> PixelLovasz(num_classes=2)(auxiliary_logits=logits, pixel_label=label)
    tensor(0.8333)

    Source: Berman et al. 2018, equations 8 and 9; Xu et al. 2023 (FRNet), section 3.4.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        self.of_labels = LovaszSoftmax(num_classes=num_classes, ignore_index=ignore_index)

    def count(self, *, pixel_label: Tensor) -> Tensor:
        """Count the images of `pixel_label` (S, H, W) with a label that counts."""
        return self.of_labels.count(label=pixel_label)

    def forward(self, *, auxiliary_logits: Tensor, pixel_label: Tensor) -> Tensor:
        """Compute the loss sum from `auxiliary_logits` (S, A, H, W, C) with `pixel_label` (S, H, W)."""
        label = _repeat(pixel_label, auxiliary_logits).flatten(0, 1)
        return cast(Tensor, self.of_labels(logits=auxiliary_logits.flatten(0, 1), label=label))


@registry.losses.add("pixel_boundary")
class PixelBoundary(ClassLoss):
    """1 - F1 of the boundaries of classes: the sum over auxiliary heads and images of the mean over all classes.

    A class's boundary is where a pixel of it has another class among its eight neighbours, for probabilities the
    largest difference. A class without a boundary in the labels has no loss: in the published code it adds a constant.
    Pixels that are ignored count as predicted correctly. Images with a label that is not ignored count, once.

    >>> import torch
    >>> from sightline.areas.scans.losses import PixelBoundary
    >>> label = torch.tensor([[[0, 0, 1, 1]]])
    >>> loss, logits = PixelBoundary(num_classes=2), 100 * torch.nn.functional.one_hot(label[:, None], 2).float()
    >>> round(float(loss(auxiliary_logits=logits, pixel_label=label)), 6)
    0.0
    >>> loss(auxiliary_logits=0 * logits, pixel_label=label)  # no boundary is found
    tensor(1.)

    Source: Bokhovkin and Burnaev 2019, equations 2 to 5; Xu et al. 2023 (FRNet), section 3.4.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__("pixel_boundary", num_classes=num_classes, ignore_index=ignore_index)

    def count(self, *, pixel_label: Tensor) -> Tensor:
        """Count the images of `pixel_label` (S, H, W) with a label that counts."""
        return self.is_counted(pixel_label).flatten(1).any(dim=1).sum()

    def forward(self, *, auxiliary_logits: Tensor, pixel_label: Tensor) -> Tensor:
        """Compute the loss sum from `auxiliary_logits` (S, A, H, W, C) with `pixel_label` (S, H, W)."""
        label = self.check_labels(auxiliary_logits, _repeat(pixel_label, auxiliary_logits)).flatten(0, 1)
        probabilities = promote_to_float32(auxiliary_logits).softmax(dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
        classes = torch.arange(self.num_classes, device=label.device)[:, None, None]
        wanted = (label[:, None] == classes).to(probabilities)
        found = torch.where(self.is_counted(label)[:, None], probabilities, wanted)
        true, predicted = _find_boundaries(wanted), _find_boundaries(found)
        both = (true * predicted).sum(dim=2)
        precision, recall = both / (predicted.sum(dim=2) + _TINY), both / (true.sum(dim=2) + _TINY)
        f1 = 2 * precision * recall / (precision + recall + _TINY)
        return torch.where(true.sum(dim=2) > 0, 1 - f1, 0.0).sum() / self.num_classes


def _find_boundaries(shares: Tensor) -> Tensor:
    """Return by how much each pixel's share exceeds the least around it: (S, C, H, W) -> (S, C, H * W)."""
    return (F.max_pool2d(-shares, _SIZE, stride=1, padding=_SIZE // 2) + shares).flatten(2)


def _repeat(pixel_label: Tensor, auxiliary_logits: Tensor) -> Tensor:
    """Repeat labels (S, H, W) for each head: (S, A, H, W)."""
    return pixel_label[:, None].expand(-1, auxiliary_logits.shape[1], -1, -1)
