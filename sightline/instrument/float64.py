"""Float64 arithmetic of a reference: draws as in float32, fast convolutions, and masks of attention in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument import InterceptedFunctions, InterceptedOperators

_RANDOM_OPERATIONS = frozenset(
    "bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout normal poisson rand "
    "rand_like randn randn_like random rrelu_with_noise uniform _sample_dirichlet _standard_gamma".split()
)
"""Operations of torch that draw random numbers, which differ from format to format."""


def _draw_in_float32(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inputs = args, kwargs
    is_wide = kwargs.get("dtype") == torch.float64 or any(t.dtype == torch.float64 for _, t in tree_leaves(inputs))
    if operator.overloadpacket.__name__.rstrip("_") not in _RANDOM_OPERATIONS or not is_wide:
        return operator(*args, **kwargs)
    narrow: list[tuple[Tensor, Tensor]] = []

    def lower(path: str, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float64:
            return tensor
        narrow.append((tensor, tensor.float()))
        return narrow[-1][1]

    lowered_args, lowered = tree_map(inputs, lower)
    if lowered.get("dtype") == torch.float64:
        lowered["dtype"] = torch.float32
    result = operator(*lowered_args, **lowered)
    for tensor, lowered_tensor in narrow if operator._schema.is_mutable else ():
        tensor.copy_(lowered_tensor)
    wide_by_id = {id(lowered_tensor): tensor for tensor, lowered_tensor in narrow}
    return tree_map(result, lambda _, t: wide_by_id.get(id(t), t.double() if t.dtype == torch.float32 else t))


def _convolve_in_slices(*args: Any, **kwargs: Any) -> Any:
    arguments = _match_arguments(*args, **kwargs)
    return torch.conv3d(*args, **kwargs) if arguments is None else convolve(*arguments)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any) -> Any:
    """Attend with a float mask in the format of the queries.

    Torch's kernel for the CPU (2.13) reads the bytes of a float32 mask as float64 where 16 or more keys meet float64
    queries, and tells nobody.
    """
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(torch.promote_types(query.dtype, attn_mask.dtype))
    return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kw)


_FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    torch.conv3d: _convolve_in_slices,
    F.scaled_dot_product_attention: _attend,
}


def _compute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _FUNCTIONS.get(function, function)(*args, **kwargs)


Float32Draws = partial(InterceptedOperators, _draw_in_float32)
"""Mode that draws float64 random numbers in float32, so that they equal those of a float32 model."""
Float64Functions = partial(InterceptedFunctions, _compute)
"""Mode in which `torch.conv3d` is `convolve` where that applies, and masks of attention have its queries' format."""


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
    """Compute `F.conv3d` with stride, dilation and groups of 1: (B, C, D, H, W) float64 -> (B, E, D', H', W').

    One slice at a time is laid out for one matrix product (im2col): torch's own kernel for the CPU takes ten times as
    long in float64 as in float32. The results are equal except for the order of sums.
    """
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
