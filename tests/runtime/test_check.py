"""`sightline.check` of plain modules, of configs and of runs: the rules of `sightline check`, with plain words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.contract.errors import UserError
from tests.runtime.healthy_loops import batches, net
from tests.runtime.planted_loops import Cut, InList, Unused, frozen_weight

CONFIG = Path(__file__).resolve().parents[2] / "configs/classify/synthetic_shapes_pointnet.yaml"


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(10, 24), nn.Linear(24, 4)

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.body(points).relu()
        return self.head(hidden - hidden.mean(dim=0))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 3)

    def forward(self, points: Tensor, extra: Tensor) -> dict[str, Tensor]:
        return {"values": self.body(torch.cat([points, extra], dim=1))}


def negative(logits: Tensor, label: Tensor) -> Tensor:
    return -F.cross_entropy(logits, label)


def of_classes(logits: Tensor, label: Tensor) -> Tensor:
    return F.mse_loss(logits.argmax(dim=1).float(), label.float())


def with_root(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits, label) + (logits - logits.detach()).square().sum().sqrt()


PLANTS: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "layers in a list": (InList, F.cross_entropy, "error", "model.unregistered"),
    "features detached": (Cut, F.cross_entropy, "error", "loss.detached"),
    "a layer that never runs": (Unused, F.cross_entropy, "warning", "model.structure"),
    "a mean over the batch": (Leaky, F.cross_entropy, "error", "model.cross_sample_leak"),
    "softmax twice": (lambda: nn.Sequential(net(), nn.Softmax(dim=1)), F.cross_entropy, "error", "loss.double_softmax"),
    "frozen in part": (frozen_weight, F.cross_entropy, "warning", "model.frozen_unintended"),
    "wrong sign": (net, negative, "error", "loss.sign"),
    "NLL of logits": (net, F.nll_loss, "error", "loss.form"),
    "loss of classes": (net, of_classes, "error", "loss.detached"),
    "root of zero": (net, with_root, "error", "model.numerics"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_of_a_module_is_named(name: str) -> None:
    torch.manual_seed(0)
    make, loss, severity, cause = PLANTS[name]
    report = sightline.check(make(), loss, list(batches(2, size=32)))
    assert report.findings, name
    assert (report.findings[0].severity, report.findings[0].cause) == (severity, cause), str(report)
    for word in ("your_model", "optimizer.frozen", "the config", "recipe"):
        assert word not in str(report)


def frozen_backbone() -> nn.Module:
    model = nn.Sequential(net(), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    return model


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "classifier, loader": (net, nn.CrossEntropyLoss(label_smoothing=0.1), lambda: list(batches(3))),
    "weighted": (net, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 0.5])), lambda: next(batches(1))),
    "strong dropout": (lambda: net(dropout=0.9), F.cross_entropy, lambda: list(next(batches(1)))),
    "frozen backbone": (frozen_backbone, F.cross_entropy, lambda: next(batches(1))),
    "regression": (lambda: nn.Linear(10, 3), nn.MSELoss(), lambda: (torch.randn(16, 10), torch.randn(16, 3))),
    "two inputs, outputs by name": (
        TwoInputs,
        lambda outputs, target: F.l1_loss(outputs["values"], target),
        lambda: [({"points": torch.randn(16, 10), "extra": torch.randn(16, 2)}, torch.randn(16, 3))],
    ),
    "pixels": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        F.cross_entropy,
        lambda: (torch.randn(6, 3, 8, 9), torch.randint(4, (6, 8, 9))),
    ),
    "binary": (
        lambda: nn.Linear(10, 1),
        lambda output, target: F.binary_cross_entropy_with_logits(output[:, 0], target),
        lambda: (torch.randn(16, 10), torch.randint(2, (16,)).float()),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_module_raises_nothing_and_is_unchanged(name: str) -> None:
    torch.manual_seed(0)
    make, loss, data = HEALTHY[name]
    model, batch = make(), data()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    report = sightline.check(model, loss, batch, optimizer=optimizer)
    assert not [f for f in report.findings if f.severity != "note"], str(report)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert [
        {key: group[key] for key in old} for group, old in zip(optimizer.param_groups, groups, strict=True)
    ] == groups
    assert not optimizer.state


def test_an_optimiser_that_leaves_a_part_out_is_named() -> None:
    model = net()
    report = sightline.check(
        model, F.cross_entropy, next(batches(1)), optimizer=torch.optim.SGD(model[4].parameters(), lr=0.1)
    )
    assert [finding.cause for finding in report.findings][:1] == ["optim.param_coverage"], str(report)


def test_a_config_and_a_mapping_give_the_findings_of_the_command() -> None:
    tiny = {"name": "scale", "low": 0.001, "high": 0.001, "isotropic": True}
    whole = {"base": str(CONFIG), "transforms": {"train": [tiny]}}
    assert sightline.check(CONFIG).findings == []
    assert [finding.code for finding in sightline.check(whole).findings][:1] == ["dataset-mismatch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((net(),), "needs its loss and a batch"),
        ((CONFIG, F.cross_entropy), "belong to a module"),
        ((net(), F.cross_entropy, torch.randn(4, 10)), r"a batch is \(inputs, target\)"),
        ((net(), F.cross_entropy, []), "the loader has no batch"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sightline.check(*arguments)


@pytest.mark.parametrize(
    ("subject", "more", "message"),
    [
        (CONFIG, {"plugins": "mine.py"}, r"plugins: found the text 'mine.py', allowed is a list: \['mine.py'\]"),
        (CONFIG, {"overrides": "seed=1"}, r"overrides: found the text 'seed=1', allowed is a list: \['seed=1'\]"),
        (
            net(),
            {"declared": "idle", "loss": abs, "batch_or_loader": []},
            r"declared: found 'idle', allowed is a list of codes: \['idle'\]",
        ),
        (None, {}, "subject: found null, allowed is the path of a YAML file or a run directory, a dict, or a module"),
    ],
)
def test_arguments_of_another_type_are_named(subject: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sightline.check(subject, **more)


@pytest.mark.parametrize("num_fitting", [0, 14])
def test_a_label_out_of_range_is_found_in_the_whole_batch_and_names_no_file_of_the_package(num_fitting: int) -> None:
    """The few samples that are tried first may all fit the outputs."""
    labels = torch.cat([torch.arange(num_fitting) % 3, torch.full((16 - num_fitting,), 4)])
    torch.manual_seed(0)
    report = sightline.check(nn.Linear(8, 3), nn.CrossEntropyLoss(), (torch.randn(16, 8), labels))
    [finding] = [each for each in report.findings if each.code == "first-step"]
    assert (finding.severity, finding.cause, finding.where.file) == ("error", "data.label_mapping", None)
    assert "out of bounds" in finding.measured


def test_a_check_takes_several_optimizers_and_a_batch_in_one_argument() -> None:
    torch.manual_seed(0)
    pair = torch.nn.ModuleDict({"first": torch.nn.Linear(10, 4), "critic": torch.nn.Linear(4, 1)})

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = pair

        def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            points, mask = batch
            logits: torch.Tensor = self.parts["first"](points * mask)
            return logits

    optimizers = [torch.optim.Adam(part.parameters()) for part in pair.values()]
    inputs, label = torch.randn(16, 10), torch.arange(16) % 4
    report = sightline.check(
        Both(), torch.nn.CrossEntropyLoss(), ((inputs, torch.ones(16, 10)), label), optimizer=optimizers
    )
    assert [finding for finding in report.findings if finding.severity != "note"] == []
