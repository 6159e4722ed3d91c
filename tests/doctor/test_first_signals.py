"""Schemes of initial weights, and losses of constant answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlainOutput
from sightline.engine.distributed import World
from sightline.workbench.check.checks.loss_progress import trivial_predictions
from sightline.workbench.check.checks.weights import find_scheme
from sightline.workbench.check.context import Context
from tests.cases import run_each
from tests.doctor.planting import make
from tests.doctor.regressing import MapOutput, Maps, MeanSquare, context_of, make_maps


@run_each(
    "draw, told",
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=5**0.5), "torch's default"),
        (lambda w: nn.init.kaiming_normal_(w), "He, sqrt(2/fan_in)"),
        (lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"), "He, sqrt(2/fan_out)"),
        (lambda w: nn.init.xavier_normal_(w), "Glorot"),
        (lambda w: nn.init.normal_(w, std=1e-3), "N(0, 0.001)"),
        (lambda w: nn.init.trunc_normal_(w, std=0.02), "N(0, 0.02)"),
        (lambda w: nn.init.zeros_(w), "constant"),
    ],
)
def test_schemes_are_told_by_the_deviations(draw: Any, told: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        start = find_scheme("layer", draw(torch.empty(96, 400)))
        assert start.scheme is not None, start
        assert start.scheme.startswith(told), start
        assert start.std <= 3 * start.largest


def test_orthogonal_maps_to_more_channels() -> None:
    torch.manual_seed(0)
    start = find_scheme("layer", nn.init.orthogonal_(torch.empty(400, 96)))
    assert start.scheme is not None
    assert start.scheme.startswith("orthogonal")


def test_of_transposed_convolutions_the_first_axis_goes_in() -> None:
    torch.manual_seed(0)
    weight = nn.init.normal_(torch.empty(64, 4, 2, 2, 2), std=(2 / (64 * 8)) ** 0.5)
    start = find_scheme("layer", weight, is_transposed=True)
    assert start.scheme is not None
    assert start.scheme.startswith("He, sqrt(2/fan_in)")


class Few(nn.Module):
    """Units of which some are off for every sample, 10 of 16 or all, as chance has it or not."""

    def __init__(self, num_dead: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 12)
        with torch.no_grad():
            self.norm.bias[:num_dead] = -10.0

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.last(self.norm(self.first(points.mean(dim=1))).relu())}


class Deep(nn.Module):
    """Sigmoids one after the other: each takes a factor of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
        self.net = nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 12))

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.net(points.mean(dim=1))}


# --- the first mean square -------------------------------------------------------------------------------------------


class Peeking(Maps):
    """Is given the target as an input."""

    def forward(self, *, points: Tensor, heatmaps: Tensor) -> MapOutput:  # type: ignore[override]
        return {"likelihood": 0.9 * heatmaps + super().forward(points=points)["likelihood"]}


def test_the_losses_of_constant_answers_are_told(tmp_path: Path) -> None:
    context = context_of(make_maps(tmp_path))
    zero, middle = trivial_predictions(context)
    target = context.dry_run.batch["heatmaps"].double().numpy()
    assert zero.value == pytest.approx((target**2).mean())
    assert middle.value == pytest.approx(target.var())


def test_constant_answers_of_classifiers(tmp_path: Path) -> None:
    """Equal chances: ln 12; the classes' shares: the entropy of them."""
    (even,) = trivial_predictions(Context(make(tmp_path), World()))
    assert even.value == pytest.approx(2.484907, rel=1e-6)
    context = Context(make(tmp_path, "data.imbalance=50"), World())
    even, shares = trivial_predictions(context)
    assert even.value == pytest.approx(2.484907, rel=1e-6)
    census = next(each for each in context.class_counts if each is not None and each.split == "train")
    p = census.targets / census.targets.sum()
    assert shares.value == pytest.approx(-(p[p > 0] * torch.from_numpy(p[p > 0]).log().numpy()).sum(), rel=1e-6)


def test_a_penalty_has_no_constant_answers(tmp_path: Path) -> None:
    class Size(MeanSquare):
        def forward(self, *, likelihood: Tensor) -> Tensor:  # type: ignore[override]
            return likelihood.square().sum()

    context = context_of(make_maps(tmp_path, loss=Size()))
    assert list(trivial_predictions(context)) == []
