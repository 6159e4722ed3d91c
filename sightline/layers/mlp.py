"""The step that point networks repeat: a linear map over the last axis, batch norm, an activation."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn

__all__ = ["LinearNorm", "Width"]

Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels of a layer; more than any model has is a slip, refused before it fills the memory."""


class LinearNorm(nn.Module):
    """`activation(norm(linear(x)))` over the last axis of (..., in_channels) -> (..., out_channels).

    All leading axes are the batch that normalisation sees. The same as a convolution of size 1 with batch norm.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, has_bias: bool = False, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=has_bias)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return self.after_linear(self.linear(values))

    def after_linear(self, mapped: Tensor) -> Tensor:
        """What follows the linear map, for layers that come by its values in another way: (..., out_channels)."""
        normed = self.norm(mapped.reshape(-1, mapped.shape[-1])).view(mapped.shape)
        return self.activation(normed)
