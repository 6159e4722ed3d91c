"""Number formats: digits of the mantissa, unit in the last place (ulp), and perturbation by ulps.

Fast float64 conv3d on the CPU: im2col of one slice at a time, and one matrix product.

The reference computes in float64, where torch's own kernel takes ten times as long as in float32. The results are equal
except for the order of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Format:
    """A binary number format with `digits` digits of mantissa, the leading one among them."""

    name: str
    digits: int

    def unit_of_largest(self, values: Tensor) -> float:
        """Return the ulp of the largest finite value; for zero, that of the smallest normal float32."""
        if not values.numel():
            return 0.0
        finite = values.nan_to_num(0.0, 0.0, 0.0) if values.is_floating_point() else values.double()
        return self.ulp(float(finite.abs().max()))

    def ulp(self, value: float) -> float:
        """Return the unit in the last place of a finite value; for zero, that of the smallest normal float32."""
        magnitude = max(abs(value), torch.finfo(torch.float32).tiny)
        return 2.0 ** (math.frexp(magnitude)[1] - self.digits)

    def perturb(self, values: Tensor, generator: torch.Generator, *, units: int = 1) -> Tensor:
        """Perturb each float64 value by `units` ulps, up or down at random; zero stays zero.

        Zero is exact in every format: masked, padded and rectified entries stay zero.
        """
        powers = (values.contiguous().view(torch.int64) & _EXPONENT).view(torch.float64)  # 2**exponent of each
        signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return torch.addcmul(values, powers, signs.to(values), value=units * 2.0 ** (1 - self.digits))


_EXPONENT = 0x7FF0000000000000
"""The bits of a float64 that hold its exponent: alone, they are a power of two."""

FORMATS = {
    torch.float64: Format("float64", 53),
    torch.float32: Format("float32", 24),
    torch.float16: Format("float16", 11),
    torch.bfloat16: Format("bfloat16", 8),
}
TF32 = Format("TF32", 11)
"""Format to which an NVIDIA GPU may round the factors of float32 products."""


def get_format(dtype: torch.dtype) -> Format:
    """Return the format of a floating-point dtype."""
    return FORMATS[dtype]


def coarser(first: Format, second: Format) -> Format:
    """Return the format with fewer digits."""
    return first if first.digits <= second.digits else second


_RANDOM_OPERATIONS = frozenset(
    "bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout normal poisson rand "
    "rand_like randn randn_like random rrelu_with_noise uniform _sample_dirichlet _standard_gamma".split()
)
"""Operations of torch that draw random numbers, which differ from format to format."""


class Float32Draws(TorchDispatchMode):
    """Mode that draws float64 random numbers in float32, so that they equal those of a float32 model."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = args, kwargs or {}
        is_wide = inputs[1].get("dtype") == torch.float64 or any(
            t.dtype == torch.float64 for _, t in tree_leaves(inputs)
        )
        if func.overloadpacket.__name__.rstrip("_") not in _RANDOM_OPERATIONS or not is_wide:
            return func(*inputs[0], **inputs[1])
        narrow: list[tuple[Tensor, Tensor]] = []

        def lower(path: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return tensor
            narrow.append((tensor, tensor.float()))
            return narrow[-1][1]

        lowered_args, lowered = tree_map(inputs, lower)
        if lowered.get("dtype") == torch.float64:
            lowered["dtype"] = torch.float32
        result = func(*lowered_args, **lowered)
        for tensor, lowered_tensor in narrow if func._schema.is_mutable else ():
            tensor.copy_(lowered_tensor)
        wide_by_id = {id(lowered_tensor): tensor for tensor, lowered_tensor in narrow}
        return tree_map(result, lambda _, t: wide_by_id.get(id(t), t.double() if t.dtype == torch.float32 else t))


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
