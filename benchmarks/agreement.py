"""Comparison rules of neighbours and of farthest points."""

from __future__ import annotations

from typing import Any

from torch import Tensor

ROUNDINGS = 10 * 2.0**-24
"""Relative rounding of two compared squared distances of three channels in float32: five roundings each."""


def same_neighbours(inputs: dict[str, Any], expected: Tensor, found: Tensor) -> str | None:
    """Compare neighbour indices exactly, except among neighbours at exactly equal distances.

    `inputs["points"]` (B, N, C); results (B, N, K), nearest first. The clouds of this room are rounded so that every
    squared distance is exact in float32, in the expanded form too; so no tolerance is needed.
    """
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, the baseline's is {tuple(expected.shape)}"
    differs = (expected != found).any(dim=-1)
    cloud, query = differs.nonzero(as_tuple=True)
    points = inputs["points"].double()
    for name, index in (("the baseline", expected), ("it", found)):
        rows = index[cloud, query].sort(dim=-1).values
        if (rows[:, 1:] == rows[:, :-1]).any():
            return f"{name} names a neighbour twice"
    distances = [
        (points[cloud[:, None], index[cloud, query]] - points[cloud, query][:, None]).square().sum(dim=-1)
        for index in (expected, found)
    ]
    wrong = (distances[0] != distances[1]).any(dim=-1)
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    where = f"cloud {int(cloud[row])}, point {int(query[row])}"
    return f"{int(wrong.sum())} of {differs.numel()} points have other neighbours, first {where}"


def farthest_each_time(inputs: dict[str, Any], expected: Tensor, found: Tensor) -> str | None:
    """Check that every point after the first is the farthest from all earlier ones, up to float32 rounding.

    `inputs["points"]` (B, N, 3); results (B, M). Distances are computed in float64 along the result itself, so that
    another decision of a tie, or another first point, does not make all later points wrong.
    """
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, the baseline's is {tuple(expected.shape)}"
    for cloud, (points, samples) in enumerate(zip(inputs["points"].double(), found, strict=True)):
        channels = points.T.contiguous()
        nearest = channels.new_full((len(points),), float("inf"))
        for position, index in enumerate(samples.tolist()):
            if position > 0 and not nearest[index] >= nearest.max() * (1 - ROUNDINGS):
                return f"cloud {cloud}, place {position}: point {index} is not the farthest from those before it"
            nearest = nearest.minimum((channels - channels[:, index, None]).square().sum(dim=0))
    return None
