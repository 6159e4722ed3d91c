"""What image networks are built of and what they assume: convolutions with batch norm, and one form of images."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

__all__ = ["ConvNorm", "assert_images"]


class ConvNorm(nn.Module):
    """`activation(norm(conv(image)))`: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), rounded up.

    A convolution of an odd `size` without bias, zeros around the image. Weights start normally distributed with the
    variance 2 / (out_channels * size^2). Source: He et al. 2015, Delving Deep into Rectifiers, eq. 14.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, size: int, stride: int = 1, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        assert size % 2 == 1, f"a kernel of {size} has no middle"
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.norm(self.conv(image))))


def assert_images(image: Tensor) -> None:
    """Raises ValueError, naming what was found, for anything but floating-point images (B, 3, H, W).

    An image of three columns is refused too: its layout cannot be told.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        is_last = image.ndim == 4 and image.shape[-1] == 3
        hint = "; the channels come second here: end the transforms with normalize_image" if is_last else ""
        raise ValueError(f"image: found the shape {tuple(image.shape)}, expected (B, 3, H, W){hint}")
    if image.shape[-1] == 3:
        raise ValueError(
            f"image: found the shape {tuple(image.shape)}, which may have three columns or three channels last; give "
            "images of another width, channels second"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"image: found {image.dtype}, expected normalised floating-point colours; end the transforms with "
            "normalize_image"
        )
