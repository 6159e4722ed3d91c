"""Overlaps of all pairs and losses by the names of torchvision: plain numbers, derivatives, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, vmap

from sightline import ops
from tests.cases import run_each
from tests.ops.boxes.crowds import aligned_pairs

MATRICES = {"g": ops.generalized_box_iou, "d": ops.distance_box_iou, "c": ops.complete_box_iou}
LOSSES = {"g": ops.generalized_box_iou_loss, "d": ops.distance_box_iou_loss, "c": ops.complete_box_iou_loss}


def overlap(kind: str, a: list[float], b: list[float], *, eps: float, area_eps: float) -> float:
    """The definition in plain numbers: `area_eps` is added to the union, `eps` to what else is divided by."""
    sides = [max(0.0, min(a[2 + k], b[2 + k]) - max(a[k], b[k])) for k in (0, 1)]
    hull = [max(a[2 + k], b[2 + k]) - min(a[k], b[k]) for k in (0, 1)]
    inner = sides[0] * sides[1]
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - inner
    iou = inner / (union + area_eps)
    if kind == "g":
        return iou - (hull[0] * hull[1] - union) / (hull[0] * hull[1] + eps)
    apart = sum(((a[k] + a[2 + k]) / 2 - (b[k] + b[2 + k]) / 2) ** 2 for k in (0, 1))
    near = iou - apart / (hull[0] ** 2 + hull[1] ** 2 + eps)
    if kind == "d":
        return near
    shapes = [math.atan2(box[2] - box[0], box[3] - box[1]) for box in (a, b)]
    turn = 4 / math.pi**2 * (shapes[0] - shapes[1]) ** 2
    return near - turn * turn / (1 - iou + turn + eps)


@run_each("kind", MATRICES)
@run_each("eps", [1e-7, 0.5])
def test_all_pairs_and_losses_are_the_definition(kind: str, eps: float) -> None:
    a, b = aligned_pairs(7)
    b[:3] += 30  # apart
    form = {} if kind == "g" else {"eps": eps}
    found = MATRICES[kind](a, b[:5], **form)
    added = 0.0 if kind == "g" else eps
    expected = [[overlap(kind, one, other, eps=added, area_eps=0) for other in b[:5].tolist()] for one in a.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    rows = [1 - overlap(kind, *pair, eps=eps, area_eps=eps) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    losses = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(LOSSES[kind](a, b, eps=eps), losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(LOSSES[kind](a, b, "mean", eps), losses.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(LOSSES[kind](a, b, reduction="sum", eps=eps), losses.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(LOSSES[kind](a[0], b[0], eps=eps), losses[0], rtol=1e-12, atol=1e-12)
    wide = torch.stack([b, b], dim=2)[..., 0]
    assert torch.equal(LOSSES[kind](a, wide, eps=eps), LOSSES[kind](a, b, eps=eps))


@run_each("kind", MATRICES)
def test_they_are_those_of_torchvision(kind: str) -> None:
    peer = pytest.importorskip("torchvision.ops")
    a, b = (each.float() for each in aligned_pairs(20))
    name = MATRICES[kind].__name__
    torch.testing.assert_close(MATRICES[kind](a, b), getattr(peer, name)(a, b))
    a.requires_grad_()
    ours, theirs = LOSSES[kind](a, b), getattr(peer, f"{name}_loss")(a, b)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), a)[0] for each in (ours, theirs)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in its forward derivatives
@run_each("function", [*MATRICES.values(), *LOSSES.values(), ops.box_iou, ops.box_ioa])
def test_derivatives_agree_forward_backward_and_by_rows(function: Callable[..., Tensor]) -> None:
    a, b = aligned_pairs(4)
    forward, backward = jacfwd(function, argnums=(0, 1))(a, b), jacrev(function, argnums=(0, 1))(a, b)
    assert all(each.abs().sum() > 0 for each in forward)
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)
    plain = torch.autograd.functional.jacobian(function, (a, b))
    torch.testing.assert_close(backward, plain, rtol=1e-12, atol=1e-12)
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(function(forward_ad.make_dual(a, torch.ones_like(a)), b)).tangent
    torch.testing.assert_close(moved, forward[0].sum(dim=(-2, -1)), rtol=1e-12, atol=1e-12)
    sets = torch.stack([a, b]), torch.stack([b, a])
    torch.testing.assert_close(vmap(function)(*sets), torch.stack([function(a, b), function(b, a)]))


@run_each("kind", ["g", "d"])  # the factor of `c` has no gradient
def test_losses_have_the_gradients_of_finite_differences(kind: str) -> None:
    a, b = (each.requires_grad_() for each in aligned_pairs(5))
    assert torch.autograd.gradcheck(LOSSES[kind], (a, b))
    assert torch.autograd.gradcheck(MATRICES[kind], (a, b))


@run_each("kind", MATRICES)
@run_each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_boxes_half_precision_and_boxes_without_an_area(kind: str, dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    a, b = (each.to(dtype) for each in aligned_pairs(6))
    assert MATRICES[kind](a[:0], b).shape == (0, 6)
    assert MATRICES[kind](a, b[:0]).shape == (6, 0)
    assert torch.equal(MATRICES[kind](a, b), MATRICES[kind](a.to(wide), b.to(wide)))
    assert torch.equal(LOSSES[kind](a, b), LOSSES[kind](a.to(wide), b.to(wide)))
    none = a[:0].to(wide).requires_grad_()
    for reduction in ("mean", "sum"):
        total = LOSSES[kind](none, b[:0], reduction)
        assert total.item() == 0
        assert torch.autograd.grad(total, none)[0].shape == (0, 4)
    flat = torch.tensor([[1.0, 1, 1, 1], [1, 1, 5, 1], [1, 1, 4, 4]], dtype=wide, requires_grad=True)
    for eps in (0.0, 1e-7):
        found = LOSSES[kind](flat, torch.full((3, 4), 1.0, dtype=wide), "sum", eps)
        assert torch.autograd.grad(found, flat)[0].isfinite().all()
        assert found.isfinite()


@run_each("name", [*LOSSES])
def test_what_is_no_pair_is_refused(name: str) -> None:
    a, b = (each[:3] for each in aligned_pairs())
    loss: Any = LOSSES[name]
    for given, message in (
        ((a, b[:1]), r"boxes1, boxes2: found the shapes \(3, 4\) and \(1, 4\), expected equal ones"),
        ((a, b[:, None]), r"found the shapes \(3, 4\) and \(3, 1, 4\)"),
        ((a, b, "average"), "reduction: found 'average', allowed are 'none', 'mean' and 'sum'"),
        ((a, b, "none", -1.0), "eps: found -1.0, allowed is a number, at least 0"),
        ((a[:, :3], b), r"boxes1: found the shape \(3, 3\)"),
        ((a, b.to("meta")), "boxes2: found on meta, boxes1 on cpu; move one"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*given)
    if name != "g":
        with pytest.raises(ValueError, match=r"eps: found -1\.0"):
            MATRICES[name](a, b, -1.0)


def test_the_reduction_of_the_focal_loss() -> None:
    logits, targets = torch.randn(5, 3), torch.rand(5, 3) > 0.5
    each = ops.sigmoid_focal_loss(logits, targets)
    assert torch.equal(ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0, "mean"), each.mean())
    assert torch.equal(ops.sigmoid_focal_loss(logits, targets, reduction="sum"), each.sum())
    assert ops.sigmoid_focal_loss(logits[:0], targets[:0], reduction="mean") == 0
    with pytest.raises(ValueError, match="reduction: found 'avg'"):
        ops.sigmoid_focal_loss(logits, targets, reduction="avg")  # type: ignore[arg-type]
    peer = pytest.importorskip("torchvision.ops")
    for reduction in ("none", "mean", "sum"):
        expected = peer.sigmoid_focal_loss(logits, targets.float(), reduction=reduction)
        torch.testing.assert_close(ops.sigmoid_focal_loss(logits, targets, reduction=reduction), expected)
