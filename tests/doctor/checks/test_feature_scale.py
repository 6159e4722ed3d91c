"""Data of another scale than the loaded weights learned on, told by their own running averages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.runs import checkpoint
from sightline.workbench.check.context import Context
from sightline.workbench.check.init_rules import feature_scale, layer_scales
from tests.doctor.planting import CONFIG, Wrapped, assert_complete, caught, judge, make, with_data

MODELS = {
    "pointnet_plain": "model={name: pointnet_plain, embedding: 32, dropout: 0.0}",
    "dgcnn": "model={name: dgcnn, num_neighbours: 8, embedding: 32}",
    "pct": "model={name: pct}",
}
AS_THE_PAPER = (
    "transforms.train=[{name: scale, low: 0.5, high: 2.0, isotropic: true}, {name: rotate, axis: up}, "
    "{name: translate, max_shift: 0.5, relative: true}, {name: drop_points, max_ratio: 0.875}]"
)


@pytest.fixture(scope="module", params=[("pointnet_plain", ""), ("pointnet_plain", AS_THE_PAPER), ("dgcnn", "")])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that took thirty steps, and the model that it has."""
    name, augmentation = request.param
    folder = tmp_path_factory.mktemp(name)
    built = make(folder, "train.steps=30", "train.epochs=4", MODELS[name], *([augmentation] if augmentation else []))
    train(built.job, World(), lambda record, stop_asked: False)
    snapshot = checkpoint.Snapshot(
        step=30, model=dict(built.job.model.state_dict()), optimizer={}, ema=None, state={"unwritten": None}
    )
    checkpoint.save(folder / "run", snapshot, keep_last=1, is_best=False)
    return folder / "run", MODELS[name]


def started(folder: Path, source: tuple[Path, str], scale: float = 1.0) -> TrainingSetup:
    """A run from these weights on clouds of another size."""
    path = folder / "small.yaml"
    path.write_text(CONFIG + f"init: {{from: '{source[0]}'}}\n")
    built = build(read_config(path, (source[1], "seed=4")), World())
    return with_data(built, lambda inner: Wrapped(inner, lambda batch, _: scaled(batch, scale)))


def scaled(batch: dict[str, Any], factor: float) -> dict[str, Any]:
    return {**batch, "points": batch["points"] * factor}


def found(built: TrainingSetup) -> list[Any]:
    return judge(feature_scale, Context(built, World()))


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.5])
def test_healthy_scales(tmp_path: Path, source: tuple[Path, str], scale: float) -> None:
    assert found(started(tmp_path, source, scale)) == []


@pytest.mark.parametrize(("scale", "word"), [(100.0, "large"), (0.01, "small"), (1000.0, "large")])
def test_other_units(tmp_path: Path, source: tuple[Path, str], scale: float, word: str) -> None:
    """Centimetres for metres and the other way round, millimetres for metres."""
    (finding,) = found(started(tmp_path, source, scale))
    assert (finding.severity, finding.cause) == ("warning", "data.normalisation")
    assert f"times as {word} as in their training" in finding.summary
    assert "clf.feature_scale" in finding.alternatives
    assert_complete(finding)


def test_no_start_from_weights_says_nothing(tmp_path: Path) -> None:
    assert found(make(tmp_path)) == []


def test_it_is_the_first_thing_told(tmp_path: Path, source: tuple[Path, str]) -> None:
    if source[1] != MODELS["dgcnn"]:
        built = started(tmp_path, source, 100.0)
        fields = {**built.data.train.dataset.info.fields}
        fields["points"] = dataclasses.replace(fields["points"], low=-200.0, high=200.0)  # as the set says itself
        built.data.train.dataset.info = dataclasses.replace(built.data.train.dataset.info, fields=fields)  # type: ignore[misc]
        caught(built, "feature-scale", "data.normalisation", "warning")


def test_layer_scales_by_hand() -> None:
    """Averages of mean 0 and variance 4, inputs of +-20: ten times as far. What follows forgets the scale."""
    norm, fresh, later = (nn.BatchNorm1d(3) for _ in range(3))
    for each in (norm, later):
        each.running_var.fill_(4.0)  # type: ignore[union-attr, operator]
    model = nn.Sequential(norm, fresh, later)
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1]]).repeat(50, 1)
    (found,) = layer_scales(model, {"points": 20 * signs}, lambda copied, batch: copied(batch["points"]))
    assert found.layer == "0"
    assert found.ratio == pytest.approx(10, rel=0.01)  # torch keeps the variance of 99 for 100
    assert torch.equal(norm.running_var, torch.full((3,), 4.0))  # type: ignore[arg-type]
