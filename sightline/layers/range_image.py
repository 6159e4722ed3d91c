"""Layers of range images whose columns are a full turn: circular padding, column upsampling, and the input check.

A full turn has no border: its last column is next to its first. With `circular`, layers respect that, and rotating the
sensor about its axis rotates their output.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.ops.waits import is_recording, is_transformed

_BILINEAR = (0.25, 0.75, 0.75, 0.25)
"""Weights of a transposed convolution of four columns and stride two that interpolates between columns."""


class CircularPad(nn.Module):
    """Circular padding of columns: (S, C, H, W) -> (S, C, H, W + 2 * columns)."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, image: Tensor) -> Tensor:
        """Pad an image (S, C, H, W) -> (S, C, H, W + 2 * columns) with the columns of the other side."""
        width = image.shape[-1]
        if self.columns > width:  # of a strongly dilated kernel, on a small image: several turns
            return image[..., torch.arange(-self.columns, width + self.columns, device=image.device) % width]
        if is_recording() or is_transformed():  # which hold no function with a backward of its own
            return _wrap(image, self.columns)
        return cast(Tensor, _WrappedColumns.apply(image, self.columns))

    def extra_repr(self) -> str:
        return str(self.columns)


def _wrap(image: Tensor, columns: int) -> Tensor:
    return torch.cat([image[..., image.shape[-1] - columns :], image, image[..., :columns]], dim=-1)


class _WrappedColumns(torch.autograd.Function):
    """Padding whose gradient is added in place, in its own memory format: that of slices is a whole image for each."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, columns: int) -> Tensor:
        ctx.columns = columns
        return _wrap(image, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        columns, width = ctx.columns, gradient.shape[-1] - 2 * ctx.columns
        is_last = gradient.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        inner = gradient[..., columns : columns + width].clone(memory_format=memory_format)
        inner[..., :columns] += gradient[..., columns + width :]
        inner[..., width - columns :] += gradient[..., :columns]
        return inner, None


def column_padding(reach: int, *, circular: bool) -> tuple[CircularPad | None, tuple[int, int]]:
    """Return the circular padding in front of a layer that reaches over `reach` pixels, and the layer's own."""
    return (CircularPad(reach), (reach, 0)) if circular and reach > 0 else (None, (reach, reach))


class MeanPool2d(nn.AvgPool2d):
    """Mean pooling whose border counts as zeros, with a right gradient on every GPU.

    On a GPU, the gradient that torch computes with padding is wrong if the channels come last (issue 188344 of torch):
    there, the border is added beforehand.
    """

    def __init__(self, size: int, stride: int | tuple[int, int], padding: int | tuple[int, int]) -> None:
        super().__init__(size, stride, padding)

    def forward(self, image: Tensor) -> Tensor:
        """Pool an image (S, C, H, W) with the arguments of torch's layer."""
        if not image.is_cuda:
            return super().forward(image)
        rows, columns = self.padding if isinstance(self.padding, tuple) else (self.padding, self.padding)
        return F.avg_pool2d(F.pad(image, (columns, columns, rows, rows)), self.kernel_size, self.stride)


def build_pool(
    kind: type[nn.MaxPool2d | MeanPool2d], *, size: int, stride: int | tuple[int, int], circular: bool
) -> nn.Module:
    """Build a pooling layer of `size` rows and columns; in a mean, the border counts as zeros."""
    wrap, padding = column_padding(size // 2, circular=circular)
    pool = kind(size, stride, padding)
    return pool if wrap is None else nn.Sequential(wrap, pool)


class UpsampleColumns(nn.Module):
    """Transposed convolution of four columns: (S, in_channels, H, W) -> (S, out_channels, H, 2 W).

    With `bilinear` it interpolates each channel initially; the numbers of channels are then equal.
    Source: Wu et al. 2018, SqueezeSeg, section III-B (fireDeconv); Long et al. 2015, section 3.3.
    """

    def __init__(self, *, in_channels: int, out_channels: int, circular: bool, bilinear: bool = False) -> None:
        super().__init__()
        self.wrap = CircularPad(1) if circular else None
        # Circular padding of 1 adds four output columns, which padding=3 cuts off again.
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, (1, 4), (1, 2), (0, 3 if circular else 1))
        if bilinear:
            assert in_channels == out_channels, f"{in_channels} channels cannot be interpolated to {out_channels}"
            assert self.conv.bias is not None
            with torch.no_grad():
                self.conv.weight.copy_(torch.eye(in_channels)[:, :, None, None] * torch.tensor(_BILINEAR))
            nn.init.zeros_(self.conv.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (S, in_channels, H, W) -> (S, out_channels, H, 2 W)."""
        return cast(Tensor, self.conv(image if self.wrap is None else self.wrap(image)))


def assert_range_images(image: Tensor, *, in_channels: int, multiples: tuple[int, int]) -> None:
    """Raise ValueError, naming possible sizes, unless `image` is (S, in_channels, H, W) with a divisible H and W.

    Rows and columns must be `multiples` of these numbers.
    """
    if image.ndim != 4 or image.shape[1] != in_channels:
        raise ValueError(
            f"image: found the shape {tuple(image.shape)}, expected (S, {in_channels}, H, W); add the transform "
            "'project', whose channels this network was built for"
        )
    if not image.is_floating_point():
        raise ValueError(f"image: found {image.dtype}, expected normalised floating-point channels")
    for axis, (size, multiple) in enumerate(zip(image.shape[2:], multiples, strict=True)):
        if size % multiple:
            below = size // multiple * multiple
            suggestion = f"{below} or {below + multiple}" if below else str(multiple)
            raise ValueError(
                f"image: found {' x '.join(map(str, image.shape[2:]))} pixels (rows x columns), {size} "
                f"{('rows', 'columns')[axis]} are not a multiple of {multiple}; give 'project' a "
                f"{('height', 'width')[axis]} of {suggestion}"
            )
