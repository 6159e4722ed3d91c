"""Voxels that are not those of the frame: another order of axes, centre, rotation or scale than declared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample
from sightline.engine.build import DataSubset
from sightline.geometry.volumes import CubePlacement, occupancy, permute_axes
from sightline.types import Batch, SampleKey

__all__ = ["misplaced_volume", "parts_with", "read_first_batch", "unaugmented_placement"]

_NEEDED = frozenset({"depth", "camera", "placement", "volume"})
_NUM_SAMPLES = 4
_MIN_IOU = 0.999
"""IoU of the voxels; rounding may move points on a border to either side."""
_MIN_EXPLAINED_IOU = 0.9
_MAX_SHIFT = 12  # voxels


@check("G41", "misplaced-volume", "preflight", config_path="transforms")
def misplaced_volume(context: Context) -> list[Finding]:
    """Points of a frame, mapped by its placement, occupy exactly the voxels of the network's input.

    Finds: Voxels that are not those of the frame: another order of axes, centre, rotation or scale than declared.
    """
    for part in parts_with(context, _NEEDED):
        batch = read_first_batch(part, _NUM_SAMPLES, context.config.seed)
        placement = CubePlacement.from_rows(batch["placement"])
        expected = occupancy(batch["depth"], batch["camera"], placement) > 0
        occupied = batch["volume"] > 0
        iou = _compute_iou(occupied, expected)
        if occupied.shape != expected.shape or iou < _MIN_IOU:
            return [_finding_volume(context, part, batch, placement, iou)]
    return []


def parts_with(context: Context, needed: frozenset[str]) -> Iterator[DataSubset]:
    """Yield the training and the validation part if they have samples, and batches with the `needed` keys."""
    data = context.built.data
    for part in (data.train, data.selection):
        if needed <= part.reader.keys and len(part.indices):
            yield part


def read_first_batch(part: DataSubset, count: int, seed: int) -> Batch:
    """Read the first `count` samples of a part, with the keys of its first epoch."""
    return part.reader([SampleKey(int(index), 0, seed) for index in part.indices[:count]])


def _compute_iou(occupied: Tensor, expected: Tensor) -> float:
    """Compute the IoU of two grids of occupied voxels; 0 if their shapes differ."""
    if occupied.shape != expected.shape:
        return 0.0
    num_either = int((occupied | expected).sum())
    return int((occupied & expected).sum()) / num_either if num_either else 1.0


def _list_explanations(batch: Batch, placement: CubePlacement) -> Iterator[tuple[str, str, Tensor]]:
    """Yield possible faults: the cause, a description, and the voxels that it would give."""
    depth, camera = batch["depth"], batch["camera"]
    unpermuted = occupancy(depth, camera, replace(placement, axes="xyz"))[:, 0]
    for order in permutations((0, 1, 2)):
        axes = ", ".join("xyz"[axis] for axis in order)
        yield "data.layout", f"its axes are {axes}", unpermuted.permute(0, *(axis + 1 for axis in order))[:, None]
    for explanation, changed in (
        ("the grid is scaled by the inverse", replace(placement, scale=1 / placement.scale)),
        ("the grid is rotated in the opposite direction", replace(placement, angle_rad=-placement.angle_rad)),
        ("the grid is not augmented, but the target is", unaugmented_placement(placement)),
    ):
        yield "data.augment_target_mismatch", explanation, occupancy(depth, camera, changed)
    metres = torch.where(depth > 0, depth / 1000, depth)
    yield "data.normalisation", "depth is taken for metres", occupancy(metres, camera, placement)


def unaugmented_placement(placement: CubePlacement) -> CubePlacement:
    """Return the same cube without scale, rotation and shift."""
    return replace(
        CubePlacement.identity(
            placement.reference_mm, cube_mm=placement.cube_mm, size=placement.size, original=placement.grid_size
        ),
        axes=placement.axes,
        compat=placement.compat,
    )


def _estimate_shift(occupied: Tensor, expected: Tensor) -> tuple[float, tuple[int, ...]]:
    """Estimate one integer shift for all samples from their mean voxels; return the IoU after it, and it."""
    means = [grid[:, 0].nonzero()[:, 1:].double().mean(dim=0) for grid in (occupied, expected)]
    offset = tuple(int(steps) for steps in (means[0] - means[1]).nan_to_num().round().clamp(-_MAX_SHIFT, _MAX_SHIFT))
    return _compute_iou(occupied, expected.roll(offset, dims=(2, 3, 4))), offset


def _finding_volume(context: Context, part: DataSubset, batch: Batch, placement: CubePlacement, iou: float) -> Finding:
    occupied = batch["volume"] > 0
    cause, explanation = "data.projection", "no permutation, rotation, scale or shift explains it"
    best = _MIN_EXPLAINED_IOU
    for other_cause, description, volume in _list_explanations(batch, placement):
        other_iou = _compute_iou(occupied, volume > 0)
        if other_iou > best:
            best, cause, explanation = other_iou, other_cause, description
    expected = permute_axes(occupancy(batch["depth"], batch["camera"], replace(placement, axes="xyz")), placement.axes)
    if occupied.shape == expected.shape and best == _MIN_EXPLAINED_IOU:
        other_iou, offset = _estimate_shift(occupied, expected > 0)
        if other_iou > _MIN_EXPLAINED_IOU:
            best, cause, explanation = other_iou, "data.centre", f"it is shifted by {offset} voxels: another centre"
    sample = int(part.indices[0])
    return misplaced_volume.finding(
        context,
        f"the network's voxels are not those of the frame: {explanation}",
        causes=(cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        split=part.split,
        sample=sample,
        measured=f"{iou:.0%} of the voxels are common in {describe_sample(part.dataset, sample)} and those after it",
        expected="the voxels that the frame's points occupy, mapped by 'placement'",
        action="look at the transform that makes 'volume' and at the one that makes 'placement'",
        evidence={"common_share": iou, "explained_share": best if best > _MIN_EXPLAINED_IOU else None},
    )
