"""Guards G10, G20 and G22 at the first step: gradients, initial weights, the last activation, the first mean square."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig
from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.outputs import final_activation
from sightline.workbench.check.checks.weights import find_scheme
from sightline.workbench.check.context import Context
from tests.cases import run_each
from tests.doctor.planting import assert_complete, caught, losses_of, make, with_losses, with_model
from tests.doctor.regressing import MapOutput, Maps, context_of, heat_maps, make_maps

FIRST = (final_activation,)


def warnings_of(context: Context, check: Any) -> list[Any]:
    found = [finding for finding in check(context) if finding.severity != "note"]
    for finding in found:
        assert_complete(finding)
    return found


def test_a_healthy_network_of_volumes(tmp_path: Path) -> None:
    context = context_of(make_maps(tmp_path))
    assert [finding for check in FIRST for finding in warnings_of(context, check)] == []


@pytest.mark.parametrize("model", ["pointnet", "pointnet_plain", "dgcnn"])
def test_healthy_classifiers(tmp_path: Path, model: str) -> None:
    more = ", num_neighbours: 8, embedding: 64" if model == "dgcnn" else ""
    context = Context(make(tmp_path, f"model={{name: {model}{more}}}"), World())
    assert [finding for check in FIRST for finding in warnings_of(context, check)] == []


# --- the last activation ---------------------------------------------------------------------------------------------


class Lowered(nn.Module):
    """A ReLU of values that all begin below 0: nothing will ever move."""

    def forward(self, values: Tensor) -> Tensor:
        return (values - 0.1).relu()


@pytest.mark.parametrize(
    ("last", "severity", "layer"),
    [
        (nn.ReLU(), "warning", "last"),
        (nn.ReLU(inplace=True), "warning", "last"),
        (Lowered(), "error", "last"),
        (nn.Sequential(nn.ReLU(), nn.Identity()), "warning", "last.0"),
    ],
)
def test_a_relu_at_the_end_of_heat_maps(tmp_path: Path, last: nn.Module, severity: str, layer: str) -> None:
    (finding,) = warnings_of(context_of(make_maps(tmp_path, model=Maps(last))), final_activation)
    assert (finding.cause, finding.severity, finding.where.layer) == ("model.activation", severity, layer)
    assert "'relu'" in finding.measured


@pytest.mark.parametrize(
    ("last", "told"), [(nn.ReLU(), "'relu'"), (nn.Sigmoid(), "'sigmoid'"), (nn.Softplus(), "'softplus'")], ids=repr
)
def test_targets_that_the_last_layer_cannot_give(tmp_path: Path, last: nn.Module, told: str) -> None:
    built = make_maps(tmp_path, model=Maps(last), target=lambda points: heat_maps(points) - 0.5)
    (finding,) = warnings_of(context_of(built), final_activation)
    assert (finding.cause, finding.severity) == ("model.activation", "error")
    assert told in finding.summary
    assert "-0.5" in finding.measured


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU()], ids=repr)
def test_ends_that_reach_their_targets(tmp_path: Path, last: nn.Module) -> None:
    assert warnings_of(context_of(make_maps(tmp_path, model=Maps(last))), final_activation) == []


def test_a_relu_for_depths_is_legal(tmp_path: Path) -> None:
    """Targets far above 0, and every output alive."""
    model = Maps(nn.ReLU())
    nn.init.constant_(model.final.bias, 0.5)  # type: ignore[arg-type]
    built = make_maps(tmp_path, model=model, target=lambda points: 1 + heat_maps(points))
    assert warnings_of(context_of(built), final_activation) == []


def test_a_relu_with_live_gradients_is_legal_for_targets_from_0(tmp_path: Path) -> None:
    """Most targets are just above 0, where a ReLU may end as well: none of its outputs is 0 yet."""
    model = Maps(nn.ReLU())
    nn.init.constant_(model.final.bias, 0.05)  # type: ignore[arg-type]
    assert warnings_of(context_of(make_maps(tmp_path, model=model)), final_activation) == []


class Ended(PointNetPlain):
    """A classifier with an activation at the very end."""

    end: nn.Module

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        return {"logits": self.end(super().forward(points=points, features=features)["logits"])}


@pytest.mark.parametrize(
    ("end", "cause", "severity", "told"),
    [
        # ln(1 + 11 / e) and ln(1 + 11 e^-2), by hand
        (nn.Softmax(dim=-1), "loss.double_softmax", "error", "1.619"),
        (nn.Sigmoid(), "model.activation", "error", "1.619"),
        (nn.Tanh(), "model.activation", "error", "0.9118"),
        (nn.ReLU(), "model.activation", "warning", "gets no gradient"),
    ],
    ids=lambda value: repr(value),
)
def test_logits_that_end_in_an_activation(tmp_path: Path, end: nn.Module, cause: str, severity: str, told: str) -> None:
    model = Ended(num_classes=12, in_channels=3, embedding=32, dropout=0.0)
    model.end = end
    finding = caught(with_model(make(tmp_path), model), "final-activation", cause, severity)
    assert told in finding.summary


# --- losses of features, which have no targets in the data ------------------------------------------------------------


class Hidden(TypedDict):
    """Logits, and the features that they are made of."""

    logits: Tensor
    features: Tensor


class Featured(nn.Module):
    """A classifier whose features are rectified, as those of hidden layers are."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 16), nn.Linear(16, 12)
        self.end = nn.Identity() if end is None else end

    def forward(self, *, points: Tensor) -> Hidden:
        features = self.body(points).amax(dim=1).relu()
        return {"logits": self.end(self.head(features)), "features": features.view(-1, 16)}


class Centres(Loss):
    """Source: Wen et al. 2016, equation 2. `learns` makes the centres parameters; else they are numbers it keeps."""

    def __init__(self, *, learns: bool, size: float = 1.0) -> None:
        super().__init__()
        centres = size * torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
        self.centres = nn.Parameter(centres) if learns else centres

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(len(label))

    def forward(self, *, features: Tensor, label: Tensor) -> Tensor:
        return (features - self.centres[label].to(features)).square().sum()


def centred(folder: Path, loss: Loss, model: nn.Module | None = None) -> Context:
    built = with_model(make(folder), model or Featured())
    losses = {**losses_of(built), "centres": loss}
    built = with_losses(built, losses)
    config = dataclasses.replace(built.config, losses=(*built.config.losses, ComponentConfig("centres")))
    job = dataclasses.replace(built.job, loss_weights={**built.job.loss_weights, "centres": 0.1})
    return context_of(dataclasses.replace(built, config=config, job=job))


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0])
def test_a_centre_loss_raises_no_alarm(tmp_path: Path, learns: bool, size: float) -> None:
    """Its features are rectified on purpose, and its centres are no targets."""
    for seed in range(3):
        torch.manual_seed(seed)
        context = centred(tmp_path, Centres(learns=learns, size=size))
        assert final_activation(context) == []


def test_logits_beside_a_centre_loss_are_still_looked_at(tmp_path: Path) -> None:
    (finding,) = warnings_of(centred(tmp_path, Centres(learns=True), Featured(nn.Sigmoid())), final_activation)
    assert finding.cause == "model.activation"
    assert "cross_entropy" in finding.summary


class TwoStaged(Maps):
    """Heat maps that end in a ReLU, and a second output that is computed from them."""

    def forward(self, *, points: Tensor) -> MapOutput:
        likelihood = super().forward(points=points)["likelihood"].relu()
        extras: Any = {"height": likelihood.mean(dim=(2, 3, 4))}
        return {"likelihood": likelihood, **extras}


def test_a_hidden_output_with_targets_in_the_data_is_looked_at(tmp_path: Path) -> None:
    (finding,) = warnings_of(context_of(make_maps(tmp_path, model=TwoStaged())), final_activation)
    assert finding.cause == "model.activation"


# --- sizes at the start ----------------------------------------------------------------------------------------------


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
