"""Sums of squares are found by what they do, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.loss import Loss
from sightline.workbench.check.context import Context
from sightline.workbench.check.oracles.derivatives import expected_factor, is_no_square
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


class Centres(MeanSquare):
    """Squared distances of rows of ten cells to a centre that the loss learns, times `share`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.centres = nn.Parameter(torch.linspace(-1, 1, 10))

    def count(self, *, heatmaps: Tensor) -> Tensor:
        return torch.tensor(heatmaps.numel() // 10)

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return self.share * (likelihood - self.centres).square().sum()


@pytest.mark.parametrize(
    ("loss", "factor", "key", "rightful"),
    [
        (MeanSquare(), 1.0, "heatmaps", 1.0),
        (Masked(), 1.0, "heatmaps", 1.0),
        (Rows(), 10.0, "heatmaps", 10.0),
        (Halved(), 0.5, "heatmaps", None),
        (Divided(), 1 / 4000, "heatmaps", None),
        (Doubled(), 1.0, None, 1.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_squares(tmp_path: Path, loss: Loss, factor: float, key: str | None, rightful: float | None) -> None:
    squares = context_of(make_maps(tmp_path, loss=loss)).squared_losses["mean_square"]
    assert (squares.output_key, squares.target_key) == ("likelihood", key)
    assert squares.factor == pytest.approx(factor)
    assert expected_factor(squares) == rightful


@pytest.mark.parametrize(
    ("share", "verdict", "off"),
    [
        (1.0, "half-checked", None),
        (0.5, "half-checked", None),  # the published form
        (0.05, "half-checked", None),  # half of a mean over all values
        (0.25, "wrong", 2.5),
        (0.7, "wrong", 7.0),
        (1 / 400, "wrong", 1 / 40),  # divided by its count of 400 rows already
    ],
)
def test_a_loss_that_learns_its_targets_may_be_halved(
    tmp_path: Path, share: float, verdict: str, off: float | None
) -> None:
    """Whatever else stands before the mean square is off by that factor of it, less the 1 that it is compared with."""
    context = context_of(make_maps(tmp_path, loss=Centres(share)))
    (row,) = (row for row in context.oracle_results if row.is_loss)
    assert row.verdict == verdict
    assert context.dry_run.outputs is not None
    output = context.dry_run.outputs["likelihood"].detach().double().numpy()
    mean = ((output - np.linspace(-1, 1, 10)) ** 2).mean()
    assert row.forward == (None if off is None else pytest.approx(abs(off - 1) * mean, rel=1e-6))


@pytest.mark.parametrize("loss", [Absolute(), Smooth(), OfSigmoid(), Concave()], ids=lambda value: type(value).__name__)
def test_other_losses(tmp_path: Path, loss: Loss) -> None:
    assert context_of(make_maps(tmp_path, loss=loss)).squared_losses == {}


@pytest.mark.parametrize("loss", [Absolute(), Smooth(), OfSigmoid()], ids=lambda value: type(value).__name__)
def test_other_losses_are_told_from_two_samples(tmp_path: Path, loss: Loss) -> None:
    (case,) = context_of(make_maps(tmp_path, loss=loss)).loss_cases
    assert is_no_square(case)


@pytest.mark.parametrize("loss", [MeanSquare(), Masked(), Rows(), Halved(), Divided(), Doubled()])
def test_squares_are_found_at_the_start_of_a_training(tmp_path: Path, loss: Loss) -> None:
    whole = context_of(make_maps(tmp_path, loss=loss))
    quick = Context(whole.built, whole.world, 1.5)
    assert not any(map(is_no_square, quick.loss_cases))
    assert quick.squared_losses["mean_square"].factor == pytest.approx(whole.squared_losses["mean_square"].factor)
