"""V2V-PoseNet: a cube about a reference point, its voxels, the network, and the heat map of every joint.

`place_cube` sets the position and augmentation of the cube, once for input and target; `voxelize` and `draw_heatmaps`
follow it, and the task `pose` decodes with it. Source: Moon et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.model import Model
from sightline.contract.transform import Transform
from sightline.contract.types import Field
from sightline.ops.voxels.cubes import (
    PLACEMENT_WIDTH,
    Axes,
    Compat,
    CubePlacement,
    occupancy,
    original_size,
    permute_axes,
    to_voxels,
)
from sightline.ops.voxels.heat_maps import gaussian_heatmaps

HEATMAP_STRIDE = 2
"""Voxels along a side of a cell of a heat map."""


@registry.transforms.add("place_cube")
class PlaceCube(Transform):
    """Cube of `size` voxels a side around each reference point, `side_mm` wide or as the data set states.

    For training the grid is scaled by a factor uniform in `scale`, turned about the optical axis by up to
    `max_angle_rad`, and shifted by up to `max_shift` voxels along each axis: input and target alike. `axes: zyx` and
    `compat: release` are the order and the roundings of the authors' own files.

    >>> import torch
    >>> from sightline.areas.pose.v2v import PlaceCube
    >>> from sightline.contract.draws import Draws
    >>> placed = PlaceCube(cube_mm=200.0, size=4)(Draws.from_seed(0), reference=torch.tensor([[0.0, 0, 500]]))
    >>> placed["placement"][0, :5]  # the middle in mm, the scale and the angle
    tensor([  0.,   0., 500.,   1.,   0.], dtype=torch.float64)

    Source: Moon et al. 2018, section 5 (0.8 to 1.2, 40 degrees, 8 voxels).
    """

    adds: Mapping[str, Field] = {"placement": Field(str(PLACEMENT_WIDTH), "float64")}

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
class Voxelize(Transform):
    """Voxelisation of the frame's measured points: occupied voxels of the cube as `volume` (B, 1, S, S, S), 0 or 1.

    A voxel is 1 if at least one point falls into it. A pixel without depth gives no point; points outside the cube are
    left out.

    >>> import torch
    >>> from sightline.areas.pose.v2v import PlaceCube, Voxelize
    >>> from sightline.contract.draws import Draws
    >>> placement = PlaceCube(cube_mm=200.0, size=4)(Draws.from_seed(0), reference=torch.tensor([[0.0, 0, 500]]))
    >>> frame = {"depth": torch.tensor([[[510.0, 0]]]), "camera": torch.tensor([[10.0, 10, 0, 0]])}  # one is measured
    >>> volume = Voxelize()(Draws.from_seed(0), **frame, **placement)["volume"]
    >>> volume.shape, volume.nonzero()  # in the voxel behind the middle
    (torch.Size([1, 1, 4, 4, 4]), tensor([[0, 0, 2, 2, 2]]))

    Source: Moon et al. 2018, section 4.
    """

    adds: Mapping[str, Field] = {"volume": Field("1 S S S", "float32", low=0.0, high=1.0)}

    def __call__(self, draws: Draws, *, depth: Tensor, camera: Tensor, placement: Tensor) -> dict[str, Tensor]:
        return {"volume": occupancy(depth, camera, CubePlacement.from_rows(placement))}


@registry.transforms.add("draw_heatmaps")
class DrawHeatmaps(Transform):
    """Target `heatmaps` (B, J, S/2, S/2, S/2) of the joints: Gaussians of peak 1, `sigma` cells wide.

    A joint that is not visible has an empty map, which no loss counts; one outside the cube keeps the tail that reaches
    in.

    >>> import torch
    >>> from sightline.areas.pose.v2v import DrawHeatmaps, PlaceCube
    >>> from sightline.contract.draws import Draws
    >>> placement = PlaceCube(cube_mm=200.0, size=8)(Draws.from_seed(0), reference=torch.tensor([[0.0, 0, 500]]))
    >>> batch = {"joints": torch.tensor([[[25.0, 25, 525]]]), "visible": torch.ones(1, 1)}  # in the middle of a cell
    >>> heatmaps = DrawHeatmaps()(Draws.from_seed(0), **batch, **placement)["heatmaps"]
    >>> heatmaps.shape, heatmaps[0, 0, 2, 2, 2]
    (torch.Size([1, 1, 4, 4, 4]), tensor(1.))

    Source: Moon et al. 2018, eq. 1 (1.7 cells).
    """

    adds: Mapping[str, Field] = {"heatmaps": Field("joints V V V", "float32", low=0.0, high=1.0)}

    def __init__(self, *, sigma: PositiveFloat = 1.7) -> None:
        self.sigma = sigma

    def __call__(self, draws: Draws, *, joints: Tensor, visible: Tensor, placement: Tensor) -> dict[str, Tensor]:
        placed = CubePlacement.from_rows(placement)
        cells = to_voxels(joints.double(), placed) / HEATMAP_STRIDE
        middle = 0.0 if placed.compat == "release" else 0.5
        maps = gaussian_heatmaps(cells, placed.size // HEATMAP_STRIDE, sigma=self.sigma, axes="xyz", middle=middle)
        maps = maps * visible[:, :, None, None, None]
        return {"heatmaps": permute_axes(maps, placed.axes).contiguous()}


class VolumeBlock(nn.Module):
    """`relu(norm(conv(volume)))` with an odd kernel and zero padding; the side is unchanged."""

    def __init__(self, *, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        assert kernel_size % 2 == 1, f"a kernel of {kernel_size} has no middle"
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        return torch.relu(self.norm(self.conv(volume)))


class ResidualBlock3d(nn.Module):
    """3D residual block: two 3x3x3 convolutions plus a shortcut, a 1x1x1 convolution if the channels change."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.first_norm = nn.BatchNorm3d(out_channels)
        self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.second_norm = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv3d(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        inner = torch.relu(self.first_norm(self.first(volume)))
        residual = cast(Tensor, self.second_norm(self.second(inner)))
        return torch.relu(residual + self.shortcut(volume))


class UpsampleBlock3d(nn.Module):
    """`relu(norm(deconv(volume)))`: each side is doubled."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, 2 X, 2 Y, 2 Z)."""
        return torch.relu(self.norm(self.deconv(volume)))


def assert_volumes(volume: Tensor, *, multiple: int) -> None:
    """Raise ValueError unless `volume` is (B, 1, X, Y, Z) with sides that are multiples of `multiple`."""
    if volume.ndim != 5 or volume.shape[1] != 1:
        raise ValueError(f"volume: found the shape {tuple(volume.shape)}, expected (B, 1, X, Y, Z)")
    odd = [side for side in volume.shape[2:] if side % multiple]
    if odd:
        raise ValueError(
            f"volume: a side of {odd[0]} voxels is not a multiple of {multiple}, by which this network divides it; set "
            f"the size of place_cube to {odd[0] // multiple * multiple} or {(odd[0] // multiple + 1) * multiple}"
        )


_INIT_STD = 0.001


class V2VOutput(TypedDict):
    """`likelihood` (B, J, X/2, Y/2, Z/2), unbounded: the last layer is linear."""

    likelihood: Tensor


class _VolumeNetwork(Model):
    """Base of volumetric networks: initialisation and memory format."""

    size_divisor = 8

    def __init__(self, *, num_joints: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self._build(num_joints)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(cast(Tensor, module.bias))
        if channels_last:
            self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _build(self, num_joints: int) -> None:
        """Make the layers."""
        raise NotImplementedError

    def forward(self, *, volume: Tensor) -> V2VOutput:
        """Predict from `volume` (B, 1, X, Y, Z): 1 where a voxel is occupied, else 0."""
        assert_volumes(volume, multiple=self.size_divisor)
        if self.channels_last:
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        return {"likelihood": self.likelihood(volume)}

    def likelihood(self, volume: Tensor) -> Tensor:
        """Compute the likelihood (B, J, X/2, Y/2, Z/2) of a volume (B, 1, X, Y, Z)."""
        raise NotImplementedError


def _block(in_channels: int, out_channels: int) -> ResidualBlock3d:
    return ResidualBlock3d(in_channels=in_channels, out_channels=out_channels)


@registry.models.add("v2v")
class V2V(_VolumeNetwork):
    """V2V-PoseNet as published: sides halved three times and doubled twice, with residual blocks and two skips.

    The sides of a volume are multiples of 8, 88 in the paper; 3,410,453 parameters for 21 joints. Weights begin with a
    deviation of 0.001, as published; `channels_last` is the memory format that bf16 on a CPU is fast in.
    Source: Moon et al. 2018, figure 4; layout of V2V-PoseNet_RELEASE.
    """

    def _build(self, num_joints: int) -> None:
        self.stem = nn.Sequential(VolumeBlock(in_channels=1, out_channels=16, kernel_size=7), nn.MaxPool3d(2))
        self.front = nn.Sequential(_block(16, 32), _block(32, 32), _block(32, 32))
        self.outer_skip = _block(32, 32)
        self.down = nn.Sequential(nn.MaxPool3d(2), _block(32, 64))
        self.inner_skip = _block(64, 64)
        self.middle = nn.Sequential(nn.MaxPool3d(2), _block(64, 128), _block(128, 128), _block(128, 128))
        self.inner_up = UpsampleBlock3d(in_channels=128, out_channels=64)
        self.inner = _block(64, 64)
        self.outer_up = UpsampleBlock3d(in_channels=64, out_channels=32)
        self.back = nn.Sequential(
            _block(32, 32),
            VolumeBlock(in_channels=32, out_channels=32, kernel_size=1),
            VolumeBlock(in_channels=32, out_channels=32, kernel_size=1),
        )
        self.output = nn.Conv3d(32, num_joints, 1)

    def likelihood(self, volume: Tensor) -> Tensor:
        outer = self.front(self.stem(volume))
        inner = self.down(outer)
        raised = self.inner_up(self.middle(inner)) + self.inner_skip(inner)
        raised = self.outer_up(self.inner(raised)) + self.outer_skip(outer)
        return cast(Tensor, self.output(self.back(raised)))


@registry.models.add("v2v_small")
class V2VSmall(_VolumeNetwork):
    """Small V2V-PoseNet for quick work: one block per stage, 8 to 32 channels, sides halved twice.

    The sides of a volume are multiples of 4. Arguments as those of v2v. Source: made here, after Moon et al. 2018.
    """

    size_divisor = 4

    def _build(self, num_joints: int) -> None:
        self.stem = nn.Sequential(VolumeBlock(in_channels=1, out_channels=8, kernel_size=5), nn.MaxPool3d(2))
        self.front = _block(8, 16)
        self.skip = _block(16, 16)
        self.middle = nn.Sequential(nn.MaxPool3d(2), _block(16, 32))
        self.up = UpsampleBlock3d(in_channels=32, out_channels=16)
        self.output = nn.Conv3d(16, num_joints, 1)

    def likelihood(self, volume: Tensor) -> Tensor:
        outer = self.front(self.stem(volume))
        raised = self.up(self.middle(outer)) + self.skip(outer)
        return cast(Tensor, self.output(raised))


@registry.losses.add("heatmap_mse")
class HeatmapMSE(Loss):
    """Mean squared error of the heat maps, over visible joints and all cells.

    A prediction of zero everywhere has the mean square of the targets, 3.2115e-4 for joints inside a map of 44 cells
    and a sigma of 1.7: a loss that stays there has learnt nothing.

    >>> import torch
    >>> from sightline.areas.pose.v2v import HeatmapMSE
    >>> loss, heatmaps, visible = HeatmapMSE(), torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1)
    >>> heatmaps[0, 0, 0, 0, 0] = 1.0
    >>> loss(likelihood=torch.zeros_like(heatmaps), heatmaps=heatmaps, visible=visible)
    tensor(1.)
    >>> loss.count(heatmaps=heatmaps, visible=visible)
    tensor(8.)

    Source: Moon et al. 2018, eq. 2.
    """

    def count(self, *, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Count the cells of visible joints; `heatmaps` (B, J, V, V, V), `visible` (B, J)."""
        return visible.sum() * heatmaps[0, 0].numel()

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor, visible: Tensor) -> Tensor:
        """Compute the loss sum from `likelihood` and `heatmaps` (B, J, V, V, V), `visible` (B, J)."""
        difference = likelihood.to(heatmaps.dtype) - heatmaps
        return (difference.square().flatten(2).sum(dim=-1) * visible).sum()
