"""Voxelisation of depth frames for volumetric networks: a cube around the reference point, its voxels, heat maps.

`place_cube` sets the position and augmentation of the cube, once for input and target; `voxelize` and `draw_heatmaps`
follow it, and the task decodes with it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import Field
from sightline.ops.heat_maps import Targets, gaussian_heatmaps, one_hot_heatmaps
from sightline.ops.voxels import (
    PLACEMENT_WIDTH,
    Axes,
    Compat,
    CubePlacement,
    occupancy,
    original_size,
    permute_axes,
    to_voxels,
)

HEATMAP_STRIDE = 2
"""Voxels along a side of a cell of a heat map."""


@registry.transforms.add("place_cube")
class PlaceCube:
    """Cube of `size` voxels a side around each reference point, `side_mm` wide or as the data set states.

    For training the grid is scaled by a factor uniform in `scale`, turned about the optical axis by up to
    `max_angle_rad`, and shifted by up to `max_shift` voxels along each axis: input and target alike. `axes: zyx` and
    `compat: release` are the order and the roundings of the authors' own files.
    Source: Moon et al. 2018, section 5 (0.8 to 1.2, 40 degrees, 8 voxels).
    """

    adds: ClassVar[dict[str, Field]] = {"placement": Field(str(PLACEMENT_WIDTH), "float64")}

    def __init__(
        self,
        *,
        cube_mm: float,
        size: Count = 88,
        side_mm: PositiveFloat | None = None,
        scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0),
        max_angle_rad: NonNegativeFloat = 0.0,
        max_shift: NonNegativeFloat = 0.0,
        axes: Axes = "xyz",
        compat: Compat = "none",
    ) -> None:
        if size % 4:
            raise ConfigError(
                f"place_cube: size {size} is not a multiple of 4; networks halve the volume twice at least"
            )
        if scale[0] > scale[1]:
            raise ConfigError(
                f"place_cube: scale [{scale[0]:g}, {scale[1]:g}] is empty; the smaller factor comes first"
            )
        self.cube_mm = float(cube_mm if side_mm is None else side_mm)
        self.size = size
        self.scale = scale
        self.max_angle_rad = max_angle_rad
        self.max_shift = max_shift
        self.axes: Axes = axes
        self.compat: Compat = compat

    def __call__(self, draws: Draws, *, reference: Tensor) -> dict[str, Tensor]:
        neutral = CubePlacement.identity(reference, cube_mm=self.cube_mm, size=self.size)
        scale = draws.uniform(low=self.scale[0], high=self.scale[1]).double()
        angle = draws.uniform(low=-self.max_angle_rad, high=self.max_angle_rad).double()
        moved = draws.uniform(3, low=-self.max_shift, high=self.max_shift).double()
        if self.compat == "release":
            moved = moved.round()
        placement = CubePlacement(
            neutral.reference_mm,
            scale,
            angle,
            neutral.shift + moved,
            self.cube_mm,
            self.size,
            original_size(self.size),
            self.axes,
            self.compat,
        )
        return {"placement": placement.to_rows()}


@registry.transforms.add("voxelize")
class Voxelize:
    """Voxelisation of the frame's measured points: occupied voxels of the cube as `volume` (B, 1, S, S, S), 0 or 1.

    A voxel is 1 if at least one point falls into it. A pixel without depth gives no point; points outside the cube are
    left out. Source: Moon et al. 2018, section 4.
    """

    adds: ClassVar[dict[str, Field]] = {"volume": Field("1 S S S", "float32", low=0.0, high=1.0)}

    def __call__(self, draws: Draws, *, depth: Tensor, camera: Tensor, placement: Tensor) -> dict[str, Tensor]:
        return {"volume": occupancy(depth, camera, CubePlacement.from_rows(placement))}


@registry.transforms.add("draw_heatmaps")
class DrawHeatmaps:
    """Target `heatmaps` (B, J, S/2, S/2, S/2) of the joints: Gaussians of peak 1, `sigma` cells wide.

    `targets: one_hot` spreads a 1 over the eight cells around the joint instead. A joint that is not visible has an
    empty map, which no loss counts; one outside the cube keeps the tail that reaches in.
    Source: Moon et al. 2018, eq. 1 (1.7 cells); Sun et al. 2018 (one_hot).
    """

    adds: ClassVar[dict[str, Field]] = {"heatmaps": Field("joints V V V", "float32", low=0.0, high=1.0)}

    def __init__(self, *, sigma: PositiveFloat = 1.7, targets: Targets = "gaussian") -> None:
        self.sigma = sigma
        self.targets: Targets = targets

    def __call__(self, draws: Draws, *, joints: Tensor, visible: Tensor, placement: Tensor) -> dict[str, Tensor]:
        placed = CubePlacement.from_rows(placement)
        cells = to_voxels(joints.double(), placed) / HEATMAP_STRIDE
        if self.targets == "one_hot":
            maps = one_hot_heatmaps(cells - 0.5, cells=placed.size // HEATMAP_STRIDE)  # cells are read by their middles
        else:
            middle = 0.0 if placed.compat == "release" else 0.5
            maps = gaussian_heatmaps(cells, cells=placed.size // HEATMAP_STRIDE, sigma=self.sigma, middle=middle)
        maps = maps * visible[:, :, None, None, None]
        return {"heatmaps": permute_axes(maps, placed.axes).contiguous()}
