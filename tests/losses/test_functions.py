"""Losses as functions with the names of torchvision and of Lovász's authors: definitions, reductions, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    lovasz_softmax,
    sigmoid_focal_loss,
)
from tests.cases import run_each
from tests.ops.boxes.crowds import aligned_pairs

LOGITS = torch.linspace(-4, 4, 12, dtype=torch.float64).view(3, 4)
SOFT = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4).flip(0)
BOX_LOSSES = (generalized_box_iou_loss, distance_box_iou_loss, complete_box_iou_loss)


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


def test_overlap_losses_are_those_worked_by_hand() -> None:
    """The overlaps of these pairs are in the tests of overlaps."""
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])
    b = torch.tensor([[5.0, 5, 15, 15], [0, 0, 20, 10]])
    for loss, expected in zip(
        BOX_LOSSES, ((-0.079365, 0.083333), (0.031746, 0.270833), (0.031746, 0.237082)), strict=True
    ):
        assert loss(a, b).tolist() == pytest.approx([1 - value for value in expected], abs=1e-6)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
    "focal": (sigmoid_focal_loss, LOGITS, SOFT),
    "focal_of_odd_gamma": (lambda *pair, **kw: sigmoid_focal_loss(*pair, gamma=0.5, **kw), LOGITS, SOFT),
    "giou": (generalized_box_iou_loss, *aligned_pairs(6)),
    "diou": (distance_box_iou_loss, *aligned_pairs(6)),
}
"""Of the CIoU, the penalty's factor has no gradient."""


@run_each("name", FUNCTIONS)
def test_losses_reduce_compile_and_have_gradients(name: str) -> None:
    function, given, target = FUNCTIONS[name]
    each = function(given, target)
    assert float(function(given, target, reduction="sum")) == pytest.approx(float(each.sum()), rel=1e-14)
    assert float(function(given, target, reduction="mean")) == pytest.approx(float(each.mean()), rel=1e-14)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(given, target), each)
    given = given.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: function(given, target, reduction="mean"), (given,))
    nothing = function(given[:0], target[:0], reduction="mean")
    assert torch.autograd.grad(nothing, given)[0].abs().max() == nothing == 0
    assert function(given.detach().bfloat16(), target.bfloat16()).dtype == torch.float32


def test_gradients_of_soft_focal_are_finite_at_the_target() -> None:
    logits = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0, 0.5]), gamma=0.5, reduction="sum")
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all", [0, 3]])
def test_lovasz_of_whole_predictions_is_one_minus_the_iou(classes: Any, per_image: bool) -> None:
    """At the corners its extension is the loss itself (Berman et al. 2018, section 2): counted here in NumPy."""
    random = np.random.default_rng(1)
    labels, predicted = random.integers(0, 3, (2, 2, 5, 6))  # class 3 occurs nowhere
    labels[0, 0, :3] = 9
    probas = torch.from_numpy(np.eye(4)[predicted]).permute(0, 3, 1, 2)

    def loss(label: np.ndarray, found: np.ndarray) -> float:
        label, found = label[label != 9], found[label != 9]
        chosen = {"present": np.unique(label), "all": range(4)}.get(str(classes), classes)
        each = []
        for number in chosen:
            union = ((label == number) | (found == number)).sum()
            each.append(1 - ((label == number) & (found == number)).sum() / union if union else 0.0)
        return float(np.mean(each))

    expected = (
        np.mean([loss(*pair) for pair in zip(labels, predicted, strict=True)]) if per_image else loss(labels, predicted)
    )
    found = lovasz_softmax(probas, torch.from_numpy(labels), classes=classes, per_image=per_image, ignore=9)
    assert float(found) == pytest.approx(float(expected), abs=1e-14)


def test_lovasz_has_gradients_and_compiles_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4), generator=generator)

    def loss(logits: Tensor) -> Tensor:
        return lovasz_softmax(logits.softmax(dim=1), labels, per_image=True)

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.equal(torch.compile(loss, fullgraph=True, backend="eager")(logits), loss(logits))
    assert float(lovasz_softmax(logits.detach()[:, :, :0], labels[:, :0])) == 0


BOXES = torch.rand(3, 4)


@run_each(
    "call, message",
    [
        (lambda: sigmoid_focal_loss(LOGITS, SOFT[0]), r"found the shapes \(3, 4\) and \(4,\), expected equal ones"),
        (
            lambda: sigmoid_focal_loss(LOGITS, SOFT, alpha=1.5),
            "alpha: found 1.5, allowed is a number from 0 to 1, or -1",
        ),
        (lambda: sigmoid_focal_loss(LOGITS, SOFT, gamma=-1.0), "gamma: found -1.0, allowed is a number, at least 0"),
        (
            lambda: sigmoid_focal_loss(LOGITS, SOFT, reduction="batchmean"),
            "reduction: found 'batchmean', expected none",
        ),  # type: ignore[arg-type]
        (
            lambda: generalized_box_iou_loss(BOXES, BOXES[:2]),
            r"boxes2: found the shape \(2, 4\), expected that of boxes1",
        ),
        (lambda: complete_box_iou_loss(torch.rand(3, 5), BOXES), r"boxes1: found the shape \(3, 5\), expected"),
        (
            lambda: lovasz_softmax(LOGITS, torch.zeros(4).long()),
            r"found the shapes \(3, 4\) and \(4,\), expected \(B, C",
        ),
        (lambda: lovasz_softmax(LOGITS, torch.zeros(3)), r"labels: found torch\.float32, expected whole numbers"),
    ],
)
def test_arguments_that_mean_something_else_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
