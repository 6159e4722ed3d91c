"""Feature propagation (PointNet++) from a sampled cloud to the finer one."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.geometry.interpolation import interpolate
from sightline.layers.mlp import LinearNorm

__all__ = ["FeaturePropagation"]


class FeaturePropagation(nn.Module):
    """Feature propagation: an MLP over each fine point's features and the interpolated features of three coarse points.

    `forward(points (B, N, 3), own (B, N, S) or None, coarse_points (B, M, 3), coarse (B, M, C)) -> (B, N, widths[-1])`
    with `in_channels` = S + C; weights 1/(d^2 + 1e-8). Of fewer than three coarse points all are used. The plain form
    (`fused=False`, the tested reference) interpolates first; here the first linear map comes before the interpolation,
    which it commutes with, and so runs over the coarse points alone. Same state, same numbers, same gradients.
    Raises ValueError for coordinates that are not finite. Source: Qi et al. 2017 (PointNet++), section 3.4.
    """

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.layers = nn.ModuleList(
            LinearNorm(in_channels=width_in, out_channels=width_out, has_bias=True, activation=nn.ReLU())
            for width_in, width_out in pairwise((in_channels, *widths))
        )

    def forward(self, points: Tensor, own: Tensor | None, coarse_points: Tensor, coarse: Tensor) -> Tensor:
        """Map points (B, N, 3), own (B, N, S) or None, coarse_points (B, M, 3), coarse (B, M, C) -> (B, N, D)."""
        first, *others = (cast(LinearNorm, layer) for layer in self.layers)
        linear = first.linear
        if self.fused:
            skip_weight, coarse_weight = linear.weight.split(
                [linear.in_features - coarse.shape[-1], coarse.shape[-1]], dim=1
            )
            mapped = interpolate(F.linear(coarse, coarse_weight), points=coarse_points, queries=points)
            if own is not None:
                mapped = mapped + F.linear(own, skip_weight)
            values = first.normalise_and_activate(mapped + linear.bias)
        else:
            carried = interpolate(coarse, points=coarse_points, queries=points)
            values = first(carried if own is None else torch.cat([own, carried], dim=-1))
        for layer in others:
            values = layer(values)
        return values
