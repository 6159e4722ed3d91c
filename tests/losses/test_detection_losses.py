"""The losses of detection as configs name them: slow sums over priors, gradients, what is ignored, nothing to count."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.detect.losses import (
    BoxIouBce,
    BoxOverlap,
    BoxSmoothL1,
    CentreNess,
    ClassBCE,
    EarthMover,
    Objectness,
    SigmoidFocal,
)
from sightline.contract.loss import Loss
from sightline.ops.boxes.codes import encode_deltas, encode_distances
from sightline.ops.boxes.priors import BACKGROUND, IGNORED
from tests.cases import run_each

TARGET = torch.tensor([[0, BACKGROUND, 2, IGNORED, 1], [BACKGROUND, 1, IGNORED, BACKGROUND, 0]])
POINTS = torch.tensor([[8.0, 8], [24, 8], [8, 24], [24, 24], [40, 8]], dtype=torch.float64)
ANCHORS = torch.cat([POINTS - torch.tensor([6.0, 9]), POINTS + torch.tensor([6.0, 9])], dim=1)


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def given(priors: Tensor) -> dict[str, Tensor]:
    """Two images of five priors: some with a box about them, some background, some ignored."""
    boxes = torch.cat([POINTS - 2 - 9 * drawn(2, 5, 2), POINTS + 2 + 7 * drawn(2, 5, 2)], dim=2)
    codes = encode_deltas(priors, boxes) if priors.shape[1] == 4 else encode_distances(priors, boxes)
    codes = codes * (0.7 + 0.5 * drawn(2, 5, 4))
    return {
        "logits": 4 * drawn(2, 5, 3) - 2,
        "codes": codes,
        "centreness": 2 * drawn(2, 5) - 1,
        "objectness": 3 * drawn(2, 5) - 1,
        "priors": priors,
        "prior_stride": torch.full((5,), 16.0, dtype=torch.float64),
        "target": TARGET,
        "matched_boxes": torch.where(TARGET[..., None] >= 0, boxes, 0),
    }


LOSSES: dict[str, tuple[Callable[[], Loss], str, tuple[str, ...], Tensor]] = {
    "focal": (SigmoidFocal, "logits", ("target",), ANCHORS),
    "smooth_l1": (BoxSmoothL1, "codes", ("priors", "target", "matched_boxes"), ANCHORS),
    "l1_of_points": (
        lambda: BoxSmoothL1(beta=0.0),
        "codes",
        ("priors", "prior_stride", "target", "matched_boxes"),
        POINTS,
    ),
    "class": (ClassBCE, "logits", ("codes", "priors", "target", "matched_boxes"), ANCHORS),
    "class_iou": (lambda: ClassBCE(quality="iou"), "logits", ("codes", "priors", "target", "matched_boxes"), POINTS),
    "objectness": (Objectness, "objectness", ("target",), POINTS),
    "l1": (lambda: BoxSmoothL1(beta=0.0), "codes", ("priors", "target", "matched_boxes"), ANCHORS),
    **{
        f"{overlap}_{weigh}_{kind}": (
            lambda overlap=overlap, weigh=weigh: BoxOverlap(overlap=overlap, weigh=weigh),  # type: ignore[misc]
            "codes",
            ("priors", "target", "matched_boxes"),
            priors,
        )
        for overlap in ("iou", "giou", "diou", "siou")
        for weigh, kind, priors in (("none", "anchors", ANCHORS), ("centreness", "points", POINTS))
    },
    "centreness": (CentreNess, "centreness", ("priors", "target", "matched_boxes"), POINTS),
    "centreness_of_anchors": (CentreNess, "centreness", ("priors", "target", "matched_boxes"), ANCHORS),
    "iou_of_points": (BoxIouBce, "centreness", ("codes", "priors", "target", "matched_boxes"), POINTS),
    "iou_of_anchors": (BoxIouBce, "centreness", ("codes", "priors", "target", "matched_boxes"), ANCHORS),
}
OVER_ALL = frozenset({"focal", "objectness"})
"""Those that background counts in."""
each_loss = pytest.mark.parametrize("name", LOSSES)


def called(name: str, **changed: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a loss, and what it is divided by."""
    make, output, others, priors = LOSSES[name]
    values = given(priors) | changed
    loss = make()
    arguments: dict[str, Any] = {key: values[key] for key in (output, *others)}
    counted: dict[str, Any] = {"target": values["target"]}
    if isinstance(loss, BoxOverlap):
        counted |= {"priors": values["priors"], "matched_boxes": values["matched_boxes"]}
    return loss(**arguments), loss.count(**counted)


@each_loss
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    _, output, _, priors = LOSSES[name]
    values = given(priors)[output].requires_grad_()
    assert torch.autograd.gradcheck(lambda each: called(name, **{output: each})[0], (values,))


@each_loss
def test_without_priors_a_loss_is_zero(name: str) -> None:
    """An image may be smaller than the stride."""
    make, output, others, priors = LOSSES[name]
    values = {
        key: value[:, :0] if value.ndim > 1 and len(value) == 2 else value[:0] for key, value in given(priors).items()
    }
    loss, inputs = make(), {key: values[key] for key in (output, *others)}
    inputs[output] = inputs[output].detach().requires_grad_()
    total = loss(**inputs)
    total.backward()
    assert float(total.detach()) == 0
    assert inputs[output].grad is not None


@run_each("name, dtype", itertools.product(LOSSES, (torch.int8, torch.int16, torch.int32)))
def test_targets_of_few_bits_give_the_loss_of_int64(name: str, dtype: torch.dtype) -> None:
    for narrow, wide in zip(called(name, target=TARGET.to(dtype)), called(name), strict=True):
        assert torch.equal(narrow, wide)


@each_loss
def test_priors_that_do_not_count_have_no_gradient(name: str) -> None:
    """The ignored in none of them; background in the classes alone."""
    _, output, _, priors = LOSSES[name]
    values = given(priors)[output].requires_grad_()
    (gradient,) = torch.autograd.grad(called(name, **{output: values})[0], values)
    moved = gradient.flatten(2).abs().sum(dim=2) > 0 if gradient.ndim == 3 else gradient != 0
    assert torch.equal(moved, TARGET != IGNORED if name in OVER_ALL else TARGET >= 0)


@each_loss
@pytest.mark.parametrize("target", [BACKGROUND, IGNORED])
def test_without_a_box_it_is_finite(name: str, target: int) -> None:
    """Nothing to learn but background, or nothing at all: no NaN, and zero where nothing counts."""
    _, output, _, priors = LOSSES[name]
    values = given(priors)[output].requires_grad_()
    found, count = called(name, **{output: values, "target": torch.full_like(TARGET, target)})
    (gradient,) = torch.autograd.grad(found, values)
    assert gradient.isfinite().all()
    assert float(count) == 0
    is_nothing = target == IGNORED or name not in OVER_ALL
    assert (float(found.detach()) == 0) == is_nothing
    assert (not gradient.any()) == is_nothing


def test_sums_and_counts_are_those_of_slow_loops() -> None:
    anchors, points = given(ANCHORS), given(POINTS)
    focal = smooth = entropy = weights = 0.0
    for image, prior in [(image, prior) for image in range(2) for prior in range(5)]:
        target = int(TARGET[image, prior])
        if target == IGNORED:
            continue
        for label, logit in enumerate(anchors["logits"][image, prior].tolist()):
            p = 1 / (1 + math.exp(-logit))
            focal -= 0.25 * (1 - p) ** 2 * math.log(p) if label == target else 0.75 * p**2 * math.log(1 - p)
        if target == BACKGROUND:
            continue
        x1, y1, x2, y2 = anchors["matched_boxes"][image, prior].tolist()
        x, y = POINTS[prior].tolist()
        true = [((x1 + x2) / 2 - x) / 12, ((y1 + y2) / 2 - y) / 18, math.log((x2 - x1) / 12), math.log((y2 - y1) / 18)]
        for code, wanted in zip(anchors["codes"][image, prior].tolist(), true, strict=True):
            off = abs(code - wanted)
            smooth += 4.5 * off**2 if off < 1 / 9 else off - 1 / 18
        near = [sorted(pair) for pair in ((x - x1, x2 - x), (y - y1, y2 - y))]
        centre = math.sqrt(near[0][0] / near[0][1] * near[1][0] / near[1][1])
        p = 1 / (1 + math.exp(-float(points["centreness"][image, prior])))
        entropy -= centre * math.log(p) + (1 - centre) * math.log(1 - p)
        weights += centre
    positives = int((TARGET >= 0).sum())
    for name, total, count in (
        ("focal", focal, positives),
        ("smooth_l1", smooth, positives),
        ("centreness", entropy, positives),
        ("centreness_of_anchors", entropy, positives),
    ):
        found = called(name)
        assert float(found[0]) == pytest.approx(total, rel=1e-12)
        assert int(found[1]) == count
    assert float(called("giou_centreness_points")[1]) == pytest.approx(weights, rel=1e-12)


def shared_part(box: list[float], other: list[float]) -> float:
    """Their IoU."""
    sides = [max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in range(2)]
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def test_losses_of_objectness_and_quality_are_those_of_slow_loops() -> None:
    """Codes of points are left, top, right and bottom; the L1 is of shifts in strides of 16 and of logarithms."""
    values = given(POINTS)
    totals = dict.fromkeys(("class", "class_iou", "objectness", "l1_of_points"), 0.0)
    for image, prior in [(image, prior) for image in range(2) for prior in range(5)]:
        target = int(TARGET[image, prior])
        if target == IGNORED:
            continue
        p = 1 / (1 + math.exp(-float(values["objectness"][image, prior])))
        totals["objectness"] -= math.log(p if target >= 0 else 1 - p)
        (x, y), (left, top, right, bottom) = POINTS[prior].tolist(), values["codes"][image, prior].tolist()
        box, true = [x - left, y - top, x + right, y + bottom], values["matched_boxes"][image, prior].tolist()
        quality = shared_part(box, true) if target >= 0 else 0.0
        for label, logit in enumerate(values["logits"][image, prior].tolist()):
            p, wanted = 1 / (1 + math.exp(-logit)), quality * (label == target)
            entropy = -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)
            if target >= 0:
                totals["class_iou"] += entropy
                totals["class"] -= math.log(p if label == target else 1 - p)
        if target >= 0:
            numbers = [
                [(b[0] + b[2]) / 32, (b[1] + b[3]) / 32, math.log(b[2] - b[0]), math.log(b[3] - b[1])]
                for b in (box, true)
            ]
            totals["l1_of_points"] += sum(abs(one - other) for one, other in zip(*numbers, strict=True))
    for name, total in totals.items():
        found, count = called(name, priors=POINTS, codes=values["codes"])
        assert float(found) == pytest.approx(total, rel=1e-12), name
        assert int(count) == int((TARGET >= 0).sum())


def pairs() -> dict[str, Tensor]:
    """Two predictions at each of the ten priors; second boxes of all kinds beside the first ones."""
    values = given(ANCHORS)
    boxes = values["matched_boxes"][TARGET >= 0]
    second = torch.tensor([[1, BACKGROUND, IGNORED, IGNORED, BACKGROUND], [IGNORED, 0, IGNORED, BACKGROUND, 4]])
    codes = torch.stack([values["codes"], values["codes"].flip(1) * 0.8], dim=2)
    return {
        **{name: values[name] for name in ("priors", "target", "matched_boxes")},
        "logits": 4 * drawn(2, 5, 2, 3) - 2,
        "codes": codes,
        "second_match": second,
        "boxes": boxes,
        "label": torch.tensor([0, 2, 1, 1, 0]),
    }


def test_the_loss_of_pairs_is_that_of_a_slow_loop_over_orders() -> None:
    values, total = pairs(), 0.0
    for image, prior in [(image, prior) for image in range(2) for prior in range(5)]:
        second = int(values["second_match"][image, prior])
        targets = [
            (int(TARGET[image, prior]), values["matched_boxes"][image, prior]),
            (second, None) if second < 0 else (int(values["label"][second]), values["boxes"][second]),
        ]
        costs = []
        for order in ([0, 1], [1, 0]):
            cost = 0.0
            for place, (target, box) in zip(order, targets, strict=True):
                if target == IGNORED:
                    continue
                for label, logit in enumerate(values["logits"][image, prior, place].tolist()):
                    p = 1 / (1 + math.exp(-logit))
                    is_it = label == target
                    cost -= 0.25 * (1 - p) ** 2 * math.log(p) if is_it else 0.75 * p**2 * math.log(1 - p)
                if target >= 0:
                    assert box is not None
                    off = (values["codes"][image, prior, place] - encode_deltas(ANCHORS[prior], box)).abs().tolist()
                    cost += sum(5 * each**2 if each < 0.1 else each - 0.05 for each in off)
            costs.append(cost)
        total += min(costs)
    loss = EarthMover()
    assert float(loss(**values)) == pytest.approx(total, rel=1e-12)
    assert int(loss.count(target=TARGET)) == int((TARGET >= 0).sum())
    for name in ("logits", "codes"):
        free = values[name].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda each, name=name: loss(**{**values, name: each}), (free,))
    swapped = {**values, "logits": values["logits"].flip(2), "codes": values["codes"].flip(2)}
    assert float(loss(**swapped)) == pytest.approx(total, rel=1e-12), "predictions have no order"


def test_pairs_without_any_box_are_background_twice() -> None:
    values = pairs()
    none = torch.full_like(TARGET, BACKGROUND)
    values |= {"target": none, "second_match": none, "boxes": values["boxes"][:0], "label": values["label"][:0]}
    logits = values["logits"].requires_grad_()
    found = EarthMover()(**values)
    expected = SigmoidFocal()(logits=logits.flatten(1, 2), target=none.repeat_interleave(2, dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_gradient_of_ciou_is_that_of_a_constant_factor() -> None:
    """Differences of the overlap in which the factor of the ratios stays that of the place itself."""
    values = given(ANCHORS)
    codes = values["codes"].requires_grad_()
    others = {key: values[key] for key in ("priors", "target", "matched_boxes")}
    (gradient,) = torch.autograd.grad(BoxOverlap(overlap="ciou")(codes=codes, **others), codes)
    for image, prior in (TARGET >= 0).nonzero().tolist():
        box = values["matched_boxes"][image, prior]

        def parts(code: Tensor, prior: int = prior, box: Tensor = box) -> tuple[Tensor, Tensor, Tensor]:
            """IoU, its penalty for the distance, and for the ratios without their factor."""
            size = torch.tensor([12.0, 18], dtype=torch.float64)
            centre, own = POINTS[prior] + code[:2] * size, size * code[2:].exp()
            low, high, wanted = centre - own / 2, centre + own / 2, box[2:] - box[:2]
            shared = (torch.minimum(high, box[2:]) - torch.maximum(low, box[:2])).clamp(min=0).prod()
            outer = torch.maximum(high, box[2:]) - torch.minimum(low, box[:2])
            apart = (centre - (box[:2] + box[2:]) / 2).square().sum() / outer.square().sum()
            ratio = 4 / math.pi**2 * (torch.atan(wanted[0] / wanted[1]) - torch.atan(own[0] / own[1])) ** 2
            return shared / (own.prod() + wanted.prod() - shared), apart, ratio

        here = codes[image, prior].detach()
        iou, _, ratio = parts(here)
        factor = ratio / (1 - iou + ratio)
        for place, step in enumerate(1e-6 * torch.eye(4, dtype=torch.float64)):
            up, down = (parts(here + sign * step) for sign in (1, -1))
            change = [high - low for high, low in zip(up, down, strict=True)]
            expected = -(change[0] - change[1] - factor * change[2]) / 2e-6
            assert float(gradient[image, prior, place]) == pytest.approx(float(expected), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("form", ["log", "square"])
def test_forms_of_the_iou_alone_are_refused_before_a_step(form: Any) -> None:
    with pytest.raises(ValueError, match=f"form: '{form}' is of the IoU alone, found overlap 'giou'"):
        BoxOverlap(form=form)


def test_deltas_of_points_are_refused_by_name() -> None:
    batch = given(POINTS)
    with pytest.raises(ValueError, match="box_smooth_l1: found points as priors without their strides; take box_o"):
        BoxSmoothL1()(**{name: batch[name] for name in ("codes", "priors", "target", "matched_boxes")})


def test_the_iou_branch_learns_the_overlap() -> None:
    """By hand: a box that covers a half of its own has the IoU 1/2, and the cross entropy of the logit 0 is log 2."""
    priors, target = torch.tensor([[8.0, 8]]), torch.tensor([[0]])
    boxes, codes = torch.tensor([[[0.0, 0, 16, 16]]]), torch.tensor([[[8.0, 8, 8, 0]]]).requires_grad_()
    for logit, expected in ((0.0, math.log(2)), (2.0, math.log1p(math.exp(-2.0)) + 1.0)):
        found = BoxIouBce()(
            centreness=torch.full((1, 1), logit), codes=codes, priors=priors, target=target, matched_boxes=boxes
        )
        assert float(found) == pytest.approx(expected)
        assert not found.requires_grad, "the overlap has no gradient"
