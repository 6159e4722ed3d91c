"""Assigners by geometry alone: max-IoU, ATSS, FCOS and the bags of FreeAnchor.

Max-IoU assigner: anchors predict the box that they overlap most, and every box gets an anchor.

ATSS: the nearest priors of a box are positive above an IoU threshold that adapts to the box's candidates.

FCOS: points near the middle of a box are positive, on the level whose range contains their distances.

FreeAnchor: bags of anchors, from which training chooses. Source: Zhang et al. 2019, Learning to Match Anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sightline.areas.detect.anchor_bags import anchor_bags
from sightline.areas.detect.assigners.base import BACKGROUND, IGNORED, Assigner, Assignment, argmax_by_group
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.errors import assert_installed
from sightline.ops.box_codes import encode_distances
from sightline.ops.box_overlaps import box_area, box_centres, box_iou, column_blocks, iou
from sightline.ops.neighbours import nearest_neighbours
from sightline.ops.priors import PriorKind, Priors
from sightline.ops.waits import POSITIVE, call_on_host, is_free_to_read, remember

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
        """Match anchors (P) to boxes (M, 4): `matched`, `num_claims` and, for two boxes, `second_matched` (P,)."""
        overlap, best, highest = _best_boxes(priors, boxes)
        matched = self._by_thresholds(overlap, best)
        highest = torch.where(highest > 0, highest, torch.inf)  # a box without any overlap has no best anchor
        if self.low_quality is None:
            highest.fill_(torch.inf)
        owner, num_claims = self._claims(priors, boxes, highest)
        matched = torch.where(owner >= 0, best if self.low_quality == "detectron" else owner, matched)
        if self.boxes_per_prior == 1:
            return Assignment(matched, num_claims)
        if self.low_quality == "guarantee":  # the second box depends on the first
            matched = _with_every_box(matched, priors, boxes)
        other, best_other, _ = _best_boxes(priors, boxes, torch.where(matched >= 0, matched, best))
        return Assignment(matched, num_claims, self._by_thresholds(other, best_other))

    def _by_thresholds(self, overlap: Tensor, box: Tensor) -> Tensor:
        """Return the `box` (P,) of each anchor, IGNORED or BACKGROUND, by its `overlap` (P,) with the box."""
        return torch.where(overlap >= self.positive, box, torch.where(overlap >= self.negative, IGNORED, BACKGROUND))

    def settle(
        self, priors: Priors, boxes: Sequence[Tensor], assignments: Sequence[Assignment]
    ) -> Sequence[Assignment]:
        """Give boxes without an anchor one, if that is guaranteed: a linear assignment, which the host solves."""
        if self.low_quality != "guarantee" or self.boxes_per_prior == 2 or not assignments:
            return assignments
        device = priors.coordinates.device
        if is_free_to_read(priors.coordinates):
            return [
                assignment._replace(matched=_with_every_box(assignment.matched, priors, image_boxes))
                if len(image_boxes)
                else assignment
                for assignment, image_boxes in zip(assignments, boxes, strict=True)
            ]

        def change(all_boxes: Sequence[Tensor], all_matched: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
            """Return the anchors that change, their boxes, and the anchors that then have one, of each image."""
            changes: list[tuple[Tensor, ...]] = []
            for image_boxes, narrow in zip(all_boxes, all_matched, strict=True):
                before = narrow.long()
                after = _with_every_box(before, priors.on_host, image_boxes) if len(image_boxes) else before
                rows = (after != before).nonzero().flatten()
                changes.append((rows, after[rows], (after >= 0).nonzero().flatten()))
            return changes

        narrow = [assignment.matched.int() for assignment in assignments]
        settled = []
        for assignment, change_of_image in zip(
            assignments, call_on_host(change, boxes, narrow, device=device), strict=True
        ):
            rows, owners, positive = change_of_image
            matched = assignment.matched.index_put((rows,), owners)
            remember(matched, POSITIVE, (positive,))
            settled.append(assignment._replace(matched=matched))
        return settled

    def _claims(self, priors: Priors, boxes: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box (P,) that claims each anchor by its `highest` IoU (M,), or -1, and box counts (P,).

        The IoU is computed a second time: the whole matrix may be larger than the memory.
        """
        rank = torch.arange(len(boxes), device=boxes.device) if self.low_quality == "overwrite" else highest
        rank, owners, counts = rank.to(highest.dtype), [], []
        for part in column_blocks(len(boxes), len(priors), boxes.device):
            overlap = box_iou(boxes, priors.coordinates[part])
            is_best = overlap == highest[:, None]
            counts.append(((overlap >= self.positive) | is_best).sum(dim=0))
            if is_free_to_read(boxes):
                box, prior = is_best.nonzero(as_tuple=True)
                owners.append(argmax_by_group(prior, rank[box], box, overlap.shape[1]))
            else:
                value, box = torch.where(is_best, rank[:, None], -torch.inf).max(dim=0)
                owners.append(torch.where(value > -torch.inf, box, -1))
        return torch.cat(owners), torch.cat(counts)


def _best_boxes(priors: Priors, boxes: Tensor, besides: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest IoU (P,) of each anchor with its box (P,), and the highest IoU (M,) of each box.

    The box `besides` (P,) of each anchor is left out, as if it were far away.
    """
    values, indices, highest = [], [], boxes.new_zeros(len(boxes))
    for part in column_blocks(len(boxes), len(priors), boxes.device):
        overlap = box_iou(boxes, priors.coordinates[part])
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
        areas = box_area(priors.coordinates)
        levels = [(rows, areas[rows].log().mean()) for rows in priors.level_slices if rows.start < rows.stop]
        for box in sorted(still_unmatched, key=lambda box: boxes[box].tolist()):  # the same for any order of the boxes
            _assign_nearest(matched, is_free, box, priors, boxes[box], levels)
    return matched


def _assign_overlapping(matched: Tensor, is_free: Tensor, orphans: Tensor, priors: Priors, boxes: Tensor) -> list[int]:
    """Assign free anchors to `orphans` with the highest sum of IoUs (Hungarian); return the boxes still unmatched.

    Each has as many candidates as there are orphans, so no other anchor can raise the sum. Updates `matched` and
    `is_free`.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = box_iou(boxes[orphans], priors.coordinates) * is_free
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
    matched: Tensor, is_free: Tensor, box: int, priors: Priors, corners: Tensor, levels: list[tuple[slice, Tensor]]
) -> None:
    """Assign to `box` the free anchor with the nearest centre, on the level whose anchors are nearest to it in size.

    The next level if that has none. `levels` are slices of anchors, with the mean logarithm of their areas. Updates
    `matched` and `is_free`, unless no anchor is free.
    """
    area = box_area(corners).clamp(min=torch.finfo(corners.dtype).tiny).log()
    for rows, _ in sorted(levels, key=lambda level: float((level[1] - area).abs())):
        distance = (priors.centres[rows] - box_centres(corners)).square().sum(dim=1)
        distance = torch.where(is_free[rows], distance, torch.inf)
        prior = rows.start + int(distance.argmin())
        if is_free[prior]:
            matched[prior], is_free[prior] = box, False
            return


_SIDE_STRIDES = 8
_MIN_INSIDE_PX = 0.01


@registry.assigners.add("atss")
class ATSS(Assigner):
    """ATSS: priors of the `topk` nearest cells of each level with an IoU of at least mean plus deviation.

    The centre of a prior has to be inside the box; of several boxes the one with the highest IoU wins. Points count
    as squares of eight strides, the anchors of the paper. A small or doubled box may get no prior.
    Source: Zhang et al. 2020, algorithm 1; the deviation is the unbiased one of their code.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors", "points"})

    def __init__(self, *, topk: Count = 9) -> None:
        self.topk = topk

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match priors (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        candidates = self._candidates(priors, boxes)
        overlap = iou(priors.to_boxes(_SIDE_STRIDES)[candidates], boxes[:, None])
        limit = overlap.mean(dim=1) + overlap.std(dim=1, correction=min(1, overlap.shape[1] - 1))
        inside = encode_distances(priors.centres[candidates], boxes[:, None]).amin(dim=2) > _MIN_INSIDE_PX
        is_positive = ((overlap >= limit[:, None]) & inside).flatten()
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(candidates).flatten()
        prior = candidates.flatten()
        matched = argmax_by_group(prior, overlap.flatten(), box, len(priors), is_positive)
        num_claims = torch.zeros_like(matched).index_add_(0, prior, is_positive.long())
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)

    def _candidates(self, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the priors (M, K) of the nearest cells of every level: the anchors of a cell have one centre."""
        centres, candidates = priors.centres, []
        for rows, per_cell in zip(priors.level_slices, priors.priors_per_cell, strict=True):
            cells = centres[rows][::per_cell]
            if not (count := min(self.topk, len(cells))):  # of an image that is smaller than the level's stride
                continue
            nearest_cells = nearest_neighbours(cells[None], num_neighbours=count, queries=box_centres(boxes)[None])[0]
            steps = torch.arange(per_cell, device=boxes.device)
            candidates.append((rows.start + nearest_cells[:, :, None] * per_cell + steps).flatten(1))
        return torch.cat(candidates, dim=1)


_LIMIT_STRIDES = 8
"""Upper limit of a level's range in strides, as published: 64 pixels for the stride 8 and so on."""


@registry.assigners.add("fcos")
class FCOS(Assigner):
    """FCOS: points near the middle of a box, whose farthest side is within their level's range; the smallest box wins.

    A point near the middle is less than `radius` strides from it in x and in y; with a radius of 0, any point in the
    box is near. A level takes a point if the distance to the box's farthest side is within the level's range.
    `limits_px` has one number less than there are levels: where a level's range ends and the next one's begins, by
    default eight strides of the level. Both ranges contain the limit. A small box may get no point.
    Source: Tian et al. 2019, section 3.2; the centre region is that of their code and of Tian et al. 2020.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})

    def __init__(self, *, radius: NonNegativeFloat = 1.5, limits_px: tuple[PositiveFloat, ...] | None = None) -> None:
        if limits_px is not None and list(limits_px) != sorted(set(limits_px)):
            raise ValueError(f"limits_px: found {list(limits_px)}, expected rising limits")
        self.radius = radius
        self.limits_px = limits_px

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match points (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        order = box_area(boxes).argsort(stable=True)
        limits = [-1.0, *self._limits(priors), torch.inf]
        for stride, rows, low, high in zip(priors.strides, priors.level_slices, limits[:-1], limits[1:], strict=True):
            region = self._regions(boxes[order], stride)[:, :, None]
            sides = boxes[order][:, :, None]
            points = priors.coordinates[rows]
            for part in column_blocks(len(boxes), len(points), boxes.device):
                is_claimed = _is_within(points[part], sides, region, low, high)
                claims, first = is_claimed.sum(dim=0), is_claimed.to(torch.uint8).argmax(dim=0)
                prior_rows = slice(rows.start + part.start, rows.start + part.start + len(claims))
                num_claims[prior_rows] = claims
                matched[prior_rows] = torch.where(claims > 0, order[first], BACKGROUND)
        return Assignment(matched, num_claims)

    def _limits(self, priors: Priors) -> tuple[float, ...]:
        limits = self.limits_px or tuple(float(_LIMIT_STRIDES * stride) for stride in priors.strides[:-1])
        if len(limits) != len(priors.strides) - 1:
            raise ValueError(
                f"limits_px: found {len(limits)} limits for {len(priors.strides)} levels; give one for each but the "
                "last"
            )
        return limits

    def _regions(self, boxes: Tensor, stride: int) -> Tensor:
        """Return the part (M, 4) of each box whose points may predict it."""
        if self.radius == 0:
            return boxes
        centres = box_centres(boxes)
        reach = self.radius * stride
        return torch.cat(
            [torch.maximum(centres - reach, boxes[:, :2]), torch.minimum(centres + reach, boxes[:, 2:])], dim=1
        )


def _is_within(points: Tensor, sides: Tensor, region: Tensor, low: float, high: float) -> Tensor:
    """Return a mask (M, p) of the points (p, 2) that boxes (M, 4, 1) claim."""
    x, y = points.T.contiguous()
    is_inside = (x > region[:, 0]) & (x < region[:, 2]) & (y > region[:, 1]) & (y < region[:, 3])
    farthest = torch.maximum(torch.maximum(x - sides[:, 0], sides[:, 2] - x), y - sides[:, 1])
    farthest = torch.maximum(farthest, sides[:, 3] - y)
    return is_inside & (farthest >= low) & (farthest <= high)


@registry.assigners.add("free_anchor")
class FreeAnchor(Assigner):
    """FreeAnchor: the `bag_size` anchors with the highest IoU with a box are its bag, from which the loss chooses.

    The loss is `free_anchor_positive`. An anchor in several bags is given to the box that it overlaps most. Source:
    Zhang et al. 2019, section 3.2.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors"})
    excludes: ClassVar[frozenset[str]] = frozenset({"centreness", "objectness"})  # its own losses read neither

    def __init__(self, *, bag_size: Count = 50) -> None:
        self.bag_size = bag_size

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match anchors (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        bags, overlap = anchor_bags(priors.coordinates, boxes, self.bag_size)
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(bags).flatten()
        prior, overlap = bags.flatten(), overlap.flatten()
        matched = argmax_by_group(prior, overlap, box, len(priors))
        num_claims = torch.zeros_like(matched).index_add_(0, prior, torch.ones_like(prior))
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)
