"""Errors in another unit than their names say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightline.areas.pose.metrics import JointError
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.evaluation_rules import metric_unit
from tests.doctor.planting import assert_complete, judge, make
from tests.doctor.posing import make_pose
from tests.marks import long_but
from tests.planted.planting import Planter, change_result


def judge_pose(folder: Path, change: Any, *words: str) -> list[Any]:
    with Planter() as planter:
        change_result(JointError, "compute", change)(planter)
        return judge(metric_unit, Context(make_pose(folder, *words), World(), is_quick=True))


def scaled(factor: float) -> Any:
    return lambda figures: {n: v * factor if n.endswith("_mm") else v for n, v in figures.items()}


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize(
    ("factor", "words"),
    [(44 / 200, "one of 4.55 mm"), (22 / 200, "one of 9.09 mm"), (0.001, "one of 1e+03 mm"), (2.0, "one of 0.5 mm")],
    ids=["voxels", "cells", "metres", "twice"],
)
def test_another_unit(tmp_path: Path, factor: float, words: str, seed: int) -> None:
    (finding,) = judge_pose(tmp_path, scaled(factor), f"seed={seed}", f"data.data_seed={seed}")
    assert_complete(finding)
    assert (finding.cause, finding.severity) == ("eval.coordinate", "error")
    assert words in finding.summary


def test_metrics_of_the_package(tmp_path: Path) -> None:
    """Shares of joints within a distance are in no unit."""
    built = make_pose(tmp_path, "metrics=[{name: joint_error}, {name: detection_rate}]")
    assert judge(metric_unit, Context(built, World())) == []


def test_a_figure_of_another_kind_is_not_judged(tmp_path: Path) -> None:
    """Where some figures in mm are right, one that is not may be no mean distance."""
    assert judge_pose(tmp_path, lambda figures: {**figures, "error_span_mm": 3.0}) == []
    assert judge(metric_unit, Context(make(tmp_path), World())) == []
