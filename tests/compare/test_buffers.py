"""Buffers that a model shares, makes at its first call, or replaces by other tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.workbench.compare.layerwise import compare_layerwise
from sightline.workbench.compare.variants import record_step
from tests.compare.steps import compared, guilty, step_of, variant


class _Adds(nn.Module):
    """Adds a table, which other layers may have as well."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, points: Tensor) -> Tensor:
        return points + self.table


class _Shared(nn.Module):
    """Two layers with one table, as transformers have one of positions."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.arange(6.0)
        self.first, self.second, self.last = _Adds(table), _Adds(table), nn.Linear(6, 6)

    def forward(self, points: Tensor) -> Tensor:
        return self.last(self.second(self.first(points)))


class _Lazy(nn.Module):
    """A table that is made at the first call, for its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 6)

    def forward(self, points: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(6).to(points), persistent=False)
        return self.last(points + self.table)


class _Replacing(nn.Module):
    """A running mean that is assigned anew, not written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, points: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * points.detach().mean(dim=0)
        return self.last(points - self.mean)


@pytest.mark.parametrize("net", [_Shared(), _Lazy(), _Replacing()], ids=["shared", "lazy", "replacing"])
def test_a_correct_model_agrees_with_itself(net: Any) -> None:
    assert guilty(compared(net, net, {"points": torch.randn(4, 6)})) == []


def test_a_buffer_that_is_replaced_is_recorded_and_restored() -> None:
    net, points = _Replacing(), torch.randn(4, 6)
    own, reference, job = variant(net), variant(net, "float64"), step_of()
    recording = record_step(job, own, own.batch({"points": points}))
    (before, after), mean = recording.calls[0].buffers["mean"], 0.1 * points.mean(dim=0)
    assert torch.equal(before, torch.zeros(6))
    torch.testing.assert_close(after, mean)
    rows = compare_layerwise(recording, reference, job, reference.batch({"points": points}))
    assert guilty(rows) == []
    for each in (own, reference):
        assert not each.model.get_buffer("mean").any(), "later steps begin where the recorded one did"
