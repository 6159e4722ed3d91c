"""Sums of squares are found by what they do, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract.loss import Loss
from sightline.workbench.check.context import Context
from tests.doctor.regressing import MeanSquare, context_of, make_maps


class Masked(MeanSquare):
    """Of the upper half alone."""

    def count(self, *, heatmaps: Tensor) -> Tensor:
        return torch.tensor(heatmaps[:, :, 5:].numel())

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood - heatmaps)[:, :, 5:].square().sum()


class Rows(MeanSquare):
    """Squared distances of rows of ten cells."""

    def count(self, *, heatmaps: Tensor) -> Tensor:
        return torch.tensor(heatmaps.numel() // 10)


class Halved(MeanSquare):
    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return 0.5 * super().forward(likelihood=likelihood, heatmaps=heatmaps)


class Divided(MeanSquare):
    """Returns the mean, and counts as well."""

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return F.mse_loss(likelihood, heatmaps)


class Doubled(MeanSquare):
    """Of twice the target, which is no key of the batch."""

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood - 2 * heatmaps).square().sum()


class Absolute(MeanSquare):
    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood - heatmaps).abs().sum()


class Smooth(MeanSquare):
    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return F.smooth_l1_loss(likelihood, heatmaps, reduction="sum")


class OfSigmoid(MeanSquare):
    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood.sigmoid() - heatmaps).square().sum()


class Concave(MeanSquare):
    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return -(likelihood - heatmaps).square().sum()


@pytest.mark.parametrize(
    ("loss", "factor", "key"),
    [
        (MeanSquare(), 1.0, "heatmaps"),
        (Masked(), 1.0, "heatmaps"),
        (Rows(), 10.0, "heatmaps"),
        (Halved(), 0.5, "heatmaps"),
        (Divided(), 1 / 4000, "heatmaps"),
        (Doubled(), 1.0, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_squares(tmp_path: Path, loss: Loss, factor: float, key: str | None) -> None:
    squares = context_of(make_maps(tmp_path, loss=loss)).squared_losses["mean_square"]
    assert (squares.output_key, squares.target_key) == ("likelihood", key)
    assert squares.factor == pytest.approx(factor)


@pytest.mark.parametrize("loss", [Absolute(), Smooth(), OfSigmoid(), Concave()], ids=lambda value: type(value).__name__)
def test_other_losses(tmp_path: Path, loss: Loss) -> None:
    assert context_of(make_maps(tmp_path, loss=loss)).squared_losses == {}


@pytest.mark.parametrize("loss", [MeanSquare(), Masked(), Rows(), Halved(), Divided(), Doubled()])
def test_squares_are_found_at_the_start_of_a_training(tmp_path: Path, loss: Loss) -> None:
    whole = context_of(make_maps(tmp_path, loss=loss))
    quick = Context(whole.built, whole.world, 1.5)
    assert quick.squared_losses["mean_square"].factor == pytest.approx(whole.squared_losses["mean_square"].factor)
