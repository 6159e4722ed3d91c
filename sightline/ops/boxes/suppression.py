"""Non-maximum suppression (NMS) of overlapping detections: greedy and soft, with ties in the order of their indices.

Source: greedy, Felzenszwalb et al. 2010, section 7.2, with the IoU in place of the share that is covered; soft, Bodla
et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import assert_boxes, divide, intersect, iou, load_box
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.gpu_kernels import gpu_kernel, next_power_of_2, tl
from sightline.ops.numba_kernels import numba_kernel
from sightline.ops.operator import operator
from sightline.ops.waits import call_on_host, is_exporting, is_on_host, is_recording, require


class SuppressionResult(NamedTuple):
    """Kept detections: `indices` (K,) int64 into the input, and their `scores` (K,), in falling order."""

    indices: Tensor
    scores: Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes (N, 4) of lower scores (N,): indices (K,) int64 of the kept ones, highest score first.

    A kept box suppresses those of which the IoU with it is above the threshold. Of equal scores the lower index comes
    first. The same indices on every device, and as one node in a compiled graph. K is read, which a GPU waits for.
    Raises ValueError for another shape or dtype, a threshold outside of 0 to 1, and scores that are NaN.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


@torch.no_grad()
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float | Tensor, *, proposal: Tensor | None = None
) -> Tensor:
    """Suppress boxes (N, 4) of lower scores (N,) within each class or image `idxs` (N,), as `nms` of each alone.

    Boxes stay where they are, so that the numbers are those of each class alone. `iou_threshold` may be one for each
    box (N,), which applies to the boxes that it suppresses. Boxes of one `proposal` (N,) int64 never suppress one
    another. Returns indices (K,) int64 of the kept ones, highest score first; K is read, which a GPU waits for.
    """
    order, *columns = sort_detections(boxes, scores, idxs, iou_threshold, proposal)
    return order[_keep_greedily(*columns)]


def sort_detections(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float | Tensor, proposal: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the order by falling score (N,), and in it boxes, scores, classes, thresholds and proposals, if any."""
    boxes, scores, idxs = _read_detections(boxes, scores, idxs)
    if not isinstance(iou_threshold, Tensor) and not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: found {iou_threshold}, allowed is a number from 0 to 1")
    order = sort_falling(scores)
    limits = _expand_limit(iou_threshold, boxes)
    if isinstance(iou_threshold, Tensor):
        limits = limits[order]
    columns = boxes.index_select(0, order), scores.index_select(0, order), idxs.index_select(0, order), limits
    return order, *columns, order[:0] if proposal is None else proposal[order]


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    *,
    iou_threshold: float | Tensor = 0.3,
    sigma: float | None = None,
    min_score: float = 1e-3,
) -> SuppressionResult:
    """Weaken boxes (N, 4) that overlap those of higher scores (N,), within a class `idxs` (N,) if given.

    The highest of the scores left is kept and lowers the others: times 1 - IoU from `iou_threshold` on, which may be
    one for each box (N,) and applies to the boxes whose scores it lowers; or, with a `sigma`, times exp(-IoU^2 /
    sigma). Those below `min_score` are dropped. Indices and new scores (K,), which have no gradient, highest first, of
    equal ones the lower index; on a GPU all of it is read, for a loop on the host. Raises ValueError as `nms` does, and
    for a `sigma` that is not above 0 or a `min_score` below 0.
    """
    boxes, scores, idxs = _read_detections(
        boxes, scores, torch.zeros_like(scores, dtype=torch.int64) if idxs is None else idxs
    )
    if not min_score >= 0:
        raise ValueError(f"min_score: found {min_score}, allowed is 0 or more: scores below 0 would rise")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma: found {sigma}, allowed is a number above 0")
    limits = _expand_limit(iou_threshold if sigma is None else sigma, boxes)
    weakened = _weaken(boxes, scores, idxs, limits, sigma is None, min_score)
    order = sort_falling(weakened)
    new_scores = weakened.index_select(0, order)
    remaining = (new_scores >= 0).nonzero()[:, 0]
    return SuppressionResult(order.index_select(0, remaining), new_scores.index_select(0, remaining))


def _read_detections(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check detections; return boxes and scores in one float format, and classes as int64."""
    assert_boxes(boxes, form="(N, 4)")
    for name, values in (("scores", scores), ("idxs", idxs)):
        if values.shape != boxes.shape[:1]:
            raise ValueError(
                f"{name}: found the shape {tuple(values.shape)} for {len(boxes)} boxes, expected one of each"
            )
    if scores.is_complex():
        raise ValueError(f"scores: found {scores.dtype}, expected numbers such as torch.float32")
    if not boxes.device == scores.device == idxs.device:
        raise ValueError(f"boxes on {boxes.device}, scores on {scores.device}, idxs on {idxs.device}; give one device")
    if boxes.is_meta and type(boxes) is Tensor:
        raise NotImplementedError(
            "boxes: found on the device meta, which has no values, and they decide how many are kept; "
            "take fake tensors: torch._subclasses.FakeTensorMode(shape_env=ShapeEnv())"
        )
    boxes, scores = promote_to_float32(boxes), promote_to_float32(scores)
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return boxes.detach().to(dtype), scores.detach().to(dtype), widen_labels(idxs, "idxs")


def _expand_limit(limit: float | Tensor, boxes: Tensor) -> Tensor:
    """Expand a limit to each of the boxes (N,), in their dtype."""
    if isinstance(limit, Tensor):
        return limit.to(boxes).expand(boxes.shape[0])
    return boxes.new_full((boxes.shape[0],), limit)


# --- the definitions: loops over the kept boxes, on the host ----------------------------------------------------------


def _check_scores(boxes: Tensor, scores: Tensor, *_: object) -> None:
    is_number = ~scores.isnan()
    require(is_number, lambda: ValueError(f"scores: {int((~is_number).sum())} of {len(scores)} are nan, not a number"))


@operator(launches=2, check=_check_scores, differentiable=False)
def _keep_greedily(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    """Return a mask (N,) of the kept boxes of (N, 4), which are in the order of their scores."""
    return run_on_host(_keep_in_a_loop, boxes, labels, limits, proposals)


def _keep_in_a_loop(boxes: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    is_kept, remaining = labels.new_zeros(len(boxes), dtype=torch.bool), torch.arange(len(boxes))
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        is_kept[best] = True
        is_hit = (iou(boxes[best], boxes[remaining]) > limits[best]) & (labels[remaining] == labels[best])
        if len(proposals):
            is_hit &= proposals[remaining] != proposals[best]
        remaining = remaining[~is_hit]
    return is_kept


@operator(check=_check_scores, differentiable=False)
def _weaken(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, is_linear: bool, min_score: float) -> Tensor:
    """Return the new scores (N,) of boxes (N, 4), -1 for the dropped ones."""
    form = partial(_weaken_in_a_loop, is_linear=is_linear, min_score=min_score)
    return run_on_host(form, boxes, scores, labels, limits)


def _weaken_in_a_loop(
    boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, *, is_linear: bool, min_score: float
) -> Tensor:
    remaining, scores, weakened = torch.arange(len(scores)), scores.clone(), torch.full_like(scores, -1)
    while len(remaining):
        first = scores[remaining].argmax()
        best = remaining[first]
        if scores[best] < min_score:
            break
        weakened[best] = scores[best]
        remaining = torch.cat([remaining[:first], remaining[first + 1 :]])
        factor = _decay(iou(boxes[best], boxes[remaining]), limits[best], is_linear)
        scores[remaining] *= torch.where(labels[remaining] == labels[best], factor, 1)
    return weakened


def _decay(overlap: Tensor, limit: Tensor, is_linear: bool) -> Tensor:
    return torch.where(overlap >= limit, 1 - overlap, 1) if is_linear else (-overlap.square() / limit).exp()


def run_on_host(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function on the host: on a device, its loop would wait for every kept box."""
    if is_on_host(tensors[0]):
        return function(*tensors)
    result: Tensor = call_on_host(function, *tensors, device=tensors[0].device)
    return result


@_keep_greedily.fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    return labels.new_empty(len(labels), dtype=torch.bool)


@_weaken.fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, is_linear: bool, min_score: float) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


# --- recorded graphs: loops of torch alone, for any number of boxes ---------------------------------------------------


def sort_falling(scores: Tensor) -> Tensor:
    """Return the order (N,) of falling scores, of equal ones the lower index first.

    ONNX has no stable sort: a graph counts the scores before each, which a matrix of all boxes has room for anyway.
    """
    if not is_recording():
        return scores.argsort(descending=True, stable=True)
    num_boxes = scores.shape[0]  # `len` would make it a constant of the graph
    position = torch.arange(num_boxes, device=scores.device)
    is_before = (scores > scores[:, None]) | ((scores == scores[:, None]) & (position < position[:, None]))
    return torch.zeros_like(position).scatter(0, is_before.sum(dim=1), position)


def _keep_in_graph(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    is_hit = (iou(boxes[:, None], boxes) > limits[:, None]) & (labels[:, None] == labels)
    if proposals.shape[0]:
        is_hit = is_hit & (proposals[:, None] != proposals)
    return keep_by_hits(is_hit, torch.ones_like(labels, dtype=torch.bool))


def keep_by_hits(is_hit: Tensor, is_candidate: Tensor) -> Tensor:
    """Return a mask (N,) of the candidates (N,) that no kept one of a lower index hits, by pairs (N, N), in a graph.

    All are suppressed at once by those kept a turn before, until no more change. After n turns, those are right of
    which the chain of others that decide on them is shorter than n.
    """
    position = torch.arange(is_hit.shape[0], device=is_hit.device)
    hits = (is_hit & (position[:, None] < position)).T.float()

    def is_unsettled(is_kept: Tensor, before: Tensor) -> Tensor:
        return (is_kept != before).sum() > 0

    def suppress(is_kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return (hits @ is_kept.to(hits.dtype) == 0) & is_candidate, is_kept.clone()

    return _repeat(is_unsettled, suppress, (is_candidate.clone(), ~is_candidate))[0]


def _weaken_in_graph(
    boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, is_linear: bool, min_score: float
) -> Tensor:
    """Weaken with all overlaps; a box that is done has a score of -inf left."""
    factors = _decay(iou(boxes[:, None], boxes), limits[:, None], is_linear)
    factors = torch.where(labels[:, None] == labels, factors, 1)
    position = torch.arange(boxes.shape[0], device=boxes.device)

    def has_more(left: Tensor, weakened: Tensor) -> Tensor:
        return (left >= min_score).sum() > 0

    def pick(left: Tensor, weakened: Tensor) -> tuple[Tensor, Tensor]:
        best = left.argmax(dim=0)
        is_best, factor = position == best, factors.index_select(0, best[None])[0]
        weakened = torch.where(is_best, left, weakened)
        left = torch.where(left > -torch.inf, left * factor, left)  # -inf times 0 is no number
        return torch.where(is_best, -torch.inf, left), weakened

    return _repeat(has_more, pick, (scores.clone(), torch.full_like(scores, -1)))[1]


def _repeat(condition: Callable[..., Tensor], step: Callable[..., Any], state: tuple[Tensor, ...]) -> Any:
    """Return the last state of a loop, which is one operation of an exported graph. TorchScript has none for it."""
    if not is_exporting():
        raise RuntimeError(
            "nms: torch.jit.trace has no loops that end by values; take torch.export or the dynamo exporter"
        )
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(condition, step, state)


_keep_greedily.graph, _weaken.graph = _keep_in_graph, _weaken_in_graph


# --- CPU: boxes of a class next to one another ------------------------------------------------------------------------


@_keep_greedily.cpu_kernel
def _(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    by_label = labels.argsort(stable=True)
    kept, is_kept = torch.empty_like(by_label), torch.zeros_like(labels, dtype=torch.bool)
    columns = (c.index_select(0, by_label) if len(c) else c for c in (boxes, labels, proposals, limits))
    count = _suppress_greedily(*(column.numpy() for column in columns), kept.numpy())
    return is_kept.index_fill_(0, by_label.index_select(0, kept[:count]), True)


@_weaken.cpu_kernel
def _(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, is_linear: bool, min_score: float) -> Tensor:
    by_label, new_scores = labels.argsort(stable=True), torch.full_like(scores, -1)
    columns = (column.index_select(0, by_label).numpy() for column in (boxes, scores, labels, limits))
    table = boxes.new_empty((7, len(boxes)))
    bits = table[5].view(torch.int32 if table.itemsize == 4 else torch.int64)
    scratch = table.numpy(), bits.numpy(), new_scores.numpy()
    lowest = scratch[0].dtype.type(min_score)  # in the dtype of the scores
    _suppress_softly(*columns, lowest, is_linear, *scratch)
    return torch.empty_like(new_scores).index_copy_(0, by_label, new_scores)


_BLOCK = 32


@numba_kernel
def _suppress_greedily(
    boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray, limits: np.ndarray, kept_indices: np.ndarray
) -> int:
    """Write the indices of kept boxes to `kept_indices` (N,), and return how many there are.

    `boxes` (N, 4) are sorted by
    label, then by falling score. Each box is compared with the boxes of its label kept so far, one block at a time: few
    of many boxes need many comparisons. Without `proposals` every box is a proposal of its own.
    """
    zero, one, tiny = _constants(limits)
    columns = np.empty((6, len(boxes)), dtype=boxes.dtype)
    x1, y1, x2, y2, areas, kept_limits = columns[0], columns[1], columns[2], columns[3], columns[4], columns[5]
    first = count = 0
    for index in range(len(boxes)):
        if index and labels[index] != labels[index - 1]:
            first = count
        left, top, right, bottom = boxes[index]
        area = max(right - left, zero) * max(bottom - top, zero)
        hits = 0
        for start in range(first, count, _BLOCK):
            for other in range(start, min(start + _BLOCK, count)):
                width = max(min(right, x2[other]) - max(left, x1[other]), zero)
                height = max(min(bottom, y2[other]) - max(top, y1[other]), zero)
                intersection = width * height
                union = area + areas[other] - intersection
                overlap = intersection / (union if union >= tiny else one)
                hits += (overlap > kept_limits[other]) & (union >= tiny)
            if hits and len(proposals):
                for other in kept_indices[start : min(start + _BLOCK, count)]:
                    is_own = proposals[other] == proposals[index]
                    hits -= is_own and _iou(boxes[index], boxes[other], tiny) > limits[other]
            if hits:
                break
        if not hits:
            x1[count], y1[count], x2[count], y2[count], areas[count] = left, top, right, bottom, area
            kept_limits[count], kept_indices[count] = limits[index], index
            count += 1
    return count


_REST = 24
"""Boxes that are picked before the others are moved together."""


@numba_kernel
def _suppress_softly(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    limits: np.ndarray,
    lowest: float,
    is_linear: bool,
    table: np.ndarray,
    bits: np.ndarray,
    new_scores: np.ndarray,
) -> None:
    """Write the scores of kept boxes to `new_scores` (N,).

    `boxes` (N, 4), `scores` and `labels` (N,) are sorted by label; `limits` (N,) are the lowest IoU or the width of the
    Gaussian of each box. `table` (7, N) is scratch: the columns of a label's boxes that remain, in the order of their
    indices, their scores, and overlaps. `bits` (N,) are the scores there as whole numbers, whose order is theirs from 0
    on, and of which a processor finds the highest many at a time. Scores never rise: those below the lowest stay there.
    """
    zero, one, tiny = _constants(limits)
    x1, y1, x2, y2, areas = table[0], table[1], table[2], table[3], table[4]  # unpacked, loops would be slow
    left, overlaps = table[5], table[6]
    rows, highest = np.empty(len(boxes), dtype=np.int64), np.empty(len(boxes) // _BLOCK + 1, dtype=bits.dtype)
    first = 0
    while first < len(boxes):
        count, picked = 0, _REST
        while first < len(boxes) and (count == 0 or labels[first] == labels[first - 1]):
            x1[count], y1[count], x2[count], y2[count] = boxes[first]
            areas[count] = max(x2[count] - x1[count], zero) * max(y2[count] - y1[count], zero)
            left[count], rows[count] = scores[first] + zero, first  # -0 becomes 0, whose bits are the lowest
            count, first = count + 1, first + 1
        while True:
            if picked == _REST:
                count, picked = _move_together(table, rows, count, lowest), 0
            best = _find_highest(bits, highest, count)
            if best < 0 or bits[best] < 0 or left[best] < lowest:  # -1, or -0, of those that are picked
                break
            new_scores[rows[best]], limit = left[best], limits[rows[best]]
            left[best], picked = -one, picked + 1
            left_side, top, right, bottom, area = x1[best], y1[best], x2[best], y2[best], areas[best]
            for other in range(count):
                width = max(min(right, x2[other]) - max(left_side, x1[other]), zero)
                height = max(min(bottom, y2[other]) - max(top, y1[other]), zero)
                intersection = width * height
                union = area + areas[other] - intersection
                overlap = intersection / (union if union >= tiny else one)
                overlaps[other] = overlap if union >= tiny else zero
            if is_linear:
                for other in range(count):
                    left[other] *= one - overlaps[other] if overlaps[other] >= limit else one
            else:
                for other in range(count):
                    if overlaps[other] > zero:
                        left[other] *= math.exp(-(overlaps[other] * overlaps[other]) / limit)


@numba_kernel
def _move_together(table: np.ndarray, rows: np.ndarray, count: int, lowest: float) -> int:
    """Move the columns of boxes with a score of at least `lowest` to the front, in order; return how many there are."""
    x1, y1, x2, y2, areas, left = table[0], table[1], table[2], table[3], table[4], table[5]
    num_moved = 0
    for index in range(count):
        if left[index] >= lowest:
            x1[num_moved], y1[num_moved], x2[num_moved], y2[num_moved] = x1[index], y1[index], x2[index], y2[index]
            areas[num_moved], left[num_moved], rows[num_moved] = areas[index], left[index], rows[index]
            num_moved += 1
    return num_moved


@numba_kernel
def _find_highest(bits: np.ndarray, highest: np.ndarray, count: int) -> int:
    """Return the first place of the highest of `count` numbers, -1 of none; `highest` has room for one a block."""
    num_blocks = -(-count // _BLOCK)
    best_block = 0
    for block in range(num_blocks):
        value = bits[block * _BLOCK]
        for index in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, count)):
            value = max(value, bits[index])
        highest[block] = value
        if value > highest[best_block]:
            best_block = block
    for index in range(best_block * _BLOCK, count):
        if bits[index] == highest[best_block]:
            return index
    return -1


@numba_kernel
def _iou(one: np.ndarray, other: np.ndarray, tiny: float) -> float:
    """Compute the IoU of two boxes (4,), with the order of sums of the other kernels."""
    zero = tiny - tiny
    width = max(min(one[2], other[2]) - max(one[0], other[0]), zero)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), zero)
    intersection = width * height
    area = max(one[2] - one[0], zero) * max(one[3] - one[1], zero)
    union = area + max(other[2] - other[0], zero) * max(other[3] - other[1], zero) - intersection
    return intersection / union if union >= tiny else zero


@numba_kernel
def _constants(like: np.ndarray) -> tuple[float, float, float]:
    """Return zero, one and the smallest normal number in the dtype of `like`: a literal would make float32 float64."""
    values = np.zeros(3, dtype=like.dtype)
    values[1] = 1
    values[2] = 2.0**-126 if like.itemsize == 4 else 2.0**-1022
    return values[0], values[1], values[2]


# --- GPU: bits of the boxes that each suppresses, then one program that reads them in order ---------------------------

_WORD = 64
_MOST_AT_ONCE = 32_768
"""Boxes whose bits are at most 128 MB. Of more, the best come first, and what they keep is held against the rest."""


@_keep_greedily.gpu_kernel()
def _(boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor, proposals: Tensor) -> Tensor:
    """Take two launches for up to 32,768 boxes, and three for each 32,768 of more."""
    count, size = len(boxes), min(len(boxes), _MOST_AT_ONCE)
    is_kept, hits = labels.new_empty(count, dtype=torch.bool), labels.new_empty((size, -(-size // _WORD)))
    is_out = labels.new_zeros(count, dtype=torch.bool) if count > size else None
    rows = 256 // boxes.itemsize  # fewer in float64, whose division takes many registers
    given = (boxes, labels, limits, proposals if len(proposals) else None)
    columns = [None if column is None else column.contiguous() for column in given]
    for first in range(0, count, size or 1):
        last = min(first + size, count)
        part = [None if column is None else column[first:last] for column in (*columns, is_out, is_kept)]
        num_words = -(-(last - first) // _WORD)
        numbers, words = (last - first, num_words), next_power_of_2(max(num_words, 128))
        num_tiles = -(-(last - first) // rows) * num_words
        _mark_hits.launch(num_tiles, *part[:4], hits, *numbers, ROWS=rows, WORD=_WORD, num_warps=16)
        _keep_in_order.launch(1, *part[4:], hits, *numbers, WORD=_WORD, WORDS=words)
        if last < count:
            num_programs = -(-(count - last) // _WORD)
            sizes = {"ROWS": 16, "COLUMNS": _WORD, "num_warps": 8}
            _drop_later.launch(num_programs, *columns, is_out, is_kept, first, last, count, **sizes)
    return is_kept


@gpu_kernel
def _find_hits(boxes, labels, limits, proposals, row, is_row, column, is_column):  # type: ignore[no-untyped-def]
    """Return which of the boxes of `column` each of `row` would suppress."""
    left, top, right, bottom, area = load_box(boxes, row[:, None], is_row[:, None])
    x1, y1, x2, y2, other_area = load_box(boxes, column[None, :], is_column[None, :])
    shared = intersect(left, top, right, bottom, x1, y1, x2, y2)
    limit = tl.load(limits + row, mask=is_row, other=0.0)
    label, other = tl.load(labels + row, mask=is_row, other=0), tl.load(labels + column, mask=is_column, other=0)
    is_hit = divide(shared, (area + other_area) - shared) > limit[:, None]
    is_hit &= (label[:, None] == other[None, :]) & is_row[:, None] & is_column[None, :]
    if proposals is not None:
        row_proposals = tl.load(proposals + row, mask=is_row, other=0)
        is_hit &= row_proposals[:, None] != tl.load(proposals + column, mask=is_column, other=0)[None, :]
    return is_hit


@gpu_kernel
def _mark_hits(  # type: ignore[no-untyped-def]
    boxes,
    labels,
    limits,
    proposals,
    hits,
    count: tl.int32,
    num_words: tl.int32,
    ROWS: tl.constexpr,
    WORD: tl.constexpr,
):
    """Write one bit for each later box that a box would suppress; words of earlier boxes alone are left out."""
    first, word = tl.program_id(0) // num_words * ROWS, tl.program_id(0) % num_words
    if (word + 1) * WORD > first:
        row, column = first + tl.arange(0, ROWS), word * WORD + tl.arange(0, WORD)
        is_row = row < count
        is_hit = _find_hits(boxes, labels, limits, proposals, row, is_row, column, column < count)
        is_hit &= row[:, None] < column[None, :]
        bit = tl.full((WORD,), 1, tl.int64) << tl.arange(0, WORD).to(tl.int64)
        bits = tl.sum(tl.where(is_hit, bit[None, :], 0), axis=1)
        tl.store(hits + row * num_words + word, bits, mask=is_row)


@gpu_kernel
def _keep_in_order(  # type: ignore[no-untyped-def]
    is_out, is_kept, hits, count: tl.int32, num_words: tl.int32, WORD: tl.constexpr, WORDS: tl.constexpr
):
    """Keep each box that no kept one before it suppresses; the bits of the suppressed ones stay in registers."""
    words = tl.arange(0, WORDS)
    suppressed = tl.zeros((WORDS,), tl.int64)
    for block in range(num_words):
        block_bits = tl.sum(tl.where(words == block, suppressed, 0), axis=0)
        if is_out is not None:
            lane = tl.arange(0, WORD)
            is_dropped = tl.load(is_out + block * WORD + lane, mask=block * WORD + lane < count, other=0)
            block_bits |= tl.sum(is_dropped.to(tl.int64) << lane.to(tl.int64), axis=0)
        for bit in range(tl.minimum(WORD, count - block * WORD)):
            index = block * WORD + bit
            is_free = ((block_bits >> bit) & 1) == 0
            tl.store(is_kept + index, is_free)
            if is_free:
                base = hits + index * num_words
                block_bits |= tl.load(base + block)
                suppressed |= tl.load(base + words, mask=(words >= block) & (words < num_words), other=0)


@gpu_kernel
def _drop_later(  # type: ignore[no-untyped-def]
    boxes,
    labels,
    limits,
    proposals,
    is_out,
    is_kept,
    first: tl.int32,
    last: tl.int32,
    count: tl.int32,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mark the boxes from `last` on that a kept one of `first` .. `last` - 1 suppresses."""
    column = last + tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < count
    num_hits = tl.load(is_out + column, mask=is_column, other=0).to(tl.int32)
    for begin in range(first, last, ROWS):
        row = begin + tl.arange(0, ROWS)
        is_row = tl.load(is_kept + row, mask=row < last, other=0) != 0
        if tl.max(is_row.to(tl.int32), axis=0) > 0:
            is_hit = _find_hits(boxes, labels, limits, proposals, row, is_row, column, is_column)
            num_hits += tl.sum(is_hit.to(tl.int32), axis=0)
    tl.store(is_out + column, num_hits > 0, mask=is_column)
