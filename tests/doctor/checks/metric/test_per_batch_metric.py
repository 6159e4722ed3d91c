"""Metrics whose figures depend on how the samples are dealt to batches."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.areas.contrast.metrics import Pairs
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric
from sightline.parts.metrics.labels import class_ious, confusion_matrix
from sightline.workbench.check.checks.metrics import per_batch_metric
from sightline.workbench.check.checks.synthetic_predictions import take_predicted
from sightline.workbench.check.context import Context
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete, caught, judge
from tests.doctor.posing import make_pose
from tests.doctor.segmenting import make_parts, make_rooms, with_metric

State = dict[str, Tensor]


class MeanOfBatches:
    """The mean over batches of each batch's mIoU: what the notes of S2 computed first."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def new_state(self) -> State:
        return {"sum": torch.zeros((), dtype=torch.float64), "batches": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, target: Tensor) -> None:
        confusion = confusion_matrix(probabilities.argmax(1), target, num_classes=self.num_classes)
        state["sum"] += class_ious(confusion).nanmean()
        state["batches"] += 1

    def compute(self, state: State) -> dict[str, float]:
        return {"miou": float(state["sum"] / state["batches"])}


class OfClouds:
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


def test_a_metric_per_batch_on_parts(tmp_path: Path) -> None:
    finding = caught(with_metric(make_parts(tmp_path), MeanOfBatches(30)), "per-batch-metric", "eval.aggregation")
    assert finding.where.config_path == "metrics.0"
    assert "'miou' of the metric 'part_iou'" in finding.summary
    assert "4 samples as one batch" in finding.measured
    one, other = finding.evidence["figures"]["miou"]
    assert one != other


def test_means_of_samples_are_healthy(tmp_path: Path) -> None:
    """Summed in float32, in another order: within rounding."""
    assert judge(per_batch_metric, Context(with_metric(make_rooms(tmp_path), OfClouds()), World())) == []
    assert judge(per_batch_metric, Context(with_metric(make_parts(tmp_path), OfClouds()), World())) == []


# --- on the model's own predictions, whatever the task ----------------------------------------------------------------


class OfJoints:
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
    changed = dataclasses.replace(
        built, selection_evaluator=dataclasses.replace(built.selection_evaluator, metrics=[meter])
    )
    (finding,) = judge(per_batch_metric, Context(changed, World()))
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


def test_without_a_forward_pass_nothing_is_said(tmp_path: Path) -> None:
    """How a model answers is then not known."""
    context = Context(with_metric(make_parts(tmp_path), MeanOfBatches(30)), World(), forward_s=0.0)
    assert judge(per_batch_metric, context) == []
