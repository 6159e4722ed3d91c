"""Metrics: perfect answers, the split of samples into batches, and the unit of errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.contrast.metrics import Pairs
from sightline.areas.detect.evaluation_rules import _box_metric_faults
from sightline.areas.detect.metrics.crowds import MissRate
from sightline.areas.pose.metrics import JointError
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.metric import Metric
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric
from sightline.parts.metrics.confusion import confusion_matrix
from sightline.parts.metrics.iou import IoU
from sightline.workbench.check.context import Context, JudgedMetric
from sightline.workbench.check.evaluation_rules import (
    _falls_short,
    absent_class_score,
    metric_unit,
    per_batch_metric,
    take_predicted,
)
from tests.cases import run_each
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete, judge, make, with_evaluators
from tests.doctor.posing import make_pose
from tests.doctor.segmenting import make_parts, make_rooms, with_metric
from tests.marks import long_but
from tests.planted.planting import Planter, change_result

State = dict[str, Tensor]


class OffByOne(IoU):
    """Takes the answer among all classes but the first."""

    def update(
        self, state: State, *, probabilities: Tensor, target: Tensor, cloud_offsets: Tensor, sample_index: Tensor
    ) -> None:
        state["confusion"] += confusion_matrix(
            1 + probabilities[:, 1:].argmax(1), target, num_classes=self.num_classes, ignore_index=self.ignore_index
        )


def test_answers_decoded_wrongly(tmp_path: Path) -> None:
    """With every class there the score still falls short, so absence does not explain it."""
    built = with_metric(make_rooms(tmp_path), OffByOne(num_classes=4))
    (finding,) = judge(absent_class_score, Context(built, World()))
    assert (finding.cause, finding.severity) == ("eval.decode", "error")
    assert set(finding.evidence["figures"]) == {"miou", "overall_accuracy", "mean_class_accuracy"}


@run_each(
    "name, is_short",
    [
        *[(name, True) for name in ("miou", "mIoU", "instance_miou_all_parts", "iou_chair", "point_accuracy", "f1")],
        *[(name, False) for name in ("previous", "loss", "error_mm", "points", "chamfer", "macula")],
    ],
)
def test_only_figures_whose_best_is_known_to_be_one(name: str, is_short: bool) -> None:
    assert _falls_short(name, 0.5) == is_short
    assert not _falls_short(name, 1.0)
    assert not _falls_short(name, float("nan"))


def test_an_ignored_class_is_healthy(tmp_path: Path) -> None:
    ignoring = with_metric(make_rooms(tmp_path), IoU(num_classes=4, ignore_index=0))
    assert judge(absent_class_score, Context(ignoring, World())) == []


class OfClouds(Metric):
    """The mean over clouds of the share answered rightly: a mean of samples is no mean of batches."""

    def new_state(self) -> State:
        return {"sum": torch.zeros((), dtype=torch.float32), "clouds": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, target: Tensor, cloud_offsets: Tensor) -> None:
        is_right = (probabilities.argmax(1) == target).float()
        for start, end in zip(cloud_offsets[:-1].tolist(), cloud_offsets[1:].tolist(), strict=True):
            state["sum"] += is_right[start:end].mean()
            state["clouds"] += 1

    def compute(self, state: State) -> dict[str, float]:
        return {"share": float(state["sum"] / state["clouds"])}


def test_means_of_samples_are_healthy(tmp_path: Path) -> None:
    """Summed in float32, in another order: within rounding."""
    assert judge(per_batch_metric, Context(with_metric(make_rooms(tmp_path), OfClouds()), World())) == []
    assert judge(per_batch_metric, Context(with_metric(make_parts(tmp_path), OfClouds()), World())) == []


# --- on the model's own predictions, whatever the task ----------------------------------------------------------------


class OfJoints(Metric):
    """The mean error over frames, exact: in slots."""

    slots = frozenset({"error", "seen"})

    def new_state(self, *, num_samples: int = 0) -> State:
        error = torch.zeros(num_samples, dtype=torch.float64)
        return {"error": error, "seen": torch.zeros(num_samples, dtype=torch.int64), "batches": torch.tensor(0)}

    def update(self, state: State, *, joints_mm: Tensor, joints: Tensor, sample_index: Tensor) -> None:
        errors = (joints_mm.double() - joints.double()).norm(dim=-1).mean(dim=1)
        self.note(state, errors, sample_index)
        state["batches"] += 1

    def note(self, state: State, errors: Tensor, sample_index: Tensor) -> None:
        state["error"][sample_index] += errors
        state["seen"][sample_index] += 1

    def compute(self, state: State) -> dict[str, float]:
        return {"error_mm": state["error"][state["seen"] > 0].mean().item()}


class OnItself(OfJoints):
    """Python numbers on the object, which no process adds up and which the next evaluation goes on with."""

    def __init__(self) -> None:
        self.total, self.seen = 0.0, 0

    def note(self, state: State, errors: Tensor, sample_index: Tensor) -> None:
        self.total += float(errors.sum())
        self.seen += len(errors)

    def compute(self, state: State) -> dict[str, float]:
        return {"error_mm": self.total / self.seen if self.seen else math.nan}


class DiesWithoutItself(OnItself):
    def compute(self, state: State) -> dict[str, float]:
        return {"error_mm": self.total / self.seen}


@pytest.mark.parametrize(("metric", "other"), [(OnItself, "nan"), (DiesWithoutItself, "nothing")])
def test_a_metric_that_keeps_its_state_on_itself(tmp_path: Path, metric: type[OnItself], other: str) -> None:
    own = metric()
    (finding,) = judge(per_batch_metric, Context(with_metric(make_pose(tmp_path), own), World()))
    assert finding.summary == "'error_mm' of the metric 'joint_error' does not follow from its state alone"
    assert finding.measured.endswith(f" and {other}")
    assert "int64 counts, or a row for each sample" in finding.action
    assert (own.total, own.seen) == (0.0, 0), "the run's own metric was updated"
    assert_complete(finding)


class Undeclared(Pairs):
    """Compares the samples of a batch, as `pairs` does, and does not say so."""

    within_batch = frozenset()


def test_numbers_that_compare_the_samples_of_a_batch_are_declared(tmp_path: Path) -> None:
    """Rows of one batch are compared with one another by definition: `pairs` names these numbers."""
    built = make_pairs(tmp_path)
    assert judge(per_batch_metric, Context(built, World())) == []
    meter = BoundMetric(Undeclared(), built.selection_evaluator.metrics[0].update)
    (finding,) = judge(per_batch_metric, Context(with_evaluators(built, metrics=[meter]), World()))
    assert set(finding.evidence["figures"]) <= {"uniformity", "retrieval_accuracy"}


def test_exact_metrics_are_healthy_on_every_task(tmp_path: Path) -> None:
    poses = make_pose(tmp_path, "metrics=[{name: joint_error}, {name: detection_rate}]")
    for built in (poses, with_metric(poses, OfJoints()), make_parts(tmp_path), make_rooms(tmp_path)):
        context = Context(built, World())
        assert judge(per_batch_metric, context) == []
        (each, *_) = context.dry_evaluations
        assert len(each.keys) == 4
        names = built.selection_evaluator.metrics[0].update.names
        assert take_predicted((each.batch, each.predictions), names, [0, 2]) is not None, "nothing was compared"


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


def test_figures_of_another_kind_are_not_judged(tmp_path: Path) -> None:
    """Shares of joints are in no unit; where some figures in mm are right, one that is not may be no mean distance."""
    assert judge_pose(tmp_path, lambda figures: {**figures, "error_span_mm": 3.0}) == []
    assert judge_pose(tmp_path, dict, "metrics=[{name: joint_error}, {name: detection_rate}]") == []
    assert judge(metric_unit, Context(make(tmp_path), World())) == []


@run_each("height_px, num_faults", [(10.0, 0), (80.0, 1)])
def test_figures_that_no_label_fits_say_nothing(height_px: float, num_faults: int) -> None:
    """A miss rate of 0 whatever is missed is wrong; NaN, for people too small to be counted, is right."""
    metric = MissRate(class_names=("person",))
    keys = [*("detections", "detection_offsets", "truth", "truth_visible", "truth_offsets"), "file_px", "sample_index"]
    bound = bind(metric.update, AvailableKeys("set", keys), owner="metric", exclude=("state",))
    if num_faults:
        metric.compute = lambda state: {"mr_all": 0.0}  # type: ignore[method-assign]
    label = torch.tensor([[0, 0, height_px / 2, height_px, 0, height_px**2 / 2, 0]], dtype=torch.float64)
    sample = {"truth": label, "file_px": torch.tensor([100, 200])}
    judged = JudgedMetric(BoundMetric(metric, bound), "miss_rate", "metrics.0")
    assert len([*_box_metric_faults(judged, [sample])]) == num_faults
