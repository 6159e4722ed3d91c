"""Linear maps of many rows, by the library that is faster on this processor.

torch gives float32 products on CPUs to MKL, which leaves half of some processors idle (96 of 190 thousand million
operations a second, one Zen 5 core), and convolutions to oneDNN, which does not. A linear map of rows is a convolution
of pixels, so that one has the other's speed. Elsewhere these are torch's own products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.ops.waits import is_recording, is_transformed

_NUM_IMAGES = 16
"""Images of a convolution: fewer do not go to oneDNN."""
_ENOUGH_ROWS = 128
"""Rows from which on the product takes longer than arranging the weight."""


def linear_map(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear`: values (..., D), weight (C, D), bias (C,) -> (..., C), with gradients."""
    if not _is_faster_by_convolution(values, weight):
        return F.linear(values, weight, bias)
    pixels = F.conv2d(_to_images(values), weight[:, :, None, None], bias)
    return pixels.permute(0, 2, 3, 1).reshape(*values.shape[:-1], len(weight))


def linear_map_gradients(gradient: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of values (R, D) and weight (C, D) from that (R, C) of `linear_map(values, weight)`."""
    if not _is_faster_by_convolution(values, weight):
        return gradient @ weight, gradient.mT @ values
    images, filters = (_to_images(gradient), _to_images(values)), weight[:, :, None, None]
    geometry = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    to_images, to_filters, _ = torch.ops.aten.convolution_backward(
        *images, filters, None, *geometry, [True, True, False]
    )
    return to_images.permute(0, 2, 3, 1).reshape(values.shape), to_filters[:, :, 0, 0]


def _is_faster_by_convolution(values: Tensor, weight: Tensor) -> bool:
    """Return True for float32 on a CPU, in a number of rows that makes images, where oneDNN may not round it."""
    if torch.compiler.is_compiling() or is_recording() or is_transformed():
        return False
    if not values.device.type == weight.device.type == "cpu" or not values.dtype == weight.dtype == torch.float32:
        return False
    num_rows = values.numel() // max(1, values.shape[-1])
    if num_rows < _ENOUGH_ROWS or num_rows % _NUM_IMAGES or torch.is_autocast_enabled("cpu"):
        return False
    mkldnn = torch.backends.mkldnn
    conv = getattr(mkldnn, "conv", None)  # torch before 2.9 does not round in convolutions
    is_exact = conv is None or conv.fp32_precision in ("none", "ieee")
    return bool(mkldnn.is_available() and mkldnn.enabled and is_exact)


def _to_images(values: Tensor) -> Tensor:
    """Return rows (..., D) as images (16, D, 1, rows / 16) whose channels lie side by side."""
    return values.reshape(_NUM_IMAGES, 1, -1, values.shape[-1]).permute(0, 3, 1, 2)
