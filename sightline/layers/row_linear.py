"""Linear layers over the rows of a table that may be filled up, in blocks of rows that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sightline.ops.segments.ordered_sums import ordered_sum
from sightline.ops.waits import is_on_host, is_recording, is_transformed

_BLOCK = 256
"""Rows of a product on CPUs: libraries choose another order of sums for another number of rows."""


def linear_rows(layer: nn.Linear, values: Tensor, num_rows: int) -> Tensor:
    """Map the first `num_rows` rows of values (N, in) as `layer` does: (N, out).

    Rows after them may be anything, and become 0. On CPUs a row's bits do not depend on the other rows, and those of
    gradients not on N; on others no shape depends on `num_rows`. It has no second derivative.
    """
    if is_recording() or is_transformed():  # neither looks into a function with a backward of its own
        mapped: Tensor = layer(values[:num_rows])
        return functional.pad(mapped, (0, 0, 0, values.shape[0] - num_rows))
    weight, bias, kind = layer.weight, layer.bias, values.device.type
    is_rounded = torch.is_autocast_enabled(kind) and values.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if is_rounded else weight.dtype
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LinearRows.apply(values.to(dtype), weight.to(dtype), bias.to(dtype), num_rows)
    return result


class _LinearRows(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, num_rows: int) -> Tensor:
        values = _clear(values, num_rows)
        ctx.save_for_backward(values, weight)
        ctx.num_rows = num_rows
        return _multiply(values, weight.mT, bias, num_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        values, weight = ctx.saved_tensors
        gradient = _clear(gradient, ctx.num_rows)
        needs_values, needs_weight, needs_bias, _ = ctx.needs_input_grad
        to_values = _multiply(gradient, weight, None, ctx.num_rows) if needs_values else None
        to_weight = _correlate(values, gradient, ctx.num_rows).to(weight.dtype) if needs_weight else None
        to_bias = ordered_sum(gradient, ctx.num_rows).to(weight.dtype) if needs_bias else None
        return to_values, to_weight, to_bias, None


def _clear(values: Tensor, num_rows: int) -> Tensor:
    """Set rows after the first `num_rows` to 0 for products of all rows, which other devices than CPUs take."""
    if is_on_host(values) or num_rows == values.shape[0]:
        return values
    cleared = values.clone()
    cleared[num_rows:] = 0
    return cleared


def _multiply(values: Tensor, matrix: Tensor, bias: Tensor | None, num_rows: int) -> Tensor:
    """Multiply the first rows of values (N, A) by a matrix (A, B) and add a bias (B,): (N, B), 0 in further rows."""
    if not is_on_host(values):
        result = _product(values, matrix, bias)
        result[num_rows:] = 0
        return result
    result = values.new_empty((values.shape[0], matrix.shape[1]))
    result[num_rows:] = 0
    whole = num_rows - num_rows % _BLOCK
    for block, mapped in zip(values[:whole].split(_BLOCK), result[:whole].split(_BLOCK), strict=True):
        _product(block, matrix, bias, out=mapped)
    if (left := num_rows - whole) > 0:
        block = functional.pad(values[whole:num_rows], (0, 0, 0, _BLOCK - left))
        result[whole:num_rows] = _product(block, matrix, bias)[:left]
    return result


def _product(values: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return torch.mm(values, matrix, out=out) if bias is None else torch.addmm(bias, values, matrix, out=out)


def _correlate(values: Tensor, gradient: Tensor, num_rows: int) -> Tensor:
    """Add up the products of the first rows of values (N, A) and gradients (N, B): (B, A), no half precision.

    On other devices than CPUs, rows after them are 0.
    """
    dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    if not is_on_host(values):
        return (gradient.mT @ values).to(dtype)
    total = values.new_zeros((gradient.shape[1], values.shape[1]), dtype=dtype)
    for rows in _iterate_blocks(num_rows):
        if dtype == values.dtype:
            total.addmm_(gradient[rows].mT, values[rows])
        else:
            total += gradient[rows].mT @ values[rows]
    return total


def _iterate_blocks(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, _BLOCK):
        yield slice(first, min(first + _BLOCK, num_rows))
