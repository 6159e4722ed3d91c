"""Layers and losses with a wrong forward or backward pass, or that lose precision, are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pointnet import PointNetPlainOutput
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.layers.surrogates import surrogate_gradient
from sightline.workbench.check.checks.layers import layer_drift, layer_forward, layer_gradient, unverified_layers
from sightline.workbench.check.suite import run_all
from tests.doctor.oracles.test_examine import Scaled, SumsInHalf
from tests.doctor.oracles.test_references import Biased
from tests.doctor.oracles.test_squares import Divided, Halved
from tests.doctor.planting import assert_complete, make, with_model
from tests.doctor.regressing import Maps, MeanSquare, context_of, make_maps

CHECKS = (layer_forward, layer_gradient, layer_drift)


class Shifted(nn.Conv3d):
    """Pads one side twice, and the other not."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv3d(F.pad(input, (2, 0, 1, 1, 1, 1)), self.weight, self.bias)


class CutOff(MeanSquare):
    """Part of the gradient is lost on the way."""

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood * (likelihood.detach() - 2 * heatmaps)).sum() + heatmaps.square().sum()


class Swapped(nn.Module):
    """A head of a user's own between the encoder and the last layer of a classifier."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.1), layer, nn.Linear(3, 12))

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.net(points.mean(dim=1))}


def found_in(built: TrainingSetup) -> list[Finding]:
    context = context_of(built)
    return [finding for each in CHECKS for finding in each(context)]


def of_maps(tmp_path: Path, *, model: nn.Module | None = None, loss: Any = None) -> Finding:
    (finding,) = found_in(make_maps(tmp_path, model=model, loss=loss))
    assert_complete(finding)
    return finding


def with_layer(place: int, layer: nn.Module) -> Maps:
    model = Maps()
    model.inner[place] = layer
    return model


def test_a_healthy_network_of_volumes(tmp_path: Path) -> None:
    context = context_of(make_maps(tmp_path))
    assert [finding for each in CHECKS for finding in each(context)] == []
    (note,) = unverified_layers(context)
    assert note.severity == "note"
    assert note.summary == "8 checked, 1 half-checked of 9 kinds of layers and losses"
    table = note.evidence["table"]
    assert len(table["rows"]) == 9
    assert table["rows"][-1][0] == "mean_square"
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert "Maps '(the whole model)' half-checked" in note.measured
    assert_complete(note)


def test_a_convolution_that_pads_wrongly(tmp_path: Path) -> None:
    finding = of_maps(tmp_path, model=with_layer(4, Shifted(4, 16, 3, padding=1)))
    assert (finding.code, finding.cause, finding.where.layer) == ("layer-forward", "model.structure", "inner.4")
    assert finding.where.file == __file__


def test_a_batch_norm_that_remembers_the_biased_variance(tmp_path: Path) -> None:
    finding = of_maps(tmp_path, model=with_layer(1, Biased(4)))
    assert (finding.code, finding.cause, finding.where.layer) == ("layer-forward", "model.norm_mode", "inner.1")
    assert "running variance" in finding.summary


@pytest.mark.parametrize(
    ("loss", "code", "cause", "told"),
    [
        (Halved(), "layer-forward", "loss.form", "times 0.5"),
        (Divided(), "layer-forward", "loss.normaliser", "times 0.00025"),
        (CutOff(), "layer-gradient", "loss.detached", "'likelihood'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses(tmp_path: Path, loss: Any, code: str, cause: str, told: str) -> None:
    finding = of_maps(tmp_path, loss=loss)
    assert (finding.code, finding.cause, finding.where.config_path) == (code, cause, "losses.0")
    assert told in finding.summary


class Stopped(MeanSquare):
    """A gradient that is no derivative, as it is meant to be."""

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return (likelihood * stop(likelihood)).sum() - 2 * (likelihood * heatmaps).sum() + heatmaps.square().sum()


@surrogate_gradient
def stop(values: Tensor) -> Tensor:
    return values.detach()


def test_a_loss_with_a_declared_surrogate_gradient(tmp_path: Path) -> None:
    context = context_of(make_maps(tmp_path, loss=Stopped()))
    assert [finding for each in CHECKS for finding in each(context)] == []
    (note,) = unverified_layers(context)
    assert "1 declared of 9 kinds of layers and losses; surrogate gradients of stop" in note.summary
    assert "mean_square 'mean_square' declared (surrogate gradient of stop)" in note.measured


class Jittered(MeanSquare):
    """Draws what it adds to its target."""

    def forward(self, *, likelihood: Tensor, heatmaps: Tensor) -> Tensor:
        return super().forward(likelihood=likelihood, heatmaps=heatmaps + 0.1 * torch.randn_like(heatmaps))


def test_a_loss_that_draws_is_not_inexact(tmp_path: Path) -> None:
    assert "layer-drift" not in {finding.code for finding in found_in(make_maps(tmp_path, loss=Jittered()))}


@pytest.mark.parametrize(
    ("layer", "code", "cause"),
    [(Scaled(0.9), "layer-gradient", "model.numerics"), (SumsInHalf(), "layer-drift", "model.numerics")],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_ones_own(tmp_path: Path, layer: nn.Module, code: str, cause: str) -> None:
    torch.manual_seed(0)
    found = found_in(with_model(make(tmp_path), Swapped(layer)))
    assert [(finding.code, finding.cause, finding.where.layer) for finding in found] == [(code, cause, "net.2")]
    assert_complete(found[0])


def test_the_suite_takes_them_along_when_asked(tmp_path: Path) -> None:
    built = make(tmp_path)
    quick = {finding.code for finding in run_all(built, World())}
    findings = run_all(built, World(), deep=True)
    deep = {finding.code for finding in findings}
    assert deep - quick == {"unverified-layers"}
    assert [finding for finding in findings if finding.severity != "note"] == []
    assert {finding.phase for finding in findings if finding.code in deep - quick} == {"deep"}
