"""Overlaps of turned boxes from above and of their volumes: exact, with gradients, of all pairs or of aligned rows.

Boxes are (x, y, z, dx, dy, dz, yaw) of a LiDAR's frame, in metres and radians: the centre, the extent along the
heading, to the left of it, and up, and the turn of the heading from +x, counter-clockwise seen from above. All is
computed in float64, relative to the centre of the first box, and returned in the format of the boxes. A box whose
length or width is not above 0, or with a number that is not finite or beyond 1e100, overlaps nothing; one whose height
is not above 0 has no volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import box_iou, iou
from sightline.ops.boxes.rotated_kernels import overlap_all_pairs, overlap_rows
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.numba_kernels import run_parallel
from sightline.ops.operator import operator

_LARGEST = 1e100
"""Of a number of a box: the volume of such boxes is finite."""
_SHORTEST = 1e-30
"""Length of an edge along an axis below which it does not run along it, in metres."""


def box3d_overlap_bev(boxes1: Tensor, boxes2: Tensor, *, aligned: bool = False) -> Tensor:
    """Compute the area in m² that boxes (N, 7) and (M, 7) share seen from above: (N, M), or (N,) of `aligned` rows.

    It is 0 of boxes that only touch, and has gradients with respect to both, which are finite everywhere. Raises
    ValueError for another shape, dtype or device, and if aligned rows are not as many.
    """
    return _measure(_shared_area, boxes1, boxes2, aligned)


def box3d_iou_bev(boxes1: Tensor, boxes2: Tensor, *, aligned: bool = False) -> Tensor:
    """Compute the IoU, 0 to 1, of boxes (N, 7) and (M, 7) seen from above: (N, M), or (N,) of `aligned` rows.

    Gradients and errors as those of `box3d_overlap_bev`.
    """
    return _measure(_iou_bev, boxes1, boxes2, aligned)


def box3d_overlap(boxes1: Tensor, boxes2: Tensor, *, aligned: bool = False) -> Tensor:
    """Compute the volume in m³ that boxes (N, 7) and (M, 7) share: (N, M), or (N,) of `aligned` rows.

    Gradients and errors as those of `box3d_overlap_bev`.
    """
    return _measure(_shared_volume, boxes1, boxes2, aligned)


def box3d_iou(boxes1: Tensor, boxes2: Tensor, *, aligned: bool = False) -> Tensor:
    """Compute the IoU, 0 to 1, of the volumes of boxes (N, 7) and (M, 7): (N, M), or (N,) of `aligned` rows.

    Gradients and errors as those of `box3d_overlap_bev`.
    """
    return _measure(_iou_of_volumes, boxes1, boxes2, aligned)


def box3d_nearest_iou_bev(boxes1: Tensor, boxes2: Tensor, *, aligned: bool = False) -> Tensor:
    """Compute the IoU, 0 to 1, of boxes (N, 7) and (M, 7) laid along the nearer axis: (N, M), or (N,) if `aligned`.

    A box of which the heading is less than 45 degrees off the x axis, forward or backward, becomes an upright one of dx
    by dy around its centre, any other one of dy by dx. It is cheap, and what anchors are matched by. Errors as those of
    `box3d_overlap_bev`. Source: Yan et al. 2018 (SECOND).
    """
    return _measure(_nearest_iou, boxes1, boxes2, aligned)


def lay_along_axes(boxes: Tensor) -> Tensor:
    """Return boxes (..., 7) laid along the nearer axis as x1, y1, x2, y2 (..., 4); at exactly 45 degrees along y."""
    yaw = boxes[..., 6:].detach()
    from_axis = (yaw - torch.floor(yaw / math.pi + 0.5) * math.pi).abs()
    sizes = torch.where(from_axis < math.pi / 4, boxes[..., 3:5], boxes[..., [4, 3]])
    return torch.cat([boxes[..., :2] - sizes / 2, boxes[..., :2] + sizes / 2], dim=-1)


Measure = Callable[[Tensor, Tensor, bool], Tensor]


def _measure(measure: Measure, boxes1: Tensor, boxes2: Tensor, aligned: bool) -> Tensor:
    """Check boxes, and measure them in float64; the result is in the format of the boxes, at least float32."""
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        assert_boxes_3d(boxes, name)
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2: found on {boxes2.device}, boxes1 on {boxes1.device}; move one to the other's device")
    if aligned and boxes1.shape[0] != boxes2.shape[0]:
        raise ValueError(f"boxes2: found {len(boxes2)} rows, boxes1 has {len(boxes1)}; aligned rows are as many")
    boxes1, boxes2 = promote_to_float32(boxes1), promote_to_float32(boxes2)
    measured = measure(drop_empty_boxes(boxes1), drop_empty_boxes(boxes2), aligned)
    return measured.to(torch.promote_types(boxes1.dtype, boxes2.dtype))


def assert_boxes_3d(boxes: Tensor, name: str = "boxes") -> None:
    """Raise ValueError unless `boxes` are numbers of the shape (N, 7)."""
    if not isinstance(boxes, Tensor):
        raise ValueError(f"{name}: found a {type(boxes).__name__}, expected a tensor (N, 7); give torch.tensor(...)")
    if boxes.ndim != 2 or boxes.shape[1] != 7 or boxes.dtype == torch.bool or boxes.is_complex():
        found = f"{tuple(boxes.shape)} {boxes.dtype}"
        raise ValueError(f"{name}: found {found}, expected numbers (N, 7): x, y, z, dx, dy, dz, yaw")


def drop_empty_boxes(boxes: Tensor) -> Tensor:
    """Return boxes (N, 7) in float64, all zero where no area can be computed; such rows have no gradient."""
    boxes = boxes.double()
    is_box = (boxes.abs() <= _LARGEST).all(dim=1) & (boxes[:, 3:5] > 0).all(dim=1)
    return torch.where(is_box[:, None], boxes, 0)


def make_footprints(boxes: Tensor) -> Tensor:
    """Return the footprints (N, 6) of boxes (N, 7): x, y, half of length and width, cosine and sine of the turn."""
    return torch.cat([boxes[:, :2], boxes[:, 3:5] / 2, boxes[:, 6:].cos(), boxes[:, 6:].sin()], dim=1)


def _pair(first: Tensor, second: Tensor, is_aligned: bool) -> tuple[Tensor, Tensor]:
    """Return a column of boxes (N,) for all pairs (N, 1) and (M,), or for rows."""
    return (first if is_aligned else first[:, None]), second


def _shared_area(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    return _bev_overlap(make_footprints(first), make_footprints(second), is_aligned)


def _iou_bev(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    shared = _shared_area(first, second, is_aligned)
    areas = (first[:, 3] * first[:, 4], second[:, 3] * second[:, 4])
    return divide_by_union(shared, *_pair(*areas, is_aligned))


def _shared_volume(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    """Compute heights relative to the first box: they are exact however far the boxes are off."""
    z1, z2 = _pair(first[:, 2], second[:, 2], is_aligned)
    half1, half2 = _pair(first[:, 5] / 2, second[:, 5] / 2, is_aligned)
    offset = z2 - z1
    height = torch.minimum(half1, offset + half2) - torch.maximum(-half1, offset - half2)
    return _shared_area(first, second, is_aligned) * height.clamp(min=0)


def _iou_of_volumes(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    shared = _shared_volume(first, second, is_aligned)
    size1, size2 = (boxes[:, 3] * boxes[:, 4] * boxes[:, 5].clamp(min=0) for boxes in (first, second))
    return divide_by_union(shared, *_pair(size1, size2, is_aligned))


def _nearest_iou(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    return (iou if is_aligned else box_iou)(lay_along_axes(first), lay_along_axes(second))


def divide_by_union(shared: Tensor, size1: Tensor, size2: Tensor) -> Tensor:
    """Divide what boxes share by what they cover, at most 1; 0 where that is nothing, with a gradient of 0."""
    shared = torch.minimum(shared, torch.minimum(size1, size2))
    union = size1 + size2 - shared
    is_some = union >= torch.finfo(union.dtype).tiny
    return torch.where(is_some, shared / torch.where(is_some, union, 1), 0)


# --- the area that two footprints share -------------------------------------------------------------------------------


@operator()
def _bev_overlap(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    """Compute the shared area of footprints (N, 6) and (M, 6), in float64: (N, M), or (N,) of aligned rows."""
    return share_footprints((first if is_aligned else first[:, None]).double(), second.double())


def share_footprints(first: Tensor, second: Tensor) -> Tensor:
    """Compute the area (...) that footprints (..., 6) share, 0 if they only touch.

    The edges of the second are cut to the first, in its frame: each adds the area between it and the axis. No corner is
    counted twice and none is missed, whichever edges coincide.
    """
    x1, y1, half_x, half_y, cosine1, sine1 = first.unbind(-1)
    x2, y2, half_l, half_w, cosine2, sine2 = second.unbind(-1)
    cosine, sine = cosine1 * cosine2 + sine1 * sine2, cosine1 * sine2 - sine1 * cosine2
    right, up = x2 - x1, y2 - y1
    x, y = cosine1 * right + sine1 * up, cosine1 * up - sine1 * right
    length_x, length_y, width_x, width_y = half_l * cosine, half_l * sine, half_w * sine, half_w * cosine
    corners = (
        (x + (length_x - width_x), y + (length_y + width_y)),
        (x - (length_x + width_x), y + (width_y - length_y)),
        (x - (length_x - width_x), y - (length_y + width_y)),
        (x + (length_x + width_x), y - (width_y - length_y)),
    )
    edges = zip(corners, (*corners[1:], corners[0]), strict=True)
    areas = [_area_below(*begin, *end, half_x, half_y) for begin, end in edges]
    area = (areas[0] + areas[1]) + (areas[2] + areas[3])
    across, along = cosine * y - sine * x, cosine * x + sine * y
    is_apart = (x.abs() >= half_x + (length_x.abs() + width_x.abs())) | (
        y.abs() >= half_y + (length_y.abs() + width_y.abs())
    )
    is_apart = is_apart | (along.abs() >= half_l + ((half_x * cosine).abs() + (half_y * sine).abs()))
    is_apart = is_apart | (across.abs() >= half_w + ((half_x * sine).abs() + (half_y * cosine).abs()))
    return torch.where(is_apart, 0, area.clamp(min=0))


def _area_below(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    """Compute the area (...) between the axis and an edge cut to a box around the origin, negative if it runs right.

    The mean of a height along an edge, cut at the faces, is that of its ends, and for what was cut off at one of them
    a share of it: what of the edge lies between the faces.
    """
    u0, u1 = _cut(x0, half_x), _cut(x1, half_x)
    run, rise = x1 - x0, y1 - y0
    is_running = run.abs() > _SHORTEST
    run = torch.where(is_running, run, 1)
    v0 = y0 + torch.where(is_running, (u0 - x0) / run, 0) * rise
    v1 = y1 + torch.where(is_running, (u1 - x1) / run, 0) * rise
    w0, w1, rise = _cut(v0, half_y), _cut(v1, half_y), v1 - v0
    is_rising = (rise.abs() > _SHORTEST) & (w0 != w1)  # of what is beyond a face all slopes are 0, not 1e16 - 1e16
    share = torch.where(is_rising, (w1 - w0) / torch.where(is_rising, rise, 1), 0)
    return (u0 - u1) * (((w0 + w1) + share * ((v0 - w0) + (v1 - w1))) / 2)


def _cut(values: Tensor, half: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(values, half), -half)


@_bev_overlap.fake
def _(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    shape = (first.shape[0],) if is_aligned else (first.shape[0], second.shape[0])
    return first.new_empty(shape, dtype=torch.float64)


@_bev_overlap.cpu_kernel
def _(first: Tensor, second: Tensor, is_aligned: bool) -> Tensor:
    shape = (len(first),) if is_aligned else (len(first), len(second))
    areas = first.new_empty(shape, dtype=torch.float64)
    tables: list[Any] = [table.detach().double().contiguous().numpy() for table in (first, second)]
    run_parallel(overlap_rows if is_aligned else overlap_all_pairs, len(first), *tables, areas.numpy())
    return areas
