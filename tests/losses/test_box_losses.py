"""Terms of the losses of detection: published and hand-worked values, sums, gradients, nothing to count."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.detect.losses import earth_mover, overlap_loss, sigmoid_bce, sigmoid_focal, smooth_l1
from sightline.ops.boxes.overlaps import OVERLAPS
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.ops.boxes.crowds import aligned_pairs

# --- values -----------------------------------------------------------------------------------------------------------


@run_each("case", range(8))
def test_focal_is_the_published_one(shared: Path, case: int) -> None:
    golden = load_golden(shared, "classification_regression_losses", area="detect")
    info = golden.info["focal_cases"][case]
    logits, is_target = golden.tensor(f"focal{case}/logits").requires_grad_(), golden.tensor(f"focal{case}/target") == 1
    arguments = {"alpha": info["alpha"] if info["alpha"] >= 0 else None, "gamma": info["gamma"]}
    entries = torch.stack(
        [sigmoid_focal(*pair, **arguments).detach() for pair in zip(logits.flatten(), is_target.flatten(), strict=True)]
    )
    published = golden.tensor(f"focal{case}/loss").double().flatten()
    assert (entries - published).abs().max() <= 1e-6 * published.max(), "theirs is float32"
    total = sigmoid_focal(logits, is_target, **arguments)
    assert float(total.detach()) == pytest.approx(float(entries.sum()), rel=1e-13)
    (gradient,) = torch.autograd.grad(total, logits)
    expected = golden.tensor(f"focal{case}/grad")
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


@run_each(
    "changed, message",
    [
        ({"alpha": -1.0}, "sigmoid_focal: alpha: found -1.0, allowed is a number from 0 to 1 or null"),
        ({"alpha": 1.5}, "sigmoid_focal: alpha: found 1.5"),
        ({"gamma": -0.5}, "sigmoid_focal: gamma: found -0.5, allowed is a number, at least 0"),
        ({"gamma": math.nan}, "sigmoid_focal: gamma: found nan"),
        ({"is_target": torch.ones(3)}, r"is_target: found torch\.float32, expected torch\.bool; give target == 1"),
        ({"is_target": torch.ones(3, dtype=torch.uint8)}, r"is_target: found torch\.uint8"),
    ],
)
def test_arguments_of_focal_that_mean_something_else_are_refused(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": torch.zeros(3), "is_target": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        sigmoid_focal(**arguments | changed)


def test_smooth_l1_is_the_published_one(shared: Path) -> None:
    golden = load_golden(shared, "classification_regression_losses", area="detect")
    cases = [key for key in golden.arrays if key.startswith("smooth") and key.endswith("/beta")]
    assert len(cases) >= 3
    for key in cases:
        name, beta = key.partition("/")[0], float(golden.arrays[key])
        predicted = golden.tensor(f"{name}/pred").requires_grad_()
        found = smooth_l1(predicted, golden.tensor(f"{name}/target"), beta=beta)
        assert float(found.detach()) == pytest.approx(float(golden.arrays[f"{name}/loss"].sum()), rel=1e-12)
        (gradient,) = torch.autograd.grad(found, predicted)
        assert (gradient - golden.tensor(f"{name}/grad")).abs().max() < 1e-12


def test_overlap_losses_are_the_published_ones(shared: Path) -> None:
    """YOLOX takes centres and sizes, and adds 1e-16 to the union; equal, touching and nested pairs have no gradient."""
    golden = load_golden(shared, "iou_family", area="detect")
    a, b = golden.tensor("a"), golden.tensor("b")
    for overlap, form, name in (("iou", "square", "iou"), ("giou", "linear", "giou")):
        middles = torch.cat([(a[:, :2] + a[:, 2:]) / 2, a[:, 2:] - a[:, :2]], dim=1).requires_grad_()
        half = middles[:, 2:] / 2
        boxes = torch.cat([middles[:, :2] - half, middles[:, :2] + half], dim=1)
        found = overlap_loss(boxes, b, overlap=overlap, form=form)  # type: ignore[arg-type]
        published = golden.tensor(f"yolox/{name}_loss_cxcywh")
        assert float(found.detach()) == pytest.approx(float(published.sum()), rel=1e-9)
        (gradient,) = torch.autograd.grad(found, middles)
        off = (gradient - golden.tensor(f"yolox/{name}_loss_grad_cxcywh")).abs().amax(dim=1)
        off[[40, 43, 44]] = 0
        assert off.max() < 1e-9


@pytest.mark.parametrize("case", range(4))
def test_earth_mover_is_that_of_crowddet(shared: Path, case: int) -> None:
    """Of one class; theirs takes probabilities, and labels of 1 for it, 0 for background, -1 for ignored."""
    golden = load_golden(shared, "classification_regression_losses", area="detect")
    stored = {
        name: golden.tensor(f"emd_focal{case}/{name}")
        for name in ("box0", "box1", "prob0", "prob1", "targets", "labels", "loss_01", "loss_10", "loss_min")
    }
    probabilities = torch.stack([stored["prob0"], stored["prob1"]], dim=1).requires_grad_()
    codes = torch.stack([stored["box0"], stored["box1"]], dim=1).requires_grad_()

    def found(rows: slice, order: list[int]) -> Tensor:
        labels = stored["labels"][rows][:, order]
        return earth_mover(
            probabilities[rows].logit(),
            codes[rows],
            is_target=(labels == 1)[..., None],
            true_codes=stored["targets"].unflatten(1, (2, 4))[rows][:, order],
            is_counted=labels >= 0,
            has_box=labels >= 1,
        )

    each = [slice(row, row + 1) for row in range(len(codes))]
    losses = torch.stack([found(rows, [0, 1]) for rows in each])
    assert (losses - stored["loss_min"]).abs().max() <= 1e-12 * stored["loss_min"].max()
    assert torch.equal(torch.minimum(stored["loss_01"], stored["loss_10"])[:, 0], stored["loss_min"])
    assert torch.equal(torch.stack([found(rows, [1, 0]) for rows in each]), losses), "the order of targets is free"
    total = found(slice(None), [0, 1])
    assert float(total.detach()) == pytest.approx(float(losses.detach().sum()), rel=1e-13)
    gradients = torch.autograd.grad(total, (probabilities, codes))
    for name, gradient in zip(("prob", "box"), gradients, strict=True):
        expected = torch.stack([golden.tensor(f"emd_focal{case}/grad_{name}{place}") for place in (0, 1)], dim=1)
        assert (gradient - expected).abs().max() <= 1e-12 * expected.abs().max(), name


def test_forms_of_the_overlap_are_those_worked_by_hand() -> None:
    """IoU 1 / 2, and disjoint boxes, of which the logarithm has a bound and no gradient."""
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 8]])
    forms = ("linear", "log", "square")
    losses = [float(overlap_loss(a, b, overlap="iou", form=form)) for form in forms]  # type: ignore[arg-type]
    assert losses == pytest.approx([0.5, math.log(2), 0.75])
    far = torch.tensor([[50.0, 50, 60, 60]], requires_grad=True)
    found = overlap_loss(far, b, overlap="iou", form="log")
    assert float(found.detach()) == pytest.approx(-math.log(1e-7))
    assert torch.autograd.grad(found, far)[0].tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match="form: 'log' is of the IoU alone, found overlap 'giou'"):
        overlap_loss(a, b, form="log")


# --- properties -------------------------------------------------------------------------------------------------------

A, B = aligned_pairs(6)
LOGITS = torch.linspace(-3, 3, 6, dtype=torch.float64)
TERMS: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
    "focal": (sigmoid_focal, LOGITS, torch.arange(6) % 2 == 0),
    "focal_of_odd_gamma": (lambda *pair, **kw: sigmoid_focal(*pair, gamma=0.5, alpha=None, **kw), LOGITS, LOGITS > 1),
    "smooth_l1": (lambda *pair, **kw: smooth_l1(*pair, beta=1 / 9, **kw), LOGITS, torch.linspace(0.1, 1, 6)),
    "l1": (lambda *pair, **kw: smooth_l1(*pair, beta=0.0, **kw), LOGITS, torch.linspace(0.1, 1, 6)),
    "centreness": (sigmoid_bce, LOGITS, torch.linspace(0, 1, 6)),
    **{
        name: (lambda *pair, name=name, **kw: overlap_loss(*pair, overlap=name, **kw), A, B)
        for name in OVERLAPS
        if name != "ciou"  # its factor has no gradient: see the overlaps
    },
    "log_iou": (lambda *pair, **kw: overlap_loss(*pair, overlap="iou", form="log", **kw), A, B),
    "square_iou": (lambda *pair, **kw: overlap_loss(*pair, overlap="iou", form="square", **kw), A, B),
}
each_term = pytest.mark.parametrize("name", TERMS)


@each_term
def test_gradients_of_terms_are_those_of_finite_differences(name: str) -> None:
    term, given, target = TERMS[name]
    weight = torch.linspace(0, 2, 6, dtype=torch.float64)
    given = given.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: term(each, target, weight=weight), (given,))


@each_term
def test_sums_are_over_items_times_their_weights(name: str) -> None:
    term, given, target = TERMS[name]
    weight = torch.tensor([0.0, 1, 0, 2, 0, 0], dtype=torch.float64)
    expected = term(given[1], target[1]) + 2 * term(given[3], target[3])
    assert float(term(given, target, weight=weight)) == pytest.approx(float(expected), rel=1e-12)
    halves = term(given[:2], target[:2]) + term(given[2:], target[2:])
    assert float(term(given, target)) == pytest.approx(float(halves), rel=1e-12)


@each_term
def test_nothing_gives_nothing_and_inputs_stay(name: str) -> None:
    term, given, target = TERMS[name]
    none = given[:0].clone().requires_grad_()
    loss = term(none, target[:0])
    loss.backward()
    assert float(loss.detach()) == 0
    assert none.grad is not None
    kept, wanted = given.clone().requires_grad_(), target.clone()
    with torch.autograd.set_detect_anomaly(True):
        term(kept * 1, wanted).backward()
    assert torch.equal(kept, given)
    assert torch.equal(wanted, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_are_finite_in_half_precision(dtype: torch.dtype) -> None:
    logits = torch.tensor([-50.0, 50, -50, 50], dtype=dtype, requires_grad=True)
    truth = torch.tensor([0.0, 0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # wrong by 50 twice: focal weighs the target by 1 / 4, the other by 3 / 4
        for loss, expected in ((sigmoid_focal(logits, truth == 1), 50), (sigmoid_bce(logits, truth.to(dtype)), 100)):
            assert loss.dtype == torch.float32
            (gradient,) = torch.autograd.grad(loss, logits)
            assert gradient.isfinite().all()
            assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    boxes = (1000 * A).to(dtype).requires_grad_()
    for name in OVERLAPS:
        loss = overlap_loss(boxes, (1000 * B).to(dtype), overlap=name)  # type: ignore[arg-type]
        assert loss.dtype == torch.float32
        assert torch.autograd.grad(loss, boxes)[0].isfinite().all()
