"""Data of another scale than the loaded weights learned on, told by their own running averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.runs import checkpoint
from sightline.workbench.check.context import Context
from sightline.workbench.check.init_rules import feature_scale, layer_scales
from tests.doctor.planting import Wrapped, assert_complete, judge, make, with_data

GRAPH = "model={name: dgcnn, num_neighbours: 8, embedding: 32}"
AS_THE_PAPER = (
    "transforms.train=[{name: scale, low: 0.5, high: 2.0, isotropic: true}, {name: rotate, axis: up}, "
    "{name: translate, max_shift: 0.5, relative: true}, {name: drop_points, max_ratio: 0.875}]"
)
Source = tuple[str, ...]
"""The words with which another run starts from weights."""


@pytest.fixture(scope="module", params=[((), ()), ((), (AS_THE_PAPER,)), ((GRAPH,), ())])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A run that took thirty steps."""
    model, transforms = request.param
    folder = tmp_path_factory.mktemp("source")
    built = make(folder, "train.steps=30", "train.epochs=4", *model, *transforms)
    train(built.job, World(), lambda record, stop_requested: False)
    snapshot = checkpoint.Snapshot(
        step=30, model=dict(built.job.model.state_dict()), optimizer={}, ema=None, state={"unwritten": None}
    )
    checkpoint.save(folder / "run", snapshot, keep_last=1, is_best=False)
    return (f"init={{from: '{folder / 'run'}'}}", "seed=4", *model)


def found(folder: Path, source: Source, factor: float) -> list[Any]:
    """What is found in a run from these weights on clouds of another size."""
    scale = lambda batch, keys: {**batch, "points": batch["points"] * factor}  # noqa: E731
    built = with_data(make(folder, *source), lambda inner: Wrapped(inner, scale))
    return judge(feature_scale, Context(built, World()))


@pytest.mark.parametrize("factor", [1.0, 0.7, 1.5])
def test_healthy_scales(tmp_path: Path, source: Source, factor: float) -> None:
    assert found(tmp_path, source, factor) == []


@pytest.mark.parametrize(("factor", "word"), [(100.0, "large"), (0.01, "small")])
def test_other_units(tmp_path: Path, source: Source, factor: float, word: str) -> None:
    """Centimetres for metres and the other way round."""
    (finding,) = found(tmp_path, source, factor)
    assert (finding.severity, finding.cause) == ("warning", "data.normalisation")
    assert f"times as {word} as in their training" in finding.summary
    assert "clf.feature_scale" in finding.alternatives
    assert_complete(finding)


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
