"""Faults of runs that estimate hand poses from depth images, by volumes and heat maps (POSE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sightline.areas.pose.metrics import JointError
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.v2v import DrawHeatmaps, V2VSmall, Voxelize
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.engine.build import TrainingSetup
from sightline.ops.voxels.cubes import CubePlacement
from tests.planted.planting import Plant, Planter, change_arguments, change_result, edit, wrap


def _edit_frames(change: Callable[[Batch], Batch]) -> Plant:
    return change_result(SyntheticHands, "get_batch", lambda batch: batch | change(batch))


def _move_cube(owner: type, change: Callable[[CubePlacement], CubePlacement]) -> Plant:
    """Make a plant of a transform that places its cube elsewhere than the others do."""

    def move(given: dict[str, Any]) -> dict[str, Any]:
        return {"placement": change(CubePlacement.from_rows(given["placement"])).to_rows()}

    return change_arguments(owner, "__call__", move)


def undo_augmentation(placement: CubePlacement) -> CubePlacement:
    return dataclasses.replace(
        placement,
        scale=torch.ones_like(placement.scale),
        angle_rad=torch.zeros_like(placement.angle_rad),
        shift=torch.full_like(placement.shift, (placement.grid_size - placement.size) / 2),
    )


def _shift_reference(placement: CubePlacement) -> CubePlacement:
    offset = torch.tensor([40.0, 0.0, 0.0], dtype=torch.float64)
    return dataclasses.replace(placement, reference_mm=placement.reference_mm + offset)


def _round_statistics(own: Any, norm: nn.BatchNorm3d, input: Tensor) -> Tensor:
    """Normalise by statistics of the batch that were summed in float16."""
    if not norm.training:
        output: Tensor = own(norm, input)
        return output
    half = input.half()
    mean = half.mean((0, 2, 3, 4), keepdim=True)
    variance = half.square().mean((0, 2, 3, 4), keepdim=True) - mean.square()
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.lerp_(mean.flatten().float().detach(), norm.momentum or 0.1)
        norm.running_var.lerp_(variance.flatten().float().detach(), norm.momentum or 0.1)
    scaled = (input - mean.float()) / (variance.float() + norm.eps).sqrt()
    shape = (1, -1, 1, 1, 1)
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def _average_all_pixels(batch: Batch) -> Batch:
    """Take the mean depth of all pixels, of which the background's are 0, for the depth of the hand."""
    mean_mm = batch["depth"].mean((1, 2))
    return {"reference": torch.cat([batch["reference"][:, :2], mean_mm[:, None]], 1).to(batch["reference"])}


def add_map_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Planter], None]:
    """Make a plant of a loss of heat maps of one's own, a sum over cells."""

    class OwnMaps(Loss):
        def count(self, *, heatmaps: Tensor) -> Tensor:
            return torch.tensor(heatmaps.numel())

        def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
            return function(likelihood, heatmaps)

    return lambda planter: planter.add_loss(OwnMaps)


def _enlarge_last_layer(built: TrainingSetup) -> None:
    with torch.no_grad():
        built.job.model.output.weight *= 1000  # type: ignore[operator, union-attr]


_MM_A_VOXEL = 200 / 44

POSE_PLANTS: dict[str, Plant] = {
    "O42": change_result(V2VSmall, "likelihood", lambda maps: (maps - 0.1).relu()),
    "N14": change_result(V2VSmall, "likelihood", torch.relu),
    "N15": edit(_enlarge_last_layer),
    "O43": change_result(
        DrawHeatmaps, "__call__", lambda f: {"heatmaps": f["heatmaps"].transpose(-1, -3).contiguous()}
    ),
    "O44": _edit_frames(lambda b: {"depth": b["depth"] / 1000}),
    "O45": _edit_frames(_average_all_pixels),
    "O46": _move_cube(DrawHeatmaps, undo_augmentation),
    "O47": wrap(nn.BatchNorm3d, "forward", _round_statistics),
    "O48": change_result(
        JointError,
        "compute",
        lambda figures: {n: v / _MM_A_VOXEL if n.endswith("mm") else v for n, v in figures.items()},
    ),
    "C1": change_arguments(Voxelize, "__call__", lambda given: {"depth": given["depth"] / 1000}),
    "C2": _edit_frames(lambda b: {"joints": b["joints"][..., [0, 2, 1]]}),
    "C3": _edit_frames(lambda b: {"joints": b["joints"] + torch.tensor([40.0, 0.0, 0.0])}),
    "C4": _edit_frames(lambda b: {"reference": b["reference"] + torch.tensor([0.0, 0.0, 150.0])}),
    "C5": _move_cube(Voxelize, _shift_reference),
    "C6": _move_cube(DrawHeatmaps, lambda p: dataclasses.replace(p, scale=1 / p.scale)),
    "C7": _move_cube(DrawHeatmaps, lambda p: dataclasses.replace(p, shift=p.shift - 1.0)),
    "C8": change_result(Voxelize, "__call__", lambda f: {"volume": f["volume"].transpose(-1, -3).contiguous()}),
    "C9": _edit_frames(lambda b: {"joints": b["joints"].roll(1, 0)}),
    "C10": _edit_frames(lambda b: {"depth": b["depth"].flip(2)}),
    "L16": add_map_loss(lambda a, b: -(a - b).square().sum()),
    "L17": add_map_loss(lambda a, b: (a - a.detach().roll(1, 0)).square().sum()),
    "L18": add_map_loss(lambda a, b: (a[:, :, None] - b[:, None]).square().mean(2).sum()),
}
