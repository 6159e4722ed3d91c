"""Rows taken from a table, each by few takers that are known: gradients are gathered, in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.ops.operator import operator
from sightline.ops.waits import require


def take_rows(values: Tensor, rows: Tensor, takers: Tensor) -> Tensor:
    """Take rows (E,) of values (N, C), zeros for -1: (E, C). `takers` (N, R) are those that take each row, or -1.

    Gradients of a row are added in the order of its takers: the same bits on every run, on a GPU too.
    """
    return _take_rows(values, rows, takers)


def _check_rows(values: Tensor, rows: Tensor, takers: Tensor) -> None:
    _check_numbers("rows", rows, values.shape[0])
    _check_numbers("takers", takers, rows.shape[0])


def _check_numbers(name: str, numbers: Tensor, limit: int) -> None:
    if numbers.numel():
        require(
            (numbers.amax() < limit) & (numbers.amin() >= -1),
            lambda: ValueError(
                f"{name}: found {int(numbers.min())} to {int(numbers.max())}, expected -1 (none) to {limit - 1}"
            ),
        )


@operator(check=_check_rows)
def _take_rows(values: Tensor, rows: Tensor, takers: Tensor) -> Tensor:
    if not values.shape[0]:
        return values.new_zeros((rows.shape[0], values.shape[1]))
    return values[rows.clamp(min=0)].masked_fill_((rows < 0)[:, None], 0.0)


@_take_rows.fake
def _(values: Tensor, rows: Tensor, takers: Tensor) -> Tensor:
    return values.new_empty((rows.shape[0], values.shape[1]))


def _save_takers(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[2])


@_take_rows.gradient(_save_takers)
def _(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (takers,) = ctx.saved_tensors
    total = gradient.new_zeros((takers.shape[0], gradient.shape[1]))
    if gradient.shape[0]:
        for taker in takers.unbind(dim=1):
            taken = gradient[taker.clamp(min=0)]
            total = total + torch.where((taker >= 0)[:, None], taken, 0.0)
    return total, None, None
