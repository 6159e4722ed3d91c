"""Suppression of detections in 3D by the overlap of their turned boxes from above, or by the distance of their centres.

Both are greedy, with ties in the order of their indices, as `nms` is. Sources: rotated suppression, Yan et al. 2018
(SECOND); circles, Yin et al. 2021 (CenterPoint), whose settings state the square of the radius.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.boxes.rotated_kernels import suppress_in_order
from sightline.ops.boxes.rotated_overlaps import (
    assert_boxes_3d,
    divide_by_union,
    drop_empty_boxes,
    make_footprints,
    share_footprints,
)
from sightline.ops.boxes.suppression import keep_by_hits, run_on_host, sort_falling
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.operator import operator
from sightline.ops.waits import is_recording, require


@torch.no_grad()
def box3d_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None = None,
    *,
    max_candidates: int | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """Suppress boxes (N, 7) of lower scores (N,): indices (K,) int64 of the kept ones, highest score first.

    A kept box suppresses those of which the IoU from above with it (`box3d_iou_bev`) exceeds the threshold: within
    their class where `labels` (N,) are given, else whatever their class. Of equal scores the lower index comes first.
    Of each class, or of all, only the `max_candidates` of the highest scores take part, and only the first `max_kept`
    are returned. A box without an area overlaps none. K is read, which a GPU waits for. Raises ValueError for another
    shape, dtype or device, a threshold outside of 0 to 1, a limit below 1, and scores that are NaN.
    """
    assert_boxes_3d(boxes)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: found {iou_threshold}, allowed is a number from 0 to 1")
    table = make_footprints(drop_empty_boxes(promote_to_float32(boxes)))
    return _suppress(table, scores, labels, iou_threshold, max_candidates, max_kept, is_circle=False)


@torch.no_grad()
def circle_nms(
    centres: Tensor,
    scores: Tensor,
    squared_radius: float,
    labels: Tensor | None = None,
    *,
    max_candidates: int | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """Suppress centres (N, 2) of lower scores (N,): indices (K,) int64 of the kept ones, highest score first.

    A kept centre suppresses those of which the squared distance is at most `squared_radius`, in the squared unit of the
    centres; those that are not finite suppress none. All else is as in `box3d_nms`. K is read, which a GPU waits for.
    """
    if centres.ndim != 2 or centres.shape[1] != 2 or centres.dtype == torch.bool or centres.is_complex():
        found = f"{tuple(centres.shape)} {centres.dtype}"
        raise ValueError(f"centres: found {found}, expected numbers (N, 2), such as boxes[:, :2]")
    if not squared_radius >= 0:
        raise ValueError(f"squared_radius: found {squared_radius}, allowed is a number, at least 0")
    table = torch.cat([promote_to_float32(centres).double(), centres.new_zeros(centres.shape[0], 4).double()], dim=1)
    return _suppress(table, scores, labels, squared_radius, max_candidates, max_kept, is_circle=True)


def _suppress(
    table: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    threshold: float,
    max_candidates: int | None,
    max_kept: int | None,
    *,
    is_circle: bool,
) -> Tensor:
    """Suppress rows of a table of footprints (N, 6); return indices (K,) of the kept ones, highest score first."""
    labels = _read_scores(table, scores, labels)
    order = sort_falling(promote_to_float32(scores.detach()))
    table, labels = table.index_select(0, order), labels.index_select(0, order)
    is_candidate = _first_of_each(torch.ones_like(labels, dtype=torch.bool), labels, max_candidates, "max_candidates")
    is_kept = _keep_apart(table, scores.detach().double(), labels, is_candidate, float(threshold), is_circle)
    return order[_first_of_each(is_kept, labels, max_kept, "max_kept")]


def _read_scores(table: Tensor, scores: Tensor, labels: Tensor | None) -> Tensor:
    """Check scores and labels, one of each row; return the labels (N,) int64, 0 where there are none."""
    labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels
    for name, values in (("scores", scores), ("labels", labels)):
        if values.shape != table.shape[:1]:
            found = f"the shape {tuple(values.shape)} for {table.shape[0]} boxes"
            raise ValueError(f"{name}: found {found}, expected one of each")
        if values.device != table.device:
            raise ValueError(f"{name}: found on {values.device}, boxes on {table.device}; give one device")
    if scores.is_complex() or scores.dtype == torch.bool:
        raise ValueError(f"scores: found {scores.dtype}, expected numbers such as torch.float32")
    return widen_labels(labels, "labels")


def _first_of_each(mask: Tensor, labels: Tensor, limit: int | None, name: str) -> Tensor:
    """Keep of a mask (N,) the first of each label, up to a limit."""
    if limit is None:
        return mask
    if limit < 1:
        raise ValueError(f"{name}: found {limit}, allowed is a number of at least 1; leave it out for all")
    if is_recording():  # without a stable sort, which ONNX has not
        position = torch.arange(mask.shape[0], device=mask.device)
        is_before = (labels[:, None] == labels) & mask & (position < position[:, None])
        return mask & (is_before.sum(dim=1) < limit)
    rising, order = labels.sort(stable=True)
    before = torch.cat([mask.new_zeros(1).long(), mask[order].cumsum(0)])
    rank = before[:-1] - before[torch.searchsorted(rising, rising)]
    return mask & torch.empty_like(mask).scatter_(0, order, rank < limit)


def _check_scores(table: Tensor, scores: Tensor, *_: object) -> None:
    is_number = ~scores.isnan()
    require(is_number, lambda: ValueError(f"scores: {int((~is_number).sum())} of {len(scores)} are nan, not a number"))


@operator(check=_check_scores, differentiable=False)
def _keep_apart(
    table: Tensor, scores: Tensor, labels: Tensor, is_candidate: Tensor, threshold: float, is_circle: bool
) -> Tensor:
    """Return a mask (N,) of the kept rows of footprints (N, 6), which are in the order of their scores."""

    def keep(table: Tensor, labels: Tensor, is_candidate: Tensor) -> Tensor:
        is_kept, remaining = torch.zeros_like(is_candidate), is_candidate.nonzero()[:, 0]
        while len(remaining):
            best, remaining = remaining[0], remaining[1:]
            is_kept[best] = True
            is_hit = _is_hit(table[best], table[remaining], threshold, is_circle)
            remaining = remaining[~(is_hit & (labels[remaining] == labels[best]))]
        return is_kept

    return run_on_host(keep, table.double(), labels, is_candidate)


def _keep_in_graph(
    table: Tensor, scores: Tensor, labels: Tensor, is_candidate: Tensor, threshold: float, is_circle: bool
) -> Tensor:
    table = table.double()
    is_hit = _is_hit(table[:, None], table, threshold, is_circle) & (labels[:, None] == labels)
    return keep_by_hits(is_hit, is_candidate)


_keep_apart.graph = _keep_in_graph


def _is_hit(one: Tensor, others: Tensor, threshold: float, is_circle: bool) -> Tensor:
    """Return which of `others` (..., 6) footprints `one` (..., 6) suppresses."""
    if is_circle:
        right, up = others[..., 0] - one[..., 0], others[..., 1] - one[..., 1]
        return right * right + up * up <= threshold
    area, other_area = 4 * one[..., 2] * one[..., 3], 4 * others[..., 2] * others[..., 3]
    return divide_by_union(share_footprints(one, others), area, other_area) > threshold


@_keep_apart.fake
def _(table: Tensor, scores: Tensor, labels: Tensor, is_candidate: Tensor, threshold: float, is_circle: bool) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.bool)


@_keep_apart.cpu_kernel
def _(table: Tensor, scores: Tensor, labels: Tensor, is_candidate: Tensor, threshold: float, is_circle: bool) -> Tensor:
    """Take the rows of a label next to one another: each is held against those of its label that were kept."""
    by_label = labels.argsort(stable=True)
    columns = [column.index_select(0, by_label).numpy() for column in (table.double(), labels, is_candidate)]
    is_kept = torch.zeros_like(is_candidate)
    suppress_in_order(*columns, float(threshold), is_circle, is_kept.numpy())
    return torch.empty_like(is_kept).index_copy_(0, by_label, is_kept)
