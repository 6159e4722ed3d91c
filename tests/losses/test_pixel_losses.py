"""Losses of the pixels of range images, against torch's, loops over pixels, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.scans.losses import PixelBoundary, PixelCrossEntropy, PixelLovasz
from sightline.contract.loss import Loss
from sightline.parts.losses.classification import LovaszSoftmax

HEADS, SCANS, HEIGHT, WIDTH, CLASSES = 2, 2, 4, 5, 4
LOSSES = [kind(num_classes=CLASSES, ignore_index=0) for kind in (PixelCrossEntropy, PixelLovasz, PixelBoundary)]


def inputs(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SCANS, HEADS, HEIGHT, WIDTH, CLASSES, generator=generator, dtype=torch.float64)
    label = torch.randint(0, CLASSES - 1, (SCANS, HEIGHT, WIDTH), generator=generator)
    return {"auxiliary_logits": logits, "pixel_label": label}


def test_cross_entropy_is_that_of_torch() -> None:
    given = inputs()
    loss = PixelCrossEntropy(num_classes=CLASSES, ignore_index=0)
    label = given["pixel_label"][:, None].expand(-1, HEADS, -1, -1)
    expected = F.cross_entropy(
        given["auxiliary_logits"].flatten(0, 3), label.flatten(), ignore_index=0, reduction="sum"
    )
    assert torch.allclose(loss(**given), expected)
    assert loss.count(pixel_label=given["pixel_label"]) == (given["pixel_label"] != 0).sum()


def test_lovasz_is_that_of_each_head() -> None:
    given = inputs()
    plain = LovaszSoftmax(num_classes=CLASSES, ignore_index=0)
    expected = sum(plain(logits=logits, label=given["pixel_label"]) for logits in given["auxiliary_logits"].unbind(1))
    assert torch.allclose(PixelLovasz(num_classes=CLASSES, ignore_index=0)(**given), torch.as_tensor(expected))


def lower_around(image: Tensor) -> Tensor:
    """By how much each pixel (H, W) exceeds the least of its neighbours."""
    found = torch.zeros_like(image)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            around = image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            found[row, column] = image[row, column] - around.min()
    return found


def test_boundaries_are_those_of_a_loop() -> None:
    given, total = inputs(), 0.0
    for logits in given["auxiliary_logits"].unbind(1):
        for scan, label in zip(logits.softmax(dim=-1), given["pixel_label"], strict=True):
            for kind in range(CLASSES):
                wanted = (label == kind).double()
                true = lower_around(wanted)
                predicted = lower_around(torch.where(label == 0, wanted, scan[..., kind]))
                if true.sum() > 0:
                    both = (true * predicted).sum()
                    precision, recall = both / predicted.sum(), both / true.sum()
                    total += float(1 - 2 * precision * recall / (precision + recall)) / CLASSES
    loss = PixelBoundary(num_classes=CLASSES, ignore_index=0)
    assert float(loss(**given)) == pytest.approx(total, abs=1e-5)  # the authors' 1e-7 is added to each divisor
    assert loss.count(pixel_label=given["pixel_label"]) == SCANS


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_gradients_are_differences_and_ignored_pixels_have_none(loss: Loss) -> None:
    given = inputs(1)
    logits, label = given["auxiliary_logits"].requires_grad_(), given["pixel_label"]
    assert torch.autograd.gradcheck(lambda values: loss(auxiliary_logits=values, pixel_label=label), logits)
    (gradient,) = torch.autograd.grad(loss(**given), logits)
    is_ignored = (label == 0)[:, None].expand(-1, HEADS, -1, -1)
    assert gradient[is_ignored].abs().max() < 1e-12
    assert gradient[~is_ignored].abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_perfect_images_cost_nothing_and_empty_ones_neither(loss: Loss) -> None:
    given = inputs(2)
    perfect = 60 * F.one_hot(given["pixel_label"], CLASSES).double()[:, None].expand(-1, HEADS, -1, -1, -1)
    assert float(loss(auxiliary_logits=perfect, pixel_label=given["pixel_label"])) < 1e-5
    logits = given["auxiliary_logits"].requires_grad_()
    nothing = torch.zeros_like(given["pixel_label"])
    total = loss(auxiliary_logits=logits, pixel_label=nothing)
    assert float(total.detach()) == float(loss.count(pixel_label=nothing)) == 0
    assert not torch.autograd.grad(total, logits)[0].any()
