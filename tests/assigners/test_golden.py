"""Assignments and the losses on them against the numbers of the published code; its conventions are undone here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.assigners.base import BACKGROUND, IGNORED, Assigner
from sightline.assigners.static import ATSS, FCOS, MaxIoU
from sightline.geometry.boxes.overlaps import (
    OVERLAPS,
    box_areas,
    box_sizes,
    centreness,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
    pairwise_iou,
)
from sightline.geometry.boxes.priors import Priors, make_points
from sightline.losses.boxes import overlap_loss, sigmoid_bce, sigmoid_focal
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

PLUS_ONE = torch.tensor([0, 0, 1, 1])
AROUND = torch.tensor([-0.5, -0.5, 0.5, 0.5])
"""The old widths x2 - x1 + 1 as half-open boxes, which keep their centres."""


def case_of(golden: Golden, case: int) -> dict[str, Tensor]:
    prefix = f"case{case:02d}/"
    return {key.removeprefix(prefix): golden.tensor(key) for key in golden.arrays if key.startswith(prefix)}


@functools.cache
def levels(shared: Path) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Maps and strides of the recorded image: a cell for every begun stride of pixels."""
    info = load_golden(shared, "assign_fcos", area="detect").info
    height, width = info["image_hw"]
    return tuple((-(-height // stride), -(-width // stride)) for stride in info["strides"]), tuple(info["strides"])


def anchors(shared: Path, rows: Tensor, per_cell: int) -> Priors:
    maps, strides = levels(shared)
    return Priors("anchors", rows, strides, maps, (per_cell,) * len(strides))


def matched(assigner: Assigner, priors: Priors, boxes: Tensor) -> Tensor:
    return assigner(priors, boxes, torch.zeros(len(boxes), dtype=torch.bool)).matched


def from_labels(labels: Tensor) -> Tensor:
    """0 background, -1 ignored, j + 1 the box j."""
    return torch.where(labels == -1, IGNORED, labels.long() - 1)


# --- MaxIoU -----------------------------------------------------------------------------------------------------------

RPN = {"positive": 0.7, "negative": 0.3}
RULES: dict[str, dict[str, Any]] = {
    "d2_retina_lowq": {"low_quality": "detectron"},
    "d2_rpn_lowq": {"low_quality": "detectron", **RPN},
    "d2_retina_plain": {"low_quality": None},
    "d2_rpn_plain": {"low_quality": None, **RPN},
    "overwrite": {"low_quality": "overwrite"},
}


@run_each("case", range(24))
def test_max_iou_is_that_of_detectron_and_mmdetection(shared: Path, case: int) -> None:
    golden = load_golden(shared, "assign_max_iou", area="detect")
    stored = case_of(golden, case)
    priors = anchors(shared, golden.tensor("anchors"), 3)
    if len(stored["gt"]):
        assert torch.equal(pairwise_iou(stored["gt"], priors.coordinates), stored["iou"])
        assert (stored["iou"].amax(dim=1) > 0).all(), "theirs would make every anchor of a box without any positive"
    for name, arguments in RULES.items():
        if name in stored:
            assert torch.equal(matched(MaxIoU(**arguments), priors, stored["gt"]), from_labels(stored[name])), name


@run_each("case", range(24))
def test_max_iou_is_that_of_crowddet_but_for_ties(shared: Path, case: int) -> None:
    """Theirs takes one of the best anchors of a box, and any of the boxes that are equally good for an anchor."""
    golden = load_golden(shared, "assign_max_iou", area="detect")
    stored = case_of(golden, case)
    if not len(stored["gt"]):
        assert "crowddet_plus1_top1_labels" not in stored
        return
    boxes, priors = stored["gt"] + PLUS_ONE, anchors(shared, golden.tensor("anchors") + PLUS_ONE, 3)
    expected = from_labels(stored["crowddet_plus1_top1_labels"][:, 0])
    overlap = pairwise_iou(boxes, priors.coordinates)
    is_best = (overlap == overlap.amax(dim=1, keepdim=True)) & (overlap > 0)
    tied = (overlap == overlap.amax(dim=0)).sum(dim=0) > 1
    tied |= (is_best & (is_best.sum(dim=1, keepdim=True) > 1)).any(dim=0)
    found = matched(MaxIoU(low_quality="overwrite"), priors, boxes)
    assert torch.equal(found[~tied], expected[~tied])
    is_only = (overlap == overlap.amax(dim=0)).sum(dim=0) == 1
    assert is_only.all() or len(boxes) > 1
    if is_only.all():  # the sum is over all anchors, each with its best box
        own = torch.where(expected >= 0, expected, overlap.argmax(dim=0))
        total = encode_deltas(priors.coordinates, boxes[own]).sum(dim=0)
        published = stored["crowddet_plus1_top1_target_sum"]
        assert (total - published).abs().max() <= 1e-12 * len(priors)


@run_each("case", range(24))
def test_second_boxes_are_those_of_crowddet_but_for_ties(shared: Path, case: int) -> None:
    """Both boxes of an anchor by their thresholds alone, 1284 anchors a case; of one box there are no labels."""
    golden = load_golden(shared, "assign_max_iou", area="detect")
    stored = case_of(golden, case)
    if len(stored["gt"]) < 2:
        assert "crowddet_plus1_top2_labels" not in stored
        return
    boxes, priors = stored["gt"] + PLUS_ONE, anchors(shared, golden.tensor("anchors") + PLUS_ONE, 3)
    expected = from_labels(stored["crowddet_plus1_top2_labels"])
    assigner = MaxIoU(low_quality=None, boxes_per_prior=2)
    found = assigner(priors, boxes, torch.zeros(len(boxes), dtype=torch.bool))
    assert found.second_matched is not None
    overlap = pairwise_iou(boxes, priors.coordinates).T
    ranked = overlap.sort(dim=1, descending=True).values
    is_tied = (ranked[:, :2] == ranked[:, 1:3]).any(dim=1) if len(boxes) > 2 else ranked[:, 0] == ranked[:, 1]
    both = torch.stack([found.matched, found.second_matched], dim=1)
    assert torch.equal(both[~is_tied], expected[~is_tied])
    assert torch.equal(both.clamp(max=0), expected.clamp(max=0))
    ours, theirs = (overlap.gather(1, each.clamp(min=0)) for each in (both, expected))
    assert torch.equal(ours[expected >= 0], theirs[expected >= 0]), "of a tie, boxes that are equally good"


@run_each("case", range(24))
def test_max_iou_is_that_of_odtask_but_for_each_boxs_first_anchor(shared: Path, case: int) -> None:
    """There the first of a box's best anchors goes to it, of several boxes to the last, even if they do not touch."""
    golden = load_golden(shared, "assign_max_iou", area="detect")
    stored = case_of(golden, case)
    if not len(stored["gt"]):
        assert "s3_argmax" not in stored
        return
    expected = from_labels(stored["s3_argmax"])
    found = matched(MaxIoU(low_quality=None), anchors(shared, golden.tensor("anchors"), 3), stored["gt"])
    for box, prior in enumerate(stored["iou"].argmax(dim=1).tolist()):
        found[prior] = box
    assert torch.equal(found, expected)


# --- FCOS -------------------------------------------------------------------------------------------------------------


@run_each("case", range(18))
def test_fcos_and_its_losses_are_the_published_ones(shared: Path, case: int) -> None:
    golden = load_golden(shared, "assign_fcos", area="detect")
    info, stored = golden.info["cases"][case], case_of(golden, case)
    priors = make_points(*levels(shared), dtype=torch.float64)
    assert torch.equal(priors.coordinates, torch.cat([golden.tensor(f"points/level{level}") for level in range(5)]))
    found = matched(FCOS(radius=info["radius"]), priors, stored["gt"])
    assert torch.equal(found, stored["gt_index"].long())
    classes = torch.where(found >= 0, stored["classes"][found.clamp(min=0)], 0)
    assert torch.equal(classes, stored["label"].long())

    positive = found >= 0
    strides = priors.prior_stride[positive][:, None] if info["normalised_targets"] else 1.0
    targets = encode_distances(priors.coordinates[positive], stored["gt"][found[positive]], strides=strides)
    assert (targets - stored["positive_ltrb"]).abs().le(1e-12 * 128).all()
    weight = centreness(targets)
    assert (weight - stored["positive_centerness"]).abs().le(1e-12).all()

    logits, distances, centre = (
        stored[name].clone().requires_grad_() for name in ("cls_logits", "box_ltrb", "ctr_logits")
    )
    num_positive = max(1, int(positive.sum()))
    losses = [
        sigmoid_focal(logits, is_class(found, stored["classes"], logits.shape[1])) / num_positive,
        smoothed(distances[positive], targets, weight, kind=info["iou_loss"]) / weight.sum().clamp(min=1e-300),
        sigmoid_bce(centre[positive, 0], weight) / num_positive,
    ]
    assert_losses(losses, stored, {"cls_logits": logits, "box_ltrb": distances, "ctr_logits": centre})


def is_class(found: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Classes of the goldens are 1 to K."""
    is_target = torch.zeros(len(found), num_classes, dtype=torch.bool)
    positive = found >= 0
    is_target[positive, classes[found[positive]] - 1] = True
    return is_target


def smoothed(distances: Tensor, targets: Tensor, weight: Tensor, *, kind: str) -> Tensor:
    """The weighted sum of theirs, whose IoU has 1 square pixel more in intersection and union."""
    predicted, wanted = (decode_distances(torch.zeros(2), each) for each in (distances, targets))
    plain = OVERLAPS["iou"](predicted, wanted)
    union = (box_areas(predicted) + box_areas(wanted)) / (1 + plain)
    overlap = (plain * union + 1) / (union + 1)
    if kind == "iou":
        return -(overlap.log() * weight).sum()
    if kind == "giou":
        overlap = overlap + OVERLAPS["giou"](predicted, wanted) - plain
    return ((1 - overlap) * weight).sum()


def assert_losses(losses: list[Tensor], stored: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    expected = stored["loss_cls_box_ctr"].double()
    assert torch.stack(losses).detach().tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)
    gradients = torch.autograd.grad(sum(losses), list(inputs.values()))  # type: ignore[arg-type]
    for name, gradient in zip(inputs, gradients, strict=True):
        published = stored[f"grad_{name}"].double()
        scale = max(float(published.abs().max()), 1e-12)
        assert (gradient - published).abs().max() <= 1e-6 * scale, name


@pytest.mark.parametrize("kind", ["iou", "linear_iou", "giou"])
def test_losses_of_distances_are_the_published_ones(shared: Path, kind: str) -> None:
    golden = load_golden(shared, "iou_family", area="detect")
    distances = golden.tensor("fcos_ltrb/pred").requires_grad_()
    loss = smoothed(distances, golden.tensor("fcos_ltrb/target"), golden.tensor("fcos_ltrb/weight"), kind=kind)
    assert float(loss.detach()) == pytest.approx(float(golden.arrays[f"fcos_ltrb/{kind}_weighted_sum"]), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, distances)
    assert (gradient - golden.tensor(f"fcos_ltrb/{kind}_grad")).abs().max() < 1e-9


# --- ATSS -------------------------------------------------------------------------------------------------------------


@run_each("case", range(16))
def test_atss_and_its_losses_are_the_published_ones(shared: Path, case: int) -> None:
    golden = load_golden(shared, "assign_atss", area="detect")
    info, stored = golden.info["cases"][case], case_of(golden, case)
    per_cell = info["anchors_per_cell"]
    priors = anchors(shared, golden.tensor(f"anchors_{per_cell}_per_cell"), per_cell)
    found = matched(ATSS(), priors, stored["gt"])
    assert torch.equal(found, stored["gt_index"].long())
    if per_cell == 1:
        points = make_points(*levels(shared), dtype=torch.float64)
        assert torch.equal(matched(ATSS(), points, stored["gt"]), found)

    assert_atss(priors, found, stored, info)


def assert_atss(priors: Priors, found: Tensor, stored: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Targets, centre-ness, losses and gradients of an assignment to half-open boxes."""
    positive = found >= 0
    rows, boxes = priors.coordinates[positive], stored["gt"][found[positive]]
    weights, sides = (10.0, 10.0, 5.0, 5.0), box_sizes(rows)[:, :1] / 8
    centres = priors.centres[positive]
    pixel = AROUND if info.get("is_old") else torch.zeros(4)
    if info["regression"] == "BOX":
        targets = encode_deltas(rows, boxes + pixel, weights=weights)
    else:
        targets = encode_distances(centres, boxes, strides=sides)
    assert (targets - stored["positive_reg_targets"]).abs().le(1e-12 * 128).all()
    if "positive_centerness" not in stored:
        assert not positive.any()
        return
    weight = centreness(encode_distances(centres, boxes))
    assert (weight - stored["positive_centerness"]).abs().le(1e-12).all()

    logits, deltas, centre = (
        stored[name].clone().requires_grad_() for name in ("cls_logits", "box_deltas", "ctr_logits")
    )
    if info["regression"] == "BOX":
        predicted = decode_deltas(rows, deltas[positive], weights=weights) - pixel
    else:
        predicted = decode_distances(centres, deltas[positive], strides=sides)
    losses = [
        sigmoid_focal(logits, is_class(found, stored["classes"], logits.shape[1])) / positive.sum(),
        2 * overlap_loss(predicted, boxes, weight=weight) / weight.sum(),
        sigmoid_bce(centre[positive, 0], weight) / positive.sum(),
    ]
    assert_losses(losses, stored, {"cls_logits": logits, "box_deltas": deltas, "ctr_logits": centre})


@run_each("case", range(16))
def test_atss_of_old_boxes_is_the_published_one(shared: Path, case: int) -> None:
    """Theirs leaves out the pixel more where it asks whether a centre lies in the box, and in the overlap of losses."""
    golden = load_golden(shared, "assign_atss_plus1", area="detect")
    info, stored = golden.info["cases"][case], case_of(golden, case)
    per_cell, boxes = info["anchors_per_cell"], stored["gt"]
    priors = anchors(shared, golden.tensor(f"anchors_{per_cell}_per_cell") + AROUND, per_cell)
    found = matched(ATSS(), priors, boxes + AROUND)
    inside = encode_distances(priors.centres, boxes[found.clamp(min=0)]).amin(dim=1) > 0.01
    assert torch.equal(torch.where(inside, found, BACKGROUND), stored["gt_index"].long())
    assert np.count_nonzero((found >= 0) & ~inside) <= 10
    assert_atss(priors, stored["gt_index"].long(), stored, {**info, "is_old": True})
