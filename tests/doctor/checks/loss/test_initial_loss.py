"""The first loss against its definition, and fresh models that know too much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.parts.losses.classification import CrossEntropy
from sightline.parts.metrics.labels import Accuracy
from sightline.workbench.check.checks.initial_loss import _judge_definition, _make_case, _weighted_mean, initial_loss
from sightline.workbench.check.context import Context
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, assert_healthy, caught, make, with_data, with_losses, with_model
from tests.doctor.segmenting import with_metric

NUM_SAMPLES = 16


class Mean(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label)


class CountsOne(CrossEntropy):
    def count(self, *, label: Tensor) -> Tensor:
        return torch.ones(())


class Negative(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return -super().forward(logits=logits, label=label)


class OfProbabilities(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits.softmax(dim=1), label=label)


class Squared(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return (logits.softmax(dim=1) - F.one_hot(label, 12)).square().sum()


class Peeking(PointNetPlain):
    """Is given the label as an input."""

    def forward(self, *, points: Tensor, label: Tensor) -> PointNetPlainOutput:  # type: ignore[override]
        return {"logits": super().forward(points=points)["logits"] + 2.0 * F.one_hot(label, 12)}


def with_loss(tmp_path: Path, loss: nn.Module, *overrides: str) -> TrainingSetup:
    return with_losses(make(tmp_path, *overrides), {"cross_entropy": loss})


@pytest.mark.parametrize(
    ("loss", "cause", "ratio"),
    [
        (Mean(num_classes=12), "loss.normaliser", 1 / NUM_SAMPLES),
        (CountsOne(num_classes=12), "loss.normaliser", NUM_SAMPLES),
        (Negative(num_classes=12), "loss.sign", -1.0),
        (OfProbabilities(num_classes=12), "loss.double_softmax", None),
        (Squared(num_classes=12), "loss.form", None),
    ],
)
def test_what_is_no_cross_entropy(tmp_path: Path, loss: nn.Module, cause: str, ratio: float | None) -> None:
    finding = caught(with_loss(tmp_path, loss), "initial-loss", cause)
    assert finding.where.config_path == "losses.0"
    assert finding.where.line == 4
    if ratio is not None and cause != "loss.normaliser":
        assert finding.evidence["ratio"] == pytest.approx(ratio, rel=1e-4)
    elif ratio is not None:  # the number of samples, or one over it; a busy machine has time for fewer of them
        found = finding.evidence["ratio"]
        num_samples = round(max(found, 1 / found))
        assert num_samples in (2, 4, 8, NUM_SAMPLES)
        assert found == pytest.approx(float(num_samples) ** math.copysign(1, math.log(ratio)), rel=1e-4)


@pytest.mark.parametrize(
    "override",
    [
        pytest.param("losses.0.label_smoothing=0.3", marks=pytest.mark.long),
        "losses.0={name: cross_entropy, label_smoothing: 0.3, smoothing_over: all}",
        pytest.param("losses.0.class_weights=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0.5]", marks=pytest.mark.long),
        "losses.0={name: cross_entropy, label_smoothing: 0.2, class_weights: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0.5]}",
        "losses.0.weight=0.01",
        pytest.param("train.precision=bf16", marks=pytest.mark.long),
        "model.dropout=0.9",
        "data.imbalance=50",
    ],
)
def test_healthy_variants(tmp_path: Path, override: str) -> None:
    assert_healthy(make(tmp_path, override))


def test_ignored_targets_are_left_out(tmp_path: Path) -> None:
    def edit(batch: dict, keys: Any) -> dict:
        return {**batch, "label": torch.where(batch["label"] == 3, -1, batch["label"])}

    built = with_data(make(tmp_path), lambda inner: Wrapped(inner, edit, facts={"ignore_index": -1}))
    built = with_metric(built, Accuracy(num_classes=12, ignore_index=-1))  # as the build makes it from these facts
    right = with_losses(built, {"cross_entropy": CrossEntropy(num_classes=12, ignore_index=-1)})
    assert [finding for finding in run_all(right, World()) if finding.code == "initial-loss"] == []
    wrong = with_losses(built, {"cross_entropy": OfProbabilities(num_classes=12, ignore_index=-1)})
    caught(wrong, "initial-loss", "loss.double_softmax")


def test_the_oracle_is_the_mean_over_all_labels() -> None:
    """By hand: each sample with each of its possible labels, in NumPy and float64."""
    logits = np.random.default_rng(0).normal(size=(5, 7))
    each = [[math.log(np.exp(row).sum()) - row[c] for c in range(7)] for row in logits]
    log_p = F.log_softmax(torch.from_numpy(logits), dim=-1)
    assert _weighted_mean(log_p, torch.ones(7, dtype=torch.float64)) == pytest.approx(np.mean(each), rel=1e-12)
    weights = np.arange(1.0, 8.0)
    expected = (np.array(each) * weights).sum() / (5 * weights.sum())
    assert _weighted_mean(log_p, torch.from_numpy(weights)) == pytest.approx(expected, rel=1e-12)


def test_smoothing_cancels_exactly(tmp_path: Path) -> None:
    """In float64 what is left is rounding: sums of 12 x 16 terms of size 3, some 1e-14."""
    context = Context(make(tmp_path, "train.precision=float64", "losses.0.label_smoothing=0.4"), World())
    case = _make_case(context, "cross_entropy", *context.first_outputs)
    assert case is not None
    total, count = (
        sum(column)
        for column in zip(*(case.value(case.relabel(torch.arange(12).roll(s))) for s in range(12)), strict=True)
    )
    assert total / count == pytest.approx(_weighted_mean(case.log_p, torch.ones(12, dtype=torch.float64)), rel=1e-13)
    assert _judge_definition(case) is None


def test_weights_that_are_far_too_large(tmp_path: Path) -> None:
    built = make(tmp_path)
    with torch.no_grad():
        for parameter in built.job.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 10)
    finding = caught(built, "initial-loss", "model.init", "warning")
    assert finding.where.layer == "head.2"
    assert "ln 12 = 2.485" in finding.expected


def test_a_model_that_sees_the_label(tmp_path: Path) -> None:
    model = Peeking(num_classes=12, in_channels=3, embedding=32, dropout=0.0)
    built = with_model(make(tmp_path), model)
    (finding,) = initial_loss(Context(built, World()))
    assert (finding.cause, finding.severity) == ("data.label_leak", "warning")
    assert "better" in finding.summary
    assert "better" in str(caught(built, "label-input", "data.label_leak").evidence["explains"])


def test_a_model_that_has_learned_is_not_asked(tmp_path: Path) -> None:
    import dataclasses

    from sightline.config.run_config import Init

    model = Peeking(num_classes=12, in_channels=3, embedding=32, dropout=0.0)
    built = with_model(make(tmp_path), model)
    config = dataclasses.replace(built.config, init=Init("runs/other/1"))
    assert initial_loss(Context(dataclasses.replace(built, config=config), World())) == []
