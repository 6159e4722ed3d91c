"""Non-maximum suppression (NMS) of overlapping detections: greedy and soft, with ties in the order of their indices."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.box_overlaps import iou
from sightline.ops.numba_kernels import can_use_numba, numba_kernel


class SuppressionResult(NamedTuple):
    """Kept detections: `indices` (K,) int64 into the input, and their `scores` (K,), in falling order."""

    indices: Tensor
    scores: Tensor


def greedy_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float | Tensor, proposal: Tensor | None = None
) -> Tensor:
    """Greedy NMS: boxes (N, 4), scores (N,), labels (N,) -> indices (K,) int64 of the kept ones, highest score first.

    `threshold` may be one for each box (N,), which applies to the boxes that it suppresses. Boxes of one `proposal`
    (N,) int64 never suppress one another.
    """
    if not can_use_numba(boxes, scores):
        return greedy_nms_reference(boxes, scores, labels, threshold=threshold, proposal=proposal)
    order = scores.argsort(descending=True, stable=True)
    ranks = labels[order].argsort(stable=True)
    by_label, kept = order[ranks], torch.empty_like(order)
    columns = (boxes, labels, order[:0] if proposal is None else proposal, _expand_limit(threshold, boxes))
    count = _suppress_greedily(
        *(column[by_label].numpy() if len(column) else column.numpy() for column in columns), kept.numpy()
    )
    return order[ranks[kept[:count]].sort().values]


def greedy_nms_reference(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float | Tensor, proposal: Tensor | None = None
) -> Tensor:
    """Compute the reference of `greedy_nms`, boxes (N, 4) -> indices (K,): a loop over the kept boxes."""
    remaining, indices, limits = scores.argsort(descending=True, stable=True), [], _expand_limit(threshold, boxes)
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        indices.append(best)
        is_hit = (iou(boxes[best], boxes[remaining]) > limits[best]) & (labels[remaining] == labels[best])
        if proposal is not None:
            is_hit &= proposal[remaining] != proposal[best]
        remaining = remaining[~is_hit]
    return torch.stack(indices) if indices else remaining


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, limit: float | Tensor, is_linear: bool, min_score: float
) -> SuppressionResult:
    """Soft-NMS: boxes (N, 4), scores (N,), labels (N,) -> indices and new scores (K,), highest first.

    `limit` is the IoU at which the linear decay starts, or sigma; it may be one for each box (N,), which applies to the
    boxes whose scores it lowers.
    """
    if not can_use_numba(boxes, scores) or min_score < 0:  # negative scores rise as they decay
        return soft_nms_reference(boxes, scores, labels, limit=limit, is_linear=is_linear, min_score=min_score)
    by_label = labels.argsort(stable=True)
    kept, kept_scores = torch.empty_like(by_label), torch.empty_like(scores)
    arrays = [column[by_label].numpy() for column in (boxes, scores, labels, _expand_limit(limit, boxes))]
    count = _suppress_softly(
        *arrays, boxes.new_tensor([min_score]).numpy(), is_linear, kept.numpy(), kept_scores.numpy()
    )
    ranks = by_label[kept[:count]].argsort()  # of equal scores, the lower index comes first
    ranks = ranks[kept_scores[ranks].argsort(descending=True, stable=True)]
    return SuppressionResult(by_label[kept[ranks]], kept_scores[ranks])


def soft_nms_reference(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, limit: float | Tensor, is_linear: bool, min_score: float
) -> SuppressionResult:
    """Compute the reference of `soft_nms`, boxes (N, 4) -> indices and scores (K,): a loop over the kept boxes."""
    remaining, limits = torch.arange(len(scores), device=scores.device), _expand_limit(limit, boxes)
    scores, indices, kept_scores = scores.clone(), [], []
    while len(remaining):
        first = scores[remaining].argmax()
        best = remaining[first]
        if scores[best] < min_score:
            break
        indices.append(best)
        kept_scores.append(scores[best].clone())
        remaining = torch.cat([remaining[:first], remaining[first + 1 :]])
        overlap = iou(boxes[best], boxes[remaining])
        low = limits[best]
        decay = torch.where(overlap >= low, 1 - overlap, 1) if is_linear else (-overlap.square() / low).exp()
        scores[remaining] *= torch.where(labels[remaining] == labels[best], decay, 1)
    return (
        SuppressionResult(torch.stack(indices), torch.stack(kept_scores))
        if indices
        else SuppressionResult(remaining[:0], scores[:0])
    )


def _expand_limit(limit: float | Tensor, boxes: Tensor) -> Tensor:
    """Expand a limit to each of the boxes (N,), in their dtype."""
    return torch.as_tensor(limit, dtype=boxes.dtype, device=boxes.device).expand(len(boxes)).contiguous()


_BLOCK = 32


@numba_kernel
def _suppress_greedily(
    boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray, limits: np.ndarray, kept_indices: np.ndarray
) -> int:
    """CPU kernel of `greedy_nms`.

    Writes the indices of kept boxes to `kept_indices` (N,) and returns how many there are. `boxes` (N, 4) are sorted by
    label, then by falling score. Each box is compared with the boxes of its label kept so far, one block at a time: few
    of many boxes need many comparisons. Without `proposals` every box is a proposal of its own.
    """
    zero, one, tiny = _constants(limits)
    columns = np.empty((6, len(boxes)), dtype=boxes.dtype)
    x1, y1, x2, y2, areas, kept_limits = columns
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


@numba_kernel
def _suppress_softly(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    limits: np.ndarray,
    min_score: np.ndarray,
    is_linear: bool,
    kept_indices: np.ndarray,
    kept_scores: np.ndarray,
) -> int:
    """CPU kernel of `soft_nms`: writes kept indices and scores (N,), label by label; returns their number.

    `boxes` (N, 4), `scores` and `labels` (N,) are sorted by label; `limits` (N,) are the lowest IoU or the width of the
    Gaussian of each box. `remaining` contains the remaining boxes of a label in order of their indices. `scores` is
    changed.
    """
    (zero, one, tiny), lowest_score = _constants(limits), min_score[0]
    remaining = np.empty(len(boxes), dtype=np.int64)
    start = count = 0
    while start < len(boxes):
        best, num_remaining = start, 0
        while start < len(boxes) and labels[start] == labels[best]:
            remaining[num_remaining] = start
            num_remaining += 1
            start += 1
        for index in remaining[:num_remaining]:
            if scores[index] > scores[best]:
                best = index
        while num_remaining and scores[best] >= lowest_score:
            kept_indices[count], kept_scores[count] = best, scores[best]
            count += 1
            picked, limit, num_still, next_best = best, limits[best], 0, -1
            x1, y1, x2, y2 = boxes[picked]
            area = max(x2 - x1, zero) * max(y2 - y1, zero)
            for rank in range(num_remaining):
                index = remaining[rank]
                if index == picked:
                    continue
                box = boxes[index]
                width = max(min(x2, box[2]) - max(x1, box[0]), zero)
                height = max(min(y2, box[3]) - max(y1, box[1]), zero)
                intersection = width * height
                union = area + max(box[2] - box[0], zero) * max(box[3] - box[1], zero) - intersection
                overlap = intersection / union if union >= tiny else zero
                if is_linear:
                    scores[index] *= one - overlap if overlap >= limit else one
                elif overlap > zero:
                    scores[index] *= math.exp(-(overlap * overlap) / limit)
                if scores[index] >= lowest_score:
                    remaining[num_still] = index
                    num_still += 1
                    if next_best < 0 or scores[index] > scores[next_best]:
                        next_best = index
            num_remaining, best = num_still, next_best
    return count


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
