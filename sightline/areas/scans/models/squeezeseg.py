"""SqueezeSeg V1 and V2 on range images: fire modules with few weights. Sources: Wu et al. 2018 and 2019."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.layers.images import ConvBlock
from sightline.layers.range_image import CircularPad, UpsampleColumns, build_pool

Compat = Literal["mean_field", "as_published"]


class RangeImageCRF(nn.Module):
    """CRF that refines logits (S, C, H, W) by those of nearby pixels: pixels close in space tend to share a class.

    A mean-field step takes the class probabilities of the other pixels of a window, each weighted by a Gaussian of its
    distance in space, and subtracts their product with the learned compatibility from the input logits. Empty pixels
    count nothing. `sigma` is in units of the coordinates, `coefficient` the initial price of another class.
    `compat: as_published` does as the authors' code: it counts a pixel among its neighbours, uses `coefficient` for
    `sigma`, and adds to probabilities in place of logits, which bounds the confidence and prefers other classes.
    Source: Wu et al. 2018, SqueezeSeg, section III-C; Zheng et al. 2015, algorithm 1; layout of PRBonn/lidar-bonnetal.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        compat: Compat = "mean_field",
        iterations: int = 3,
        window: tuple[int, int] = (3, 5),
        sigma: float = 0.7,
        coefficient: float = 0.1,
        circular: bool = False,
    ) -> None:
        super().__init__()
        self.is_as_published = compat == "as_published"
        self.iterations = iterations
        self.reach = (window[0] // 2, window[1] // 2)
        self.sigma = coefficient if self.is_as_published else sigma
        self.wrap = CircularPad(self.reach[1]) if circular else None
        self.compat = nn.Linear(num_classes, num_classes)
        with torch.no_grad():
            self.compat.weight.copy_(coefficient * (1 - torch.eye(num_classes)))
        nn.init.zeros_(self.compat.bias)

    def forward(self, logits: Tensor, xyz: Tensor, mask: Tensor) -> Tensor:
        """Refine logits (S, C, H, W) with xyz (S, 3, H, W) and mask (S, H, W) of measured pixels -> (S, C, H, W)."""
        weights = self._weights(xyz, mask)
        values = logits
        for _ in range(self.iterations):
            probabilities = values.softmax(dim=1)
            message = torch.zeros_like(probabilities)
            for weight, shifted in zip(weights, self._windows(probabilities), strict=True):
                message = message + weight * shifted
            change = self.compat(message.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            values = probabilities + change if self.is_as_published else logits - change
        return values

    def _weights(self, xyz: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the weight (S, 1, H, W) of the pixel at every offset in the window."""
        filled = self._windows(mask[:, None].to(xyz.dtype))
        squares = ((shifted - xyz).square().sum(dim=1, keepdim=True) for shifted in self._windows(xyz))
        return [
            torch.exp(-square / (2 * self.sigma**2)) * is_filled
            for square, is_filled in zip(squares, filled, strict=True)
        ]

    def _windows(self, image: Tensor) -> Iterator[Tensor]:
        """Iterate over the image shifted to every offset in the window, with zeros outside."""
        (rows, columns), (height, width) = self.reach, image.shape[2:]
        wide = F.pad(image, (columns, columns, 0, 0)) if self.wrap is None else self.wrap(image)
        padded = F.pad(wide, (0, 0, rows, rows))
        for row in range(2 * rows + 1):
            for column in range(2 * columns + 1):
                if self.is_as_published or (row, column) != self.reach:
                    yield padded[:, :, row : row + height, column : column + width]


_STEM = 64
_MOMENTUM = 0.01
_LEVELS = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))
"""Fire modules of each level: squeeze channels, and channels of each of the two expand convolutions."""
_UP = ((64, 128), (32, 64), (16, 32), (16, 32))
_XYZ = slice(1, 4)
_MASK = 5
"""Channels of a range image: range, x, y, z, remission and, if requested, the mask."""


def _unit(
    *,
    in_channels: int,
    out_channels: int,
    size: int,
    normalizes: bool,
    circular: bool,
    stride: tuple[int, int] = (1, 1),
) -> ConvBlock:
    return ConvBlock(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=size,
        stride=stride,
        norm=nn.BatchNorm2d(out_channels, momentum=_MOMENTUM) if normalizes else None,
        activation=nn.ReLU(),
        circular=circular,
    )


class _Fire(nn.Module):
    """Fire module: a 1x1 squeeze convolution, optionally doubled columns, then 1x1 and 3x3 expand convolutions.

    Source: Wu et al. 2018, figure 4.
    """

    def __init__(
        self, *, in_channels: int, between: int, expanded: int, normalizes: bool, circular: bool, doubles: bool = False
    ) -> None:
        super().__init__()
        unit = partial(_unit, normalizes=normalizes, circular=circular)
        self.squeeze = unit(in_channels=in_channels, out_channels=between, size=1)
        doubled = UpsampleColumns(in_channels=between, out_channels=between, circular=circular, bilinear=True)
        self.upsample = nn.Sequential(doubled, nn.ReLU()) if doubles else nn.Identity()
        self.narrow = unit(in_channels=between, out_channels=expanded, size=1)
        self.wide = unit(in_channels=between, out_channels=expanded, size=3)

    def forward(self, image: Tensor) -> Tensor:
        values = self.upsample(self.squeeze(image))
        return torch.cat([self.narrow(values), self.wide(values)], dim=1)


class _Context(nn.Module):
    """Context aggregation module (CAM): values times a sigmoid gate of the max pooling about each pixel.

    Source: Wu et al. 2019, SqueezeSegV2, section III-A; batch norms as in PRBonn/lidar-bonnetal.
    """

    def __init__(self, *, channels: int, circular: bool) -> None:
        super().__init__()
        few = channels // 16
        self.pool = build_pool(nn.MaxPool2d, size=7, stride=1, circular=circular)
        self.squeeze = _unit(in_channels=channels, out_channels=few, size=1, normalizes=True, circular=circular)
        self.expand = ConvBlock(
            in_channels=few,
            out_channels=channels,
            kernel_size=1,
            norm=nn.BatchNorm2d(channels, momentum=_MOMENTUM),
            activation=nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, image * self.expand(self.squeeze(self.pool(image))))


class _SqueezeSeg(RangeImageNetwork):
    """SqueezeSeg: three levels of fire modules down, four up with added skips, a convolution and optionally a CRF.

    `is_second`: with batch norms, and context aggregation at the first two resolutions.
    """

    size_divisors = (1, 16)
    is_second: ClassVar[bool]

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        dropout: FractionBelowOne = 0.5,
        crf: bool = False,
        compat: Compat = "mean_field",
        detach_skips: bool = False,
        circular: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, channels_last=channels_last)
        if crf and in_channels < _XYZ.stop:
            raise ValueError(f"crf: needs x, y and z as channels 1 to 3 of the image, which has {in_channels} channels")
        self.circular, self.detach_skips = circular, detach_skips
        fire = partial(_Fire, normalizes=self.is_second, circular=circular, doubles=True)
        stem = _unit(
            in_channels=in_channels,
            out_channels=_STEM,
            size=3,
            stride=(1, 2),
            normalizes=self.is_second,
            circular=circular,
        )
        self.stem = nn.Sequential(stem, *self._contexts(_STEM, level=0))
        norm = nn.BatchNorm2d(_STEM, momentum=_MOMENTUM) if self.is_second else None
        self.whole = ConvBlock(in_channels=in_channels, out_channels=_STEM, kernel_size=1, norm=norm)
        self.down = nn.ModuleList(nn.Sequential(*self._level(level)) for level in range(len(_LEVELS)))
        widths_in = (2 * _LEVELS[-1][-1][1], *(2 * width_out for _, width_out in _UP[:-1]))
        self.up = nn.ModuleList(
            fire(in_channels=channels, between=between, expanded=width_out)
            for channels, (between, width_out) in zip(widths_in, _UP, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = ConvBlock(in_channels=2 * _UP[-1][1], out_channels=num_classes, kernel_size=3, circular=circular)
        self.crf = RangeImageCRF(num_classes=num_classes, compat=compat, circular=circular) if crf else None
        self._order()

    def _contexts(self, channels: int, *, level: int) -> Iterator[nn.Module]:
        if self.is_second and level < 2:
            yield _Context(channels=channels, circular=self.circular)

    def _level(self, level: int) -> Iterator[nn.Module]:
        """Iterate over the modules of a level: max pooling that halves the columns, and fire modules."""
        yield build_pool(nn.MaxPool2d, size=3, stride=(1, 2), circular=self.circular)
        channels = 2 * _LEVELS[level - 1][-1][1] if level > 0 else _STEM
        for between, width_out in _LEVELS[level]:
            yield _Fire(
                in_channels=channels,
                between=between,
                expanded=width_out,
                normalizes=self.is_second,
                circular=self.circular,
            )
            channels = 2 * width_out
            yield from self._contexts(channels, level=level + 1)

    def forward_logits(self, image: Tensor) -> Tensor:
        values = self.stem(image)
        skips = [self.whole(image), values]
        for down in self.down:
            values = down(values)
            skips.append(values)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            values = up(values) + (skip.detach() if self.detach_skips else skip)
        logits: Tensor = self.head(self.dropout(values))
        if self.crf is None:
            return logits
        mask = image[:, _MASK] > 0 if image.shape[1] > _MASK else (image != 0).any(dim=1)
        return cast(Tensor, self.crf(logits, image[:, _XYZ], mask))


@registry.models.add("squeezeseg")
class SqueezeSeg(_SqueezeSeg):
    """SqueezeSeg V1; 915,540 parameters for 20 classes, 915,960 with its `crf`. Columns are multiples of 16.

    `circular`: the columns are a full turn. Two faults of the authors' code: `detach_skips` lets no gradient through
    the skips, `compat: as_published` is their conditional random field.
    Source: Wu et al. 2018, SqueezeSeg, figure 3; layout of PRBonn/lidar-bonnetal.
    """

    is_second = False


@registry.models.add("squeezesegv2")
class SqueezeSegV2(_SqueezeSeg):
    """SqueezeSeg V2, with batch norms and context aggregation.

    928,464 parameters for 20 classes, 928,884 with its `crf`.
    Sizes and arguments as those of squeezeseg.
    Source: Wu et al. 2019, SqueezeSegV2, figure 3; layout of PRBonn/lidar-bonnetal.
    """

    is_second = True
