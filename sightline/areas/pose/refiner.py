"""Refiner of reference points (DeepPrior++): its crops, ScaleNet, task and loss, and the error of the points found.

Source: Oberweger and Lepetit 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric, State
from sightline.contract.model import Model
from sightline.contract.transform import Transform
from sightline.contract.types import Batch, Field
from sightline.ops.views.depth_crops import (
    CROP_WIDTH,
    CropPlacement,
    crop_depth,
    from_crop_coordinates,
    to_crop_coordinates,
)
from sightline.parts.tasks.supervised import Supervised

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


@registry.tasks.add("centre")
class CentreRefinement(Supervised):
    """Predicts `centre_mm` (B, 3), camera frame, where the joint in the middle is, from `offset`.

    What it finds are the reference points of another run: `sightline predict --data` writes them.
    Source: Oberweger and Lepetit 2017, DeepPrior++, section 3.1.
    """

    predicts = frozenset({"centre_mm"})

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `centre_mm` (B, 3), camera frame, computed from `offset` (B, 3) and the placement of each crop."""
        placement = CropPlacement.from_rows(batch["crop_placement"])
        return {**outputs, "centre_mm": from_crop_coordinates(outputs["offset"].detach()[:, None], placement)[:, 0]}


@registry.transforms.add("crop_depth")
class CropDepth(Transform):
    """Crop (B, 1, size, size) of the cube about the reference point, `side_mm` wide or as the data set states.

    Depths run from -1 at the cube's front to 1 at its back, which is the background too. For training the point is
    moved by a normal error of `moved_mm` along each axis, the side multiplied by a factor uniform in `scale`, and the
    crop turned by up to `max_angle_rad`; `crop_placement` records this, for loss and task.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.areas.pose.refiner import CropDepth
    >>> depth = torch.tensor([[[500.0, 500, 500, 500], [500, 400, 500, 550], [500, 500, 500, 500], [500, 600, 500, 0]]])
    >>> frame = {"camera": torch.tensor([[10.0, 10, 1.5, 1.5]]), "reference": torch.tensor([[0.0, 0, 500]])}
    >>> CropDepth(cube_mm=200.0, size=2)(Draws.from_seed(0), depth=depth, **frame)["crop"]  # from 400 to 600 mm
    tensor([[[[-1.0000,  0.5000],
              [ 1.0000,  1.0000]]]])

    Source: Oberweger and Lepetit 2017 (DeepPrior++), section 3.3: 5 mm, any angle.
    """

    adds: Mapping[str, Field] = {
        "crop": Field("1 S S", "float32", low=-1.0, high=1.0),
        "crop_placement": Field(str(CROP_WIDTH), "float64"),
    }

    def __init__(
        self,
        *,
        cube_mm: float,
        size: Count = 128,
        side_mm: PositiveFloat | None = None,
        moved_mm: NonNegativeFloat = 0.0,
        scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0),
        max_angle_rad: NonNegativeFloat = 0.0,
    ) -> None:
        if scale[0] > scale[1]:
            raise ConfigError(
                f"crop_depth: scale [{scale[0]:g}, {scale[1]:g}] is empty; the smaller factor comes first"
            )
        self.side_mm = float(cube_mm if side_mm is None else side_mm)
        self.size = size
        self.moved_mm = moved_mm
        self.scale = scale
        self.max_angle_rad = max_angle_rad

    def __call__(self, draws: Draws, *, depth: Tensor, camera: Tensor, reference: Tensor) -> dict[str, Tensor]:
        moved = draws.normal(3).double() * self.moved_mm
        scale = draws.uniform(low=self.scale[0], high=self.scale[1]).double()
        angle = draws.uniform(low=-self.max_angle_rad, high=self.max_angle_rad).double()
        placement = CropPlacement(reference.double() + moved, camera.double(), self.side_mm * scale, angle)
        return {"crop": crop_depth(depth, placement, size=self.size), "crop_placement": placement.rows()}
