"""Rules of networks on sparse voxels: a grid that fits the points, alike in training and test, and enough voxels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from sightline.layers.voxel_levels import build_voxel_levels
from sightline.ops.voxels.cells import sparse_voxels
from sightline.parts.models.voxel_network import VoxelNetwork
from sightline.parts.voxels.grids import GridSummary

_NUM_CLOUDS = 4
_MAX_RATIO = 1.25
"""Ratio of the grids of training and evaluation from which they differ."""
_FEWEST_VOXELS = 16
"""Voxels of a level in the batch of a training step: the deviation of fewer is off by a fifth and more."""
_GRID = "model.grid_m"


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
