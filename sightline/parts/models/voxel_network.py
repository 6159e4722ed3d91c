"""Networks on sparse voxels that label points: what they have in common, from points to voxels and back.

A network groups the points of each cloud by the cells of a grid, computes with one vector a voxel, and gives a point
the logits of its voxel.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from typing_extensions import TypedDict

from sightline.contract.errors import ConfigError
from sightline.contract.model import Model
from sightline.layers.batch_norm import SynchronisedBatchNorm
from sightline.layers.cloud_layouts import packed_channels
from sightline.layers.curve_levels import CurveRule
from sightline.layers.voxel_levels import VoxelLevel, VoxelMaps, VoxelPreparation
from sightline.ops.points.distances import assert_finite_rows
from sightline.ops.segments.offsets import locate_row
from sightline.ops.waits import is_on_host


class VoxelNetworkOutput(TypedDict):
    """`logits` (..., num_classes) of each point before the softmax, with the leading axes of the points."""

    logits: Tensor


class VoxelNetwork(Model):
    """Network on voxels of side `grid_m`; `level_sizes` are those of the kernels of each of its levels.

    `curves` is the rule by which its voxels are cut into patches, None for one without attention.
    """

    level_sizes: tuple[tuple[int, ...], ...]
    curves: CurveRule | None = None
    obstacle_to_export = "sparse voxels cannot be in a file: how many voxels there are depends on the points"

    def __init__(
        self, *, num_classes: int, in_channels: int, grid_m: float, inputs: Literal["all", "features"]
    ) -> None:
        super().__init__()
        if inputs == "features" and in_channels == 3:
            raise ConfigError(
                "inputs: features leaves the coordinates out, and this data set has no other feature of a point; "
                "take inputs=all"
            )
        self.num_classes, self.in_channels, self.grid_m, self.inputs = num_classes, in_channels, grid_m, inputs

    @property
    def voxel_channels(self) -> int:
        """Channels of a voxel that the network is given."""
        return self.in_channels - 3 if self.inputs == "features" else self.in_channels

    @abstractmethod
    def compute(self, values: Tensor, levels: Sequence[VoxelLevel]) -> Tensor:
        """Compute the logits (N, num_classes) of voxels from their features (V, C); N is the first level's capacity."""

    def forward(
        self,
        *,
        points: Tensor,
        features: Tensor | None = None,
        offsets: Tensor | None = None,
        cells: Tensor | None = None,
        voxel_maps: VoxelMaps | None = None,
        grid_corner: Tensor | None = None,
    ) -> VoxelNetworkOutput:
        """Predict from `points` (B, N, 3), or (P, 3) with `offsets` (S+1,), in metres; `features` (..., F).

        Points in one cell of the grid are averaged, and get the same logits. `cells` (..., 3), whole numbers, replace
        the cells that the coordinates are in. `grid_corner` (3,) are the lowest coordinates of a cloud that these
        points are a tile of, so that coarse cells are those of the whole. `voxel_maps` are those of `make_preparation`
        for these points: without them they are made here, which waits for a GPU. Raises ValueError for numbers that are
        not finite.
        """
        _, channels, bounds = packed_channels(points, features, offsets, in_channels=self.in_channels)
        assert_finite_rows(channels, lambda row: locate_row(row, bounds), name="points and features")
        prepare = self.make_preparation()
        if voxel_maps is None or not prepare.fits(voxel_maps):
            made = prepare(points=points, offsets=offsets, cells=cells, grid_corner=grid_corner)
            voxel_maps = made["voxel_maps"]
        maps = voxel_maps if is_on_host(channels) else voxel_maps.fill_up()
        self._assert_statistics(maps.levels)
        channels = channels[:, 3:] if self.inputs == "features" else channels
        logits = self.compute(maps.voxels.average(channels, maps.levels[0].capacity), maps.levels)
        return {"logits": logits[maps.voxels.inverse].view(*points.shape[:-1], self.num_classes)}

    def make_preparation(self) -> VoxelPreparation:
        """Return the function that makes `voxel_maps` of points."""
        return VoxelPreparation(self.grid_m, self.level_sizes, self.curves)

    def _assert_statistics(self, levels: Sequence[VoxelLevel]) -> None:
        """Raise ValueError if a batch norm in training would have a single voxel for its statistics.

        A synchronised one may have more on other processes, and raises its own error otherwise.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not any(norm.training and not isinstance(norm, SynchronisedBatchNorm) for norm in norms):
            return
        for number, level in enumerate(levels):
            if level.num_voxels == 1:
                side = self.grid_m * 2**number
                raise ValueError(
                    f"a single voxel of {side:g} m is left at level {number + 1} of {len(levels)} in the whole batch "
                    f"({levels[0].num_voxels} of {self.grid_m:g} m came in), and batch norm in training needs two; "
                    "give larger clouds or more of them in a batch (train.tail=drop where the last one is short), or "
                    "lower grid_m"
                )
