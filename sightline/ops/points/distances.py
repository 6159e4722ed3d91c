"""Squared distances with one fixed order of summation, which all functions of this room share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.ops.gpu_kernels import gpu_kernel, tl
from sightline.ops.waits import has_values, is_on_host, require, require_between

_LARGEST = torch.finfo(torch.float64).max


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Compute the squared distance of every query to every point: (C, B, M), (C, B, N) -> (B, M, N).

    The plain sum of (a - b)^2, channel after channel; each product is rounded before it is added. So equal points give
    equal bits wherever they stand, on every device, and compiled loops can be held to the same bits. The expansion
    a^2 - 2ab + b^2 would lose the digits that decide between near points far from the origin.
    """
    # Not `addcmul_`: its products may go unrounded into the sum, on some machines and in some lanes.
    return _sum_over_channels(queries, points, lambda difference: difference.mul_(difference))


def absolute_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Compute the sum over channels of |a - b|, of every query to every point: (C, B, M), (C, B, N) -> (B, M, N)."""
    return _sum_over_channels(queries, points, Tensor.abs_)


def _sum_over_channels(queries: Tensor, points: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    total_BMN = queries.new_zeros((*queries.shape[1:], points.shape[2]))
    for query_BM, point_BN in zip(queries, points, strict=True):
        total_BMN += measure(query_BM[:, :, None] - point_BN[:, None, :])
    return total_BMN


def paired_squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Compute squared distances of paired rows, `queries` and `points` (..., C), broadcast -> (...).

    Summed as above.
    """
    squared = None
    for query, point in zip(queries.unbind(-1), points.unbind(-1), strict=True):
        difference = query - point
        product = difference * difference
        squared = product if squared is None else squared + product
    if squared is None:  # no channels: not asked first, as `broadcast_shapes` imports torch's compiler
        return points.new_zeros(torch.broadcast_shapes(queries.shape, points.shape)[:-1])
    return squared


def first_by_distance_and_index(distances: Tensor, count: int) -> Tensor:
    """Return columns (..., count) int64 of the smallest entries of each row, in order of (entry, column)."""
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :count]
    # The bits of numbers that are not negative rise with them: one key orders by distance, then by column.
    columns = torch.arange(distances.shape[-1], device=distances.device)
    keys = (distances.view(torch.int32).long() << 32) | columns
    return keys.topk(count, largest=False, sorted=True).indices


class DistanceScores(NamedTuple):
    """Centred factors of the scores |p|^2 - 2 q.p, which order points as squared distances do, up to `slack`.

    `points` (B, N, C), `queries` (B, M, C), `squared_norms` |p|^2 (B, N), `slack` (B, M).
    """

    points: Tensor
    queries: Tensor
    squared_norms: Tensor
    slack: Tensor


def distance_scores(points: Tensor, queries: Tensor) -> DistanceScores | None:
    """Compute the score factors of points (B, N, C) and queries (B, M, C) on the CPU, with the error bound `slack`.

    If k points have a score of at most T, every point among the nearest k has one of at most T + slack. None if no
    bound is known: products in reduced precision, and numbers whose squares leave the range.
    """
    if not _products_are_exact():
        return None
    centre = points.mean(dim=1, keepdim=True)
    centred_points, centred_queries = points - centre, queries - centre
    squared_norms = centred_points.square().sum(dim=-1)
    reach = centred_queries.square().sum(dim=-1).sqrt() + squared_norms.amax(dim=1, keepdim=True).sqrt()
    slack = _score_slack(reach, points.shape[2])
    return None if slack is None else DistanceScores(centred_points, centred_queries, squared_norms, slack)


def _score_slack(reach: Tensor, num_channels: int) -> Tensor | None:
    """Bound the difference (B, M) between the order of scores |p|^2 - 2 q.p and that of the squared distances.

    `reach` is |q| + R, centred: R is the largest |p|. A score is off by at most E = (C + 8) eps reach^2 from the plain
    sum less |q|^2: with u = eps / 2, C + 2 roundings in the score and as many in the plain sum, each of at most u
    reach^2, and 2 in centring. Slack is 2E; None if squares leave the range of the dtype.
    """
    limits = torch.finfo(reach.dtype)
    if not bool((reach < limits.max**0.5 / 4).all()):
        return None
    return 2 * ((num_channels + 8) * limits.eps * reach.square() + 8 * num_channels * limits.tiny)


def _products_are_exact() -> bool:
    """Return True if matrix products use the full precision of their dtype: users may allow less for float32."""
    precision = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return precision in ("none", "ieee")


def upcast_for_comparison(values: Tensor) -> Tensor:
    """Detach values of any shape (...) and cast them for comparing distances: half to float32, integers to float64."""
    if not values.dtype.is_floating_point:
        return values.detach().double()
    return values.detach().float() if values.dtype in (torch.float16, torch.bfloat16) else values.detach()


def assert_clouds(points: Tensor, *, name: str) -> None:
    """Raise ValueError unless `points` are a tensor (clouds, points, channels)."""
    if not isinstance(points, Tensor):
        raise ValueError(f"{name}: found a {type(points).__name__}, expected a tensor (clouds, points, channels)")
    if points.ndim != 3:
        raise ValueError(f"{name}: found the shape {tuple(points.shape)}, expected (clouds, points, channels)")


def assert_finite(values: Tensor, *, name: str) -> None:
    """Raise ValueError naming the cloud and point of `values` (B, N, C) that is not finite."""
    assert_clouds(values, name=name)
    num_points = values.shape[1]
    assert_finite_rows(values.flatten(0, 1), lambda row: divmod(row, num_points), name=name)


def assert_finite_rows(rows: Tensor, locate: Callable[[int], tuple[int, int]], *, name: str) -> None:
    """Raise ValueError for a row of `rows` (P, C) that is not finite; `locate` gives its cloud and place."""

    def make_error() -> ValueError:
        is_fault = ~torch.isfinite(rows).all(dim=-1)
        if not bool(is_fault.any()):
            return ValueError(f"{name}: held numbers that are not finite, and has changed since then")
        cloud, point = locate(row := int(is_fault.int().argmax()))
        return ValueError(
            f"{name}[{cloud}]: point {point} is {rows[row].tolist()[:6]}, neighbours need finite numbers; "
            "check the data with `sightline check`, or the weights if these are features"
        )

    if is_on_host(rows):  # ten times as fast there as a mask of all
        require_between(rows, -_LARGEST, _LARGEST, make_error)
    elif rows.numel() and has_values(rows):  # a mask would take six launches instead of two
        require(torch.linalg.vector_norm(rows.detach(), torch.inf) < torch.inf, make_error)


def assert_some(num_neighbours: int) -> None:
    """Raise ValueError if `num_neighbours` is below one: the compiled searches need a last slot."""
    if num_neighbours < 1:
        raise ValueError(f"{num_neighbours} neighbours asked for; num_neighbours is at least 1")


def assert_radius(radius: float) -> None:
    """Raise ValueError for a radius below zero, whose square is that of a ball, and for NaN."""
    if not radius >= 0:
        raise ValueError(f"radius: found {radius:g}, expected 0 or more")


def assert_same_form(points: Tensor, queries: Tensor, *, name: str) -> None:
    """Raise ValueError if `queries` (..., M, C) differ from `points` (..., N, C) in more than M."""
    forms = [(rows.ndim, rows.shape[:-2], rows.shape[-1:], rows.dtype, rows.device) for rows in (points, queries)]
    if forms[0] != forms[1]:
        raise ValueError(
            f"{name} {tuple(queries.shape)} {queries.dtype} on {queries.device} do not go with points "
            f"{tuple(points.shape)} {points.dtype} on {points.device}; give both the same clouds and channels, in one "
            "precision on one device"
        )


# --- GPU: tiles of distances ------------------------------------------------------------------------------------------

FEW_CHANNELS = 8
"""Channels up to which threads read points where they are; of more, a channel of neighbouring points lies together."""


def by_channel(points: Tensor) -> Tensor:
    """Arrange points (..., N, C) of many channels in memory channel after channel."""
    return points if points.shape[-1] <= FEW_CHANNELS else points.mT.contiguous().mT


def strides_of_clouds(points: Tensor) -> tuple[int, int, int]:
    """Return the numbers from cloud to cloud of points (..., N, C), 0 for packed ones, from row to row, and channel."""
    return (points.stride(0) if points.ndim == 3 else 0), points.stride(-2), points.stride(-1)


def is_far(points: Tensor) -> bool:
    """Return True if rows of points (..., N, C) are so far apart that only 64 bits count the numbers between them."""
    return points.shape[-2] * points.stride(-2) >= 2**31


@gpu_kernel
def to_rows(base, row, step, IS_FAR: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return pointers to rows that are `step` numbers apart; in 32 bits where these suffice: fewer registers."""
    return base + (row.to(tl.int64) * step if IS_FAR else row * step.to(tl.int32))


@gpu_kernel
def find_segment(offsets, cloud, num_rows):  # type: ignore[no-untyped-def]
    """Return a cloud's first row and its number of rows, by offsets or, without any, as all have `num_rows`."""
    if offsets is None:
        row, count = cloud * num_rows, num_rows
    else:
        row = tl.load(offsets + cloud).to(tl.int64)
        count = (tl.load(offsets + cloud + 1) - row).to(tl.int32)
    return row, count


@gpu_kernel
def tile_of_distances(  # type: ignore[no-untyped-def]
    points, is_point, channel_step, queries, is_query, query_channel_step, CHANNELS: tl.constexpr
):
    """Return the squared distances (points, queries) of a block of points to a block of queries, both by pointers."""
    squared = tl.zeros([is_point.shape[0], is_query.shape[0]], points.dtype.element_ty)
    for _ in range(CHANNELS):
        values = tl.load(points, mask=is_point, other=0.0)
        difference = tl.load(queries, mask=is_query, other=0.0)[None, :] - values[:, None]
        squared += difference * difference
        points += channel_step
        queries += query_channel_step
    return squared
