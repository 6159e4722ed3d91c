"""Rules of networks on sparse voxels: a grid that fits the points, alike in training and test, and enough voxels.

And of attention on them: patches of a cloud that do not depend on the clouds beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.types import SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.layers.batch_norm import SynchronisedBatchNorm
from sightline.layers.cloud_layouts import as_packed
from sightline.layers.voxel_levels import VoxelLevel, build_voxel_levels
from sightline.ops.voxels.cells import sparse_voxels
from sightline.parts.models.voxel_network import VoxelNetwork
from sightline.parts.voxels.grids import GridSummary

_NUM_CLOUDS = 4
_MAX_RATIO = 1.25
"""Ratio of the grids of training and evaluation from which they differ."""
_FEWEST_VOXELS = 16
"""Voxels of a level in the batch of a training step: the deviation of fewer is off by a fifth and more."""
_GRID = "model.grid_m"
_NUM_MATES = 8
"""Clouds of a batch of evaluation that are compared with each of them alone."""


@measure()
def voxel_network(run: Any) -> VoxelNetwork:
    """Find the network on sparse voxels of a run."""
    for module in run.built.job.model.modules():
        if isinstance(module, VoxelNetwork):
            return module
    raise NotApplicableError("no network on sparse voxels")


class GriddedPart(NamedTuple):
    """What the network's grid makes of the first clouds of a part, as they reach the network, and where they are."""

    grid: GridSummary
    where: FindingLocation


@measure()
def gridded_parts(run: Any, voxel_network: VoxelNetwork) -> list[GriddedPart]:
    """Group the first clouds of the training and of the evaluated part by the network's grid."""
    data, facts = run.built.data, run.built.data.facts
    num_classes, ignored = int(facts.get("num_classes", 0)), facts.get("ignore_index")
    parts = []
    for part in (data.train, data.selection):
        if not len(part.indices) or "points" not in part.reader.keys:
            continue
        keys = [SampleKey(int(index), 0, run.config.seed) for index in part.evenly_spaced_indices(_NUM_CLOUDS)]
        batch = part.reader(keys)
        points, _, offsets = as_packed(batch["points"], None, batch.get("offsets"))
        grid = GridSummary(voxel_network.grid_m, num_classes + 1, num_classes)
        grid.add(points, label=_find_labels(batch, len(points), num_classes, ignored), offsets=offsets)
        parts.append(GriddedPart(grid, run.locate(part.split, config_path=_GRID)))
    if not parts:
        raise NotApplicableError("no clouds")
    return parts


def _find_labels(batch: Mapping[str, Any], num_points: int, num_classes: int, ignored: int | None) -> Tensor | None:
    """Return the class (P,) of each point, `num_classes` for one that is none; None without labels of points."""
    label = batch.get("label")
    if not isinstance(label, Tensor) or label.numel() != num_points or label.is_floating_point() or not num_classes:
        return None
    label = label.flatten().long()
    is_none = (label < 0) | (label >= num_classes)
    is_none = is_none if ignored is None else is_none | (label == ignored)
    return torch.where(is_none, num_classes, label)


@rule(
    "voxel-grid",
    "warning",
    "data.normalisation cfg.override data.label_mapping",
    holds="voxels with neighbours, of few points each, nearly all of one class",
    do="state the unit of the files when they are prepared (unit=mm); set model.grid_m to what `data info` proposes",
    is_statistical=True,
)
def voxel_grid(gridded_parts: list[GriddedPart]) -> Iterator[Fault]:
    """Count neighbours, points and classes of the voxels of a few clouds."""
    for part in gridded_parts:
        for doubt in part.grid.list_doubts()[:1]:
            summary, _, action = doubt.partition(": ")
            figures = {name: value for name, value in part.grid.figures().items() if name != "doubts"}
            measured = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
            yield Fault(summary, measured=measured, action=action, where=part.where, evidence=figures)
            return


@measure()
def grid_sides(run: Any) -> tuple[float, float]:
    """Return the side of the coarsest grid that thins or groups points, in training and in evaluation; 0 for none."""
    networks = [module for module in run.built.job.model.modules() if isinstance(module, VoxelNetwork)]
    of_network = networks[0].grid_m if networks else 0.0
    stages = (run.config.transforms.train, run.config.transforms.evaluate)
    sides = [
        max([of_network, *(float(block.arguments["size_m"]) for block in blocks if block.name == "voxel_sample")])
        for blocks in stages
    ]
    if not any(sides):
        raise NotApplicableError("no grid")
    return sides[0], sides[1]


@rule(
    "voxel-grid",
    "warning",
    "eval.protocol cfg.override",
    holds="points of evaluation on the grid of training",
    do="give both lists of transforms the same size_m of voxel_sample (score_all counts every point in the metrics)",
)
def grid_of_evaluation(grid_sides: tuple[float, float]) -> Fault | None:
    """Compare the grids of both lists of transforms, each with that of the network."""
    trained, evaluated = grid_sides
    if max(trained, evaluated) <= _MAX_RATIO * min(trained, evaluated):
        return None
    sides = [f"{side:g} m" if side else "none" for side in (trained, evaluated)]
    return Fault(
        "points are as dense in training as they are not in evaluation: another grid thins them",
        measured=f"grid of training {sides[0]}, of evaluation {sides[1]}",
        where=FindingLocation(config_path="transforms.evaluate"),
    )


@rule(
    "voxel-grid",
    "warning",
    "model.norm_mode cfg.override",
    holds=f"at least {_FEWEST_VOXELS} voxels of each level in the batch of a training step, for batch norm",
    do="raise train.batch_size, let crops keep more points (crop_points), or lower model.grid_m",
    is_statistical=True,
)
def voxels_of_levels(run: Any, voxel_network: VoxelNetwork) -> Fault | None:
    """Count the voxels of the coarsest level in the first batch of training."""
    norms = [module for module in voxel_network.modules() if isinstance(module, nn.BatchNorm1d)]
    if all(isinstance(norm, SynchronisedBatchNorm) for norm in norms):
        raise NotApplicableError("no batch norm of one process")
    batch = run.dry_run.batch
    if not batch or not isinstance(batch.get("points"), Tensor):
        raise NotApplicableError("no batch of clouds")
    points, _, offsets = as_packed(batch["points"], None, batch.get("offsets"))
    voxels = sparse_voxels(points, offsets, side=voxel_network.grid_m)
    num_levels = len(voxel_network.level_sizes)
    coarsest = build_voxel_levels(voxels.cells, voxels.offsets, sizes=[()] * num_levels)[-1].num_voxels
    if coarsest >= _FEWEST_VOXELS:
        return None
    side = voxel_network.grid_m * 2 ** (num_levels - 1)
    return Fault(
        f"batch norm of the coarsest level has the statistics of {coarsest} voxels of {side:g} m",
        measured=f"{len(voxels.offsets) - 1} clouds of {len(voxels.cells)} voxels of {voxel_network.grid_m:g} m in the "
        "first batch of training",
        where=FindingLocation(config_path=_GRID),
    )


class CutClouds(NamedTuple):
    """Clouds of a batch of evaluation, how many of them attention cuts otherwise than alone, and why, in words."""

    num_clouds: int
    num_changed: int
    reason: str


@measure()
def cut_clouds(run: Any, voxel_network: VoxelNetwork) -> CutClouds:
    """Cut the first batch of evaluation into patches, and each cloud of it alone."""
    curves, part = voxel_network.curves, run.built.data.selection
    if curves is None or not curves.batch_dependence:
        raise NotApplicableError("no patches that depend on a batch")
    indices = part.indices[: min(run.config.evaluate.batch_size, _NUM_MATES)]
    if len(indices) < 2 or "points" not in part.reader.keys:
        raise NotApplicableError("clouds are evaluated alone")
    batch = part.reader([SampleKey(int(index), 0, run.config.seed) for index in indices])
    points, _, offsets = as_packed(batch["points"], None, batch.get("offsets"))
    voxels = sparse_voxels(points, offsets, side=voxel_network.grid_m)

    def cut(cells: Tensor, offsets: Tensor) -> list[VoxelLevel]:
        return build_voxel_levels(cells, offsets, sizes=[()] * len(voxel_network.level_sizes), curves=curves)

    whole, bounds = cut(voxels.cells, voxels.offsets), voxels.offsets.tolist()
    alone = [cut(voxels.cells[first:last], torch.tensor([0, last - first])) for first, last in pairwise(bounds)]
    changed = sum(_is_cut_otherwise(whole, levels, cloud) for cloud, levels in enumerate(alone))
    return CutClouds(len(indices), changed, curves.batch_dependence)


def _is_cut_otherwise(whole: Sequence[VoxelLevel], alone: Sequence[VoxelLevel], cloud: int) -> bool:
    """Return True if the patches of a cloud of a batch, `whole`, are not those of its own levels, `alone`."""
    for together, own in zip(whole, alone, strict=True):
        assert together.curves is not None
        assert own.curves is not None
        first, last = together.curves.offsets[cloud : cloud + 2].tolist()
        sizes = {min(each.curves.patch_size, last - first) for each in (together, own) if each.curves is not None}
        if len(sizes) > 1 or not torch.equal(together.curves.order[:, first:last] - first, own.curves.order):
            return True
    return False


@rule(
    "cross-sample-leak",
    "warning",
    "model.cross_sample_leak eval.protocol",
    holds="clouds that attention cuts into the same patches alone as beside the others of a batch of evaluation",
    do="set evaluate.batch_size=1, or let the model cut each cloud by itself (ptv3: patches segments, data_flow "
    "consistent)",
)
def clouds_cut_together(cut_clouds: CutClouds) -> Fault | None:
    """Look for clouds whose patches in a batch of evaluation are others than alone."""
    if not cut_clouds.num_changed:
        return None
    return Fault(
        f"in evaluation a cloud's output depends on the clouds beside it: {cut_clouds.reason}",
        measured=f"{cut_clouds.num_changed} of the first {cut_clouds.num_clouds} clouds of evaluation have other "
        "patches alone",
        where=FindingLocation(config_path="evaluate.batch_size"),
    )
