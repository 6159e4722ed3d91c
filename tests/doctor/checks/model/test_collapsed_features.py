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
    measure_spread,
)
from sightline.workbench.check.context import Context
from tests.doctor.pairing import make_pairs, make_pictured
from tests.doctor.planting import caught

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
