"""Rules of what a pass computes with indices and sides of boxes, read from its operators."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.boxes import Sides
from sightline.doctor.evidence.indices import Farthest, LostSums, Merged, UsedIndices
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_MIN_SIDES, _MAX_UNORDERED = 16, 0.2


@rule(
    "indices",
    "warning",
    "model.structure data.layout",
    holds="neighbours are the nearest points",
    do="topk(largest=False) of distances; a negative squared distance is 2 x y - x x - y y",
)
def farthest_neighbours(used_indices: UsedIndices) -> Iterator[Fault]:
    """Expect no farthest points as indices, unless the nearest are taken, too: as context of the whole."""
    for layer, choice in used_indices.faults.items():
        if isinstance(choice, Farthest) and not used_indices.has_nearest:
            yield Fault(
                f"the {choice.k} farthest of {choice.size} points are taken as neighbours, not the nearest",
                measured=f"the {'largest' if choice.is_largest else 'least'} of {choice.shape} "
                f"{'distances' if choice.is_largest else 'negative distances'}",
                expected="the least distances, or the largest negative ones",
                where=FindingLocation(layer=layer or None),
            )


@rule(
    "indices",
    "warning",
    "model.structure data.layout",
    holds="a flat index has a number for each cell",
    do="multiply by the size of the other axis: y * width + x for a grid of (height, width)",
)
def merged_cells(used_indices: UsedIndices) -> Iterator[Fault]:
    """Expect other flat indices for other cells."""
    for layer, merged in used_indices.faults.items():
        if isinstance(merged, Merged):
            yield Fault(
                f"different cells get one flat index: the stride is {merged.stride}, and what is added goes to "
                f"{merged.highest}",
                measured=f"{merged.num_pairs} different pairs become {merged.num_sums} indices",
                expected=f"a stride of {merged.highest + 1} or more: the size of the axis that is added",
                where=FindingLocation(layer=layer or None),
            )


@rule(
    "indices",
    "error",
    "model.structure data.layout",
    holds="all values of an index in its sum",
    do="use x.index_add_(0, i, v), scatter_add_ or index_put_(accumulate=True)",
)
def lost_sums(used_indices: UsedIndices) -> Iterator[Fault]:
    """Expect no sums that are written to the repeated places that they are read from."""
    for layer, lost in used_indices.faults.items():
        if isinstance(lost, LostSums):
            yield Fault(
                f"sums at indices that repeat are lost: x[i] += v adds one value at each of {lost.num_distinct}",
                measured=f"{lost.num} values at {lost.num_distinct} different indices",
                where=FindingLocation(layer=layer or None),
            )


_CAUSES = "assign.box_format data.target_encoding"
_HOLDS = "left <= right and top <= bottom in boxes that an intersection reads as corners"
_DO = "convert all boxes to corners before the intersection"


@rule("box-corners", "error", _CAUSES, holds=_HOLDS, do=_DO)
def corners_in_pass(sides_in_pass: list[Sides]) -> Fault | None:
    """Expect ends beyond starts in what the loss or the model intersects, beside predictions."""
    return _judge_sides(sides_in_pass)


@rule("box-corners", "error", _CAUSES, holds=f"{_HOLDS}, as samples are read", do=_DO)
def corners_in_reads(sides_in_reads: list[Sides]) -> Fault | None:
    """Expect ends beyond starts in what reads of the data set intersect."""
    return _judge_sides(sides_in_reads)


def _judge_sides(sides: list[Sides]) -> Fault | None:
    if not sides:
        raise NotApplicableError("no intersections of boxes")
    for starts, ends in sides:
        is_unordered = ends < starts
        num, size = int(is_unordered.sum()), len(starts)
        if size < _MIN_SIDES or num <= _MAX_UNORDERED * size:
            continue
        if len(torch.unique(torch.stack([starts, ends], dim=1)[is_unordered], dim=0)) > 1:  # not one that means none
            return Fault(
                "an intersection of boxes reads corners (x1, y1, x2, y2), and some of its boxes are none: these are "
                "(x, y, w, h) or the like",
                measured=f"right < left or bottom < top in {num} of {size} pairs of sides, of boxes that do not come "
                "from the model",
            )
    return None
