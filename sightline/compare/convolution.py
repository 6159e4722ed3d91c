"""Fast float64 conv3d on the CPU: im2col of one slice at a time, and one matrix product.

The reference computes in float64, where torch's own kernel takes ten times as long as in float32. The results are equal
except for the order of sums.
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
    """Mode that replaces `torch.conv3d` by `convolve` where it applies, and leaves all other calls to torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv3d and (arguments := _match_arguments(*args, **(kwargs or {}))) is not None:
            return convolve(*arguments)
        return func(*args, **(kwargs or {}))


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
    """Compute `F.conv3d` with stride, dilation and groups of 1: (B, C, D, H, W) float64 -> (B, E, D', H', W')."""
    result: Tensor = _Convolution.apply(values, weight, padding)
    return result if bias is None else result + bias[:, None, None, None]


def _match_arguments(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int, int]] | None:
    is_plain = groups == 1 and _to_triple(stride) == _to_triple(dilation) == (1, 1, 1) and not isinstance(padding, str)
    if not is_plain or values.dtype != torch.float64 or values.device.type != "cpu" or values.ndim != 5:
        return None
    return values, weight, bias, _to_triple(padding)


def _to_triple(value: Any) -> tuple[int, int, int]:
    return (value,) * 3 if isinstance(value, int) else tuple(value) * (3 // len(value))


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, padding: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.padding = padding
        return _convolve_slices(values, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            full_padding = tuple(size - 1 - pad for size, pad in zip(weight.shape[2:], ctx.padding, strict=True))
            grad_values = _convolve_slices(gradients[0], weight.flip(2, 3, 4).transpose(0, 1), full_padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _compute_weight_gradient(values, gradients[0], weight.shape, ctx.padding)
        return grad_values, grad_weight, None


def _convolve_slices(values: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Convolve (B, C, D, H, W) with (E, C, d, h, w) to (B, E, D', H', W'), one slice of the output at a time."""
    padded = _pad(values, padding)
    sizes = [padded_size - size + 1 for padded_size, size in zip(padded.shape[2:], weight.shape[2:], strict=True)]
    result = values.new_empty((len(values), len(weight), *sizes))
    rows = weight.reshape(len(weight), -1)
    for sample, volume in enumerate(padded):
        for slice_index in range(sizes[0]):
            columns = _extract_columns(volume, slice_index, weight.shape[2:], sizes)
            torch.mm(rows, columns, out=(slab := rows.new_empty(len(rows), columns.shape[1])))
            result[sample, :, slice_index] = slab.view(-1, *sizes[1:])
    return result


def _compute_weight_gradient(values: Tensor, gradient: Tensor, shape: torch.Size, padding: tuple[int, ...]) -> Tensor:
    """Compute the gradient of the weight (E, C, d, h, w): the sum over slices of output gradient times columns."""
    padded = _pad(values, padding)
    total = values.new_zeros(shape[0], shape[1:].numel())
    for sample, volume in enumerate(padded):
        for slice_index in range(gradient.shape[2]):
            columns = _extract_columns(volume, slice_index, shape[2:], gradient.shape[2:])
            total.addmm_(gradient[sample, :, slice_index].reshape(shape[0], -1), columns.mT)
    return total.view(shape)


def _extract_columns(volume: Tensor, slice_index: int, kernel: Any, sizes: Any) -> Tensor:
    """Extract the columns (C * kernel, H' * W') of one slice of the output (im2col)."""
    by_channel, by_depth, by_row, by_column = volume.stride()
    view = volume.as_strided(
        (len(volume), *kernel, *sizes[1:]),
        (by_channel, by_depth, by_row, by_column, by_row, by_column),
        volume.storage_offset() + slice_index * by_depth,
    )
    return view.reshape(len(volume) * kernel.numel(), -1)


def _pad(values: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Pad (B, C, D, H, W) with zeros on all sides; negative padding crops."""
    depth, height, width = padding
    return F.pad(values, (width, width, height, height, depth, depth)).contiguous()
