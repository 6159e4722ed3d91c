"""Voxels that are not those of the frame: another order of axes, centre, turn or scale than declared."""

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
_ALIKE = 0.999
"""Of the voxels of both, so many are common: a point on a border may fall to either side by rounding."""
_EXPLAINED = 0.9
_FARTHEST = 12  # voxels, that a shift is looked for


@check("G41", "misplaced-volume", "preflight", config_path="transforms")
def misplaced_volume(context: Context) -> list[Finding]:
    """The points of a frame, mapped by its placement, occupy the very voxels that the network is given."""
    for part in parts_with(context, _NEEDED):
        batch = read_first_batch(part, _NUM_SAMPLES, context.config.seed)
        placement = CubePlacement.from_rows(batch["placement"])
        expected = occupancy(batch["depth"], batch["camera"], placement) > 0
        found = batch["volume"] > 0
        share = _overlap(found, expected)
        if found.shape != expected.shape or share < _ALIKE:
            return [_of_volume(context, part, batch, placement, share)]
    return []


def parts_with(context: Context, needed: frozenset[str]) -> Iterator[DataSubset]:
    """The training and the validation part, where their batches have these keys and they hold samples."""
    data = context.built.data
    for part in (data.train, data.selection):
        if needed <= part.reader.keys and len(part.indices):
            yield part


def read_first_batch(part: DataSubset, count: int, seed: int) -> Batch:
    """The first samples of a part, as its first epoch reads them."""
    return part.reader([SampleKey(int(index), 0, seed) for index in part.indices[:count]])


def _overlap(found: Tensor, expected: Tensor) -> float:
    """Voxels that both have, of those that either has; 0 for volumes of other shapes."""
    if found.shape != expected.shape:
        return 0.0
    either = int((found | expected).sum())
    return int((found & expected).sum()) / either if either else 1.0


def _explanations(batch: Batch, placement: CubePlacement) -> Iterator[tuple[str, str, Tensor]]:
    """What may have gone wrong: its cause, in words, and the voxels that it would give."""
    depth, camera = batch["depth"], batch["camera"]
    straight = occupancy(depth, camera, replace(placement, axes="xyz"))[:, 0]
    for order in permutations((0, 1, 2)):
        axes = ", ".join("xyz"[axis] for axis in order)
        yield "data.layout", f"its axes are {axes}", straight.permute(0, *(axis + 1 for axis in order))[:, None]
    for explanation, changed in (
        ("the grid is scaled by the inverse", replace(placement, scale=1 / placement.scale)),
        ("the grid is turned the other way", replace(placement, angle_rad=-placement.angle_rad)),
        ("the grid is not varied, as the target is", unaugmented_placement(placement)),
    ):
        yield "data.augment_target_mismatch", explanation, occupancy(depth, camera, changed)
    metres = torch.where(depth > 0, depth / 1000, depth)
    yield "data.normalisation", "depth is taken for metres", occupancy(metres, camera, placement)


def unaugmented_placement(placement: CubePlacement) -> CubePlacement:
    """The same cube without scale, turn and shift."""
    return replace(
        CubePlacement.identity(
            placement.reference_mm, cube_mm=placement.cube_mm, size=placement.size, original=placement.grid_size
        ),
        axes=placement.axes,
        compat=placement.compat,
    )


def _shifted(found: Tensor, expected: Tensor) -> tuple[float, tuple[int, ...]]:
    """The whole shift, common to all samples, under which the voxels agree best, and how well."""
    means = [each[:, 0].nonzero()[:, 1:].double().mean(dim=0) for each in (found, expected)]
    offset = tuple(int(v) for v in (means[0] - means[1]).nan_to_num().round().clamp(-_FARTHEST, _FARTHEST))
    return _overlap(found, expected.roll(offset, dims=(2, 3, 4))), offset


def _of_volume(context: Context, part: DataSubset, batch: Batch, placement: CubePlacement, share: float) -> Finding:
    found = batch["volume"] > 0
    cause, explanation = "data.projection", "no permutation, turn, scale or shift explains it"
    best = _EXPLAINED
    for slug, words, volume in _explanations(batch, placement):
        overlap = _overlap(found, volume > 0)
        if overlap > best:
            best, cause, explanation = overlap, slug, words
    expected = permute_axes(occupancy(batch["depth"], batch["camera"], replace(placement, axes="xyz")), placement.axes)
    if found.shape == expected.shape and best == _EXPLAINED:
        overlap, offset = _shifted(found, expected > 0)
        if overlap > _EXPLAINED:
            best, cause, explanation = overlap, "data.centre", f"it lies {offset} voxels off: about another centre"
    sample = int(part.indices[0])
    return misplaced_volume.finding(
        context,
        f"the network's voxels are not those of the frame: {explanation}",
        causes=(cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        split=part.split,
        sample=sample,
        measured=f"{share:.0%} of the voxels are common in {describe_sample(part.dataset, sample)} and after it",
        expected="the voxels that the frame's points occupy, mapped by 'placement'",
        action="look at the transform that makes 'volume' beside the one that makes 'placement'",
        evidence={"common_share": share, "explained_share": best if best > _EXPLAINED else None},
    )
