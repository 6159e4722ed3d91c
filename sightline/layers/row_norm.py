"""Batch and layer norm over the rows of a table that may be filled up, with sums in an order that nothing changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.ops.segments.ordered_sums import ordered_sum
from sightline.ops.waits import is_recording, is_transformed


def normalise_rows(norm: nn.BatchNorm1d, values: Tensor, num_rows: int) -> Tensor:
    """Normalise the first `num_rows` rows of values (N, C) as `norm` does, over all processes: (N, C).

    Rows after them count nowhere, may be anything, and become 0. Output, gradients and running statistics have the same
    bits for any N and any number of threads. Values in half precision are normalised in float32. It has no second
    derivative. Raises ValueError for a single row in training.
    Source: Ioffe and Szegedy 2015, algorithm 1, and section 3 for the gradient.
    """
    if is_recording() or is_transformed():  # neither looks into a function with a backward of its own
        normed: Tensor = norm(values[:num_rows])
        return nn.functional.pad(normed, (0, 0, 0, values.shape[0] - num_rows))
    with torch.no_grad():
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        sums = None
        if uses_batch_statistics(norm):
            origin = (ordered_sum(wide, num_rows) / max(1, num_rows)).to(wide.dtype)
            centred = wide - origin
            total, squares = ordered_sum(centred, num_rows), ordered_sum(centred.square_(), num_rows)
            sums = ShiftedSums(origin, total, squares, num_rows)
        statistics = normalisation_statistics(norm, sums, wide.dtype)
    result: Tensor = _NormaliseRows.apply(values, norm.weight, norm.bias, num_rows, *statistics, norm)
    return result


class _NormaliseRows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_rows: int,
        count: Tensor | int | None,
        mean: Tensor,
        inverse_deviation: Tensor,
        norm: nn.BatchNorm1d,
    ) -> Tensor:
        scale = inverse_deviation * weight.to(mean.dtype)
        normed = (values.to(mean.dtype) - mean).mul_(scale).add_(bias.to(mean.dtype))
        normed[num_rows:] = 0
        ctx.save_for_backward(values, mean, inverse_deviation, scale)
        ctx.num_rows, ctx.count, ctx.norm = num_rows, count, norm
        return normed.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        values, mean, inverse_deviation, scale = ctx.saved_tensors
        num_rows, wide = ctx.num_rows, gradient.to(mean.dtype)
        centred = values.to(mean.dtype) - mean
        to_bias = ordered_sum(wide, num_rows).to(mean.dtype)
        to_weight = (ordered_sum(wide * centred, num_rows) * inverse_deviation).to(mean.dtype)
        to_values = None
        if ctx.needs_input_grad[0]:
            constant, slope = batch_statistics_gradients(
                ctx.norm,
                ctx.count,
                grad_bias=to_bias,
                to_weight=to_weight,
                scale=scale,
                inverse_deviation=inverse_deviation,
            )
            to_values = wide * scale
            if ctx.count is not None:
                to_values -= constant
                to_values -= centred.mul_(slope)
            to_values[num_rows:] = 0
            to_values = to_values.to(values.dtype)
        return to_values, to_weight, to_bias, None, None, None, None, None


def normalise_channels(norm: nn.LayerNorm, values: Tensor, num_rows: int) -> Tensor:
    """Normalise each of the first `num_rows` rows of values (N, C) over its channels as `norm` does: (N, C).

    Rows after them may be anything, and become 0. The bits of gradients do not depend on N, nor on the number of
    threads. Values in half precision become float32. It has no second derivative.
    Source: Ba et al. 2016, Layer Normalization, equation 4.
    """
    if is_recording() or is_transformed():
        normed: Tensor = norm(values[:num_rows])
        return nn.functional.pad(normed, (0, 0, 0, values.shape[0] - num_rows))
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = _NormaliseChannels.apply(wide, norm.weight, norm.bias, norm.eps, num_rows)
    return result


class _NormaliseChannels(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float, num_rows: int) -> Tensor:
        normed, mean, inverse_deviation = torch.native_layer_norm(values, values.shape[1:], weight, bias, eps)
        normed[num_rows:] = 0
        ctx.save_for_backward(values, weight, bias, mean, inverse_deviation)
        ctx.num_rows = num_rows
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        values, weight, bias, mean, inverse_deviation = ctx.saved_tensors
        num_rows, to_values = ctx.num_rows, None
        if ctx.needs_input_grad[0]:
            mask = [True, False, False]
            to_values, _, _ = torch.ops.aten.native_layer_norm_backward(
                gradient.contiguous(), values, values.shape[1:], mean, inverse_deviation, weight, bias, mask
            )
            to_values[num_rows:] = 0
        centred = (values - mean) * inverse_deviation
        to_weight = ordered_sum(gradient * centred, num_rows).to(weight.dtype)
        to_bias = ordered_sum(gradient, num_rows).to(bias.dtype)
        return to_values, to_weight, to_bias, None, None
