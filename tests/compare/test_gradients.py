"""Gradients of parameters: one tensor under two names, and what a wrong one of them is called."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.compare.steps import compared, guilty


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, points: Tensor) -> Tensor:
        return self.second(self.first(points).relu())


class _Doubled(nn.Linear):
    """Right forward; the gradient of its weight is twice what it should be."""

    def forward(self, input: Tensor) -> Tensor:
        weight = 2 * self.weight - self.weight.detach()
        return nn.functional.linear(input, weight, self.bias)


class _Scaled(nn.Module):
    """A layer and a factor that is one number without axes, as a temperature of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points) * self.scale


def test_a_parameter_without_axes_is_compared() -> None:
    net = _Scaled()
    rows = compared(net, net, {"points": torch.randn(4, 6)})
    assert guilty(rows) == []
    assert "gradient of scale" in [row.what for row in rows]


def test_tied_weights_have_one_gradient_of_which_a_wrong_share_is_found() -> None:
    net, batch = Tied(), {"points": torch.randn(4, 6)}
    assert guilty(compared(net, net, batch)) == []
    broken: Any = copy.deepcopy(net)
    broken.second.__class__ = _Doubled
    rows = [row for row in compared(broken, net, batch) if row.is_guilty]
    assert [(row.which, row.what) for row in rows] == [("backward", "gradient of weight")]
