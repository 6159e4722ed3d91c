"""Loss of a refined reference point, summed over the frames whose middle joint is labelled."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline import registry
from sightline.geometry.crops import CropPlacement, to_crop_coordinates
from sightline.losses.base import Loss

__all__ = ["CentreMSE"]


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
