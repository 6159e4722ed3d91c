"""Elastic distortion of clouds: smoothed noise on a coarse grid, interpolated at the points."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.parts.transforms.points import keep_missing

_MAX_NODES = 4_000_000


@registry.transforms.add("elastic")
class Elastic(Transform):
    """Elastic distortion of a cloud with a probability, at several scales in turn.

    At each scale normal noise on a grid of `granularities` is smoothed by two passes of a moving mean of three nodes
    along every axis, interpolated between the nodes, and multiplied by `magnitudes`, both in the unit of the points.
    Normals are unchanged. Points of LiDAR scans without a return stay at the origin, as with `jitter`.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.elastic import Elastic
    >>> points = torch.tensor([[[0.0, 0, 0], [0.001, 0, 0], [1.0, 0, 0]]])
    >>> shift = Elastic(probability=1.0)(Draws.from_seed(0), points=points)["points"] - points
    >>> (shift[0, 0] - shift[0]).norm(dim=1) < 0.01  # neighbours move alike, distant points do not
    tensor([ True,  True, False])

    Source: Choy et al. 2019 (Minkowski networks), training code (0.2 and 0.8 m, 0.4 and 1.6 m), after Simard et al.
    2003.
    """

    moves_points = True

    def __init__(
        self,
        *,
        granularities: tuple[PositiveFloat, ...] = (0.2, 0.8),
        magnitudes: tuple[NonNegativeFloat, ...] = (0.4, 1.6),
        probability: Probability = 0.95,
    ) -> None:
        if len(granularities) != len(magnitudes):
            raise ConfigError(
                f"elastic: {len(granularities)} granularities and {len(magnitudes)} magnitudes; give one magnitude for "
                "each granularity"
            )
        self.granularities = granularities
        self.magnitudes = magnitudes
        self.probability = probability

    def __call__(self, draws: Draws, *, points: Tensor, remission: Tensor | None = None) -> dict[str, Tensor]:
        is_changed = draws.uniform(1, 1) < self.probability
        bent = points
        for level, (granularity, magnitude) in enumerate(zip(self.granularities, self.magnitudes, strict=True)):
            # a stream of its own: how many numbers one scale takes depends on the cloud, and must not move the next
            bent = _bend_clouds(bent, draws.stream(f"scale {level}"), granularity, magnitude)
        return {"points": torch.where(is_changed, keep_missing(points, bent, remission), points)}


def _bend_clouds(points: Tensor, draws: Draws, granularity: float, magnitude: float) -> Tensor:
    low = points.amin(dim=1)
    sizes = ((points.amax(dim=1) - low) / granularity).floor().long() + 2
    counts = [int(nodes.prod()) for nodes in sizes]
    if max(counts) > _MAX_NODES:
        raise DataError(
            f"elastic: a grid of {granularity:g} over a cloud of {max(counts)} cells is too fine; give a larger "
            "granularity, or points in its unit"
        )
    noise = draws.normal(max(counts), 3).to(points.dtype)  # the first of a stream are the same, however many are drawn
    clouds = []
    for cloud, start, nodes, count, cloud_noise in zip(points, low, sizes.tolist(), counts, noise, strict=True):
        grid = smooth(cloud_noise[:count].view(*nodes, 3))
        clouds.append(cloud + bend(grid, (cloud - start) / granularity) * magnitude)
    return torch.stack(clouds)


def smooth(grid: Tensor) -> Tensor:
    """Smooth `grid` (X, Y, Z, 3) by two passes of a mean over three nodes along each axis; outside there are zeros."""
    for axis in (0, 1, 2, 0, 1, 2):
        rows = grid.movedim(axis, 0)
        zero = torch.zeros_like(rows[:1])
        wide = torch.cat((zero, rows, zero))
        grid = ((wide[:-2] + wide[1:-1] + wide[2:]) / 3).movedim(0, axis)
    return grid


def bend(grid: Tensor, nodes: Tensor) -> Tensor:
    """Interpolate `grid` (X, Y, Z, 3) trilinearly at `nodes` (N, 3), in nodes from the first: (N, 3)."""
    node = nodes.floor().long()
    share = nodes - node
    total = torch.zeros_like(nodes)
    last = torch.tensor(grid.shape[:3]) - 1
    for corner in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        weights = torch.where(corner.bool(), share, 1 - share)
        weight_N1 = weights[:, 0:1] * weights[:, 1:2] * weights[:, 2:3]
        x, y, z = torch.minimum(node + corner, last).unbind(-1)
        total = total + weight_N1 * grid[x, y, z]
    return total
