"""Convolutions of volumes in float64 on a CPU, where torch has no fast kernel: columns of a slice, and one product.

The reference computes in float64, and torch takes ten times as long there as in float32. The numbers are the same but
for the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Float64Convolutions", "convolve"]


class Float64Convolutions(TorchFunctionMode):
    """Takes `convolve` for the three-dimensional convolutions inside that it suits, and torch's own for all others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv3d and (found := _suiting(*args, **(kwargs or {}))) is not None:
            return convolve(*found)
        return func(*args, **(kwargs or {}))


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
    """`F.conv3d` with stride, dilation and groups of 1: (B, C, D, H, W) in float64 -> (B, E, D', H', W')."""
    result: Tensor = _Convolution.apply(values, weight, padding)
    return result if bias is None else result + bias[:, None, None, None]


def _suiting(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int, int]] | None:
    is_plain = groups == 1 and _triple(stride) == _triple(dilation) == (1, 1, 1) and not isinstance(padding, str)
    if not is_plain or values.dtype != torch.float64 or values.device.type != "cpu" or values.ndim != 5:
        return None
    return values, weight, bias, _triple(padding)


def _triple(value: Any) -> tuple[int, int, int]:
    return (value,) * 3 if isinstance(value, int) else tuple(value) * (3 // len(value))


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, padding: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.padding = padding
        return _convolved(values, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        to_values = to_weight = None
        if ctx.needs_input_grad[0]:
            around = tuple(size - 1 - pad for size, pad in zip(weight.shape[2:], ctx.padding, strict=True))
            to_values = _convolved(gradients[0], weight.flip(2, 3, 4).transpose(0, 1), around)
        if ctx.needs_input_grad[1]:
            to_weight = _weighed(values, gradients[0], weight.shape, ctx.padding)
        return to_values, to_weight, None


def _convolved(values: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """The convolution, one slice of the result at a time."""
    padded = _padded(values, padding)
    sizes = [whole - size + 1 for whole, size in zip(padded.shape[2:], weight.shape[2:], strict=True)]
    result = values.new_empty((len(values), len(weight), *sizes))
    rows = weight.reshape(len(weight), -1)
    for sample, volume in enumerate(padded):
        for place in range(sizes[0]):
            columns = _columns(volume, place, weight.shape[2:], sizes)
            torch.mm(rows, columns, out=(slab := rows.new_empty(len(rows), columns.shape[1])))
            result[sample, :, place] = slab.view(-1, *sizes[1:])
    return result


def _weighed(values: Tensor, gradient: Tensor, shape: torch.Size, padding: tuple[int, ...]) -> Tensor:
    """The gradient of the weight: of every slice, its gradient times its columns."""
    padded = _padded(values, padding)
    total = values.new_zeros(shape[0], shape[1:].numel())
    for sample, volume in enumerate(padded):
        for place in range(gradient.shape[2]):
            columns = _columns(volume, place, shape[2:], gradient.shape[2:])
            total.addmm_(gradient[sample, :, place].reshape(shape[0], -1), columns.mT)
    return total.view(shape)


def _columns(volume: Tensor, place: int, kernel: Any, sizes: Any) -> Tensor:
    """What each entry of a slice sees: (C * kernel, H' * W')."""
    by_channel, by_depth, by_row, by_column = volume.stride()
    view = volume.as_strided(
        (len(volume), *kernel, *sizes[1:]),
        (by_channel, by_depth, by_row, by_column, by_row, by_column),
        volume.storage_offset() + place * by_depth,
    )
    return view.reshape(len(volume) * kernel.numel(), -1)


def _padded(values: Tensor, padding: tuple[int, ...]) -> Tensor:
    """With zeros around, or where padding is negative, cut off."""
    depth, height, width = padding
    return F.pad(values, (width, width, height, height, depth, depth)).contiguous()
