"""Decisions that rounding turns: neighbours, samples and maxima of clouds full of ties, and bugs in the same places."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.ops import farthest_points, gather_points, nearest_neighbours
from tests.compare.steps import compared, guilty
from tests.models.small_models import small_model


def turned_grid(batch: int = 2) -> Tensor:
    """27 points of a grid, turned: distances that are equal but for rounding, which float32 and float64 order apart."""
    axis = torch.linspace(-1, 1, 3, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)
    turns = torch.linalg.qr(torch.randn(batch, 3, 3, dtype=torch.float64)).Q
    return (points @ turns).float()


class Nearest(nn.Module):
    """The means of the nearest points, after a layer, so that both the index and what hangs on it are seen."""

    def __init__(self, *, skipped: int = 0) -> None:
        super().__init__()
        self.skipped = skipped
        self.layer = nn.Linear(3, 8)
        self.read = _Reader()

    def forward(self, points: Tensor) -> Tensor:
        near = nearest_neighbours(points, num_neighbours=6 + self.skipped)[..., self.skipped :]
        return self.read(self.layer(points), near)


class _Reader(nn.Module):
    def forward(self, values: Tensor, index: Tensor) -> Tensor:
        return gather_points(values, index).mean(dim=2)


class Farthest(nn.Module):
    """Samples of the cloud: one other choice, and all that follow are others."""

    def __init__(self, *, start: int = 0) -> None:
        super().__init__()
        self.start = start
        self.layer = nn.Linear(3, 4)

    def forward(self, points: Tensor) -> Tensor:
        chosen = farthest_points(points, num_samples=9, start=self.start)
        return self.layer(gather_points(points, chosen[:, None])[:, 0])


@pytest.mark.parametrize("kind", [Nearest, Farthest])
def test_a_healthy_decision_is_nobodys_fault(kind: Any) -> None:
    model = kind()
    rows = compared(model, model, {"points": turned_grid(6)})
    assert guilty(rows) == []
    assert sum(row.deviation.undefined for row in rows) > 0, "the cloud has no ties that rounding turns"


@pytest.mark.parametrize(("kind", "bug"), [(Nearest, {"skipped": 1}), (Farthest, {"start": 5})])
def test_a_wrong_decision_is_found_among_ties(kind: Any, bug: dict[str, int]) -> None:
    healthy = kind()
    broken = copy.deepcopy(healthy)
    for name, value in bug.items():
        setattr(broken, name, value)
    rows = [row for row in compared(broken, healthy, {"points": turned_grid(6)}) if row.is_guilty]
    assert rows
    assert "is given" in rows[0].what


def test_dgcnn_on_ties() -> None:
    """Graphs in the space of features, too; an edge convolution with a wrong slope is still the one that is named."""
    model = small_model("dgcnn").float()
    batch = {"points": turned_grid()}
    assert guilty(compared(model, model, batch)) == []
    broken: Any = copy.deepcopy(model)
    broken.edges[2].edge.activation.negative_slope = 0.25
    assert guilty(compared(model, broken, batch))[0] == ("edges.2.edge.activation", "forward")
