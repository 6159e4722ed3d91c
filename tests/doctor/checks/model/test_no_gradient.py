"""Parameters that no gradient reaches, that no optimiser holds, or that are not registered."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.contract import registry
from sightline.engine.distributed import World
from sightline.parts.losses.classification import CrossEntropy
from sightline.workbench.check.checks.model.no_gradient import no_gradient
from sightline.workbench.check.context import Context
from sightline.workbench.check.suite import run_all
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_healthy, caught, make, with_losses, with_model


class TwoHeads(TypedDict):
    logits: Tensor
    depth: Tensor


class Plain(PointNetPlain):
    def __init__(self) -> None:
        super().__init__(num_classes=12, in_channels=3, embedding=32, dropout=0.0)


class InAList(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(32, 32), nn.Linear(32, 32)]

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        pooled = self.encode(points)
        for layer in self.hidden:
            pooled = pooled + layer(pooled).tanh()
        return {"logits": self.head(pooled)}


class InADict(Plain):
    def __init__(self) -> None:
        super().__init__()
        self._scales = {"a": nn.Parameter(torch.ones(32))}

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        return {"logits": self.head(self.encode(points) * self._scales["a"])}


class WithTeacher(Plain):
    """A frozen model kept out of the state on purpose, and a trainable one that is only asked without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.teachers = [nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)]

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        with torch.no_grad():
            points = points + 0 * self.teachers[1](points) + 0 * self.teachers[0](points)
        return super().forward(points=points)


class SecondHead(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Linear(32, 1)

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> TwoHeads:
        pooled = self.encode(points)
        return {"logits": self.head(pooled), "depth": self.depth(pooled)}


class Forgotten(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(3, 3)


class Detached(Plain):
    """The encoder runs without gradient, though nobody said that it should rest."""

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        with torch.no_grad():
            pooled = self.encode(points)
        return {"logits": self.head(pooled)}


class DetachedByName(Plain):
    """Uses the weights of a part that it does not call, by keyword and without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(32, 32)

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        pooled = self.encode(points)
        with torch.no_grad():
            moved = F.linear(pooled, weight=self.extra.weight, bias=self.extra.bias)
        return {"logits": self.head(pooled + moved)}


class Sometimes(Plain):
    """Layer drop: one layer rests in every other pass."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(32, 32)
        self.calls = 0

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        self.calls += 1
        pooled = self.encode(points)
        return {"logits": self.head(pooled + self.extra(pooled) if self.calls % 2 == 0 else pooled)}


class Cut(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits.detach(), label=label)


class Half(CrossEntropy):
    """Takes `depth`, and only through a detach."""

    def forward(self, *, logits: Tensor, depth: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits, label=label) + depth.detach().square().sum() * 0


@pytest.mark.parametrize(("model", "attribute"), [(InAList, "hidden"), (InADict, "_scales")])
def test_layers_in_a_plain_container(tmp_path: Path, model: type[nn.Module], attribute: str) -> None:
    finding = caught(with_model(make(tmp_path), model()), "no-gradient", "model.unregistered")
    assert f"'{attribute}'" in finding.summary
    assert finding.where.layer == model.__name__
    assert finding.where.param == attribute


def test_hidden_models_that_are_not_trained_on_purpose(tmp_path: Path) -> None:
    assert_healthy(with_model(make(tmp_path), WithTeacher()))


def test_an_output_that_no_loss_reads(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), SecondHead()), "no-gradient", "model.structure")
    assert finding.alternatives[0] == "dist.unused_params"
    assert finding.evidence["parameters"] == ["depth.weight", "depth.bias"]
    assert "outputs depth" in finding.measured
    assert finding.where.layer == "depth"


def test_images_that_no_loss_compares(tmp_path: Path) -> None:
    """CrossPoint with the clouds' loss alone: its image branch learns nothing, and is no matter of a detach()."""
    views = "[{name: two_views, each: [{name: jitter}]}, {name: normalize_image}]"
    built = make_pairs(
        tmp_path,
        "data.views={count: 2, size_px: 16}",
        f"transforms.train={views}",
        f"transforms.evaluate={views}",
        "model={name: crosspoint, points: {name: dgcnn, num_neighbours: 8, embedding: 16}, embedding: 16, "
        "images: {name: vit, size_px: 16, patch_px: 8, width: 24, depth: 1, num_heads: 2}}",
    )
    (finding,) = no_gradient(Context(built, World()))
    assert finding.cause == "model.structure"
    assert "only the outputs pictured depend on them, which no loss reads" in finding.measured


def test_an_output_that_no_loss_reads_on_several_processes(tmp_path: Path) -> None:
    built = with_model(make(tmp_path), SecondHead())
    findings = no_gradient(Context(built, World(rank=0, size=2)))
    assert [finding.cause for finding in findings] == ["dist.unused_params"]


def test_a_module_that_never_runs(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), Forgotten()), "no-gradient", "model.structure")
    assert "never ran" in finding.measured
    assert re.search(r"in \d+ micro-batches", finding.measured)  # as many as its time allows


def test_a_module_that_runs_without_gradient(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), Detached()), "no-gradient", "model.frozen_unintended")
    assert finding.where.param == "encode.0.linear.weight"


def test_weights_that_are_read_by_keyword_have_run(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), DetachedByName()), "no-gradient", "model.frozen_unintended")
    assert finding.where.param == "extra.weight"


def test_a_loss_that_is_cut_off(tmp_path: Path) -> None:
    finding = caught(
        with_losses(make(tmp_path), {"cross_entropy": Cut(num_classes=12)}), "no-gradient", "loss.detached"
    )
    assert finding.where.config_path == "losses.0"


def test_a_loss_that_reads_an_output_without_gradient(tmp_path: Path) -> None:
    built = with_losses(with_model(make(tmp_path), SecondHead()), {"cross_entropy": Half(num_classes=12)})
    finding = caught(built, "no-gradient", "loss.detached")
    assert finding.evidence["parameters"] == ["depth.weight", "depth.bias"]


def test_a_layer_that_rests_now_and_then(tmp_path: Path) -> None:
    assert_healthy(with_model(make(tmp_path), Sometimes()))


def test_parameters_outside_the_optimiser(tmp_path: Path) -> None:
    built = make(tmp_path)
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    job = dataclasses.replace(built.job, optimizer=recipe.build(built.job.model.head))
    finding = caught(dataclasses.replace(built, job=job), "no-gradient", "optim.param_coverage")
    assert finding.where.param == "encode.0.linear.weight"
    assert finding.evidence["num_parameters"] == 15


def test_an_optimiser_of_another_copy(tmp_path: Path) -> None:
    """The optimiser was made, then the model was copied: what it moves is not what is evaluated."""
    built = make(tmp_path)
    job = dataclasses.replace(built.job, model=copy.deepcopy(built.job.model))
    finding = caught(dataclasses.replace(built, job=job), "no-gradient", "optim.param_coverage")
    assert "belong to another object" in finding.measured


def test_parameters_frozen_by_declaration(tmp_path: Path) -> None:
    assert_healthy(make(tmp_path, "optimizer.frozen=[{modules: encode}]"))
    assert_healthy(make(tmp_path, "optimizer.frozen=[{modules: encode.0, until_epoch: 1}]"))


def test_a_loss_of_frozen_modules_alone(tmp_path: Path) -> None:
    """The penalty sees nothing but modules that are to rest: useless, but what the config says."""
    overrides = (
        "model={name: pointnet}",
        "losses=[{name: cross_entropy}, {name: feature_transform_penalty}]",
        "optimizer.frozen=[{modules: input_alignment}, {modules: embed}, {modules: feature_alignment}]",
    )
    assert_healthy(make(tmp_path, *overrides))


def test_parameters_frozen_without_declaration(tmp_path: Path) -> None:
    built = make(tmp_path)
    model = Plain()
    model.encode[0].requires_grad_(False)
    finding = caught(with_model(built, model), "no-gradient", "model.frozen_unintended", "warning")
    assert finding.where.param == "encode.0.linear.weight"


class Constant(CrossEntropy):
    """A loss with a gradient of exactly 0."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return logits.sum() * 0 + super().forward(logits=logits.detach(), label=label)


class Rounded(Plain):
    """A network that rounds its outputs, which passes no gradient."""

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": (super().forward(points=points)["logits"] * 20).round() / 20}


def test_a_constant_loss_comes_before_dead_units(tmp_path: Path) -> None:
    built = make(tmp_path)
    findings = run_all(with_losses(built, {"cross_entropy": Constant(num_classes=12)}), World(), deep=True)
    assert (findings[0].code, findings[0].cause) == ("no-gradient", "loss.detached"), "\n".join(map(str, findings))
    assert "every gradient is exactly 0" in findings[0].summary


class AllIgnored(CrossEntropy):
    """The loss of a step whose labels are all ignored."""

    def count(self, *, label: Tensor) -> Tensor:
        return torch.zeros(())

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return logits.sum() * 0


def test_a_step_in_which_nothing_counts_is_not_the_loss(tmp_path: Path) -> None:
    built = with_losses(make(tmp_path), {"cross_entropy": AllIgnored(num_classes=12)})
    (found,) = no_gradient(Context(built, World()))
    assert (found.severity, found.cause) == ("warning", "data.ignore_handling")
    assert "no loss counts anything in the first step" in found.summary
    assert found.measured == "a count of 0 for cross_entropy in 4 samples"


def test_a_network_that_passes_no_gradient_is_not_the_loss(tmp_path: Path) -> None:
    findings = run_all(with_model(make(tmp_path), Rounded()), World())
    found = next(finding for finding in findings if "every gradient is exactly 0" in finding.summary)
    assert found.cause == "model.activation"
