"""Losses of joint heat maps and of a refined reference point, summed; the engine divides once, over the whole step."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.loss import Loss
from sightline.ops.heat_maps import soft_cells
from sightline.ops.pinhole import CropPlacement, to_crop_coordinates
from sightline.ops.voxels import CubePlacement, to_voxels


@registry.losses.add("heatmap_mse")
class HeatmapMSE(Loss):
    """Mean squared error of the heat maps, over visible joints and all cells.

    A prediction of zero everywhere has the mean square of the targets, 3.2115e-4 for joints inside a map of 44 cells
    and a sigma of 1.7: a loss that stays there has learnt nothing. Source: Moon et al. 2018, eq. 2.
    """

    def count(self, *, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Count the cells of visible joints; `heatmaps` (B, J, V, V, V), `visible` (B, J)."""
        return visible.sum() * heatmaps[0, 0].numel()

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Compute the loss sum from `likelihood` and `heatmaps` (B, J, V, V, V), `visible` (B, J)."""
        difference = likelihood.to(heatmaps.dtype) - heatmaps
        return (difference.square().flatten(2).sum(dim=-1) * visible).sum()


@registry.losses.add("heatmap_cross_entropy")
class HeatmapCrossEntropy(Loss):
    """Cross entropy of the softmax over each joint's volume with its target, which is normalised to sum 1.

    The mean over visible joints. Source: the integral variant of V2V-PoseNet's PyTorch port, after Sun et al. 2018.
    """

    def count(self, *, visible: Tensor) -> Tensor:
        """Count the visible joints; `visible` (B, J)."""
        return visible.sum()

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Compute the loss sum from `likelihood` and `heatmaps` (B, J, V, V, V), `visible` (B, J)."""
        target = heatmaps.flatten(2)
        shares = target / target.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        log_likelihood = likelihood.to(target.dtype).flatten(2).log_softmax(dim=-1)
        return -((shares * log_likelihood).sum(dim=-1) * visible).sum()


@registry.losses.add("joint_l1")
class JointL1(Loss):
    """Integral regression loss: the L1 distance, in cells, of each joint from the soft-argmax of its volume.

    The mean over visible joints and three axes. Source: Sun et al. 2018, Integral human pose regression, eq. 2.
    """

    def count(self, *, visible: Tensor) -> Tensor:
        """Count the coordinates of visible joints; `visible` (B, J)."""
        return visible.sum() * 3

    def forward(self, *, likelihood: Tensor, joints: Tensor, visible: Tensor, placement: Tensor) -> Tensor:
        """Compute the loss sum from `likelihood` (B, J, V, V, V) and `joints` (B, J, 3) in mm.

        `visible` (B, J), `placement` (B, 13).
        """
        placed = CubePlacement.from_rows(placement)
        pooling = placed.size / likelihood.shape[-1]
        middle = 0.0 if placed.compat == "release" else 0.5
        wanted = to_voxels(joints, placed) / pooling - middle
        predicted = soft_cells(likelihood.to(joints.dtype))
        if placed.axes == "zyx":
            predicted = predicted.flip(-1)
        return ((predicted - wanted).abs().sum(dim=-1) * visible).sum()


@registry.losses.add("centre_mse")
class CentreMSE(Loss):
    """Squared distance of the predicted offset to the middle joint, in halves of the crop's side.

    The mean over the frames in which this joint is visible. Source: Oberweger and Lepetit 2017, DeepPrior++.
    """

    def __init__(self, *, centre_joint: int) -> None:
        super().__init__()
        self.centre_joint = centre_joint

    def count(self, *, visible: Tensor) -> Tensor:
        """Count the frames whose middle joint is visible; `visible` (B, J)."""
        return visible[:, self.centre_joint].sum()

    def forward(self, *, offset: Tensor, joints: Tensor, visible: Tensor, crop_placement: Tensor) -> Tensor:
        """Compute the loss sum from `offset` (B, 3), `joints` (B, J, 3) in mm, `visible` (B, J), placement (B, 9)."""
        placement = CropPlacement.from_rows(crop_placement)
        is_seen = visible[:, self.centre_joint, None]
        middle = torch.where(is_seen, joints[:, self.centre_joint].double(), placement.reference_mm)
        wanted = to_crop_coordinates(middle[:, None], placement)[:, 0].to(joints.dtype)
        return ((offset.to(joints.dtype) - wanted).square() * is_seen).sum()
