"""Refiner of reference points (DeepPrior++): ScaleNet, its loss, and the error of the points that it finds.

Source: Oberweger and Lepetit 2017.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Probability
from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric, State
from sightline.contract.model import Model
from sightline.ops.pinhole import CropPlacement, to_crop_coordinates

_SIZE = 128
_CHANNELS = 8
_POOLS = ((4, 2), (2, 2), (2, 1))
"""Pool sizes of the first two convolutions of each branch, the whole crop's first; the third has none."""
_FLAT = 968 + 968 + 512
_WIDTH = 1024


class ScaleNetOutput(TypedDict):
    """`offset` (B, 3): from the middle of the crop, in halves of its side."""

    offset: Tensor


@registry.models.add("scale_net")
class ScaleNet(Model):
    """ScaleNet: refines a reference point from the crop, its middle half and its middle quarter, at one scale.

    Three branches of three valid convolutions, then layers of 1,024 values with `dropout` after each; 3,567,651
    parameters. The crop is one of 128 by 128, by the transform `crop_depth`.
    Source: Oberweger and Lepetit 2017, DeepPrior++, section 3.1; layers of the authors' scalenet.py.
    """

    def __init__(self, *, dropout: Probability = 0.3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(*pools) for pools in _POOLS)
        self.head = nn.Sequential(
            nn.Linear(_FLAT, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_WIDTH, 3),
        )

    def forward(self, *, crop: Tensor) -> ScaleNetOutput:
        """Predict from `crop` (B, 1, 128, 128), from -1 at the front to 1 at the back."""
        if crop.shape[1:] != (1, _SIZE, _SIZE):
            raise ValueError(
                f"crop: found the shape {tuple(crop.shape)}, scale_net takes (B, 1, {_SIZE}, {_SIZE}); set size: "
                f"{_SIZE} in crop_depth"
            )
        branch_features = [branch(_middle(crop, _SIZE >> level)) for level, branch in enumerate(self.branches)]
        return {"offset": cast(Tensor, self.head(torch.cat(branch_features, dim=1)))}


def _branch(first_pool: int, second_pool: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, _CHANNELS, 5),
        nn.MaxPool2d(first_pool),
        nn.ReLU(),
        nn.Conv2d(_CHANNELS, _CHANNELS, 5),
        nn.MaxPool2d(second_pool),
        nn.ReLU(),
        nn.Conv2d(_CHANNELS, _CHANNELS, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


def _middle(crop: Tensor, size: int) -> Tensor:
    """Return the `size` by `size` pixels in the middle."""
    start = (crop.shape[-1] - size) // 2
    return crop[..., start : start + size, start : start + size]


@registry.losses.add("centre_mse")
class CentreMSE(Loss):
    """Squared distance of the predicted offset to the middle joint, in halves of the crop's side.

    The mean over the frames in which this joint is visible.

    >>> import torch
    >>> from sightline.areas.pose.refiner import CentreMSE
    >>> placement = torch.tensor([[0.0, 0, 500, 100, 100, 0, 0, 200, 0]])  # 200 mm about (0, 0, 500), not turned
    >>> batch = {"joints": torch.tensor([[[50.0, 0, 500]]]), "visible": torch.tensor([[True]])}
    >>> CentreMSE(centre_joint=0)(offset=torch.zeros(1, 3), crop_placement=placement, **batch)  # (50 / 100)^2
    tensor(0.2500)

    Source: Oberweger and Lepetit 2017, DeepPrior++.
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
        expected = to_crop_coordinates(middle[:, None], placement)[:, 0].to(joints.dtype)
        return ((offset.to(joints.dtype) - expected).square() * is_seen).sum()


@registry.metrics.add("centre_error")
class CentreError(MeanMetric):
    """Centre error: the mean distance of refined points from the middle joint, its median and maximum.

    `centre_error_mm` is the mean, `reference_error_mm` that of the points which were refined: a refiner that does not
    get below it is of no use. Frames without a label of this joint do not count.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.pose.refiner import CentreError
    >>> batch = {  # the joint at the origin, refined to be off by 5 instead of 10 mm
    ...     "centre_mm": torch.tensor([[3.0, 4, 0]]),
    ...     "reference": torch.tensor([[0.0, 0, 10]]),
    ...     "joints": torch.zeros(1, 1, 3),
    ...     "visible": torch.ones(1, 1),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(CentreError(centre_joint=0))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'centre_error_mm': 5.0, 'reference_error_mm': 10.0, 'median_centre_error_mm': 5.0, 'max_centre_error_mm': 5.0}

    Source: Oberweger and Lepetit 2017, DeepPrior++.
    """

    figures = ("centre_error_mm", "reference_error_mm")
    higher_is_better = False

    def __init__(self, *, centre_joint: int) -> None:
        self.centre_joint = centre_joint

    def values(self, *, centre_mm: Tensor, reference: Tensor, joints: Tensor, visible: Tensor) -> dict[str, Any]:
        """Measure `centre_mm` refined and `reference` (B, 3) by `joints` true (B, J, 3), in mm; `visible` (B, J)."""
        middle, is_labelled = joints[:, self.centre_joint].double(), visible[:, self.centre_joint].bool()
        points = zip(self.figures, (centre_mm, reference), strict=True)
        return {name: ((point.double() - middle).norm(dim=1), is_labelled) for name, point in points}

    def compute(self, state: State) -> dict[str, float]:
        refined = state["sums"][state["weights"][:, 0] > 0, 0]
        figures = (refined.median().item(), refined.max().item()) if len(refined) else (torch.nan, torch.nan)
        names = ("median_centre_error_mm", "max_centre_error_mm")
        return super().compute(state) | dict(zip(names, figures, strict=True))
