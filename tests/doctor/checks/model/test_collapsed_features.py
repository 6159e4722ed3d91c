"""Rows that are the same for every object, at the first step and after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.first_step import (
    collapsed_features,
    collapsed_trained_features,
    measure_spread,
)
from sightline.workbench.check.context import Context
from tests.doctor.pairing import make_pairs, make_pictured
from tests.doctor.planting import assert_complete, caught

LONG = "train.epochs=20"
"""Long enough for a run to be judged by what it left."""


class _Context(Context):
    """A context whose trained model is given."""

    trained_model: nn.Module | None = None  # type: ignore[assignment]


def trained(built, model: nn.Module | None) -> _Context:  # type: ignore[no-untyped-def]
    context = _Context(built, World(), run=Path("run"))
    object.__setattr__(context, "trained_model", model)
    return context


def test_the_spread_of_rows_by_hand() -> None:
    """Four directions of a square: mean zero, so variance 1, and two equal singular values, so rank 2."""
    square = np.array([[1.0, 0], [0, 3], [-2, 0], [0, -1]])
    assert measure_spread(square) == pytest.approx((1.0, 2.0, 4))
    assert measure_spread(np.array([[2.0, 0, 0], [-5, 0, 0]])) == pytest.approx((1.0, 1.0, 2))
    assert measure_spread(np.ones((5, 3)))[:2] == pytest.approx((0.0, 1.0), abs=1e-30)
    # Unit rows at angles +-a about one axis: each lies sin(a) from their mean.
    fan = np.array([[np.cos(a), np.sin(a)] for a in (0.1, -0.1)])
    assert measure_spread(fan).variance == pytest.approx(np.sin(0.1) ** 2)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_healthy_starts(tmp_path: Path, seed: int) -> None:
    assert collapsed_features(Context(make_pairs(tmp_path, f"seed={seed}"), World())) == []


def test_a_healthy_start_with_pictures(tmp_path: Path) -> None:
    assert collapsed_features(Context(make_pictured(tmp_path), World())) == []


def test_a_projection_times_zero(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    with torch.no_grad():
        built.job.model.points_head[-1].weight.zero_()  # type: ignore[union-attr, operator, index]
    finding = caught(built, "collapsed-features", "model.constant_output")
    assert "the same 'first' for every object" in finding.summary
    assert finding.evidence["variance"] == pytest.approx(0, abs=1e-12)
    assert finding.where.config_path == "model"


def test_a_trained_network_that_is_sound(tmp_path: Path) -> None:
    built = make_pairs(tmp_path, LONG)
    assert collapsed_trained_features(trained(built, built.job.model.train().eval())) == []
    assert collapsed_trained_features(trained(built, None)) == []


def test_a_trained_network_that_answers_alike(tmp_path: Path) -> None:
    built = make_pairs(tmp_path, LONG)
    with torch.no_grad():
        built.job.model.points_head[-1].weight.mul_(1e-4)  # type: ignore[union-attr, operator, index]
        built.job.model.points_head[-1].bias.fill_(1.0)  # type: ignore[union-attr, operator, index]
    found = collapsed_trained_features(trained(built, built.job.model.eval()))
    assert {finding.summary.split("'")[1] for finding in found} == {"first", "second"}  # the features are sound
    assert collapsed_trained_features(trained(make_pairs(tmp_path), built.job.model)) == []  # after 14 steps
    for finding in found:
        assert (finding.severity, finding.cause) == ("warning", "loss.collapse")
        assert "it is the same for all objects" in finding.summary
        assert_complete(finding)


def test_a_trained_network_on_a_line(tmp_path: Path) -> None:
    built = make_pairs(tmp_path, LONG)
    with torch.no_grad():
        head = built.job.model.points_head[-1]  # type: ignore[union-attr, operator, index]
        head.weight[1:] = 0.0  # one direction is left, on both sides of an offset in another
        head.bias.zero_()[1] = 0.1
    found = collapsed_trained_features(trained(built, built.job.model.eval()))
    assert {finding.summary for finding in found} == {
        f"'{name}' has collapsed onto a line" for name in ("first", "second")
    }
