"""Parameters whose elements lie in memory in another order than their indices: the same values, other strides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["ORDERS"]


def _turned(tensor: Tensor) -> Tensor:
    """The last index slowest, as after `.t()` or a channels-last format."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


def _gapped(tensor: Tensor) -> Tensor:
    """Every second place of a piece of memory twice as long, as after `[..., ::2]`; NaN lies between."""
    wide = torch.full((*tensor.shape, 2), float("nan"), dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def _over(lay_out: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.data = lay_out(parameter.data)
        return model

    return change


ORDERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as_made": lambda model: model,
    "turned": _over(_turned),
    "gapped": _over(_gapped),
}
