"""Box overlaps: IoU, GIoU, DIoU, CIoU and SIoU with exact gradients, and matrices of all pairs.

The functions of `OVERLAPS` and `ioa` broadcast: boxes (..., 4) with boxes (..., 4). Aligned rows are `iou(a, b)`, all
pairs `iou(a[:, None], b)`. Half precision is computed in float32, whole numbers in float64. A box without an area
overlaps nothing: its IoU is 0, and gradients are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import NumbaKernel, can_use_numba, numba_kernel, run_parallel

_ENTRIES_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Entries of a matrix of boxes and priors in memory at a time: 4 MB on the CPU, which fits into its cache."""


def promote_to_float32(values: Tensor) -> Tensor:
    """Cast values (...) to float32 at least: half precision to float32, whole numbers to float64, which holds them."""
    if not values.is_floating_point():
        return values.double()
    return values.to(torch.promote_types(values.dtype, torch.float32))


def box_sizes(boxes: Tensor) -> Tensor:
    """Return width and height (..., 2) of boxes (..., 4), at least 0."""
    boxes = promote_to_float32(boxes)
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)


def box_centres(boxes: Tensor) -> Tensor:
    """Return the centres (..., 2) of boxes (..., 4)."""
    boxes = promote_to_float32(boxes)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_areas(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4), in square pixels."""
    return _multiply_sides(box_sizes(boxes))


def _multiply_sides(sizes: Tensor) -> Tensor:
    """Multiply the two sides (..., 2); the gradient of `prod` would wait for a GPU, to look for zeros."""
    width, height = sizes.unbind(dim=-1)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the IoU (...) of boxes (..., 4) and (..., 4), 0 to 1."""
    return _iou_and_union(a, b)[0]


def ioa(a: Tensor, b: Tensor) -> Tensor:
    """Compute the share (...) of the area of `a` (..., 4) inside `b` (..., 4), 0 to 1."""
    return _ratio(_intersection(a, b), box_areas(a))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the GIoU (...) of boxes (..., 4) and (..., 4), -1 to 1.

    The IoU less the uncovered share of the enclosing box.
    Source: Rezatofighi et al. 2019.
    """
    overlap, union = _iou_and_union(a, b)
    enclosing = _multiply_sides(_enclosing(a, b))
    return overlap - _ratio(enclosing - union, enclosing)


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the DIoU (...) of boxes (..., 4) and (..., 4), -1 to 1.

    The IoU less the squared distance of the centres over the squared diagonal of the enclosing box.
    Source: Zheng et al. 2020, equation 7.
    """
    return iou(a, b) - _distance_term(a, b)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the CIoU (...) of boxes (..., 4) and (..., 4): the DIoU less a penalty for different aspect ratios.

    The penalty's factor has no gradient. Source: Zheng et al. 2020, eq. 10.
    """
    overlap = iou(a, b)
    angle = _aspect(a) - _aspect(b)
    both = ((box_sizes(a) > 0) & (box_sizes(b) > 0)).all(dim=-1)
    difference = torch.where(both, 4 / math.pi**2 * angle.square(), 0)
    with torch.no_grad():
        factor = _ratio(difference, 1 - overlap + difference)
    return overlap - _distance_term(a, b) - factor * difference


def siou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the SIoU (...) of boxes (..., 4) and (..., 4): the IoU less half of a distance term and a shape term.

    An angle sharpens the distance term. Source: Gevorgyan 2022.
    """
    offset = (box_centres(a) - box_centres(b)).abs()
    # 1 - 2 sin^2(asin x - pi / 4) is 2 x sqrt(1 - x^2), and x is the smaller side of the offset over its length.
    angle = 2 * _ratio(_multiply_sides(offset), offset.square().sum(dim=-1))
    relative = _ratio(offset, _enclosing(a, b)).square()
    distance = (1 - torch.exp((angle - 2)[..., None] * relative)).sum(dim=-1)
    sizes_a, sizes_b = box_sizes(a), box_sizes(b)
    shape = (1 - torch.exp(-_ratio((sizes_a - sizes_b).abs(), torch.maximum(sizes_a, sizes_b)))).pow(4).sum(dim=-1)
    return iou(a, b) - (distance + shape) / 2


OVERLAPS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": iou,
    "giou": giou,
    "diou": diou,
    "ciou": ciou,
    "siou": siou,
}
"""Overlap functions by config name; each is 1 for equal boxes."""


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the IoU (N, M) of all pairs of boxes (N, 4) and (M, 4).

    The bits of `iou(a[:, None], b)`, compiled on the CPU.
    """
    return _pairwise(iou, _pairwise_iou, a, b)


def pairwise_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Compute the share (N, M) of each box of `a` (N, 4) inside each of `b` (M, 4).

    The bits of `ioa(a[:, None], b)`.
    """
    return _pairwise(ioa, _pairwise_ioa, a, b)


def column_blocks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Iterate over column slices that keep a matrix of `num_rows` rows within the memory limit."""
    entries = _ENTRIES_AT_ONCE.get(device.type, _ENTRIES_AT_ONCE["cpu"])
    step = max(1, entries // max(1, num_rows))
    yield from (slice(first, first + step) for first in range(0, num_columns, step))


def _pairwise(plain: Callable[[Tensor, Tensor], Tensor], kernel: NumbaKernel, a: Tensor, b: Tensor) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != 4 or b.shape[1] != 4:
        raise ValueError(f"boxes: found the shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (N, 4) and (M, 4)")
    needs_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if needs_gradient or not can_use_numba(a, b):
        return plain(a[:, None], b)
    matrix = a.new_empty(len(a), len(b))
    columns = b.detach().T.contiguous().numpy()
    run_parallel(kernel, len(a), a.detach().contiguous().numpy(), columns, matrix.numpy())
    return matrix


def _ratio(part: Tensor, total: Tensor) -> Tensor:
    """Divide, with 0 where `total` is 0; the gradient is finite everywhere."""
    is_some = total >= torch.finfo(total.dtype).tiny
    return torch.where(is_some, part / torch.where(is_some, total, 1), 0)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    a, b = promote_to_float32(a), promote_to_float32(b)
    first, last = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return _multiply_sides((last - first).clamp(min=0))


def _iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _intersection(a, b)
    union = box_areas(a) + box_areas(b) - intersection
    return _ratio(intersection, union), union


def _enclosing(a: Tensor, b: Tensor) -> Tensor:
    """Return width and height (..., 2) of the smallest box around both; an inverted box counts as its first corner."""
    a, b = promote_to_float32(a), promote_to_float32(b)
    first = torch.minimum(a[..., :2], b[..., :2])
    last = torch.maximum(torch.maximum(*a.split(2, dim=-1)), torch.maximum(*b.split(2, dim=-1)))
    return last - first


def _distance_term(a: Tensor, b: Tensor) -> Tensor:
    squared = (box_centres(a) - box_centres(b)).square().sum(dim=-1)
    return _ratio(squared, _enclosing(a, b).square().sum(dim=-1))


def _aspect(boxes: Tensor) -> Tensor:
    """Return the angle (...) of width over height, 0 for a box without a height."""
    width, height = box_sizes(boxes).unbind(dim=-1)
    return torch.atan(_ratio(width, height))


@numba_kernel
def _pairwise_iou(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, ious: np.ndarray) -> None:
    """CPU kernel of `pairwise_iou`: boxes (N, 4), columns (4, M); writes the IoU to `ious` (N, M)."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(ious)
    areas = np.empty(len(x1), dtype=ious.dtype)
    for column in range(len(x1)):
        areas[column] = max(x2[column] - x1[column], zero) * max(y2[column] - y1[column], zero)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), ious[row]
        for column in range(len(x1)):
            width = max(min(right, x2[column]) - max(left, x1[column]), zero)
            height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
            intersection = width * height
            union = area + areas[column] - intersection
            ratio = intersection / (union if union >= tiny else one)
            result[column] = ratio if union >= tiny else zero


@numba_kernel
def _pairwise_ioa(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, ioas: np.ndarray) -> None:
    """CPU kernel of `pairwise_ioa`: boxes (N, 4), columns (4, M); writes the IoA to `ioas` (N, M)."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(ioas)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), ioas[row]
        is_some = area >= tiny
        divisor = area if is_some else one
        for column in range(len(x1)):
            width = max(min(right, x2[column]) - max(left, x1[column]), zero)
            height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
            ratio = width * height / divisor
            result[column] = ratio if is_some else zero


@numba_kernel
def _constants(like: np.ndarray) -> tuple[float, float, float]:
    """Return zero, one and the smallest normal number in the dtype of `like`: a literal would make float32 float64."""
    values = np.zeros(3, dtype=like.dtype)
    values[1] = 1
    values[2] = 2.0**-126 if like.itemsize == 4 else 2.0**-1022
    return values[0], values[1], values[2]
