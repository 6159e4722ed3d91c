"""Grid of optimisers and formats: six rows at the same rates, whose losses are those of plain loops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.loss import Loss
from sightline.engine.learnt_losses import LearntLosses
from sightline.workbench.fit.fit import fit_samples
from sightline.workbench.fit.grid import GridRow, fit_grid, list_rates
from tests.cases import run_each
from tests.doctor.planting import with_losses
from tests.fit import nets
from tests.fit.nets import run
from tests.limits import ENDLESS_S


def grid_of(built: Any, *, steps: int = 12, seconds: float = ENDLESS_S) -> tuple[GridRow, ...]:
    result = fit_samples(built, 3, lambda line: None, steps=steps)
    return fit_grid(built, result, lambda line: None, steps=steps, seconds=seconds)


def plain_losses(net: nn.Module, batch: Any, steps: int) -> list[float]:
    """Losses of Adam at a rate of 0.01 in float64, by a loop written out."""
    copied = nets.Net()
    copied.load_state_dict(net.state_dict())
    copied.double()
    optimizer, losses = torch.optim.Adam(copied.parameters(), lr=0.01), []
    for _ in range(steps):
        loss = F.cross_entropy(copied(points=batch["points"].double())["logits"], batch["label"])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_rows_have_the_same_rates_and_the_losses_of_plain_loops(tmp_path: Path) -> None:
    net = nets.Net()
    built = run(tmp_path, model=net)
    result = fit_samples(built, 3, lambda line: None, steps=12)
    rows = fit_grid(built, result, lambda line: None, steps=12, seconds=ENDLESS_S)
    optimizers = ["recipe (sgd)", "rmsprop", "adam"]
    assert [(row.precision, row.optimizer) for row in rows] == [
        (precision, name) for precision in ("float32", "float64") for name in optimizers
    ]
    assert {tuple(each.rate for each in row.attempts) for row in rows} == {(1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
    own = next(each for each in rows[0].attempts if each.rate == 0.1)
    assert own.losses == result.attempts[0].losses
    adam = next(each for each in rows[5].attempts if each.rate == 0.01)
    expected = plain_losses(net, result.samples.batch, len(adam.losses))
    assert adam.losses == pytest.approx(expected, rel=1e-10)
    fitted = {each.rate: each.fitted_after for each in rows[5].attempts if each.is_fitted}
    assert rows[5].best.fitted_after == min(fitted.values())


@run_each(
    "rate, rates",
    [
        (1e-2, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        (2.5e-4, (2.5e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        (1e-8, (1e-8, 1e-3, 1e-2, 1e-1, 1.0)),
        (30.0, (1e-4, 1e-3, 1e-2, 1e-1, 30.0)),
    ],
)
def test_the_recipes_rate_is_one_of_five(rate: float, rates: tuple[float, ...]) -> None:
    assert list_rates(rate) == rates


def test_no_optimiser_is_there_twice(tmp_path: Path) -> None:
    rows = grid_of(run(tmp_path, "optimizer={name: rmsprop, lr: 1e-3}", model=nets.Net()), steps=1)
    assert [row.optimizer for row in rows[:3]] == ["recipe (rmsprop)", "adam", "sgd"]


def test_the_time_is_bounded_and_named(tmp_path: Path) -> None:
    rows = grid_of(run(tmp_path, model=nets.Net()), seconds=0.0)
    assert {each.stop for row in rows for each in row.attempts} == {"time"}


class Scaled(Loss):
    """Cross entropy of logits times a number that is learnt, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def count(self, *, label: Tensor) -> Tensor:
        return (label >= 0).sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        assert self.scale.dtype == logits.dtype
        return F.cross_entropy(self.scale * logits, label, reduction="sum")


def test_losses_with_parameters_are_put_back_from_float64(tmp_path: Path) -> None:
    loss = Scaled()
    built = with_losses(run(tmp_path, model=nets.Net()), {"cross_entropy": loss})
    losses = LearntLosses({"cross_entropy": loss})
    rows = grid_of(dataclasses.replace(built, job=dataclasses.replace(built.job, losses=losses)), steps=4)
    assert len({each.losses[1] for row in rows[3:] for each in row.attempts}) == 15
    assert loss.scale.dtype == torch.float32
    assert loss.scale.item() == 1.0
