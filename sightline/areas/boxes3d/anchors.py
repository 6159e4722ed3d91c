"""Anchors of boxes on a grid, their codes and directions, and which box each of them has to find.

A box is (x, y, z, dx, dy, dz, yaw), as in `store/boxes3d`. Source: Yan et al. 2018, SECOND, sections 3.1.3 and 3.2;
Lang et al. 2019, PointPillars, sections 2.3 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor
from typing_extensions import TypedDict

from sightline.areas.boxes3d.grid import PillarGrid
from sightline.contract.arguments import PositiveFloat, Probability
from sightline.contract.errors import ConfigError
from sightline.ops.boxes.priors import BACKGROUND, IGNORED
from sightline.ops.boxes.rotated_overlaps import box3d_iou, box3d_nearest_iou_bev

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
    """Anchors `boxes` (A, 7), in the order y, x, class, rotation; each finds boxes of its class `label` (A,) alone.

    `positive` and `negative` are the overlaps of each class.
    """

    boxes: Tensor
    label: Tensor
    positive: tuple[float, ...]
    negative: tuple[float, ...]

    def to(self, like: Tensor) -> Anchors:
        """Return the anchors on the device of `like`, in its dtype if that is wider than float16."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        boxes, label = self.boxes.to(like.device, dtype), self.label.to(like.device)
        return Anchors(boxes, label, self.positive, self.negative)


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
    return Anchors(boxes.flatten(0, 3), label.flatten(), *map(tuple, limits))


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


def assign_boxes(
    anchors: Anchors,
    boxes: Tensor,
    label: Tensor,
    is_ignored: Tensor,
    *,
    overlap: Literal["nearest", "volume"] = "nearest",
) -> tuple[Tensor, Tensor]:
    """Give each anchor the box of one frame that it has to find: (A,) rows of `boxes`, or BACKGROUND or IGNORED.

    An anchor of a class looks at `boxes` (M, 7) of that class `label` (M,) alone: it takes the one of the largest
    overlap if that is at least `positive`, is background below `negative`, and is ignored between. Anchors that overlap
    a box best, be it little, take the box that they themselves overlap best. An anchor that a box of `is_ignored` (M,)
    overlaps by `negative` or more is never background. Also returns (M,) whether a box has an anchor.
    Source: Lang et al. 2019, section 3.3; OpenPCDet's assigner.
    """
    matched = torch.full_like(anchors.label, BACKGROUND)
    has_anchor = torch.zeros_like(is_ignored)
    measure = box3d_nearest_iou_bev if overlap == "nearest" else box3d_iou
    boxes = boxes.to(anchors.boxes)
    for number, (positive, negative) in enumerate(zip(anchors.positive, anchors.negative, strict=True)):
        rows = (anchors.label == number).nonzero().flatten()
        own = (label == number).nonzero().flatten()
        if not len(own):
            continue
        overlaps = measure(anchors.boxes[rows], boxes[own])
        is_real = ~is_ignored[own]
        real = overlaps.masked_fill(~is_real, -1.0)
        highest, best = real.max(dim=1)
        of_box = real.amax(dim=0)
        is_best = ((real == of_box) & (of_box > 0)).any(dim=1)
        is_matched = (highest >= positive) | is_best
        near_ignored = overlaps.masked_fill(is_real, -1.0).amax(dim=1) >= negative
        is_between = (highest >= negative) | near_ignored
        chosen = torch.where(is_matched, own[best], torch.where(is_between, IGNORED, BACKGROUND))
        matched[rows] = chosen
        has_anchor[own[best[is_matched]]] = True
    return matched, has_anchor
