"""Points in upright 3D boxes: for each point the first box that holds it, faces included.

The frame is that of a camera: metres, x right, y down, z forward; a box is x, y, z of the middle of its
bottom, length, height, width, and the turn about y, at zero with its length along x.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sightline.ops.dtypes import promote_to_float32
from sightline.ops.gpu_kernels import as_type, gpu_kernel, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator


@torch.no_grad()
def points_in_boxes(points: Tensor, boxes: Tensor, *, margin: float = 0.0, bottom: float = 0.0) -> Tensor:
    """Find for each of `points` (N, 3) the first of `boxes` (M, 7) that holds it: index (N,) int64, -1 for none.

    `margin` widens boxes to every side but down; what lies less than `bottom` above their bottom is left out, such as
    the ground they stand on. Points that are not finite are in no box. In float32 at least; the sine and cosine are
    rounded from float64, so that points on faces are the same on every device. Raises ValueError for another shape,
    dtype or device.
    """
    for name, values, count in (("points", points, 3), ("boxes", boxes, 7)):
        if values.ndim != 2 or values.shape[1] != count or values.dtype == torch.bool or values.is_complex():
            raise ValueError(f"{name}: found {tuple(values.shape)} {values.dtype}, expected numbers (N, {count})")
    if points.device != boxes.device:
        raise ValueError(f"boxes: found on {boxes.device}, points on {points.device}; move one to the other's device")
    points, boxes = promote_to_float32(points.detach()), promote_to_float32(boxes.detach())
    dtype, turn = torch.promote_types(points.dtype, boxes.dtype), boxes[:, 6:].double()
    table = torch.cat([boxes[:, :6].to(dtype), turn.cos().to(dtype), turn.sin().to(dtype)], dim=1)
    return _points_in_boxes(points.to(dtype), table, margin, bottom)


@operator(launches=1, differentiable=False)
def _points_in_boxes(points: Tensor, boxes: Tensor, margin: float, bottom: float) -> Tensor:
    """Find the boxes (M, 8), with the cosine and the sine of their turn in place of it."""
    length, height, width, cosine, sine = boxes[:, 3:, None].unbind(1)
    x, y, z = (points - boxes[:, None, :3]).unbind(2)
    along, across = cosine * x - sine * z, sine * x + cosine * z
    is_inside = (y >= -height - margin) & (y <= -bottom) & (along.abs() <= length / 2 + margin)
    is_inside = is_inside & (across.abs() <= width / 2 + margin)
    number = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(is_inside.shape)
    none = number.new_full((1, points.shape[0]), boxes.shape[0])
    first = torch.cat([torch.where(is_inside, number, boxes.shape[0]), none]).amin(dim=0)
    return torch.where(first < boxes.shape[0], first, -1)


@_points_in_boxes.fake
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
