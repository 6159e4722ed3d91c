"""Max-IoU assigner: anchors predict the box that they overlap most, and every box gets an anchor."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Probability
from sightline.assigners.base import BACKGROUND, IGNORED, Assigner, Assignment, argmax_by_group
from sightline.errors import assert_installed
from sightline.geometry.boxes.overlaps import box_areas, box_centres, column_blocks, iou, pairwise_iou
from sightline.geometry.boxes.priors import PriorKind, Priors

__all__ = ["MaxIoU"]

_MIN_CANDIDATES = 50
"""Candidates of a box without an anchor; at least as many as there are such boxes, so that each gets one."""


@registry.assigners.add("max_iou")
class MaxIoU(Assigner):
    """Max-IoU assigner: an anchor's best box if their IoU is `positive` or more.

    Below `negative` background, else ignored. `low_quality` is about the anchors with a box's highest IoU. `guarantee`:
    they go to it, of several boxes to the one with the higher IoU; then every box without an anchor gets one, equal
    boxes too, as long as there are anchors. `overwrite`: they go to the last of several boxes (mmdetection).
    `detectron`: they predict their own best box, regardless of which that is (detectron2). null: they are like others.
    With `boxes_per_prior: 2`, an anchor's best box among the others is its second, by the same thresholds. Source: Ren
    et al. 2015, section 3.1.2, with the thresholds of Lin et al. 2017; Chu et al. 2020, section 3.2, for the second
    box.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors"})
    excludes: ClassVar[frozenset[str]] = frozenset({"centreness"})  # middles of anchors may lie outside of their boxes

    def __init__(
        self,
        *,
        positive: Probability = 0.5,
        negative: Probability = 0.4,
        low_quality: Literal["guarantee", "overwrite", "detectron"] | None = "guarantee",
        boxes_per_prior: Literal[1, 2] = 1,
    ) -> None:
        if negative > positive:
            raise ValueError(f"negative: found {negative:g}, expected at most positive={positive:g}")
        if low_quality == "guarantee":
            assert_installed("scipy", needed_by="max_iou with low_quality: guarantee")
        self.positive = positive
        self.negative = negative
        self.low_quality = low_quality
        self.boxes_per_prior = boxes_per_prior

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match anchors (P) to boxes (M, 4): `matched`, `num_candidates` and, for two boxes, `second_matched` (P,)."""
        overlap, best, highest = _best_boxes(priors, boxes)
        matched = self._by_thresholds(overlap, best)
        highest = torch.where(highest > 0, highest, torch.inf)  # a box without any overlap has no best anchor
        if self.low_quality is None:
            highest.fill_(torch.inf)
        box, prior, num_claims = self._claims(priors, boxes, highest)
        if self.low_quality == "detectron":
            matched[prior] = best[prior]
        else:
            rank = box.to(highest.dtype) if self.low_quality == "overwrite" else highest[box]
            owner = argmax_by_group(prior, rank, box, len(priors))
            matched = torch.where(owner >= 0, owner, matched)
        if self.low_quality == "guarantee":
            matched = _with_every_box(matched, priors, boxes)
        if self.boxes_per_prior == 1:
            return Assignment(matched, num_claims)
        other, best_other, _ = _best_boxes(priors, boxes, torch.where(matched >= 0, matched, best))
        return Assignment(matched, num_claims, self._by_thresholds(other, best_other))

    def _by_thresholds(self, overlap: Tensor, box: Tensor) -> Tensor:
        """Return the `box` (P,) of each anchor, IGNORED or BACKGROUND, by its `overlap` (P,) with the box."""
        return torch.where(overlap >= self.positive, box, torch.where(overlap >= self.negative, IGNORED, BACKGROUND))

    def _claims(self, priors: Priors, boxes: Tensor, highest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pairs of boxes and anchors with the box's `highest` IoU (M,), and box counts per anchor (P,).

        The IoU is computed a second time: the whole matrix may be larger than the memory.
        """
        pairs, counts = [], []
        for part in column_blocks(len(boxes), len(priors), boxes.device):
            overlap = pairwise_iou(boxes, priors.coordinates[part])
            is_best = overlap == highest[:, None]
            counts.append(((overlap >= self.positive) | is_best).sum(dim=0))
            pairs.append(is_best.nonzero() + is_best.new_tensor([0, part.start], dtype=torch.int64))
        box, prior = torch.cat(pairs).unbind(dim=1)
        return box, prior, torch.cat(counts)


def _best_boxes(priors: Priors, boxes: Tensor, besides: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest IoU (P,) of each anchor with its box (P,), and the highest IoU (M,) of each box.

    The box `besides` (P,) of each anchor is left out, as if it were far away.
    """
    values, indices, highest = [], [], boxes.new_zeros(len(boxes))
    for part in column_blocks(len(boxes), len(priors), boxes.device):
        overlap = pairwise_iou(boxes, priors.coordinates[part])
        if besides is not None:
            overlap.scatter_(0, besides[None, part], -1)
        value, index = overlap.max(dim=0)
        values.append(value)
        indices.append(index)
        highest = torch.maximum(highest, overlap.amax(dim=1))
    return torch.cat(values), torch.cat(indices), highest


def _with_every_box(matched: Tensor, priors: Priors, boxes: Tensor) -> Tensor:
    """Return the assignment with an anchor for each box that had none; every other box keeps its best one."""
    positive = (matched >= 0).nonzero().flatten()
    owner = matched[positive]
    locked = argmax_by_group(owner, iou(priors.coordinates[positive], boxes[owner]), positive, len(boxes))
    unmatched_boxes = (locked < 0).nonzero().flatten()
    if not len(unmatched_boxes):
        return matched
    is_free = torch.ones(len(priors), dtype=torch.bool, device=boxes.device)
    is_free[locked[locked >= 0]] = False
    matched = matched.clone()
    still_unmatched = _assign_overlapping(matched, is_free, unmatched_boxes, priors, boxes)
    if still_unmatched:
        areas = box_areas(priors.coordinates)
        level_areas = [areas[rows].log().mean() for rows in priors.level_slices]
        for box in sorted(still_unmatched, key=lambda box: boxes[box].tolist()):  # whatever order the boxes come in
            _assign_nearest(matched, is_free, box, priors, boxes[box], level_areas)
    return matched


def _assign_overlapping(matched: Tensor, is_free: Tensor, orphans: Tensor, priors: Priors, boxes: Tensor) -> list[int]:
    """Assign free anchors to `orphans` with the highest sum of IoUs (Hungarian); return the boxes still unmatched.

    Each has as many candidates as there are orphans, so no other anchor can raise the sum. Updates `matched` and
    `is_free`.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = pairwise_iou(boxes[orphans], priors.coordinates) * is_free
    count = min(max(_MIN_CANDIDATES, len(orphans)), len(priors))
    least = overlap.topk(count, dim=1).values[:, -1:]
    candidates = ((overlap >= least) & (overlap > 0)).any(dim=0).nonzero().flatten()  # all of a tie
    overlap = overlap[:, candidates].double().cpu()
    rows, columns = (torch.from_numpy(indices) for indices in linear_sum_assignment(overlap.numpy(), maximize=True))
    is_real = overlap[rows, columns] > 0
    chosen = candidates[columns[is_real].to(candidates.device)]
    matched[chosen] = orphans[rows[is_real].to(orphans.device)]
    is_free[chosen] = False
    return list({*orphans.tolist()} - {*matched[chosen].tolist()})


def _assign_nearest(
    matched: Tensor, is_free: Tensor, box: int, priors: Priors, corners: Tensor, level_areas: list[Tensor]
) -> None:
    """Assign to `box` the free anchor with the nearest centre, on the level whose anchors are nearest to it in size.

    The next level if that has none. `level_areas` are mean logarithms. Updates `matched` and `is_free`, unless no
    anchor is free.
    """
    area = box_areas(corners).clamp(min=torch.finfo(corners.dtype).tiny).log()
    size_distance = [float((level - area).abs()) for level in level_areas]
    for level in sorted(range(len(size_distance)), key=size_distance.__getitem__):
        rows = priors.level_slices[level]
        distance = (priors.centres[rows] - box_centres(corners)).square().sum(dim=1)
        distance = torch.where(is_free[rows], distance, torch.inf)
        prior = rows.start + int(distance.argmin())
        if is_free[prior]:
            matched[prior], is_free[prior] = box, False
            return
