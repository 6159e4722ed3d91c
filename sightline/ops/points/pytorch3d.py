"""Functions of padded clouds by the names and arguments of PyTorch3D, in any number of channels.

Clouds of equal sizes are searched at once. In others, padding is kept apart from all points by one more channel; a CPU
leaves it out. So a GPU waits for no length, and compiled and exported graphs take both. What differs from PyTorch3D:
neighbours come in order of (distance, index), numbers that are not finite are refused, and so is the distance to a
cloud without points, which there is 0.
Source: documentation of pytorch3d.ops and pytorch3d.loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.ops.points.ball_query import mark_found, points_in_balls
from sightline.ops.points.distances import assert_clouds, assert_same_form, assert_some, upcast_for_comparison
from sightline.ops.points.farthest_points import draw_starts, farthest_points
from sightline.ops.points.grouping import gather_points, take_points
from sightline.ops.points.neighbours import nearest_neighbours, packed_nearest_neighbours
from sightline.ops.segments.offsets import offsets_to_batch, pack, unpack
from sightline.ops.waits import is_on_host, is_recording, is_transformed, require


class KNN(NamedTuple):
    """Distances and indices (B, P1, K), and the neighbours themselves (B, P1, K, C) if they are asked for."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """Find the K nearest points of `p2` (B, P2, C) to each of `p1` (B, P1, C), and distances with gradients.

    Squared distances, or with `norm` 1 sums of absolute differences; of half precision in float32. `lengths1` and
    `lengths2` (B,) are the numbers of points of padded clouds; a GPU waits for their check alone. Places without a
    point, or beyond the points of a cloud of `p2`, contain 0. `version` and `return_sorted` change nothing:
    neighbours are in order of (distance, index). `dists, idx, _ = knn_points(scan, mesh_points, K=3)`.
    Raises ValueError for whole numbers, lengths that do not fit, and as `nearest_neighbours`.
    Source: pytorch3d.ops.knn_points.
    """
    one, other = _take_pair(p1, p2, lengths1, lengths2, names=("p1", "p2"))
    return _search(one, other, norm, K, return_nn)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Gather rows of `x` (B, M, C) by the `idx` (B, L, K) of `knn_points`: (B, L, K, C).

    Places from `lengths` (B,) on, which have no neighbour, contain 0. Raises ValueError as `gather_points`.
    Source: pytorch3d.ops.knn_gather.
    """
    gathered = gather_points(x, idx)
    if lengths is None:
        return gathered
    return gathered.masked_fill(~_count_up(idx.shape[2], lengths)[:, None, :, None], 0)


def ball_query(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    K: int = 500,
    radius: float = 0.2,
    return_nn: bool = True,
    skip_points_outside_cube: bool = False,
) -> KNN:
    """Find the first K points of `p2` (B, P2, C), by index, nearer than `radius` to each of `p1` (B, P1, C).

    Squared distances with gradients, 0 in places without a point; indices, there -1; and with `return_nn` the points,
    there 0. `lengths1` and `lengths2` (B,) are as in `knn_points`. `skip_points_outside_cube` changes nothing.
    `dists, idx, points = ball_query(centres, scan, K=32, radius=0.1)`. Raises ValueError as `points_in_balls`.
    Source: pytorch3d.ops.ball_query.
    """
    one, other = _take_pair(p1, p2, lengths1, lengths2, names=("p1", "p2"))
    centres, points = _list_queries(one), upcast_for_comparison(other.points)
    if lengths2 is not None:
        centres, points = _keep_apart(centres, points, lengths2, points.new_full((), 2 * radius + 1))
    index = points_in_balls(points, centres=centres, radius=radius, num_neighbours=K, empty="mark", has_rim=False)
    is_found = mark_found(index)
    if lengths1 is not None:
        is_found = is_found & _count_up(p1.shape[1], lengths1)[:, :, None]
    dists, near = _measure(one, other, index.clamp(min=0), is_found, norm=2)
    return KNN(dists, index.masked_fill(~is_found, -1), near if return_nn else None)


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int | Sequence[int] | Tensor = 50,
    random_start_point: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample K farthest points of `points` (B, N, C), clouds of `lengths` (B,) points: points (B, K, C), index (B, K).

    K is one number or one for each cloud; the largest of a tensor is read. A cloud of fewer points gives all; the
    places left contain 0, and the index -1. The first sample is a cloud's first point, or with `random_start_point` one
    drawn by `generator`. Points have gradients: `centres, index = sample_farthest_points(points, K=128)`.
    Raises ValueError for lengths that do not fit, and as `farthest_points`.
    Source: pytorch3d.ops.sample_farthest_points.
    """
    cloud = _take_cloud(points, lengths, name="points")
    _require_lengths(cloud)
    counts, num_samples = _count_samples(K, points)
    index = F.pad(_sample(cloud, num_samples, random_start_point, generator), (0, num_samples), value=-1)
    index = index[:, :num_samples]
    for limit in (counts, lengths):
        if limit is not None:
            index = index.masked_fill(~_count_up(num_samples, limit), -1)
    rows = F.pad(cloud.points, (0, 0, 0, 1))  # the last row, named by -1, is 0
    return take_points(rows, index[:, None])[:, 0], index


Reduction = Literal["mean", "sum"]
Loss = Tensor | tuple[Tensor, Tensor]


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_normals: Tensor | None = None,
    y_normals: Tensor | None = None,
    weights: Tensor | None = None,
    batch_reduction: Reduction | None = "mean",
    point_reduction: Reduction | Literal["max"] | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
) -> tuple[Loss, Loss | None]:
    """Compute the distance of points `x` (B, P1, C) to the nearest of `y` (B, P2, C), plus that of y to x.

    `loss, _ = chamfer_distance(predicted, scan)`: squared distances, or with `norm` 1 sums of absolute differences;
    reduced over the points of each cloud ("max": the larger of both ways; None: a tensor (B, P) for each way), then
    over the clouds, of `weights` (B,). The second result, None without normals (B, P, 3) of both, is 1 less the cosine
    of the angle between the normals of both points, with `abs_cosine` its size, reduced alike. A batch without clouds
    has the distance 0. Lengths (B,) are as in `knn_points`; weights are checked alike.
    Raises ValueError for points whose nearest is sought in a cloud without any, weights below 0, and as `knn_points`.
    Source: pytorch3d.loss.chamfer_distance.
    """
    has_normals = x_normals is not None and y_normals is not None
    _assert_reductions(batch_reduction, point_reduction, has_normals=has_normals)
    _assert_weights(weights, x)
    pair, normals = _take_pair(x, y, x_lengths, y_lengths, names=("x", "y")), (x_normals, y_normals)
    _assert_normals(pair, normals)
    ways = [(pair, normals), (pair[::-1], normals[::-1])][: 1 if single_directional else 2]
    _assert_points_to_find([clouds for clouds, _ in ways])
    distances = [_measure_one_way(*clouds, *both, weights, norm, abs_cosine) for clouds, both in ways]
    sizes = [clouds[0].sizes for clouds, _ in ways]
    losses, angles = zip(*distances, strict=True)
    how = (sizes, weights, batch_reduction, point_reduction)
    return _reduce(losses, *how), _reduce(angles, *how) if has_normals else None


# --- Clouds -----------------------------------------------------------------------------------------------------------


class _Cloud(NamedTuple):
    """Points (B, P, C), 0 where they are padding, and their numbers (B,), None if all are P."""

    name: str
    points: Tensor
    lengths: Tensor | None

    @property
    def sizes(self) -> int | Tensor:
        return self.points.shape[1] if self.lengths is None else self.lengths


def _count_up(count: int, lengths: Tensor) -> Tensor:
    """Mark (B, count) the first `lengths` (B,) of places."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def _take_cloud(points: Tensor, lengths: Tensor | None, *, name: str) -> _Cloud:
    assert_clouds(points, name=name)
    if not points.is_floating_point():
        raise ValueError(f"{name}: found {points.dtype}, expected floating-point numbers; write {name}.float()")
    if lengths is None:
        return _Cloud(name, points, None)
    num_clouds, num_points, _ = points.shape
    if lengths.shape != (num_clouds,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths of {name}: found the shape {tuple(lengths.shape)} {lengths.dtype}, expected ({num_clouds},) of "
            "whole numbers; give the number of points of each cloud"
        )
    return _Cloud(name, points.masked_fill(~_count_up(num_points, lengths)[..., None], 0), lengths)


def _take_pair(
    one: Tensor, other: Tensor, lengths: Tensor | None, other_lengths: Tensor | None, *, names: tuple[str, str]
) -> tuple[_Cloud, _Cloud]:
    clouds = _take_cloud(one, lengths, name=names[0]), _take_cloud(other, other_lengths, name=names[1])
    assert_same_form(other, one, name=names[0])
    _require_lengths(*clouds)
    return clouds


def _require_lengths(*clouds: _Cloud) -> None:
    stated = [(cloud, cloud.lengths, cloud.points.shape[1]) for cloud in clouds if cloud.lengths is not None]
    if not stated:
        return
    holds = torch.stack([((lengths >= 0) & (lengths <= highest)).all() for _, lengths, highest in stated])

    def make_error() -> ValueError:
        cloud, lengths, highest = stated[int(holds[0])]
        return ValueError(
            f"lengths of {cloud.name}: found {lengths.tolist()[:8]}, expected 0 to {highest} of each cloud"
        )

    require(holds, make_error)


def _list_queries(cloud: _Cloud) -> Tensor:
    """Return a cloud's points to search for; in place of padding the first, whose search is short if it is repeated."""
    points = upcast_for_comparison(cloud.points)
    if cloud.lengths is None:
        return points
    return torch.where(_count_up(points.shape[1], cloud.lengths)[..., None], points, points[:, :1])


def _keep_apart(queries: Tensor, points: Tensor, lengths: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Add a channel to queries and points (B, P, C), in which padding is `distance` (...) from all others."""
    is_padding = ~_count_up(points.shape[1], lengths)
    return F.pad(queries, (0, 1)), torch.cat([points, (is_padding * distance)[..., None]], dim=2)


def _reach(queries: Tensor, points: Tensor, norm: int) -> Tensor:
    """Return a distance (...) above that of any query to any point, as far as there is a number above it."""
    num_channels = points.shape[2]
    largest, other = (F.pad(values.abs().flatten(), (0, 1)).amax(dim=0) for values in (queries, points))
    reach = 1.01 * (largest + other) * (num_channels if norm == 1 else num_channels**0.5)
    return torch.where(reach > 0, reach, 1).nan_to_num()


def _search(one: _Cloud, other: _Cloud, norm: int, K: int, return_nn: bool) -> KNN:
    assert_some(K)
    (num_clouds, num_queries, _), num_points = one.points.shape, other.points.shape[1]
    count = min(K, num_points)
    index = F.pad(_find_nearest(one, other, norm, count), (0, K - count))
    is_valid = None
    if other.lengths is not None:
        is_valid = _count_up(K, other.lengths)[:, None]
    elif count < K:
        is_valid = torch.arange(K, device=index.device).expand(num_clouds, 1, K) < num_points
    if one.lengths is not None:
        is_query = _count_up(num_queries, one.lengths)[:, :, None]
        is_valid = is_query if is_valid is None else is_valid & is_query
    if is_valid is not None:
        index = index.masked_fill(~is_valid, 0)
    dists, near = _measure(one, other, index, is_valid, norm)
    return KNN(dists, index, near if return_nn else None)


def _find_nearest(one: _Cloud, other: _Cloud, norm: int, count: int) -> Tensor:
    """Return the index (B, P1, count) of neighbours; any where there is none."""
    if not count:
        return torch.zeros((*one.points.shape[:2], 0), dtype=torch.int64, device=one.points.device)
    if norm == 2 and other.lengths is not None and _may_read(other.lengths):
        return _find_packed(one, other, count)
    queries, points = _list_queries(one), upcast_for_comparison(other.points)
    if other.lengths is not None:
        queries, points = _keep_apart(queries, points, other.lengths, _reach(queries, points, norm))
    return nearest_neighbours(points, count, queries=queries, norm=norm)


def _may_read(values: Tensor) -> bool:
    return is_on_host(values) and not (is_recording() or is_transformed() or torch.compiler.is_compiling())


def _find_packed(one: _Cloud, other: _Cloud, count: int) -> Tensor:
    """Search without padding, which takes a CPU half of the time."""
    num_queries, num_points = one.points.shape[1], other.points.shape[1]
    assert other.lengths is not None
    query_lengths = other.lengths.new_full(one.points.shape[:1], num_queries) if one.lengths is None else one.lengths
    mask = _count_up(num_queries, query_lengths.masked_fill(other.lengths == 0, 0))
    queries, query_offsets = pack(one.points.detach(), mask=mask)
    points, offsets = pack(other.points.detach(), mask=_count_up(num_points, other.lengths))
    rows = {"queries": queries, "query_offsets": query_offsets}
    near = packed_nearest_neighbours(points, count, offsets=offsets, **rows)
    first = offsets[offsets_to_batch(query_offsets, queries.shape[0])]
    return unpack(near.index - first[:, None], offsets=query_offsets, max_size=num_queries)[0]


def _measure(one: _Cloud, other: _Cloud, index: Tensor, is_valid: Tensor | None, norm: int) -> tuple[Tensor, Tensor]:
    """Return the distances (B, P1, K), with gradients, to the points that `index` names, and these; 0 if not valid."""
    points = other.points if other.points.shape[1] else F.pad(other.points, (0, 0, 0, 1))
    near = take_points(points, index)
    wide = torch.promote_types(near.dtype, torch.float32)
    difference = one.points[:, :, None].to(wide) - near.to(wide)
    dists = (difference.abs() if norm == 1 else difference.square()).sum(dim=-1)
    if is_valid is None:
        return dists, near
    return dists.masked_fill(~is_valid, 0), near.masked_fill(~is_valid[..., None], 0)


# --- Samples ----------------------------------------------------------------------------------------------------------


def _count_samples(K: int | Sequence[int] | Tensor, points: Tensor) -> tuple[Tensor | None, int]:
    """Return the number of samples of each cloud (B,), None if they are equal, and the largest."""
    if isinstance(K, (int, torch.SymInt)):
        return None, K
    counts = torch.as_tensor(K, dtype=torch.int64, device=points.device)
    if counts.shape != points.shape[:1]:
        raise ValueError(
            f"K: found {tuple(counts.shape)}, expected ({points.shape[0]},), a number for each cloud, or one"
        )
    largest = int(F.pad(counts, (0, 1)).max()) if isinstance(K, Tensor) else max(K, default=0)
    return counts, largest


def _sample(cloud: _Cloud, num_samples: int, is_random: bool, generator: torch.Generator | None) -> Tensor:
    num_clouds, num_points, _ = cloud.points.shape
    sizes = torch.full((num_clouds,), num_points, device=cloud.points.device)
    if not num_points:
        return sizes.new_zeros((num_clouds, 0))
    start = draw_starts(sizes if cloud.lengths is None else cloud.lengths, generator) if is_random else 0 * sizes
    points = cloud.points.detach()
    if cloud.lengths is not None:  # copies of the first sample are never farther than a point, and come after all
        is_point = _count_up(num_points, cloud.lengths)[..., None]
        points = torch.where(is_point, points, take_points(points, start[:, None, None])[:, 0])
    return farthest_points(points, min(num_samples, num_points), start=start)


# --- Losses -----------------------------------------------------------------------------------------------------------


def _measure_one_way(
    one: _Cloud,
    other: _Cloud,
    normals: Tensor | None,
    other_normals: Tensor | None,
    weights: Tensor | None,
    norm: int,
    abs_cosine: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the distances (B, P1) to the nearest points and, with normals, those of the angles."""
    neighbours = _search(one, other, norm, 1, False)
    measured = [neighbours.dists[..., 0]]
    if normals is not None and other_normals is not None:
        near = take_points(other_normals, neighbours.idx)[:, :, 0]
        cosine = F.cosine_similarity(normals, near, dim=2, eps=1e-6)
        angle = 1 - (cosine.abs() if abs_cosine else cosine)
        is_padding = None if one.lengths is None else ~_count_up(one.points.shape[1], one.lengths)
        measured.append(angle if is_padding is None else angle.masked_fill(is_padding, 0))
    if weights is not None:
        measured = [each * weights[:, None] for each in measured]
    return measured[0], measured[1] if len(measured) > 1 else None


def _reduce(
    ways: Sequence[Tensor],
    sizes: Sequence[int | Tensor],
    weights: Tensor | None,
    batch_reduction: str | None,
    point_reduction: str | None,
) -> Loss:
    if point_reduction is None:
        return ways[0] if len(ways) == 1 else (ways[0], ways[1])
    if point_reduction == "max":
        clouds = torch.cat([F.pad(each, (0, 1)) for each in ways], dim=1).amax(dim=1)  # none is below 0
    else:
        sums = [each.sum(dim=1) for each in ways]
        if point_reduction == "mean":
            sums = [
                each / (size.clamp(min=1) if isinstance(size, Tensor) else max(size, 1))
                for each, size in zip(sums, sizes, strict=True)
            ]
        clouds = sum(sums[1:], sums[0])
    if batch_reduction is None:
        return clouds
    if batch_reduction == "sum":
        return clouds.sum()
    if weights is None:
        return clouds.sum() / max(clouds.shape[0], 1)
    total = weights.sum()
    return clouds.sum() / torch.where(total == 0, 1, total)


def _assert_points_to_find(ways: Sequence[tuple[_Cloud, _Cloud]]) -> None:
    """Raise ValueError for a cloud without points in which those of another are sought."""
    is_searchable = [(other.sizes > 0) | (one.sizes == 0) for one, other in ways]

    def make_error(way: int, sample: str = "") -> ValueError:
        one, other = ways[way]
        return ValueError(
            f"{other.name}{sample} has no points and {one.name}{sample} has: there is no nearest; leave it out"
        )

    for way, holds in enumerate(is_searchable):
        if holds is False:
            raise make_error(way)
    stated = [holds for holds in is_searchable if isinstance(holds, Tensor)]
    if stated:
        holds = torch.stack(stated)
        require(holds, lambda: make_error(*_locate(holds)))


def _locate(holds: Tensor) -> tuple[int, str]:
    way, cloud = (~holds).nonzero()[0].tolist()
    return way, f"[{cloud}]"


def _assert_reductions(batch_reduction: str | None, point_reduction: str | None, *, has_normals: bool) -> None:
    for name, reduction, allowed in (
        ("batch_reduction", batch_reduction, ("mean", "sum", None)),
        ("point_reduction", point_reduction, ("mean", "sum", "max", None)),
    ):
        if reduction not in allowed:
            raise ValueError(f"{name}: found {reduction!r}, expected one of {', '.join(map(repr, allowed))}")
    if point_reduction is None and batch_reduction is not None:
        raise ValueError("batch_reduction: give None where point_reduction is None: distances of points have no mean")
    if point_reduction == "max" and has_normals:
        raise ValueError("point_reduction: found 'max' with normals, whose angles have none; leave the normals out")


def _assert_normals(pair: tuple[_Cloud, _Cloud], normals: tuple[Tensor | None, Tensor | None]) -> None:
    for cloud, other, own in zip(pair, pair[::-1], normals, strict=True):
        if own is None and normals != (None, None):
            raise ValueError(f"{cloud.name}_normals: found None beside {other.name}_normals; give both, or neither")
        if own is not None and own.shape[:2] != cloud.points.shape[:2]:
            raise ValueError(
                f"{cloud.name}_normals: found {tuple(own.shape)} for {tuple(cloud.points.shape)}; give one a point"
            )


def _assert_weights(weights: Tensor | None, x: Tensor) -> None:
    if weights is None:
        return
    if weights.shape != x.shape[:1]:
        raise ValueError(f"weights: found {tuple(weights.shape)}, expected ({x.shape[0]},), one for each cloud")
    require(weights >= 0, lambda: ValueError(f"weights: found {weights.tolist()[:8]}, expected 0 or more of each"))
