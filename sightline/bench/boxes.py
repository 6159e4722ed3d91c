"""Overlaps, suppression and assignment of boxes, against their plain forms and whole matrices."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sightline.assigners.atss import ATSS
from sightline.assigners.base import BACKGROUND, IGNORED, Assigner, PriorPredictions
from sightline.assigners.fcos import FCOS
from sightline.assigners.free_anchor import FreeAnchor
from sightline.assigners.max_iou import MaxIoU
from sightline.assigners.ota import OTA
from sightline.assigners.simota import SimOTA
from sightline.bench.agreement import allclose, equal
from sightline.bench.case import BenchmarkCase, Implementation, implementation
from sightline.geometry.boxes.box_coder import encode_distances
from sightline.geometry.boxes.overlaps import box_areas, box_centres, box_sizes, iou, pairwise_iou
from sightline.geometry.boxes.priors import AnchorShapes, Priors, make_anchors, make_points
from sightline.geometry.boxes.suppression import greedy_nms, greedy_nms_reference, soft_nms, soft_nms_reference

__all__ = ["cases"]

_WIDTH, _HEIGHT = 1344, 800
_STRIDES = (8, 16, 32, 64, 128)
_EXACT = "sightline"


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="geometry",
            label="box_iou_{boxes}x{others}",
            size={"boxes": 10_000, "others": 1000},
            quick={"boxes": 200, "others": 50},
            make=_two_sets,
            baseline=implementation("plain", lambda sets: iou(sets["boxes"][:, None], sets["others"]), equal),
            variants=(implementation(_EXACT, lambda sets: pairwise_iou(sets["boxes"], sets["others"]), equal),),
        ),
        _suppression("greedy", 10_000, equal, greedy_nms, greedy_nms_reference, threshold=0.5),
        *(
            _suppression(
                f"soft_{name}",
                1000,
                allclose(1e-6),
                lambda **given: soft_nms(**given)._asdict(),
                lambda **given: soft_nms_reference(**given)._asdict(),
                limit=limit,
                is_linear=name == "linear",
                min_score=1e-3,
            )
            for name, limit in (("linear", 0.3), ("gaussian", 0.5))
        ),
        _assignment(
            "max_iou",
            MaxIoU(low_quality="overwrite"),
            _max_iou_of_matrix,
            implementation("guarantee", lambda given: MaxIoU()(**given).matched, _each_box_has_a_prior),
            anchors=8,
        ),
        _assignment("fcos", FCOS(), _fcos_of_matrix, anchors=0),
        _assignment("atss", ATSS(), _atss_of_matrix, anchors=1),
        _assignment("free_anchor", FreeAnchor(), _free_anchor_of_matrix, anchors=8),
        _assignment("simota", SimOTA(guarantee=False), _simota_of_matrix, anchors=0),
        _assignment("ota", OTA(), _ota_of_matrix, anchors=0),
    ]


def _suppression(name: str, boxes: int, agrees: Any, form: Any, plain: Any, **limits: Any) -> BenchmarkCase:
    return BenchmarkCase(
        suite="geometry",
        label=f"suppress_{name}_{{boxes}}",
        size={"boxes": boxes},
        quick={"boxes": 200},
        make=_detections,
        baseline=implementation("plain_loop", lambda given: plain(**given, **limits), agrees),
        variants=(implementation(_EXACT, lambda given: form(**given, **limits), agrees),),
    )


def _assignment(name: str, assigner: Assigner, plain: Any, *others: Implementation, anchors: int) -> BenchmarkCase:
    """`anchors` of a cell, 0 for points; the maps are larger for fewer, so that there are 100,000 priors."""
    return BenchmarkCase(
        suite="geometry",
        label=f"assign_{name}_{{boxes}}_to_{{priors}}",
        size={"boxes": 300, "priors": 100_000, "per_cell": anchors},
        quick={"boxes": 20, "priors": 2000},
        make=partial(_crowd_and_priors, needs=assigner.needs_predictions),
        baseline=implementation("whole_matrix", plain, equal),
        variants=(implementation(_EXACT, lambda given: assigner(**given).matched, equal), *others),
    )


def _people(num_boxes: int, per_person: int, generator: torch.Generator) -> Tensor:
    """Boxes around standing people of 20 to 245 pixels in an image of 1344 x 800, several around each."""
    people = -(-num_boxes // per_person)
    centres = torch.rand(people, 2, generator=generator) * torch.tensor([_WIDTH, _HEIGHT])
    heights = torch.exp(3 + 2.5 * torch.rand(people, 1, generator=generator))
    sizes = heights * torch.tensor([0.41, 1.0])
    centres, sizes = (each.repeat_interleave(per_person, dim=0)[:num_boxes] for each in (centres, sizes))
    centres = centres + 0.1 * sizes * torch.randn(num_boxes, 2, generator=generator)
    sizes = sizes * torch.exp(0.1 * torch.randn(num_boxes, 2, generator=generator))
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)


def _two_sets(*, boxes: int, others: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"boxes": _people(boxes, 20, generator), "others": _people(others, 1, generator)}


def _detections(*, boxes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(boxes, generator=generator)
    labels = torch.zeros(boxes, dtype=torch.int64)
    return {"boxes": _people(boxes, 20, generator), "scores": scores, "labels": labels}


def _crowd_and_priors(*, boxes: int, priors: int, per_cell: int, needs: bool) -> dict[str, Any]:
    """A third of the boxes stand twice; one of fifteen is an ignore region."""
    scale = (priors / max(1, per_cell) / (1.333 * _WIDTH * _HEIGHT / 64)) ** 0.5
    maps = [(round(scale * _HEIGHT / stride), round(scale * _WIDTH / stride)) for stride in _STRIDES]
    shapes = AnchorShapes(tuple(2 ** (place / 4) for place in range(-(-per_cell // 2))), (1.0, 2.0)[: max(1, per_cell)])
    found = make_anchors(maps, _STRIDES, shapes) if per_cell else make_points(maps, _STRIDES)
    crowd = _people(boxes - boxes // 3, 1, torch.Generator().manual_seed(0)) * scale
    crowd = torch.cat([crowd, crowd[: boxes // 3]])
    given = {"priors": found, "boxes": crowd, "is_ignored": torch.arange(boxes) % 15 == 14}
    return given if not needs else given | _predictions(found, crowd)


def _predictions(priors: Priors, boxes: Tensor) -> dict[str, Any]:
    """One class, and a box of a random size of people around each point."""
    generator = torch.Generator().manual_seed(1)
    sizes = box_sizes(boxes)[torch.randint(len(boxes), (len(priors),), generator=generator)]
    logits, shift = torch.randn(len(priors), 1, generator=generator), torch.randn(len(priors), 2, generator=generator)
    centres = priors.coordinates + 0.2 * sizes * shift
    found = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)
    return {"labels": torch.zeros(len(boxes), dtype=torch.int64), "predicted": PriorPredictions(logits, found)}


def _each_box_has_a_prior(given: Any, expected: Tensor, found: Tensor) -> str | None:
    without = {*(~given["is_ignored"]).nonzero().flatten().tolist()} - {*found.tolist()}
    return f"{len(without)} boxes have no prior, the first is {min(without)}" if without else None


def _hidden(matched: Tensor, priors: Any, regions: Tensor) -> Tensor:
    if priors.kind == "points":
        rows = priors.coordinates[:, None]
        covered = ((rows >= regions[:, :2]) & (rows < regions[:, 2:])).all(dim=2).any(dim=1)
    else:
        rows = priors.coordinates[:, None]
        first, last = torch.maximum(rows[..., :2], regions[:, :2]), torch.minimum(rows[..., 2:], regions[:, 2:])
        covered = ((last - first).clamp(min=0).prod(dim=2) / box_areas(priors.coordinates)[:, None] > 0.5).any(dim=1)
    return torch.where((matched == BACKGROUND) & covered, IGNORED, matched)


def _max_iou_of_matrix(given: Any) -> Tensor:
    """mmdetection's assigner on one matrix; a loop over boxes where it has one."""
    priors, boxes, is_ignored = given.values()
    targets = (~is_ignored).nonzero().flatten()
    overlap = iou(boxes[targets][:, None], priors.coordinates)
    value, best = overlap.max(dim=0)
    matched = torch.where(value >= 0.4, IGNORED, BACKGROUND)
    matched = torch.where(value >= 0.5, targets[best], matched)
    for row, highest in zip(range(len(targets)), overlap.amax(dim=1), strict=True):
        if highest > 0:
            matched[overlap[row] == highest] = targets[row]
    return _hidden(matched, priors, boxes[is_ignored])


def _fcos_of_matrix(given: Any) -> Tensor:
    """As the authors' code: the distances of all points to all boxes, areas of no candidates infinite."""
    priors, boxes, is_ignored = given.values()
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
    area, best = torch.where(is_claimed, box_areas(real), torch.inf).min(dim=1)
    return _hidden(torch.where(area < torch.inf, targets[best], BACKGROUND), priors, boxes[is_ignored])


def _atss_of_matrix(given: Any) -> Tensor:
    """As the authors' code: all distances and overlaps, the nearest of each level, thresholds of each box."""
    priors, boxes, is_ignored = given.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    overlap = iou(priors.coordinates[:, None], real)
    distance = (priors.centres[:, None] - box_centres(real)).square().sum(dim=2)
    near = [
        rows.start + distance[rows].topk(min(9, rows.stop - rows.start), dim=0, largest=False).indices
        for rows in priors.level_slices
    ]
    place = torch.cat(near)
    chosen = overlap.gather(0, place)
    inside = encode_distances(priors.centres[place], real).amin(dim=2) > 0.01
    is_positive = (chosen >= chosen.mean(dim=0) + chosen.std(dim=0)) & inside
    kept = torch.full_like(overlap, -torch.inf).scatter_(0, place, torch.where(is_positive, chosen, -torch.inf))
    value, best = kept.max(dim=1)
    return _hidden(torch.where(value > -torch.inf, targets[best], BACKGROUND), priors, boxes[is_ignored])


def _free_anchor_of_matrix(given: Any) -> Tensor:
    """The anchors with the highest overlaps of all; an anchor in several bags goes to the box that it overlaps most."""
    priors, boxes, is_ignored = given.values()
    targets = (~is_ignored).nonzero().flatten()
    overlap = iou(boxes[targets][:, None], priors.coordinates)
    best = overlap.topk(50, dim=1)
    kept = torch.full_like(overlap, -torch.inf).scatter_(1, best.indices, best.values)
    value, owner = kept.max(dim=0)
    return _hidden(torch.where(value > -torch.inf, targets[owner], BACKGROUND), priors, boxes[is_ignored])


def _near_of_matrix(priors: Priors, boxes: Tensor, radius: float) -> Tensor:
    shift = (priors.coordinates[:, None] - box_centres(boxes)).abs()
    return (shift < radius * priors.prior_stride[:, None, None]).all(dim=2).T


def _simota_of_matrix(given: Any) -> Tensor:
    """As the authors' code: costs of all boxes and candidates, a loop over boxes, conflicts to the cheapest."""
    priors, boxes, is_ignored, _, predicted = given.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    near = _near_of_matrix(priors, real, 1.5)
    candidates = near.any(dim=0).nonzero().flatten()
    overlap = iou(real[:, None], predicted.boxes[candidates])
    of_class = functional.softplus(-predicted.logits[candidates, 0])
    cost = of_class - 3 * (overlap + 1e-8).log() + 1e6 * ~near[:, candidates]
    taken = torch.zeros_like(overlap, dtype=torch.bool)
    for row, number in enumerate(overlap.topk(10, dim=1).values.sum(dim=1).long().clamp(min=1).tolist()):
        taken[row, cost[row].topk(number, largest=False).indices] = True
    count = taken.sum(dim=0)
    owner = torch.where(count > 1, cost.argmin(dim=0), taken.int().argmax(dim=0))
    matched = torch.full((len(priors),), BACKGROUND)
    matched[candidates] = torch.where(count > 0, targets[owner], BACKGROUND)
    return _hidden(matched, priors, boxes[is_ignored])


def _ota_of_matrix(given: Any) -> Tensor:
    """As the authors' code: transport between all boxes and all priors, 50 iterations over the matrix."""
    priors, boxes, is_ignored, _, predicted = given.values()
    targets = (~is_ignored).nonzero().flatten()
    real = boxes[targets]
    inside = encode_distances(priors.coordinates[:, None], real).amin(dim=2).T > 0.01
    near = _near_of_matrix(priors, real, 2.5) & inside
    overlap = iou(real[:, None], predicted.boxes).double()
    chance = predicted.logits[:, 0].double().sigmoid()
    of_class, of_none = -0.25 * (1 - chance) ** 2 * chance.log(), -0.75 * chance**2 * (1 - chance).log()
    cost = of_class - 1.5 * overlap.clamp(min=1e-7).log() + 1e6 * ~near
    cost = torch.cat([cost, of_none[None]])
    supply = (overlap * near).topk(20, dim=1).values.sum(dim=1).long().clamp(min=1)
    supply = torch.cat([supply, (len(priors) - supply.sum())[None]])
    of_box, of_prior = torch.zeros(len(cost), 1).double(), torch.zeros(len(priors)).double()
    for _ in range(50):
        of_prior = -(of_box - cost / 0.1).logsumexp(dim=0)
        of_box = supply.double().log()[:, None] - (of_prior - cost / 0.1).logsumexp(dim=1, keepdim=True)
    plan = (of_box + of_prior - cost / 0.1).exp()
    owner = (plan / plan.amax(dim=1, keepdim=True)).argmax(dim=0)
    matched = torch.cat([targets, targets.new_tensor([BACKGROUND])])[owner]
    return _hidden(matched, priors, boxes[is_ignored])
