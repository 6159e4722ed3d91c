"""Benchmarks of assigning boxes to priors, compared with whole matrices of boxes and priors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.boxes import HEIGHT, WIDTH, draw_people
from benchmarks.case import BenchmarkCase, Implementation, equal, implementation
from sightline.areas.detect.fcos import ATSS, FCOS
from sightline.areas.detect.free_anchor import FreeAnchor
from sightline.areas.detect.ota import OTA
from sightline.areas.detect.retinanet import MaxIoU
from sightline.areas.detect.yolo import SimOTA
from sightline.ops.boxes.codes import encode_distances
from sightline.ops.boxes.overlaps import box_area, box_centres, box_sizes, iou
from sightline.ops.boxes.priors import AnchorShapes, Priors, make_anchors, make_points
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED, Assigner, PriorPredictions

_STRIDES = (8, 16, 32, 64, 128)


def cases() -> list[BenchmarkCase]:
    return [
        _assignment_case(
            "max_iou",
            MaxIoU(low_quality="overwrite"),
            _assign_max_iou,
            implementation("guarantee", lambda inputs: MaxIoU()(**inputs).matched, _check_all_boxes_matched),
            anchors=8,
        ),
        _assignment_case("fcos", FCOS(), _assign_fcos, anchors=0),
        _assignment_case("atss", ATSS(), _assign_atss, anchors=1),
        _assignment_case("free_anchor", FreeAnchor(), _assign_free_anchor, anchors=8),
        _assignment_case("simota", SimOTA(guarantee=False), _assign_simota, anchors=0),
        _assignment_case("ota", OTA(), _assign_ota, anchors=0),
    ]


def _assignment_case(
    name: str, assigner: Assigner, plain: Any, *more_variants: Implementation, anchors: int
) -> BenchmarkCase:
    """Make a case of an assigner; `anchors` per cell, 0 for points. The maps are sized for 100,000 priors."""
    return BenchmarkCase(
        suite="geometry",
        label=f"assign_{name}_{{boxes}}_to_{{priors}}",
        size={"boxes": 300, "priors": 100_000, "per_cell": anchors},
        quick={"boxes": 20, "priors": 2000},
        make=partial(_make_crowd_and_priors, needs=assigner.needs_predictions),
        baseline=implementation("whole_matrix", plain, equal),
        variants=(implementation("sightline", lambda inputs: assigner(**inputs).matched, equal), *more_variants),
    )


def _make_crowd_and_priors(*, boxes: int, priors: int, per_cell: int, needs: bool) -> dict[str, Any]:
    """Make boxes and priors; a third of the boxes occurs twice, and one of fifteen is an ignore region."""
    scale = (priors / max(1, per_cell) / (1.333 * WIDTH * HEIGHT / 64)) ** 0.5
    maps = [(round(scale * HEIGHT / stride), round(scale * WIDTH / stride)) for stride in _STRIDES]
    shapes = AnchorShapes(
        tuple(2 ** (octave / 4) for octave in range(-(-per_cell // 2))), (1.0, 2.0)[: max(1, per_cell)]
    )
    all_priors = make_anchors(maps, _STRIDES, shapes) if per_cell else make_points(maps, _STRIDES)
    crowd = draw_people(boxes - boxes // 3, 1, torch.Generator().manual_seed(0)) * scale
    crowd = torch.cat([crowd, crowd[: boxes // 3]])
    inputs = {"priors": all_priors, "boxes": crowd, "is_ignored": torch.arange(boxes) % 15 == 14}
    return inputs if not needs else inputs | _make_predictions(all_priors, crowd)


def _make_predictions(priors: Priors, boxes: Tensor) -> dict[str, Any]:
    """Draw predictions of one class: a box of random person size near each point."""
    generator = torch.Generator().manual_seed(1)
    sizes = box_sizes(boxes)[torch.randint(len(boxes), (len(priors),), generator=generator)]
    logits, shift = torch.randn(len(priors), 1, generator=generator), torch.randn(len(priors), 2, generator=generator)
    centres = priors.coordinates + 0.2 * sizes * shift
    predicted_boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)
    return {
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "predicted": PriorPredictions(logits, predicted_boxes),
    }


def _check_all_boxes_matched(inputs: Any, expected: Tensor, actual: Tensor) -> str | None:
    unmatched = {*(~inputs["is_ignored"]).nonzero().flatten().tolist()} - {*actual.tolist()}
    return f"{len(unmatched)} boxes have no prior, the first is {min(unmatched)}" if unmatched else None


def _ignore_covered(matched: Tensor, priors: Any, regions: Tensor) -> Tensor:
    if priors.kind == "points":
        rows = priors.coordinates[:, None]
        covered = ((rows >= regions[:, :2]) & (rows < regions[:, 2:])).all(dim=2).any(dim=1)
    else:
        rows = priors.coordinates[:, None]
        first, last = torch.maximum(rows[..., :2], regions[:, :2]), torch.minimum(rows[..., 2:], regions[:, 2:])
        covered = ((last - first).clamp(min=0).prod(dim=2) / box_area(priors.coordinates)[:, None] > 0.5).any(dim=1)
    return torch.where((matched == BACKGROUND) & covered, IGNORED, matched)


def _assign_max_iou(inputs: Any) -> Tensor:
    """Assign as mmdetection's MaxIoUAssigner, on one matrix, with its loop over boxes."""
    priors, boxes, is_ignored = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    overlap = iou(boxes[targets][:, None], priors.coordinates)
    value, best = overlap.max(dim=0)
    matched = torch.where(value >= 0.4, IGNORED, BACKGROUND)
    matched = torch.where(value >= 0.5, targets[best], matched)
    for row, highest in zip(range(len(targets)), overlap.amax(dim=1), strict=True):
        if highest > 0:
            matched[overlap[row] == highest] = targets[row]
    return _ignore_covered(matched, priors, boxes[is_ignored])


def _assign_fcos(inputs: Any) -> Tensor:
    """Assign as FCOS's authors' code: distances of all points to all boxes, infinite areas for non-candidates."""
    priors, boxes, is_ignored = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    distances = encode_distances(priors.coordinates[:, None], real)
    reach = priors.prior_stride[:, None, None] * 1.5
    centres, points = box_centres(real), priors.coordinates[:, None]
    low, high = torch.maximum(centres - reach, real[:, :2]), torch.minimum(centres + reach, real[:, 2:])
    limits = priors.coordinates.new_tensor([-1, 64, 128, 256, 512, torch.inf])
    farthest = distances.amax(dim=2)
    is_claimed = ((points > low) & (points < high)).all(dim=2)
    is_claimed &= (farthest >= limits[priors.prior_level][:, None]) & (
        farthest <= limits[priors.prior_level + 1][:, None]
    )
    area, best = torch.where(is_claimed, box_area(real), torch.inf).min(dim=1)
    return _ignore_covered(torch.where(area < torch.inf, targets[best], BACKGROUND), priors, boxes[is_ignored])


def _assign_atss(inputs: Any) -> Tensor:
    """Assign as ATSS's authors' code: all distances and overlaps, nearest per level, threshold per box."""
    priors, boxes, is_ignored = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    overlap = iou(priors.coordinates[:, None], real)
    distance = (priors.centres[:, None] - box_centres(real)).square().sum(dim=2)
    nearest = [
        rows.start + distance[rows].topk(min(9, rows.stop - rows.start), dim=0, largest=False).indices
        for rows in priors.level_slices
    ]
    prior_index = torch.cat(nearest)
    candidate_overlap = overlap.gather(0, prior_index)
    inside = encode_distances(priors.centres[prior_index], real).amin(dim=2) > 0.01
    is_positive = (candidate_overlap >= candidate_overlap.mean(dim=0) + candidate_overlap.std(dim=0)) & inside
    positive_overlap = torch.full_like(overlap, -torch.inf).scatter_(
        0, prior_index, torch.where(is_positive, candidate_overlap, -torch.inf)
    )
    value, best = positive_overlap.max(dim=1)
    return _ignore_covered(torch.where(value > -torch.inf, targets[best], BACKGROUND), priors, boxes[is_ignored])


def _assign_free_anchor(inputs: Any) -> Tensor:
    """Assign the anchors of highest IoU to each box; an anchor in several bags goes to the box of highest IoU."""
    priors, boxes, is_ignored = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    overlap = iou(boxes[targets][:, None], priors.coordinates)
    best = overlap.topk(50, dim=1)
    bag_overlap = torch.full_like(overlap, -torch.inf).scatter_(1, best.indices, best.values)
    value, owner = bag_overlap.max(dim=0)
    return _ignore_covered(torch.where(value > -torch.inf, targets[owner], BACKGROUND), priors, boxes[is_ignored])


def _near_mask(priors: Priors, boxes: Tensor, radius: float) -> Tensor:
    shift = (priors.coordinates[:, None] - box_centres(boxes)).abs()
    return (shift < radius * priors.prior_stride[:, None, None]).all(dim=2).T


def _assign_simota(inputs: Any) -> Tensor:
    """Assign as SimOTA's authors' code: all costs, a loop over boxes, and conflicts to the lowest cost."""
    priors, boxes, is_ignored, _, predicted = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    is_near = _near_mask(priors, real, 1.5)
    candidates = is_near.any(dim=0).nonzero().flatten()
    overlap = iou(real[:, None], predicted.boxes[candidates])
    class_cost = functional.softplus(-predicted.logits[candidates, 0])
    cost = class_cost - 3 * (overlap + 1e-8).log() + 1e6 * ~is_near[:, candidates]
    is_assigned = torch.zeros_like(overlap, dtype=torch.bool)
    for row, number in enumerate(overlap.topk(10, dim=1).values.sum(dim=1).long().clamp(min=1).tolist()):
        is_assigned[row, cost[row].topk(number, largest=False).indices] = True
    count = is_assigned.sum(dim=0)
    owner = torch.where(count > 1, cost.argmin(dim=0), is_assigned.int().argmax(dim=0))
    matched = torch.full((len(priors),), BACKGROUND)
    matched[candidates] = torch.where(count > 0, targets[owner], BACKGROUND)
    return _ignore_covered(matched, priors, boxes[is_ignored])


def _assign_ota(inputs: Any) -> Tensor:
    """Assign as OTA's authors' code: optimal transport of all boxes and priors, 50 Sinkhorn iterations."""
    priors, boxes, is_ignored, _, predicted = inputs.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    inside = encode_distances(priors.coordinates[:, None], real).amin(dim=2).T > 0.01
    is_near = _near_mask(priors, real, 2.5) & inside
    overlap = iou(real[:, None], predicted.boxes).double()
    probability = predicted.logits[:, 0].double().sigmoid()
    class_cost, background_cost = (
        -0.25 * (1 - probability) ** 2 * probability.log(),
        -0.75 * probability**2 * (1 - probability).log(),
    )
    cost = class_cost - 1.5 * overlap.clamp(min=1e-7).log() + 1e6 * ~is_near
    cost = torch.cat([cost, background_cost[None]])
    supply = (overlap * is_near).topk(20, dim=1).values.sum(dim=1).long().clamp(min=1)
    supply = torch.cat([supply, (len(priors) - supply.sum())[None]])
    box_potential, prior_potential = torch.zeros(len(cost), 1).double(), torch.zeros(len(priors)).double()
    for _ in range(50):
        prior_potential = -(box_potential - cost / 0.1).logsumexp(dim=0)
        box_potential = supply.double().log()[:, None] - (prior_potential - cost / 0.1).logsumexp(dim=1, keepdim=True)
    plan = (box_potential + prior_potential - cost / 0.1).exp()
    owner = (plan / plan.amax(dim=1, keepdim=True)).argmax(dim=0)
    matched = torch.cat([targets, targets.new_tensor([BACKGROUND])])[owner]
    return _ignore_covered(matched, priors, boxes[is_ignored])
