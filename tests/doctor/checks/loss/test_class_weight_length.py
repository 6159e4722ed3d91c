"""Class weights, head, metrics and names that do not count the same classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sightline.areas.clouds.models.pointnet import PointNetPlain
from sightline.engine.build import TrainingSetup
from sightline.parts.metrics import Accuracy
from tests.doctor.planting import Wrapped, caught, losses_of, make, with_data, with_losses, with_model

WEIGHTS = [1.0 + 0.1 * i for i in range(12)]


def weighted(tmp_path: Path, values: list[float]) -> TrainingSetup:
    """The run with these class weights in its loss, past the constructor's own test."""
    built = make(tmp_path)
    losses = losses_of(built)
    losses["cross_entropy"].class_weights = torch.tensor(values, dtype=torch.float64)  # type: ignore[assignment]
    return with_losses(built, losses)


def test_a_weight_too_many(tmp_path: Path) -> None:
    finding = caught(weighted(tmp_path, [*WEIGHTS, 1.0]), "class-weight-length", "loss.weights")
    assert "13" in finding.measured
    assert "outputs of the head 12" in finding.measured
    assert finding.where.config_path == "losses.0.class_weights"
    assert finding.where.line == 4


def test_a_head_of_another_width(tmp_path: Path) -> None:
    head = PointNetPlain(num_classes=10, in_channels=3, embedding=32)
    finding = caught(with_model(make(tmp_path), head), "class-weight-length", "cfg.class_count")
    assert "outputs of the head: 10 for 12 classes" in finding.summary
    assert finding.where.config_path == "model"


def test_a_metric_of_other_classes(tmp_path: Path) -> None:
    built = make(tmp_path)
    meters = [dataclasses.replace(built.selection_evaluator.metrics[0], metric=Accuracy(num_classes=40))]
    built = dataclasses.replace(
        built, selection_evaluator=dataclasses.replace(built.selection_evaluator, metrics=meters)
    )
    finding = caught(built, "class-weight-length", "cfg.class_count")
    assert "Accuracy: 40" in finding.summary


def test_names_of_other_classes(tmp_path: Path) -> None:
    built = with_data(
        make(tmp_path), lambda inner: Wrapped(inner, lambda batch, keys: None, facts={"class_names": ("a", "b")})
    )
    assert "class_names: 2" in caught(built, "class-weight-length", "cfg.class_count").summary


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_no_weight(tmp_path: Path, value: float) -> None:
    finding = caught(weighted(tmp_path, [*WEIGHTS[:11], value]), "class-weight-length", "loss.weights")
    assert f"class_weights[11] = {value:g}" in finding.measured


def test_a_class_that_weighs_nothing(tmp_path: Path) -> None:
    finding = caught(weighted(tmp_path, [0.0, *WEIGHTS[1:]]), "class-weight-length", "loss.weights", "warning")
    assert "20 training samples" in finding.measured
