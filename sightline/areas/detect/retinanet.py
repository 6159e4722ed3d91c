"""RetinaNet: its head, with one or two boxes at each anchor, and the assignment of boxes to anchors by their IoU.

Its losses are sigmoid_focal and box_smooth_l1, or earth_mover for two boxes, and box_density for its density branch.
Source: Lin et al. 2017, Focal Loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NotRequired

import torch
from torch import Tensor, nn

from sightline.areas.detect.networks import DenseHead, HeadOutput, PriorProbability, flatten_to_priors
from sightline.contract import registry
from sightline.contract.arguments import Count, Probability
from sightline.contract.errors import ConfigError, assert_installed
from sightline.layers.images import ConvBlock
from sightline.ops.boxes.overlaps import box_area, box_centres, box_iou, column_blocks, iou
from sightline.ops.boxes.priors import PriorKind, Priors
from sightline.ops.waits import POSITIVE, call_on_host, is_on_host, remember
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED, Assigner, Assignment, argmax_by_group


class RetinaOutput(HeadOutput):
    """HeadOutput, optionally with `density` (B, P): the predicted highest IoU of a prior's object with another one.

    Its target is 0 to 1; a prediction is not bounded.
    """

    density: NotRequired[Tensor]


class _DensityBranch(nn.Module):
    """Density of objects at each anchor, from the map, the logits and the deltas of a level.

    A 1x1 convolution reduces the map to a quarter of its channels; a 5x5 convolution reads it with the other two.
    Source: Liu et al. 2019, Adaptive NMS, section 3.3, there in a proposal network.
    """

    def __init__(self, channels: int, *, num_anchors: int, num_predicted: int) -> None:
        super().__init__()
        width = max(1, channels // 4)
        self.reduce = ConvBlock(in_channels=channels, out_channels=width, kernel_size=1, activation=nn.ReLU())
        self.predict = ConvBlock(in_channels=width + num_predicted, out_channels=num_anchors, kernel_size=5)

    def forward(self, level_map: Tensor, logits: Tensor, codes: Tensor) -> Tensor:
        """Predict the density (B, num_anchors, H, W) of a level from its maps (B, ..., H, W)."""
        density: Tensor = self.predict(torch.cat([self.reduce(level_map), logits, codes], dim=1))
        return density


@registry.heads.add("retina")
class RetinaHead(DenseHead):
    """RetinaNet head: logits and box deltas at `num_anchors` anchors per cell; 6,463,220 parameters.

    This number is for 80 classes and 9 anchors on five levels of 256 channels, without `density`. With it, the head
    predicts the density of objects at each anchor, too, for the loss `box_density` and the suppression `adaptive`.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4; Liu et al. 2019, Adaptive NMS, section
    3.3 (the density).
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
        density: bool = False,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=num_anchors,
            num_convs=num_convs,
        )
        if density and self.predictions_per_prior > 1:
            name = type(self).__name__
            raise ConfigError(f"density: {name} predicts several boxes at an anchor; take the head retina")
        self.density = None
        if density:
            num_predicted = num_anchors * (num_classes + 4)
            self.density = _DensityBranch(channels[0], num_anchors=num_anchors, num_predicted=num_predicted)
        self.output_keys = frozenset({"logits", "codes"} | ({"density"} if density else set()))
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> RetinaOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first.

        `codes` are box deltas: the offset of the box's centre in x, in widths of the anchor, and in y, in heights of
        it; then the logarithms of the box's width and height over those of the anchor.
        """
        count = self.predictions_per_prior
        logits = [self.classes(self.class_tower(level_map)) for level_map in maps]
        codes = [self.boxes(self.box_tower(level_map)) for level_map in maps]
        flat = flatten_to_priors(logits, count * self.num_classes), flatten_to_priors(codes, count * 4)
        if count > 1:
            flat = flat[0].unflatten(2, (count, -1)), flat[1].unflatten(2, (count, -1))
        output: RetinaOutput = {"logits": flat[0], "codes": flat[1]}
        if self.density is not None:
            densities = [self.density(*level) for level in zip(maps, logits, codes, strict=True)]
            output["density"] = flatten_to_priors(densities, 1)[..., 0]
        return output


@registry.heads.add("retina_emd")
class RetinaEMDHead(RetinaHead):
    """RetinaNet head with two predictions per anchor (EMD), for boxes that hide one another; 4,928,090 parameters.

    For 1 class and 9 anchors. `logits` (B, P, 2, num_classes) and `codes` (B, P, 2, 4); otherwise as retina. Both
    predictions are one proposal: the suppression `set` keeps both. Source: Chu et al. 2020, Detection in Crowded
    Scenes, section 3.
    """

    predictions_per_prior = 2


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
        if is_on_host(priors.coordinates):
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
            if is_on_host(boxes):
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
    lowest = overlap.topk(count, dim=1).values[:, -1:]
    candidates = ((overlap >= lowest) & (overlap > 0)).any(dim=0).nonzero().flatten()  # all of a tie
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
