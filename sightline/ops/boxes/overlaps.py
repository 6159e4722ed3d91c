"""Box overlaps: IoU, GIoU, DIoU, CIoU and SIoU with exact gradients, and matrices of all pairs.

Boxes are x1, y1, x2, y2. The functions of `OVERLAPS` and `ioa` broadcast: boxes (..., 4) with boxes (..., 4), so that
`iou(a, b)` is of aligned rows; those with `box` in their name are of all pairs. Half precision is computed in float32,
whole numbers in float64. A box without an area overlaps nothing: its IoU is 0, and gradients are finite, without an
epsilon; other libraries add an `eps` to what they divide by, which is 0 here unless it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sightline.ops.dtypes import promote_to_float32
from sightline.ops.gpu_kernels import divide_exactly, gpu_kernel, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import Operator, operator

_ENTRIES_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Entries of a matrix of boxes and priors in memory at a time: 4 MB on the CPU, which fits into its cache."""


def box_sizes(boxes: Tensor) -> Tensor:
    """Return width and height (..., 2) of boxes (..., 4), at least 0."""
    boxes = promote_to_float32(boxes)
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)


def box_centres(boxes: Tensor) -> Tensor:
    """Return the centres (..., 2) of boxes (..., 4)."""
    boxes = promote_to_float32(boxes)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4), at least 0. Raises ValueError for another shape and for no numbers."""
    assert_boxes(boxes)
    return _multiply_sides(box_sizes(boxes))


def assert_boxes(boxes: Tensor, *, name: str = "boxes", form: str = "(..., 4)") -> None:
    """Raise ValueError unless `boxes` are numbers of the shape `form`: (..., 4) or (N, 4)."""
    if not isinstance(boxes, Tensor):
        raise ValueError(f"{name}: found a {type(boxes).__name__}, expected a tensor {form}; give torch.tensor(...)")
    if boxes.shape[-1:] != (4,) or (form != "(..., 4)" and boxes.ndim != 2):
        raise ValueError(f"{name}: found the shape {tuple(boxes.shape)}, expected {form}: x1, y1, x2, y2")
    if boxes.dtype == torch.bool or boxes.dtype.is_complex:
        raise ValueError(f"{name}: found {boxes.dtype}, expected numbers such as torch.float32")


def assert_box_sets(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise ValueError unless boxes are (N, 4) and (M, 4), on one device."""
    assert_boxes(boxes1, name="boxes1", form="(N, 4)")
    assert_boxes(boxes2, name="boxes2", form="(N, 4)")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2: found on {boxes2.device}, boxes1 on {boxes1.device}; move one to the other's device")


def assert_epsilon(eps: float) -> None:
    """Raise ValueError unless `eps`, which is added to what is divided by, is at least 0."""
    if not eps >= 0:
        raise ValueError(f"eps: found {eps}, allowed is a number, at least 0: no division needs more")


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) to an image of `size` (height, width): coordinates are 0 to its sides."""
    assert_boxes(boxes)
    height, width = size
    columns, rows = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([columns, rows], dim=-1).flatten(-2)


def _multiply_sides(sizes: Tensor) -> Tensor:
    """Multiply the two sides (..., 2); the gradient of `prod` would wait for a GPU, to look for zeros."""
    width, height = sizes.unbind(dim=-1)
    return width * height


def iou(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """Compute the IoU (...) of boxes (..., 4) and (..., 4), 0 to 1."""
    return _iou_and_union(a, b, eps)[0]


def ioa(a: Tensor, b: Tensor) -> Tensor:
    """Compute the share (...) of the area of `a` (..., 4) inside `b` (..., 4), 0 to 1."""
    return _ratio(_intersection(a, b), box_area(a))


def giou(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """Compute the GIoU (...) of boxes (..., 4) and (..., 4), -1 to 1.

    The IoU less the uncovered share of the enclosing box.
    Source: Rezatofighi et al. 2019.
    """
    overlap, union = _iou_and_union(a, b, eps)
    enclosing = _multiply_sides(_enclosing(a, b))
    return overlap - _ratio(enclosing - union, enclosing, eps)


def diou(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """Compute the DIoU (...) of boxes (..., 4) and (..., 4), -1 to 1.

    The IoU less the squared distance of the centres over the squared diagonal of the enclosing box.
    Source: Zheng et al. 2020, equation 7.
    """
    return iou(a, b, eps=eps) - distance_term(a, b, eps)


def ciou(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """Compute the CIoU (...) of boxes (..., 4) and (..., 4): the DIoU less a penalty for different aspect ratios.

    The penalty's factor has no gradient. Source: Zheng et al. 2020, eq. 10.
    """
    overlap = iou(a, b, eps=eps)
    return overlap - distance_term(a, b, eps) - aspect_term(a, b, overlap, eps)


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


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the IoU (N, M) of all pairs of boxes (N, 4) and (M, 4), 0 to 1.

    Of finite boxes, the bits of `iou(boxes1[:, None], boxes2)` on every device. Raises ValueError for another shape,
    dtype or device, as its siblings do.
    """
    return _overlap_all(_box_iou, boxes1, boxes2)


def box_ioa(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the share (N, M) of each box of `boxes1` (N, 4) inside each of `boxes2` (M, 4), 0 to 1.

    Of finite boxes, the bits of `ioa(boxes1[:, None], boxes2)` on every device. It is COCO's overlap with a crowd.
    """
    return _overlap_all(_box_ioa, boxes1, boxes2)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the GIoU (N, M) of all pairs of boxes (N, 4) and (M, 4), -1 to 1.

    The IoU less the uncovered share of the enclosing box. Source: Rezatofighi et al. 2019.
    """
    return _overlap_all(_penalised_iou, boxes1, boxes2, "giou", 0.0)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the DIoU (N, M) of all pairs of boxes (N, 4) and (M, 4), -1 to 1.

    The IoU less the squared distance of the centres over the squared diagonal of the enclosing box, to which `eps` is
    added; it may be 0. Source: Zheng et al. 2020, equation 7.
    """
    assert_epsilon(eps)
    return _overlap_all(_penalised_iou, boxes1, boxes2, "diou", float(eps))


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the CIoU (N, M) of all pairs of boxes (N, 4) and (M, 4), above -2 and at most 1.

    The DIoU less a penalty for different aspect ratios, whose factor has no gradient. `eps` is added to what both are
    divided by; it may be 0. Source: Zheng et al. 2020, equation 10.
    """
    assert_epsilon(eps)
    return _overlap_all(_penalised_iou, boxes1, boxes2, "ciou", float(eps))


def _overlap_all(overlap: Operator[..., Tensor], boxes1: Tensor, boxes2: Tensor, *form: str | float) -> Tensor:
    assert_box_sets(boxes1, boxes2)
    return overlap(promote_to_float32(boxes1), promote_to_float32(boxes2), *form)


@operator()
def _penalised_iou(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float) -> Tensor:
    """Compute the overlap `kind`; `eps` is that of the DIoU's and the CIoU's penalty."""
    rows = boxes1[:, None]
    if kind == "giou":
        return giou(rows, boxes2)
    overlap = iou(rows, boxes2)
    near = overlap - distance_term(rows, boxes2, eps)
    return near - aspect_term(rows, boxes2, overlap, eps) if kind == "ciou" else near


@operator(launches=1)
def _box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return iou(boxes1[:, None], boxes2)


@operator(launches=1)
def _box_ioa(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return ioa(boxes1[:, None], boxes2)


def column_blocks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Iterate over column slices that keep a matrix of `num_rows` rows within the memory limit."""
    entries = _ENTRIES_AT_ONCE.get(device.type, _ENTRIES_AT_ONCE["cpu"])
    step = max(1, entries // max(1, num_rows))
    yield from (slice(first, first + step) for first in range(0, num_columns, step))


def _ratio(part: Tensor, total: Tensor, eps: float = 0.0) -> Tensor:
    """Divide by `total` + `eps`, with 0 where that is 0; the gradient is finite everywhere."""
    total = total + eps if eps else total
    is_some = total >= torch.finfo(total.dtype).tiny
    return torch.where(is_some, part / torch.where(is_some, total, 1), 0)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    a, b = promote_to_float32(a), promote_to_float32(b)
    first, last = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return _multiply_sides((last - first).clamp(min=0))


def _iou_and_union(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    intersection = _intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    return _ratio(intersection, union, eps), union


def _enclosing(a: Tensor, b: Tensor) -> Tensor:
    """Return width and height (..., 2) of the smallest box around both; an inverted box counts as its first corner."""
    a, b = promote_to_float32(a), promote_to_float32(b)
    first = torch.minimum(a[..., :2], b[..., :2])
    last = torch.maximum(torch.maximum(*a.split(2, dim=-1)), torch.maximum(*b.split(2, dim=-1)))
    return last - first


def distance_term(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Compute what the DIoU (...) is below the IoU, 0 to 1."""
    squared = (box_centres(a) - box_centres(b)).square().sum(dim=-1)
    return _ratio(squared, _enclosing(a, b).square().sum(dim=-1), eps)


def aspect_term(a: Tensor, b: Tensor, overlap: Tensor, eps: float = 0.0) -> Tensor:
    """Compute what the CIoU (...) is below the DIoU, for their IoU `overlap` (...)."""
    angle = _aspect(a) - _aspect(b)
    both = ((box_sizes(a) > 0) & (box_sizes(b) > 0)).all(dim=-1)
    difference = torch.where(both, 4 / math.pi**2 * angle.square(), 0)
    constant, overlap = difference.detach(), overlap.detach()  # forward derivatives pass through `no_grad`
    return _ratio(constant, 1 - overlap + constant, eps) * difference


def _aspect(boxes: Tensor) -> Tensor:
    """Return the angle (...) of width over height, 0 for a box without a height."""
    width, height = box_sizes(boxes).unbind(dim=-1)
    return torch.atan(_ratio(width, height))


@_box_iou.fake
@_box_ioa.fake
def _make_matrix(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    dtype = torch.promote_types(boxes1.dtype, boxes2.dtype)
    return boxes1.new_empty((len(boxes1), len(boxes2)), dtype=dtype)


@_penalised_iou.fake
def _(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float) -> Tensor:
    return _make_matrix(boxes1, boxes2)


# --- CPU: a row of the matrix at a time -------------------------------------------------------------------------------


def _overlap_rows(boxes1: Tensor, boxes2: Tensor, *, is_ioa: bool) -> Tensor:
    matrix, columns = _make_matrix(boxes1, boxes2), boxes2.detach().T.contiguous().numpy()
    run_parallel(_overlap, len(boxes1), boxes1.detach().contiguous().numpy(), columns, is_ioa, matrix.numpy())
    return matrix


_box_iou.cpu_kernel(partial(_overlap_rows, is_ioa=False))
_box_ioa.cpu_kernel(partial(_overlap_rows, is_ioa=True))


@numba_kernel
def _overlap(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, is_ioa: bool, overlaps: np.ndarray) -> None:
    """Write the overlaps (N, M) of boxes (N, 4) with `columns` (4, M): the IoU, or the share of `boxes`."""
    x1, y1, x2, y2 = columns[0], columns[1], columns[2], columns[3]  # unpacked, loops would be slow
    zero, one, tiny = _constants(overlaps)
    areas = np.empty(len(x1), dtype=overlaps.dtype)
    for column in range(len(x1)):
        areas[column] = max(x2[column] - x1[column], zero) * max(y2[column] - y1[column], zero)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), overlaps[row]
        for column in range(len(x1)):
            width = max(min(right, x2[column]) - max(left, x1[column]), zero)
            height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
            intersection = width * height
            total = area if is_ioa else area + areas[column] - intersection
            ratio = intersection / (total if total >= tiny else one)
            result[column] = ratio if total >= tiny else zero


@_penalised_iou.cpu_kernel
def _(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float) -> Tensor:
    boxes1, boxes2 = boxes1.detach().contiguous(), boxes2.detach().contiguous()
    overlaps, aspects = _overlap_rows(boxes1, boxes2, is_ioa=False), []
    for boxes in (boxes1, boxes2):
        has_shape = (box_sizes(boxes) > 0).all(dim=-1)
        aspects.append(torch.where(has_shape, _aspect(boxes), -1).numpy())  # of those with one it is at least 0
    numbers = boxes1.new_tensor([eps, 4 / math.pi**2]).numpy()
    code, columns = ("giou", "diou", "ciou").index(kind), boxes2.T.contiguous().numpy()
    run_parallel(_penalise, len(boxes1), boxes1.numpy(), columns, *aspects, numbers, code, overlaps.numpy())
    return overlaps


@numba_kernel
def _penalise(
    first: int,
    last: int,
    boxes: np.ndarray,
    columns: np.ndarray,
    aspects: np.ndarray,
    column_aspects: np.ndarray,
    numbers: np.ndarray,
    code: int,
    overlaps: np.ndarray,
) -> None:
    """Subtract the penalty of the GIoU, the DIoU or the CIoU, by `code`, from IoUs (N, M)."""
    x1, y1, x2, y2 = columns[0], columns[1], columns[2], columns[3]
    (zero, one, tiny), two, eps, scale = _constants(overlaps), overlaps.dtype.type(2), numbers[0], numbers[1]
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        far, low, result = max(left, right), max(top, bottom), overlaps[row]
        area, middle, level = (
            max(right - left, zero) * max(bottom - top, zero),
            (left + right) / two,
            (top + bottom) / two,
        )
        for column in range(len(x1)):
            wide = max(far, max(x1[column], x2[column])) - min(left, x1[column])
            high = max(low, max(y1[column], y2[column])) - min(top, y1[column])
            if code == 0:
                width = max(min(right, x2[column]) - max(left, x1[column]), zero)
                height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
                other = max(x2[column] - x1[column], zero) * max(y2[column] - y1[column], zero)
                part, total = wide * high - (area + other - width * height), wide * high
            else:
                aside, below = middle - (x1[column] + x2[column]) / two, level - (y1[column] + y2[column]) / two
                part, total = aside * aside + below * below, (wide * wide + high * high) + eps
            ratio = part / (total if total >= tiny else one)
            penalty = ratio if total >= tiny else zero
            overlap = result[column]
            result[column] = overlap - penalty
            if code == 2:
                angle = aspects[row] - column_aspects[column]
                has_both = (aspects[row] >= zero) & (column_aspects[column] >= zero)
                difference = scale * (angle * angle) if has_both else zero
                total = ((one - overlap) + difference) + eps
                ratio = difference / (total if total >= tiny else one)
                result[column] -= (ratio if total >= tiny else zero) * difference


@numba_kernel
def _constants(like: np.ndarray) -> tuple[float, float, float]:
    """Return zero, one and the smallest normal number in the dtype of `like`: a literal would make float32 float64."""
    values = np.zeros(3, dtype=like.dtype)
    values[1] = 1
    values[2] = 2.0**-126 if like.itemsize == 4 else 2.0**-1022
    return values[0], values[1], values[2]


# --- GPU: a tile of the matrix a program ------------------------------------------------------------------------------

_ROWS, _COLUMNS = 16, 64


def _launch(boxes1: Tensor, boxes2: Tensor, *, is_ioa: bool) -> Tensor:
    matrix, (num_rows, num_columns) = _make_matrix(boxes1, boxes2), (len(boxes1), len(boxes2))
    num_tiles = -(-num_rows // _ROWS) * -(-num_columns // _COLUMNS)
    tensors = (boxes1.contiguous(), boxes2.contiguous(), matrix)
    sizes = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "num_warps": matrix.itemsize}
    _overlap_tile.launch(num_tiles, *tensors, num_rows, num_columns, IS_IOA=is_ioa, **sizes)
    return matrix


_box_iou.gpu_kernel()(partial(_launch, is_ioa=False))
_box_ioa.gpu_kernel()(partial(_launch, is_ioa=True))


@gpu_kernel
def load_box(boxes, index, is_box):  # type: ignore[no-untyped-def]
    """Load the corners and the area of boxes (N, 4) at an index."""
    pointer = boxes + index.to(tl.int64) * 4
    left, top = tl.load(pointer, mask=is_box, other=0.0), tl.load(pointer + 1, mask=is_box, other=0.0)
    right, bottom = tl.load(pointer + 2, mask=is_box, other=0.0), tl.load(pointer + 3, mask=is_box, other=0.0)
    return left, top, right, bottom, tl.maximum(right - left, 0.0) * tl.maximum(bottom - top, 0.0)


@gpu_kernel
def intersect(left, top, right, bottom, x1, y1, x2, y2):  # type: ignore[no-untyped-def]
    """Return the area that two boxes share."""
    width = tl.maximum(tl.minimum(right, x2) - tl.maximum(left, x1), 0.0)
    return width * tl.maximum(tl.minimum(bottom, y2) - tl.maximum(top, y1), 0.0)


@gpu_kernel
def divide(part, total):  # type: ignore[no-untyped-def]
    """Divide, with 0 where `total` is below the smallest normal number."""
    is_some = total >= (2.2250738585072014e-308 if total.dtype == tl.float64 else 1.1754943508222875e-38)
    return tl.where(is_some, divide_exactly(part, tl.where(is_some, total, 1.0)), 0.0)


@gpu_kernel
def _overlap_tile(  # type: ignore[no-untyped-def]
    boxes1,
    boxes2,
    overlaps,
    num_rows: tl.int32,
    num_columns: tl.int32,
    IS_IOA: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles = tl.cdiv(num_columns, COLUMNS)
    row = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    left, top, right, bottom, area = load_box(boxes1, row[:, None], row[:, None] < num_rows)
    x1, y1, x2, y2, other_area = load_box(boxes2, column[None, :], column[None, :] < num_columns)
    intersection = intersect(left, top, right, bottom, x1, y1, x2, y2)
    total = area + tl.zeros_like(intersection) if IS_IOA else (area + other_area) - intersection
    pointer = overlaps + row.to(tl.int64)[:, None] * num_columns + column[None, :]
    tl.store(pointer, divide(intersection, total), mask=(row[:, None] < num_rows) & (column[None, :] < num_columns))
