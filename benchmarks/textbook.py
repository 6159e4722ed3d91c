"""Textbook geometry of point networks, as in the papers' code: what a user would write or copy.

The package is timed against these functions, and nothing else uses them. Shapes are those of the package.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_SIZE = 1024


def expanded_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Compute squared distances (B, M, N) as -2ab + a^2 + b^2. Source: the formula of both papers' code."""
    distances = -2 * torch.matmul(queries, points.transpose(1, 2))
    distances += (queries**2).sum(dim=-1)[:, :, None]
    distances += (points**2).sum(dim=-1)[:, None, :]
    return distances


def neighbours_by_topk(values_BCN: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours (B, N, K) of clouds (B, C, N): all negated distances at once, then `topk`.

    Source: Wang et al. 2019, section 3.1, as in the authors' code.
    """
    inner = -2 * torch.matmul(values_BCN.transpose(2, 1), values_BCN)
    squares = torch.sum(values_BCN**2, dim=1, keepdim=True)
    negated = -squares - inner - squares.transpose(2, 1)
    return negated.topk(k=num_neighbours, dim=-1)[1]


def neighbours_by_topk_in_blocks(points: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours (B, N, K) in blocks of queries, for clouds whose distances do not fit into memory."""
    index = torch.empty((*points.shape[:2], num_neighbours), dtype=torch.int64)
    for start in range(0, points.shape[1], _CHUNK_SIZE):
        block = slice(start, start + _CHUNK_SIZE)
        index[:, block] = expanded_distances(points[:, block], points).topk(num_neighbours, largest=False).indices
    return index


def masked_farthest_points(points: Tensor, num_samples: int, start: int) -> Tensor:
    """Sample farthest points (B, num_samples): one pass over the cloud per sample, with a boolean mask.

    Source: Qi et al. 2017 (PointNet++), section 3.2, as in its PyTorch ports.
    """
    num_clouds, num_points, num_channels = points.shape
    samples = torch.zeros(num_clouds, num_samples, dtype=torch.long)
    distance = torch.full((num_clouds, num_points), 1e10, dtype=points.dtype)
    farthest = torch.full((num_clouds,), start, dtype=torch.long)
    clouds = torch.arange(num_clouds, dtype=torch.long)
    for sample in range(num_samples):
        samples[:, sample] = farthest
        centre = points[clouds, farthest, :].view(num_clouds, 1, num_channels)
        centre_distance = torch.sum((points - centre) ** 2, -1)
        mask = centre_distance < distance
        distance[mask] = centre_distance[mask]
        farthest = torch.max(distance, -1)[1]
    return samples


def first_in_ball(points: Tensor, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Find points in balls (B, M, K): indices outside become N, are sorted to the end, and replaced by the first.

    Source: Qi et al. 2017 (PointNet++), section 3.2, as in its PyTorch ports.
    """
    num_clouds, num_points, _ = points.shape
    index = torch.arange(num_points).view(1, 1, num_points).repeat(num_clouds, centres.shape[1], 1)
    index[expanded_distances(centres, points) > radius**2] = num_points
    index = index.sort(dim=-1)[0][:, :, :num_neighbours]
    first = index[:, :, :1].repeat(1, 1, num_neighbours)
    mask = index == num_points
    index[mask] = first[mask]
    return index


def interpolate_three(features: Tensor, points: Tensor, queries: Tensor) -> Tensor:
    """Interpolate features (B, M, F): all distances sorted, the three nearest weighted by 1 / (d^2 + 1e-8).

    Source: Qi et al. 2017 (PointNet++), equation 2, as in its PyTorch ports.
    """
    distances, index = expanded_distances(queries, points).sort(dim=-1)
    weights = 1.0 / (distances[:, :, :3] + 1e-8)
    weights = weights / weights.sum(dim=2, keepdim=True)
    clouds = torch.arange(len(points)).view(-1, 1, 1)
    return (features[clouds, index[:, :, :3]] * weights[..., None]).sum(dim=2)
