"""Linear layer with batch norm and activation: the block that point networks repeat."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sightline.ops.products import linear_map


class LinearNorm(nn.Module):
    """`activation(norm(linear(x)))` over the last axis of (..., in_channels) -> (..., out_channels).

    All leading axes are the batch of the normalisation. Equivalent to a convolution of size 1 with batch norm.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, has_bias: bool = False, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=has_bias)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """Map values (..., in_channels) -> (..., out_channels)."""
        return self.normalise_and_activate(self.linear(values))

    def normalise_and_activate(self, mapped: Tensor) -> Tensor:
        """Apply norm and activation to the result of a linear map: (..., out_channels) -> (..., out_channels)."""
        normed = self.norm(mapped.reshape(-1, mapped.shape[-1])).view(mapped.shape)
        return self.activation(normed)


class JoinedLinearNorm(LinearNorm):
    """`LinearNorm` over the concatenation of a cloud's global feature and each point's features.

    `forward(global_features (B, W), point_features (B, N, E)) -> (B, N, out_channels)`; `first` names the part that
    comes first among the `in_channels` = W + E, for published weights. The plain form (`fused=False`, the tested
    reference) repeats the global feature at all points; here it is mapped once per cloud. Same state, same numbers,
    same gradients.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        has_bias: bool = False,
        activation: nn.Module | None = None,
        first: Literal["global_features", "point_features"] = "global_features",
        fused: bool = True,
    ) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, has_bias=has_bias, activation=activation)
        self.first = first
        self.fused = fused

    def forward(self, global_features: Tensor, point_features: Tensor) -> Tensor:  # type: ignore[override]
        """Map global_features (B, W), point_features (B, N, E) -> (B, N, out_channels)."""
        parts = (
            (global_features, point_features) if self.first == "global_features" else (point_features, global_features)
        )
        if not self.fused:
            return super().forward(torch.cat([_at_points(part, point_features) for part in parts], dim=-1))
        first_weight, second_weight = self.linear.weight.split([part.shape[-1] for part in parts], dim=1)
        global_weight, point_weight = (
            (first_weight, second_weight) if self.first == "global_features" else (second_weight, first_weight)
        )
        of_clouds = linear_map(global_features, global_weight, self.linear.bias)
        return self.normalise_and_activate(of_clouds[:, None] + linear_map(point_features, point_weight))


def _at_points(part: Tensor, point_features: Tensor) -> Tensor:
    return part if part.ndim == point_features.ndim else part[:, None].expand(-1, point_features.shape[1], -1)
