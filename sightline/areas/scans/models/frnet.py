"""FRNet: points of LiDAR scans and the pixels that they fall into, side by side. Source: Xu et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, cast

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFraction, Width
from sightline.contract.errors import ConfigError
from sightline.contract.model import Model
from sightline.layers.cloud_layouts import packed_channels
from sightline.layers.images import ConvBlock
from sightline.layers.mlp import LinearNorm
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.points.distances import assert_finite_rows
from sightline.ops.segments.offsets import locate_row
from sightline.ops.segments.rows import list_segments
from sightline.ops.segments.scatter import scatter_max, scatter_mean
from sightline.ops.segments.sums import gather_segments
from sightline.ops.waits import require

_STRIDES = (1, 2, 4, 8)
"""Pixels of the image that a cell of each stage's map is wide and high."""
_AUXILIARY = (0, 2, 3, 4)
"""Maps at which auxiliary heads predict: the fused one, and those of the last three stages."""
_EPS = 1e-3


class FRNetOutput(TypedDict):
    """`logits` (..., num_classes) of each point before the softmax, with the leading axes of the points.

    `auxiliary_logits` (S, A, H, W, num_classes) are those of pixels, of each auxiliary head.
    """

    logits: Tensor
    auxiliary_logits: Tensor


@dataclass(frozen=True)
class PointPlaces:
    """Places of packed points (P,) in the images of their scans, and sums and values there."""

    scan: Tensor
    row: Tensor
    column: Tensor
    num_scans: int
    height: int
    width: int

    def list_cells(self, stride: int) -> Tensor:
        """Return the number of each point's cell (P,) among those of all scans, of `stride` pixels a side."""
        height, width = self.height // stride, self.width // stride
        return (self.scan * height + self.row // stride) * width + self.column // stride

    def num_cells(self, stride: int) -> int:
        """Return the number of cells of all scans."""
        return self.num_scans * (self.height // stride) * (self.width // stride)

    def pool(self, values: Tensor, stride: int = 1) -> Tensor:
        """Return the highest of the points in each cell: (P, C) -> (S, H / stride, W / stride, C), 0 where empty."""
        highest, _ = scatter_max(values, self.list_cells(stride), 0, dim_size=self.num_cells(stride))
        return highest.view(self.num_scans, self.height // stride, self.width // stride, -1)

    def read(self, image: Tensor, stride: int = 1) -> Tensor:
        """Return what each point's cell holds: (S, C, H / stride, W / stride) -> (P, C)."""
        rows = promote_to_float32(image).permute(0, 2, 3, 1).reshape(1, -1, image.shape[1])
        return gather_segments(rows, self.list_cells(stride)[None])[0]


def _map_points(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, activation=nn.ReLU())


def _map_pixels(
    in_channels: int,
    out_channels: int,
    *,
    size: int = 3,
    stride: int = 1,
    activation: type[nn.Module] | None = nn.Hardswish,
) -> ConvBlock:
    return ConvBlock(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=size,
        stride=stride,
        bias=False,
        norm=nn.BatchNorm2d(out_channels),
        activation=None if activation is None else activation(),
    )


class _Encoder(nn.Module):
    """Features of each point, and the highest of each pixel, in fewer channels. Source: section 3.2."""

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], pixel_width: int) -> None:
        super().__init__()
        in_channels += 4  # the range, and the point less the mean of its pixel
        self.norm = nn.BatchNorm1d(in_channels)
        self.layers = nn.ModuleList(_map_points(*sizes) for sizes in pairwise((in_channels, *widths[:-1])))
        self.last = nn.Linear(widths[-2], widths[-1])
        self.compress = nn.Linear(widths[-1], pixel_width)

    def forward(self, channels: Tensor, places: PointPlaces) -> tuple[list[Tensor], Tensor]:
        """Return each layer's features (P, C) of the points, and images (S, pixel_width, H, W)."""
        points, cells, num_cells = channels[:, :3], places.list_cells(1), places.num_cells(1)
        means = scatter_mean(points, cells, 0, dim_size=num_cells)
        ranges = torch.linalg.vector_norm(points, dim=1, keepdim=True)
        centred = points - gather_segments(means[None], cells[None])[0]
        values = self.norm(torch.cat([channels, ranges, centred], dim=1))
        features = []
        for layer in self.layers:
            features.append(values := layer(values))
        features.append(self.last(values))
        pooled = self.compress(places.pool(features[-1])).relu()
        is_filled = torch.zeros(num_cells, dtype=torch.bool, device=cells.device).index_fill_(0, cells, True)
        images = torch.where(is_filled.view(*pooled.shape[:-1], 1), pooled, 0.0)
        return features, images.permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, *, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = _map_pixels(in_channels, out_channels, stride=stride)
        self.second = _map_pixels(out_channels, out_channels, activation=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = _map_pixels(in_channels, out_channels, size=1, activation=None)

    def forward(self, image: Tensor) -> Tensor:
        # Pixels are left out before the shortcut: the backward pass of a strided 1 x 1 convolution of fewer than 16
        # channels, together in memory, ends the process in oneDNN (torch 2.13).
        skipped = self.shortcut(image[:, :, :: self.stride, :: self.stride])
        return F.hardswish(self.second(self.first(image)) + skipped)


class _Stage(nn.Module):
    """Residual blocks on pixels, then points from pixels, pixels from points, and attention. Source: section 3.3."""

    def __init__(self, *, width: int, num_blocks: int, stride: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.blocks = nn.Sequential(
            *(
                _Block(in_channels=width, out_channels=width, stride=stride if number == 0 else 1)
                for number in range(num_blocks)
            )
        )
        self.to_points = _map_points(2 * width, width)
        self.to_pixels = _map_pixels(2 * width, width)
        self.attention = nn.Sequential(_map_pixels(width, width), _map_pixels(width, width, activation=nn.Sigmoid))

    def forward(self, image: Tensor, features: Tensor, places: PointPlaces) -> tuple[Tensor, Tensor]:
        image = self.blocks(image)
        features, fused = _exchange(image, features, places, self.to_points, self.to_pixels, self.resolution)
        return fused * self.attention(fused) + image, features


def _exchange(
    image: Tensor,
    features: Tensor,
    places: PointPlaces,
    to_points: nn.Module,
    to_pixels: nn.Module,
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Give points (P, C) what their pixels hold, and pixels the highest of their points."""
    features = to_points(torch.cat([places.read(image, stride), features], dim=1))
    pooled = places.pool(features, stride).permute(0, 3, 1, 2)
    return features, to_pixels(torch.cat([pooled, image], dim=1))


class _Backbone(nn.Module):
    """Stem, four stages, and their maps and features fused at full size. Source: section 3.3, figure 3."""

    def __init__(
        self, *, in_channels: int, point_width: int, width: int, blocks: tuple[int, ...], fused_widths: tuple[int, ...]
    ) -> None:
        super().__init__()
        stem = pairwise((in_channels, width // 2, width, width))
        self.stem = nn.Sequential(*(_map_pixels(*sizes) for sizes in stem))
        self.to_points = _map_points(width + point_width, width)
        self.to_pixels = _map_pixels(2 * width, width)
        before = (1, *_STRIDES[:-1])
        self.stages = nn.ModuleList(
            _Stage(width=width, num_blocks=count, stride=stride // last, resolution=stride)
            for count, stride, last in zip(blocks, _STRIDES, before, strict=True)
        )
        fused = list(pairwise(((len(blocks) + 1) * width, *fused_widths)))
        self.fuse_pixels = nn.Sequential(*(_map_pixels(*sizes) for sizes in fused))
        self.fuse_points = nn.Sequential(*(_map_points(*sizes) for sizes in fused))

    def forward(self, image: Tensor, features: Tensor, places: PointPlaces) -> tuple[list[Tensor], Tensor]:
        """Return the fused map and those of the stages, each (S, C, H, W), and fused features (P, C)."""
        image = self.stem(image)
        features, image = _exchange(image, features, places, self.to_points, self.to_pixels)
        size = image.shape[2:]
        all_maps, all_features = [image], [features]
        for stage in self.stages:
            image, features = stage(image, features, places)
            full = image if image.shape[2:] == size else F.interpolate(image, size, mode="bilinear", align_corners=True)
            all_maps.append(full)
            all_features.append(features)
        all_maps[0] = self.fuse_pixels(torch.cat(all_maps, dim=1))
        return all_maps, self.fuse_points(torch.cat(all_features, dim=1))


class _Head(nn.Module):
    """Logits of points: what their pixel holds, mapped, with the features of points added. Source: section 3.4."""

    def __init__(self, *, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_map_points(*sizes) for sizes in pairwise((widths[0], *widths)))
        self.logits = nn.Linear(widths[-1], num_classes)

    def forward(self, values: Tensor, added: list[Tensor]) -> Tensor:
        for layer, features in zip(self.layers, added, strict=True):
            values = layer(values) + features
        return cast(Tensor, self.logits(values))


@registry.models.add("frnet")
class FRNet(Model):
    """FRNet: residual blocks on pixels, which exchange features with all points; 10,019,252 parameters for 20 classes.

    Every point gets logits of its own, also where several share a pixel: nothing votes afterwards. The transform
    `assign_pixels` gives the pixel of each point, and the size of the image, a multiple of 8 rows and columns. Where
    points are equally high, the first of them decides. `auxiliary_heads` add four heads for the losses of pixels
    (129 * num_classes parameters each), which training alone needs.
    `encoder_widths` are those of the layers of points, `pixel_width` the channels of the first image, `width` those of
    all stages, `blocks` their residual blocks, `fused_widths` the channels of the fused maps. `momentum` is that of the
    running statistics of batch norm: trainings of fewer than some thousand steps need more than 0.01.
    Source: Xu et al. 2023, FRNet: Frustum-Range Networks for Scalable LiDAR Segmentation; layout of Xiangxu-0103/FRNet.
    """

    obstacle_to_export = "points and pixels cannot be in a file: how many points a pixel holds depends on the scan"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size_px: tuple[int, int] | None = None,
        encoder_widths: Annotated[tuple[Width, ...], Len(2)] = (64, 128, 256, 256),
        pixel_width: Width = 16,
        width: Width = 128,
        blocks: Annotated[tuple[Count, ...], Len(4, 4)] = (3, 4, 6, 3),
        fused_widths: Annotated[tuple[Width, ...], Len(1)] = (256, 128),
        auxiliary_heads: bool = False,
        momentum: PositiveFraction = 0.01,
    ) -> None:
        super().__init__()
        if image_size_px is None:
            raise ConfigError("frnet: takes the pixel of every point; add the transform 'assign_pixels', the last one")
        self.width_px, self.height_px = image_size_px
        if self.height_px % _STRIDES[-1] or self.width_px % _STRIDES[-1]:
            raise ConfigError(
                f"frnet: an image of {self.height_px} x {self.width_px} pixels (rows x columns); give 'assign_pixels' "
                f"a height and a width that are multiples of {_STRIDES[-1]}"
            )
        if width % 2:
            raise ConfigError(f"frnet.width: is {width}, must be even; the stem begins with half of it")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.encoder = _Encoder(in_channels=in_channels, widths=encoder_widths, pixel_width=pixel_width)
        self.backbone = _Backbone(
            in_channels=pixel_width,
            point_width=encoder_widths[-1],
            width=width,
            blocks=blocks,
            fused_widths=fused_widths,
        )
        self.head = _Head(widths=(fused_widths[-1], *encoder_widths[-2::-1]), num_classes=num_classes)
        heads = [fused_widths[-1], *(width for _ in _AUXILIARY[1:])] if auxiliary_heads else []
        self.auxiliary = nn.ModuleList(
            ConvBlock(in_channels=channels, out_channels=num_classes, kernel_size=1) for channels in heads
        )
        self.output_keys = frozenset({"logits", "auxiliary_logits"} if auxiliary_heads else {"logits"})
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps, module.momentum = _EPS, momentum

    def forward(
        self,
        *,
        points: Tensor,
        pixel: Tensor,
        features: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> FRNetOutput:
        """Predict from `points` (B, N, 3), or (P, 3) with `offsets` (S+1,), in metres; `features` (..., F).

        `pixel` (...) is row * W + column of each point in the image of its own scan. Raises ValueError for numbers that
        are not finite, and for pixels outside of the image.
        """
        _, channels, bounds = packed_channels(points, features, offsets, in_channels=self.in_channels)
        assert_finite_rows(channels, lambda row: locate_row(row, bounds), name="points and features")
        places = self._place(pixel, points, bounds)
        of_points, image = self.encoder(channels, places)
        maps, fused = self.backbone(image, of_points[-1], places)
        logits = self.head(places.read(maps[0]), [fused, *of_points[-2::-1]])
        outputs = {"logits": logits.view(*points.shape[:-1], self.num_classes)}
        if self.auxiliary:
            pixels = [head(maps[number]) for head, number in zip(self.auxiliary, _AUXILIARY, strict=True)]
            outputs["auxiliary_logits"] = torch.stack(pixels, dim=1).permute(0, 1, 3, 4, 2)
        return cast(FRNetOutput, outputs)

    def _place(self, pixel: Tensor, points: Tensor, bounds: Tensor) -> PointPlaces:
        if pixel.shape != points.shape[:-1]:
            raise ValueError(
                f"pixel: found the shape {tuple(pixel.shape)}, expected {tuple(points.shape[:-1])}, one of each point; "
                "let 'assign_pixels' be the last transform"
            )
        flat, num_pixels = widen_labels(pixel, "pixel").flatten(), self.height_px * self.width_px
        require(
            (flat >= 0) & (flat < num_pixels),
            lambda: ValueError(
                f"pixel: found {int(flat.min())} to {int(flat.max())}; an image of {self.height_px} x {self.width_px} "
                f"has 0 to {num_pixels - 1}"
            ),
        )
        scan = list_segments(bounds[None], len(flat))[0]
        row = torch.div(flat, self.width_px, rounding_mode="floor")
        return PointPlaces(scan, row, flat - row * self.width_px, len(bounds) - 1, self.height_px, self.width_px)
