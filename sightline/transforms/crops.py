"""Crops of depth frames about a reference point, for a refiner of this point."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.draws import Draws
from sightline.errors import ConfigError
from sightline.geometry.crops import CROP_WIDTH, CropPlacement, crop_depth
from sightline.types import Field

__all__ = ["CropDepth"]


@registry.transforms.add("crop_depth")
class CropDepth:
    """Crop (B, 1, size, size) of the cube about the reference point, `side_mm` wide or as the data set states.

    Depths run from -1 at the cube's front to 1 at its back, which is the background too. For training the point is
    moved by a normal error of `moved_mm` along each axis, the side multiplied by a factor uniform in `scale`, and the
    crop turned by up to `max_angle_rad`; `crop_placement` records this, for loss and task.
    Source: Oberweger and Lepetit 2017 (DeepPrior++), section 3.3: 5 mm, any angle.
    """

    adds: ClassVar[dict[str, Field]] = {
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
