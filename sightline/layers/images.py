"""Convolution blocks of image networks, and the check of their input images."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from sightline.layers.range_image import column_padding


class ConvBlock(nn.Module):
    """Convolution, norm and activation; with `norm_last` the norm comes after the activation. Either may be absent.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), rounded up. Zeros surround the image; with
    `circular` its columns continue on the other side.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
        norm_last: bool = False,
        circular: bool = False,
    ) -> None:
        super().__init__()
        reach = dilation * (kernel_size - 1)
        assert reach % 2 == 0, f"a kernel of {kernel_size} has no middle"
        self.wrap, padding = column_padding(reach // 2, circular=circular)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)
        self.norm = norm if norm is not None else nn.Identity()
        self.activation = activation if activation is not None else nn.Identity()
        self.norm_last = norm_last

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), rounded up."""
        values = self.conv(image if self.wrap is None else self.wrap(image))
        first, last = (self.activation, self.norm) if self.norm_last else (self.norm, self.activation)
        return cast(Tensor, last(first(values)))


class ConvNorm(ConvBlock):
    """Convolution without bias, norm and activation: the block of residual networks and of Darknet.

    `norm` makes the norm for a number of channels; without it, it is batch norm of this `momentum`. Initial weights are
    normally distributed with the variance 2 / (out_channels * size^2).
    Source: He et al. 2015, Delving Deep into Rectifiers, eq. 14.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        activation: nn.Module | None = None,
        momentum: float = 0.1,
        norm: Callable[[int], nn.Module] | None = None,
        circular: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            bias=False,
            norm=nn.BatchNorm2d(out_channels, momentum=momentum) if norm is None else norm(out_channels),
            activation=activation,
            circular=circular,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


def assert_images(image: Tensor, *, channels: int = 3) -> None:
    """Raise ValueError, naming the shape found, unless `image` is floating-point (B, channels, H, W).

    An image of three columns is also an error if it has three channels: its layout is ambiguous.
    """
    if image.ndim != 4 or image.shape[1] != channels:
        is_last = image.ndim == 4 and image.shape[-1] == channels
        hint = "; the channels come second here: end the transforms with normalize_image" if is_last else ""
        raise ValueError(f"image: found the shape {tuple(image.shape)}, expected (B, {channels}, H, W){hint}")
    if image.shape[-1] == channels == 3:
        raise ValueError(
            f"image: found the shape {tuple(image.shape)}, which may have three columns or three channels last; give "
            "images of another width, channels second"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"image: found {image.dtype}, expected normalised floating-point colours; end the transforms with "
            "normalize_image"
        )
