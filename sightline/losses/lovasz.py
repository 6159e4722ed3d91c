"""Lovász-softmax loss: the Lovász extension of the Jaccard loss, a differentiable surrogate of the mean IoU."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline import registry
from sightline.losses.class_weights import ClassLoss

__all__ = ["LovaszSoftmax", "lovasz_of_image"]


@registry.losses.add("lovasz_softmax")
class LovaszSoftmax(ClassLoss):
    """Lovász-softmax loss: the sum over images of the mean, over the labels' classes, of the extension of 1 - IoU.

    It is 0 to 1. An image is a row of the batch, for packed points a cloud. Images with a label that is not ignored
    count; one without gives a loss and gradients of 0. From random weights it learns worse alone than combined with
    cross entropy. Source: Berman et al. 2018, equations 8 and 9, algorithm 1.
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
        self.assert_shapes(logits, label)
        total = logits[:0].sum()  # 0, with a gradient of 0 where nothing counts
        for image, labels in zip(_images(logits, label, offsets), _images(label, label, offsets), strict=True):
            is_counted = self.is_counted(labels).flatten()
            chosen = image.reshape(-1, self.num_classes)[is_counted]
            probabilities = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).softmax(dim=1)
            total = total + lovasz_of_image(probabilities, labels.flatten()[is_counted])
        return total


def lovasz_of_image(probabilities: Tensor, label: Tensor) -> Tensor:
    """Compute the mean Lovász loss over the classes of `label` (P,), for `probabilities` (P, C); 0 for no pixels."""
    if not len(label):
        return probabilities.sum()
    losses = []
    for number in label.unique():
        is_class = (label == number).to(probabilities.dtype)
        errors = (is_class - probabilities[:, number]).abs()
        ordered, order = errors.sort(descending=True, stable=True)
        losses.append(ordered @ _jaccard_gradient(is_class[order]))
    return torch.stack(losses).mean()


def _jaccard_gradient(is_class: Tensor) -> Tensor:
    """Return the increase of 1 - IoU with each further error (P,), errors in falling order. Source: algorithm 1."""
    intersection = is_class.sum() - is_class.cumsum(0)
    union = is_class.sum() + (1 - is_class).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def _images(values: Tensor, label: Tensor, offsets: Tensor | None) -> list[Tensor]:
    """Split values into the rows of a batch, or into clouds if the labels are packed."""
    if label.ndim > 1:
        return list(values)
    if offsets is None:
        raise ValueError(
            f"label: found the shape {tuple(label.shape)} and no offsets; expected images or joined clouds"
        )
    return list(values.split(offsets.diff().tolist()))
