"""Points in upright 3D boxes: for each point the first box that holds it, faces included.

Metres and radians, in one of two frames. `camera`: x right, y down, z forward; a box is x, y, z of the middle of its
bottom, length, height, width, and the turn about y, at zero with its length along x. `lidar`: x forward, y left, z up;
a box is x, y, z of its centre, its extent along its heading, to the left of it, and up, and the turn of the heading
from +x, counter-clockwise seen from above.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sightline.ops.dtypes import promote_to_float32
from sightline.ops.gpu_kernels import as_type, gpu_kernel, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator


@torch.no_grad()
def points_in_boxes(
    points: Tensor,
    boxes: Tensor,
    *,
    frame: Literal["camera", "lidar"],
    margin: float = 0.0,
    bottom: float = 0.0,
) -> Tensor:
    """Find for each of `points` (N, 3) the first of `boxes` (M, 7) that holds it: index (N,) int64, -1 for none.

    `frame` states the frame of both, and what the numbers of a box are: see above. `margin` widens the four upright
    sides, in a camera's frame the top too; what lies less than `bottom` above the bottom is left out, such as the
    ground. Points that are not finite are in no box, and a box of a negative size holds none. In float32 at least; sine
    and cosine are rounded from float64, so that points on faces are the same on every device. Raises ValueError for
    another frame, shape, dtype or device.
    """
    if frame not in _IN_FRAME:
        raise ValueError(f"frame: found {frame!r}, allowed are 'camera' and 'lidar': the axes of points and boxes")
    for name, values, count in (("points", points, 3), ("boxes", boxes, 7)):
        if values.ndim != 2 or values.shape[1] != count or values.dtype == torch.bool or values.is_complex():
            raise ValueError(f"{name}: found {tuple(values.shape)} {values.dtype}, expected numbers (N, {count})")
    if points.device != boxes.device:
        raise ValueError(f"boxes: found on {boxes.device}, points on {points.device}; move one to the other's device")
    points, boxes = promote_to_float32(points.detach()), promote_to_float32(boxes.detach())
    dtype, turn = torch.promote_types(points.dtype, boxes.dtype), boxes[:, 6:].double()
    table = torch.cat([boxes[:, :6].to(dtype), turn.cos().to(dtype), turn.sin().to(dtype)], dim=1)
    return _IN_FRAME[frame](points.to(dtype), table, margin, bottom)


@operator(launches=1, differentiable=False)
def _points_in_boxes(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    """Find the boxes (M, 8) of a camera's frame, with the cosine and the sine of their turn in place of it."""
    length, height, width, cosine, sine = boxes[:, 3:, None].unbind(1)
    x, y, z = (points - boxes[:, None, :3]).unbind(2)
    along, across = cosine * x - sine * z, sine * x + cosine * z
    is_inside = (y >= -height - margin) & (y <= -bottom) & (along.abs() <= length / 2 + margin)
    return _find_first(is_inside & (across.abs() <= width / 2 + margin))


@operator(differentiable=False)
def _points_in_lidar_boxes(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    """Find the boxes (M, 8) of a LiDAR's frame, with the cosine and the sine of their turn in place of it."""
    length, width, height, cosine, sine = boxes[:, 3:, None].unbind(1)
    x, y, z = (points - boxes[:, None, :3]).unbind(2)
    along, across = cosine * x + sine * y, cosine * y - sine * x
    is_inside = (z <= height / 2) & (z >= bottom - height / 2) & (along.abs() <= length / 2 + margin)
    return _find_first(is_inside & (across.abs() <= width / 2 + margin))


_IN_FRAME = {"camera": _points_in_boxes, "lidar": _points_in_lidar_boxes}
"""Operators by frame. That of LiDARs has no kernel for GPUs: no GPU has run one."""


def _find_first(is_inside: Tensor) -> Tensor:
    """Return the first row (N,) int64 that is True in each column of (M, N), -1 for none."""
    num_boxes, num_points = is_inside.shape
    number = torch.arange(num_boxes, device=is_inside.device)[:, None].expand(is_inside.shape)
    none = number.new_full((1, num_points), num_boxes)
    first = torch.cat([torch.where(is_inside, number, num_boxes), none]).amin(dim=0)
    return torch.where(first < num_boxes, first, -1)


@_points_in_boxes.fake
@_points_in_lidar_boxes.fake
def _(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.int64)


@_points_in_boxes.cpu_kernel
def _(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    index, limits = np.empty(len(points), dtype=np.int64), points.new_tensor([margin, bottom]).numpy()
    run_parallel(_find, len(points), points.contiguous().numpy(), boxes.contiguous().numpy(), limits, index)
    return torch.from_numpy(index)


@numba_kernel
def _find(first: int, last: int, points: np.ndarray, boxes: np.ndarray, limits: np.ndarray, index: np.ndarray) -> None:
    """Write the first box of each point; a box that is too low, too high or too far ends early."""
    margin, bottom, half = limits[0], limits[1], boxes.dtype.type(0.5)
    for row in range(first, last):
        index[row] = -1
        for number in range(len(boxes)):
            left, down, front, length, height, width, cosine, sine = boxes[number]
            y = points[row, 1] - down
            if y >= -height - margin and y <= -bottom:
                x, z = points[row, 0] - left, points[row, 2] - front
                is_inside = abs(cosine * x - sine * z) <= length * half + margin
                if is_inside and abs(sine * x + cosine * z) <= width * half + margin:
                    index[row] = number
                    break


@_points_in_lidar_boxes.cpu_kernel
def _(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    index, limits = np.empty(len(points), dtype=np.int64), points.new_tensor([margin, bottom]).numpy()
    table = (points.contiguous().numpy(), boxes.contiguous().numpy())
    run_parallel(_find_in_lidar, len(points), *table, limits, index)
    return torch.from_numpy(index)


@numba_kernel
def _find_in_lidar(
    first: int, last: int, points: np.ndarray, boxes: np.ndarray, limits: np.ndarray, index: np.ndarray
) -> None:
    """Write the first box of each point; a box that is too low, too high or too far ends early."""
    margin, bottom, half = limits[0], limits[1], boxes.dtype.type(0.5)
    for row in range(first, last):
        index[row] = -1
        for number in range(len(boxes)):
            centre_x, centre_y, centre_z, length, width, height, cosine, sine = boxes[number]
            z = points[row, 2] - centre_z
            if z <= height * half and z >= bottom - height * half:
                x, y = points[row, 0] - centre_x, points[row, 1] - centre_y
                is_inside = abs(cosine * x + sine * y) <= length * half + margin
                if is_inside and abs(cosine * y - sine * x) <= width * half + margin:
                    index[row] = number
                    break


@_points_in_boxes.gpu_kernel()
def _(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    index, count, block = points.new_empty(len(points), dtype=torch.int64), len(points), 256
    tensors = (points.contiguous(), boxes.contiguous(), index)
    _find_boxes.launch(-(-count // block), *tensors, count, len(boxes), margin, bottom, BLOCK=block)
    return index


@gpu_kernel
def _find_boxes(  # type: ignore[no-untyped-def]
    points,
    boxes,
    index,
    count: tl.int64,
    num_boxes: tl.int32,
    margin: tl.float64,
    bottom: tl.float64,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row, pointer = row < count, points + row * 3
    wider, above = as_type(margin, points.dtype.element_ty), as_type(bottom, points.dtype.element_ty)
    left, down = tl.load(pointer, mask=is_row, other=0.0), tl.load(pointer + 1, mask=is_row, other=0.0)
    front = tl.load(pointer + 2, mask=is_row, other=0.0)
    first_box = tl.full((BLOCK,), -1, tl.int64)
    for number in range(num_boxes):
        box = boxes + number * 8
        x, y, z = left - tl.load(box), down - tl.load(box + 1), front - tl.load(box + 2)
        cosine, sine = tl.load(box + 6), tl.load(box + 7)
        is_inside = (y >= -tl.load(box + 4) - wider) & (y <= -above)
        is_inside &= tl.abs(cosine * x - sine * z) <= tl.load(box + 3) * 0.5 + wider
        is_inside &= tl.abs(sine * x + cosine * z) <= tl.load(box + 5) * 0.5 + wider
        first_box = tl.where(is_inside & (first_box < 0), number, first_box)
    tl.store(index + row, first_box, mask=is_row)
