"""Anchors of boxes on a grid, their codes and directions, and which box each of them has to find.

A box is (x, y, z, dx, dy, dz, yaw), as in `store/boxes3d`. Source: Yan et al. 2018, SECOND, sections 3.1.3 and 3.2;
Lang et al. 2019, PointPillars, sections 2.3 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor
from typing_extensions import TypedDict

from sightline.areas.boxes3d.grid import PillarGrid
from sightline.contract.arguments import PositiveFloat, Probability
from sightline.contract.errors import ConfigError
from sightline.ops.boxes.priors import BACKGROUND, IGNORED, Priors
from sightline.ops.boxes.rotated_overlaps import box3d_iou, box3d_nearest_iou_bev
from sightline.ops.waits import is_on_host
from sightline.parts.boxes.assigner import Assigner, Assignment

ROTATIONS = (0.0, 1.57)
"""Yaw of the anchors of a class; the second is the published one, not the quarter turn."""
DIRECTION_OFFSET = 0.78539
"""Angle at which the two halves of the circle meet: an eighth of it, as published."""


class ClassAnchors(TypedDict):
    """Anchors of a class: `size` along the heading, across and up, and the height of their `bottom`, in metres.

    An anchor whose overlap with a box of its class is at least `positive` has to find it; below `negative` it is
    background.
    """

    size: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    bottom: float
    positive: Annotated[float, Gt(0), Lt(1)]
    negative: Probability


@dataclass(frozen=True)
class Anchors:
    """Anchors as `priors` of boxes (A, 7), in the order y, x, class, rotation; each is of a class `label` (A,).

    `positive` and `negative` are the overlaps of each class.
    """

    priors: Priors
    label: Tensor
    positive: tuple[float, ...]
    negative: tuple[float, ...]

    @property
    def boxes(self) -> Tensor:
        """The boxes (A, 7)."""
        return self.priors.coordinates

    def to(self, device: torch.device) -> Anchors:
        """Return the anchors on a device."""
        moved = replace(self.priors, coordinates=self.boxes.to(device))
        return replace(self, priors=moved, label=self.label.to(device))


def read_anchors(block: Mapping[str, Any], class_names: Sequence[str]) -> list[ClassAnchors]:
    """Return the anchors of each class, in the order of the names. Raises ConfigError unless all of them have some."""
    missing = [name for name in class_names if name not in block]
    unknown = [name for name in block if name not in class_names]
    if missing or unknown:
        raise ConfigError(
            f"task.anchors: the classes are {', '.join(class_names)}; "
            + (f"without anchors: {', '.join(missing)}" if missing else f"no such class: {', '.join(unknown)}")
            + "; `sightline data info` proposes anchors of your own boxes"
        )
    for name in class_names:
        if block[name]["negative"] > block[name]["positive"]:
            raise ConfigError(
                f"task.anchors.{name}: negative {block[name]['negative']:g} is above positive "
                f"{block[name]['positive']:g}; state it as at most that"
            )
    return [block[name] for name in class_names]


def make_anchors(
    grid: PillarGrid, classes: Sequence[ClassAnchors], *, places: Literal["ends", "middles"] = "ends"
) -> Anchors:
    """Lay out the anchors of each class over the cells of the head, in float64.

    `places` are spread from the first edge of the extent to the last (`ends`, the published layout) or are the middles
    of the cells. Source: OpenPCDet's generator, `align_center` False and True.
    """
    low, high = grid.extent_m[:3], grid.extent_m[3:]
    rows, columns = grid.head_cells
    x, y = _spread(low[0], high[0], columns, places), _spread(low[1], high[1], rows, places)
    boxes = torch.zeros(rows, columns, len(classes), len(ROTATIONS), 7, dtype=torch.float64)
    boxes[..., 0], boxes[..., 1] = x[:, None, None], y[:, None, None, None]
    for number, anchors in enumerate(classes):
        boxes[:, :, number, :, 2] = anchors["bottom"] + anchors["size"][2] / 2
        boxes[:, :, number, :, 3:6] = torch.tensor(anchors["size"], dtype=torch.float64)
    boxes[..., 6] = torch.tensor(ROTATIONS, dtype=torch.float64)
    label = torch.arange(len(classes))[:, None].expand(rows, columns, -1, len(ROTATIONS))
    limits = ([anchors[name] for anchors in classes] for name in ("positive", "negative"))
    per_cell = len(classes) * len(ROTATIONS)
    priors = Priors("anchors", boxes.flatten(0, 3), (grid.stride,), (grid.head_cells,), (per_cell,))
    return Anchors(priors, label.flatten(), *map(tuple, limits))


def _spread(low: float, high: float, count: int, places: str) -> Tensor:
    """Return `count` places, added up as `torch.arange` does: which anchors overlap a box alike hangs on last bits."""
    step = (high - low) / (count if places == "middles" else max(1, count - 1))
    first = low + step / 2 if places == "middles" else low
    return torch.arange(first, first + (count - 0.5) * step, step, dtype=torch.float64)


def wrap_period(values: Tensor, *, offset: float, period: float) -> Tensor:
    """Shift `values` by whole periods into [-offset, 1 - offset) of a period. Source: SECOND's `limit_period`."""
    return values - (values / period + offset).floor() * period


def find_direction(yaw: Tensor, *, offset: float = DIRECTION_OFFSET, num_bins: int = 2) -> Tensor:
    """Return the part of the circle, from `offset` on, in which `yaw` lies: int64, 0 to `num_bins` - 1."""
    turned = wrap_period(yaw - offset, offset=0.0, period=2 * math.pi)
    return (turned / (2 * math.pi / num_bins)).floor().long().clamp(0, num_bins - 1)


def turn_by_direction(
    yaw: Tensor, direction: Tensor, *, offset: float = DIRECTION_OFFSET, limit: float = 0.0, num_bins: int = 2
) -> Tensor:
    """Turn `yaw`, which is known up to a part of the circle, into the part `direction` int64."""
    period = 2 * math.pi / num_bins
    return wrap_period(yaw - offset, offset=limit, period=period) + offset + period * direction.to(yaw.dtype)


class AnchorAssigner(Assigner):
    """Assigner of boxes to anchors of a class each: an anchor looks at boxes of its class alone.

    It takes the one of the largest overlap if that is at least `positive` of the class, is background below `negative`,
    and is ignored between. Anchors that overlap a box best, be it little, take the box that they themselves overlap
    best. `overlap` is that of boxes laid along the nearer axis, or of volumes.
    Source: Lang et al. 2019, section 3.3; OpenPCDet's assigner.
    """

    prior_kinds = frozenset({"anchors"})
    num_sides = 7
    needs_labels = True

    def __init__(self, anchors: Anchors, *, overlap: Literal["nearest", "volume"] = "nearest") -> None:
        self.label = anchors.label
        self.rows = [(self.label == number).nonzero().flatten() for number in range(len(anchors.positive))]
        self.positive, self.negative = (
            anchors.boxes.new_tensor(limits)[self.label] for limits in (anchors.positive, anchors.negative)
        )
        self.measure = box3d_nearest_iou_bev if overlap == "nearest" else box3d_iou

    def find_best(self, anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest overlap (M,) of each box (M, 7) with anchors (A, 7) of its class, and which that is (M,).

        Both are 0 for boxes of none of the classes. For pictures and checks: on a device, it waits.
        """
        best, place = anchors.new_zeros(len(boxes)), torch.zeros_like(labels, dtype=torch.int64)
        for number, rows in enumerate(self.rows):
            own = (labels == number).nonzero().flatten()
            if len(own):
                best[own], chosen = self.measure(anchors[rows], boxes[own].to(anchors)).max(dim=0)
                place[own] = rows[chosen]
        return best, place

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor) -> Assignment:
        """Match the anchors (A, 7) with boxes (M, 7) of classes `labels` (M,); -1 is none."""
        if not is_on_host(boxes):  # where boxes of a class are not counted: those of others overlap nothing
            overlaps = self.measure(priors.coordinates, boxes)
            is_own = self.label[:, None] == labels
            return _choose(torch.where(is_own, overlaps, -1), self.positive, self.negative)
        matched = torch.full_like(self.label, BACKGROUND)
        num_claims = torch.zeros_like(matched)
        for number, rows in enumerate(self.rows):
            own = (labels == number).nonzero().flatten()
            if not len(own):
                continue
            overlaps = self.measure(priors.coordinates[rows], boxes[own])
            row, num_claims[rows], _ = _choose(overlaps, self.positive[rows], self.negative[rows])
            matched[rows] = torch.where(row >= 0, own[row.clamp(min=0)], row)
        return Assignment(matched, num_claims)


def _choose(overlaps: Tensor, positive: Tensor, negative: Tensor) -> Assignment:
    """Choose a box for each anchor by `overlaps` (A, M) and the limits (A,) of its class."""
    highest, best = overlaps.max(dim=1)
    of_box = overlaps.amax(dim=0)
    is_claim = ((overlaps == of_box) & (of_box > 0)) | (overlaps >= positive[:, None])
    is_between = torch.where(highest >= negative, IGNORED, BACKGROUND)
    return Assignment(torch.where(is_claim.any(dim=1), best, is_between), is_claim.sum(dim=1))
