"""Zeros that pad clouds of fewer points, pooled or normalised by a network, and networks that mask them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.symmetry import padded_rows
from sightline.workbench.check.context import Context
from tests.doctor.own_networks import Logits
from tests.doctor.planting import assert_complete, make, with_data, with_model
from tests.doctor.segmenting import Edited

Pool = Callable[[Tensor, Tensor], Tensor]


class Pooled(nn.Module):
    """Layers on each point, and a pooling that is given the mask (B, N, 1)."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool, self.first, self.head = pool, nn.Linear(3, 32), nn.Linear(32, 12)

    def forward(self, *, points: Tensor, points_mask: Tensor) -> Logits:
        return {"logits": self.head(self.pool(self.first(points).relu(), points_mask[..., None]))}


def of_all(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.amax(dim=1)


def mean_of_all(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.mean(dim=1)


def mean_of_too_many(rows: Tensor, mask: Tensor) -> Tensor:
    """Masked rows, divided by the number of all rows: no padding value shows it, and it is not looked for."""
    return (rows * mask).mean(dim=1)


def attended(rows: Tensor, mask: Tensor) -> Tensor:
    return (rows.mean(dim=2, keepdim=True).softmax(dim=1) * rows * mask).sum(dim=1)


def of_valid(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.masked_fill(~mask, -1e9).amax(dim=1)


def mean_of_valid(rows: Tensor, mask: Tensor) -> Tensor:
    return (rows * mask).sum(dim=1) / mask.sum(dim=1)


def padded(folder: Path, pool: Pool, seed: int) -> TrainingSetup:
    """A classifier of clouds of 20 to 31 points, padded to the largest of a batch."""

    def wrap(inner: Any) -> Edited:
        fields = {
            name: dataclasses.replace(field, shape="points 3", collate="pad") if name == "points" else field
            for name, field in inner.info.fields.items()
        }
        return Edited(
            inner, lambda sample, index: {**sample, "points": sample["points"][: 20 + index % 12]}, fields=fields
        )

    built = with_data(make(folder, f"seed={seed}"), wrap)
    torch.manual_seed(seed)
    return with_model(built, Pooled(pool))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pool", [of_all, mean_of_all, attended])
def test_padding_that_reaches_the_outputs_is_found(tmp_path: Path, pool: Pool, seed: int) -> None:
    (finding,) = padded_rows(Context(padded(tmp_path, pool, seed), World()))
    assert_complete(finding)
    assert finding.cause == "data.padding"
    assert "'logits' depends on the rows that pad 'points'" in finding.summary


@pytest.mark.parametrize("pool", [of_valid, mean_of_valid, mean_of_too_many])
def test_masked_padding_is_healthy(tmp_path: Path, pool: Pool) -> None:
    assert padded_rows(Context(padded(tmp_path, pool, 0), World())) == []
