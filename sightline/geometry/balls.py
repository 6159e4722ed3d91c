"""Ball query: the points within a radius of each centre, by index, as PointNet++ groups them."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.geometry.distances import (
    assert_finite,
    assert_same_form,
    assert_some,
    squared_distances,
    upcast_for_comparison,
)
from sightline.geometry.neighbour_kernels import ball_query_by_tree
from sightline.numba_kernels import can_use_numba

__all__ = ["ball_query", "ball_query_reference"]

_ENTRIES_AT_ONCE = 2**20


@torch.no_grad()
def ball_query(points: Tensor, *, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Return the first `num_neighbours` points, by index, whose squared distance to the centre is at most radius^2.

    `points` (B, N, C), `centres` (B, M, C) -> index (B, M, num_neighbours) int64. A group with fewer points repeats
    its first one in the places that are left. radius^2 is rounded to the points' precision (half is compared in
    float32) before the comparison.
    Raises ValueError for fewer than one neighbour, for a centre with no point in its ball, and for values that are not
    finite, naming the sample.
    Source: Qi et al. 2017 (PointNet++), section 3.2; which points and their order follow its PyTorch port by Yan.
    """
    assert_some(num_neighbours)
    assert_same_form(points, centres, name="centres")
    assert_finite(points, name="points")
    assert_finite(centres, name="centres")
    points, centres = upcast_for_comparison(points), upcast_for_comparison(centres)
    search = (
        ball_query_by_tree
        if can_use_numba(points, centres) and points.numel() and centres.numel()
        else ball_query_reference
    )
    index = search(points, centres, radius, num_neighbours)
    index = torch.where(index == points.shape[1], index[..., :1], index)
    if bool((index[..., 0] == points.shape[1]).any()):
        _report_empty(points, centres, index, radius)
    return index


@torch.no_grad()
def ball_query_reference(points: Tensor, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Reference of `ball_query`, on any device.

    `points` (B, N, C), `centres` (B, M, C) -> index (B, M, K) int64, ascending.
    Slots without a point contain N.
    """
    num_samples, num_points, _ = points.shape
    points_CBN, centres_CBM = (values.permute(2, 0, 1).contiguous() for values in (points, centres))
    squared_radius = torch.tensor(radius * radius, dtype=points.dtype, device=points.device)
    place_N = torch.arange(num_points, device=points.device)
    chunk = max(1, _ENTRIES_AT_ONCE // max(1, num_samples * num_points))
    parts = []
    for centres_CBm in centres_CBM.split(chunk, dim=2):
        is_inside = squared_distances(centres_CBm, points_CBN) <= squared_radius
        place_BmN = torch.where(is_inside, place_N, num_points)
        parts.append(place_BmN.topk(min(num_neighbours, num_points), dim=-1, largest=False, sorted=True).values)
    index = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(index, (0, num_neighbours - index.shape[-1]), value=num_points)


def _report_empty(points: Tensor, centres: Tensor, index: Tensor, radius: float) -> None:
    sample, centre = (index[..., 0] == points.shape[1]).nonzero()[0].tolist()
    difference = points[sample].double() - centres[sample, centre].double()
    nearest = float(difference.square().sum(-1).min().sqrt())
    raise ValueError(
        f"centres[{sample}]: centre {centre} has no point within {radius:g}, the nearest one is {nearest:.6g} away; "
        "take centres from the points themselves, or raise the radius"
    )
