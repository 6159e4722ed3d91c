"""Networks of a user's own: each planted bug is found first, with its cause, at its layer; healthy ones are silent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.modes import judge_draws
from sightline.workbench.check.checks.model.symmetry import judge_pixels, judge_points
from sightline.workbench.check.core.model_probe import ModelProbe
from sightline.workbench.check.suite import run_quick
from tests.doctor.own_network_bugs import BUGS, ViewedClouds
from tests.doctor.own_networks import HEALTHY, CloudNet, Logits, PartNet, findings_of, run_with
from tests.doctor.planting import assert_complete
from tests.marks import long_but
from tests.models.small_models import LARGER, make_inputs, small_model

ONE_EACH = list({(bug.code, bug.cause): name for name, bug in BUGS.items()}.values())
"""A bug for each check and cause; the others run in `make test-long`."""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
@pytest.mark.parametrize("name", long_but(ONE_EACH, BUGS))
def test_a_planted_bug_comes_first_with_its_cause(name: str, seed: int) -> None:
    bug = BUGS[name]
    findings = findings_of(bug.task, bug.model, seed=seed, deep=bug.is_deep)
    told = "\n".join(map(str, findings))
    assert (findings[0].code, findings[0].cause) == (bug.code, bug.cause), told
    assert bug.layer is None or (findings[0].where.layer or "") == bug.layer, told
    assert_complete(findings[0])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
@pytest.mark.parametrize("task", HEALTHY)
def test_networks_without_a_bug_are_healthy(task: str, seed: int) -> None:
    findings = findings_of(task, HEALTHY[task], seed=seed, deep=True)
    assert [f for f in findings if f.severity != "note"] == [], "\n".join(map(str, findings))


@pytest.mark.parametrize("name", long_but({*registry.models.names()} - LARGER, registry.models.names()))
def test_no_model_of_the_package_is_flagged(name: str) -> None:
    torch.manual_seed(0)
    model = small_model(name)
    for parameter in model.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # a layer that starts at 0 would hide what comes before it
    inputs = make_inputs(model, 3)
    faults = [judge(ModelProbe(model, inputs, is_double=True)) for judge in (judge_points, judge_pixels, judge_draws)]
    assert faults == [None, None, None]


class Tracked(PartNet):
    """The same, with statistics that it updates by itself, and a dropout that it names."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.register_buffer("running_scale", torch.ones(()))
        self.register_buffer("steps_of_ema", torch.zeros((), dtype=torch.long))

    def enter(self, points: Tensor) -> Tensor:
        if self.training:
            self.running_scale.mul_(0.9).add_(0.1 * points.detach().abs().max())
        return nn.functional.dropout(points, 0.01, self.training) / self.running_scale


class Ordered(CloudNet):
    """A network of points in order, which declares it."""

    reads_order = True

    def between(self, rows: Tensor) -> Tensor:
        return rows * torch.linspace(0.5, 1.5, rows.shape[1])[:, None]


class Nearest(CloudNet):
    """Features of neighbours, and a T-Net that turns the cloud: symmetric in the points."""

    def enter(self, points: Tensor) -> Tensor:
        turn = points.amax(dim=1)[:, None, :] * torch.eye(3)
        index = torch.cdist(points, points).topk(4, largest=False).indices
        grouped = points.gather(1, index.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, index.shape[1:])
        return (grouped - points[:, :, None]).abs().amax(dim=2) + points @ turn


class Tied(CloudNet):
    """One layer called twice under one name, and weights of another used by hand."""

    def between(self, rows: Tensor) -> Tensor:
        return self.second(self.second(rows)) + nn.functional.linear(rows, self.second.linear.weight)


class Lazy(CloudNet):
    """A table that is made at the first call, of the points' dtype and device."""

    def between(self, rows: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.linspace(0.5, 1.5, rows.shape[-1]).to(rows), persistent=False)
        return rows * self.table


@pytest.mark.parametrize("model", [Ordered, Nearest, Tied, Lazy])
def test_unusual_networks_are_healthy(model: type[nn.Module]) -> None:
    findings = findings_of("classify", model)
    assert [f for f in findings if f.severity != "note"] == [], "\n".join(map(str, findings))


def test_statistics_of_ones_own_that_move_are_healthy() -> None:
    findings = findings_of("parts", Tracked)
    assert [f for f in findings if f.severity != "note"] == [], "\n".join(map(str, findings))


class Flat(CloudNet):
    """The points in a row, for layers of their own: legal, and it depends on their order."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.flat = nn.Linear(32 * 3, num_classes)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": super().forward(points=points)["logits"] + self.flat(points.flatten(1))}


def test_a_network_that_reads_the_points_in_a_row_is_only_warned_of() -> None:
    (finding,) = (f for f in findings_of("classify", Flat) if f.severity != "note")
    assert (finding.code, finding.severity, finding.cause) == ("point-order", "warning", "model.structure")
    assert "reads_order" in finding.action


def test_every_training_finds_what_is_cheap(tmp_path: Path) -> None:
    built = run_with("classify", ViewedClouds, tmp_path)
    assert [f.code for f in run_quick(built, World()) if f.severity == "error"] == ["point-order"]


class _Square(nn.Module):
    """A network with an output (B, 24, 24) of the whole cloud: by chance as many rows as a cloud of 24 points has."""

    def __init__(self, *, num_classes: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        self.embed, self.classify = nn.Linear(in_channels, 24 * 24), nn.Linear(24 * 24, num_classes)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        pooled = self.embed(points).amax(dim=1)
        return {"logits": self.classify(pooled), "transform": pooled.view(-1, 24, 24)}


class _Sorted(nn.Module):
    """A network whose outputs are in the order of a coordinate, not in that of their points."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        order = points[..., :1].argsort(dim=1).expand_as(points)
        return {"rows": self.embed(points.gather(1, order))}


def test_an_output_is_not_of_points_because_it_is_as_large() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 24, 3).double()
    assert judge_points(ModelProbe(_Square(), {"points": points}, is_double=True)) is None
    points = torch.randn(1, 4, 3).double()  # logits (1, 4), as many as there are points
    assert judge_points(ModelProbe(_Square(), {"points": points}, is_double=True)) is None
    points = torch.randn(2, 100, 3).double()
    fault = judge_points(ModelProbe(_Sorted(), {"points": points}, is_double=True))
    assert fault is not None
    assert "'rows'" in fault.summary
