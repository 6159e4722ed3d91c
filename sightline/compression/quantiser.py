"""Quantisers: modules that compute a weight from what is trained, through a rounding with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError


class Quantiser(nn.Module):
    """Base of weight quantisers; `order` is the order of the module's parameters, which `freeze` restores."""

    order: tuple[str, ...] = ()


def straight_through(values: Tensor, quantised: Tensor) -> Tensor:
    """Straight-through estimator (STE): return `quantised` (...) with the gradient of `values` (...).

    The value is equal bit by bit. Source: Bengio et al. 2013.
    """
    result: Tensor = _StraightThrough.apply(values, quantised)
    return result


class _StraightThrough(torch.autograd.Function):
    surrogate_gradient = True

    @staticmethod
    def forward(ctx: Any, values: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def check_weight(weight: Tensor, name: str) -> None:
    """Raise UserError if weights (any shape) are empty or not finite."""
    if not weight.numel():
        raise UserError(f"{name}: has no elements of shape {list(weight.shape)}; leave it out of the policy")
    weight = weight.detach()
    bad = ~torch.isfinite(weight.float())
    if bad.any():
        first = tuple(int(index) for index in bad.nonzero()[0])
        raise UserError(
            f"{name}: {int(bad.sum())} of {weight.numel()} weights are not finite, the first at {list(first)} "
            f"({float(weight[first])}); the training diverged, take an earlier checkpoint"
        )
