"""Small runs that learn heat maps by their mean square, for checks of such losses, and ways to plant bugs in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig, Field
from sightline.engine.build import TrainingSetup
from sightline.parts.tasks.supervised import Supervised
from tests.doctor.planting import Wrapped, make, subject_of, with_data

SIZE, SIGMA = 10, 1.3


class MapOutput(TypedDict):
    """`likelihood` (B, 1, SIZE, SIZE, SIZE)."""

    likelihood: Tensor


class MeanSquare(Loss):
    """As a recipe writes it: the sum over all cells, and their count."""

    def count(self, *, heatmaps: Tensor) -> Tensor:
        return torch.tensor(heatmaps.numel())

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood - heatmaps).square().sum()


class Maps(nn.Module):
    """Points in a grid of cells, two convolutions, a transposed one, and a linear one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(2),
            nn.Conv3d(4, 16, 3, padding=1),
            nn.BatchNorm3d(16),
            nn.ReLU(inplace=True),
            nn.ConvTranspose3d(16, 4, 2, stride=2),
            nn.BatchNorm3d(4),
            nn.ReLU(inplace=True),
        )
        self.final = nn.Conv3d(4, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.normal_(module.weight, std=1e-3)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, *, points: Tensor) -> MapOutput:
        return {"likelihood": self.final(self.inner(grid(points)))}


def grid(points: Tensor) -> Tensor:
    """Which cells of the unit cube about 0 hold points."""
    cells = ((points.detach() / 2 + 0.5) * SIZE).long().clamp(0, SIZE - 1)
    flat = (cells[..., 0] * SIZE + cells[..., 1]) * SIZE + cells[..., 2]
    found = points.new_zeros(len(points), SIZE**3)
    return found.scatter(1, flat, 1.0).view(-1, 1, SIZE, SIZE, SIZE)


def heat_maps(points: Tensor) -> Tensor:
    """A Gaussian about the highest point's cell, its peak 1."""
    top = points[torch.arange(len(points)), points[..., 2].argmax(1)]
    centre = ((top / 2 + 0.5) * SIZE).clamp(3, SIZE - 3)
    axis = torch.arange(SIZE) + 0.5
    each = [torch.exp(-((axis - centre[:, i : i + 1]) ** 2) / (2 * SIGMA**2)) for i in range(3)]
    return torch.einsum("bi,bj,bk->bijk", *each)[:, None]


def make_maps(folder: Path, *, model: nn.Module | None = None, loss: Loss | None = None) -> TrainingSetup:
    """A run whose batches hold `heatmaps` and whose model answers `likelihood`."""

    def edit(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
        return {**batch, "heatmaps": heat_maps(batch["points"])}

    built = make(folder)
    fields = {**built.data.train.dataset.info.fields, "heatmaps": Field("1 S S S", "float32", "", "", 0, 1)}
    built = with_data(built, lambda inner: Wrapped(inner, edit, fields=fields))
    torch.manual_seed(0)
    model = Maps() if model is None else model
    losses = {"mean_square": MeanSquare() if loss is None else loss}
    task = Supervised(losses=losses, **subject_of(built, model))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.1, "base_lr": 0.1}])
    job = dataclasses.replace(built.job, model=model, task=task, optimizer=optimizer, loss_weights={"mean_square": 1.0})
    config = dataclasses.replace(built.config, losses=(ComponentConfig("mean_square"),))
    return dataclasses.replace(built, job=job, config=config)
