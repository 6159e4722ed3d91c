"""Layers with a wrong forward or backward pass are named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pointnet import PointNetPlainOutput
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.examination import RunExamination
from sightline.workbench.check.layer_rules import layer_forward, layer_gradient
from sightline.workbench.check.suite import run_all
from tests.doctor.oracles.test_examine import Scaled
from tests.doctor.planting import assert_complete, judge, make, with_model
from tests.doctor.regressing import Maps, make_maps

RULES = (layer_forward, layer_gradient)


class Shifted(nn.Conv3d):
    """Pads one side twice, and the other not."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv3d(F.pad(input, (2, 0, 1, 1, 1, 1)), self.weight, self.bias)


class Swapped(nn.Module):
    """A head of a user's own between the encoder and the last layer of a classifier."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.1), layer, nn.Linear(3, 12))

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.net(points.mean(dim=1))}


def found_in(built: TrainingSetup) -> list[Finding]:
    context = Context(built, World())
    assert context.dry_run.failure is None
    found = [finding for each in RULES for finding in judge(each, context, deep=context)]
    assert context.examination.gaps == []
    return found


def with_layer(place: int, layer: nn.Module) -> Maps:
    model = Maps()
    model.inner[place] = layer
    return model


def test_a_healthy_network_of_volumes(tmp_path: Path) -> None:
    assert found_in(make_maps(tmp_path)) == []


def test_a_convolution_that_pads_wrongly(tmp_path: Path) -> None:
    (finding,) = found_in(make_maps(tmp_path, model=with_layer(4, Shifted(4, 16, 3, padding=1))))
    assert_complete(finding)
    assert (finding.code, finding.cause, finding.where.layer) == ("layer-forward", "model.structure", "inner.4")
    assert finding.where.file == __file__


def test_a_layer_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (found,) = found_in(with_model(make(tmp_path), Swapped(Scaled(0.9))))
    assert (found.code, found.cause, found.where.layer) == ("layer-gradient", "model.numerics", "net.2")
    assert_complete(found)


def test_the_suite_takes_them_along_when_asked(tmp_path: Path) -> None:
    built, quick, deep = make(tmp_path), RunExamination(), RunExamination()
    run_all(built, World(), examination=quick)
    findings = run_all(built, World(), deep=True, examination=deep)
    judged = [set(each.to_dict()["judged"]) for each in (quick, deep)]
    assert {relation.partition(":")[0] for relation in judged[1] - judged[0]} == {"layer-forward", "layer-gradient"}
    assert [finding for finding in findings if finding.severity != "note"] == []
    assert any("single layers" in gap for gap in quick.gaps)
    assert not any("layer" in gap for gap in deep.gaps)
    _, not_judged, action = deep.to_dict()["verdict"]
    assert "the steps of the training" in not_judged
    assert action.endswith("`sightline train` judges its steps itself")
