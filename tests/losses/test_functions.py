"""Losses as functions: definitions, gradients, and both forms of the Lovász loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.boxes.focal import lovasz_of_image, masked_lovasz_of_image, sigmoid_focal_loss
from tests.cases import run_each

LOGITS = torch.linspace(-4, 4, 12, dtype=torch.float64).view(3, 4)
SOFT = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4).flip(0)


@run_each("targets", [SOFT, SOFT.round()])
@run_each("alpha, gamma", [(0.25, 2.0), (-1.0, 2.0), (0.6, 0.0), (0.0, 1.5), (1.0, 0.5)])
def test_focal_is_its_definition(targets: Tensor, alpha: float, gamma: float) -> None:
    """In NumPy: soft targets interpolate p_t and alpha_t; bool, float and whole ones of 0 and 1 are the same."""
    x, t = LOGITS.numpy(), targets.numpy()
    p = 1 / (1 + np.exp(-x))
    p_t, alpha_t = p * t + (1 - p) * (1 - t), alpha * t + (1 - alpha) * (1 - t) if alpha >= 0 else 1.0
    expected = -alpha_t * (1 - p_t) ** gamma * (t * np.log(p) + (1 - t) * np.log(1 - p))
    found = sigmoid_focal_loss(LOGITS, targets, alpha=alpha, gamma=gamma)
    assert np.abs(found.numpy() - expected).max() < 1e-13
    if torch.equal(targets, targets.round()):
        for kind in (torch.bool, torch.int64, torch.uint8, torch.float32):
            same = sigmoid_focal_loss(LOGITS, targets.to(kind), alpha=alpha, gamma=gamma)
            assert (same - found).abs().max() < 1e-7 if kind == torch.bool else torch.equal(same, found)


@run_each("gamma", [2.0, 0.5])
def test_focal_compiles_and_has_gradients(gamma: float) -> None:
    def focal(given: Tensor) -> Tensor:
        return sigmoid_focal_loss(given, SOFT.to(given.dtype), gamma=gamma)

    assert torch.equal(torch.compile(focal, fullgraph=True, backend="eager")(LOGITS), focal(LOGITS))
    assert torch.autograd.gradcheck(focal, (LOGITS.clone().requires_grad_(),))
    assert focal(LOGITS.bfloat16()).dtype == torch.float32
    logits = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0, 0.5]), gamma=gamma).sum()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all(), "also at the target"


@run_each(
    "targets, options, message",
    [
        (SOFT[0], {}, r"found the shapes \(3, 4\) and \(4,\), expected equal ones"),
        (SOFT, {"alpha": 1.5}, "alpha: found 1.5, allowed is a number from 0 to 1, or -1"),
        (SOFT, {"gamma": -1.0}, "gamma: found -1.0, allowed is a number, at least 0"),
    ],
)
def test_focal_refuses_what_means_something_else(targets: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(LOGITS, targets, **options)


def test_lovasz_without_a_wait_is_that_of_the_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (30,), generator=generator)  # class 3 occurs nowhere
    is_counted = torch.arange(30) % 5 > 0

    def masked(logits: Tensor) -> Tensor:
        return masked_lovasz_of_image(logits.softmax(dim=1), label, is_counted)

    expected = lovasz_of_image(logits.softmax(dim=1)[is_counted], label[is_counted])
    assert masked(logits).item() == pytest.approx(expected.item(), abs=1e-14)
    assert torch.autograd.gradcheck(masked, (logits,))
    assert torch.equal(torch.compile(masked, fullgraph=True, backend="eager")(logits), masked(logits))
