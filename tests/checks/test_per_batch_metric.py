"""Guard G16: metrics whose figures depend on how the samples are dealt to batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.checks.per_batch_metric import per_batch_metric
from sightline.checks.suite import Context
from sightline.engine.distributed import World
from sightline.metrics.confusion import confusion_matrix
from sightline.metrics.iou import IoU, class_ious
from sightline.metrics.part_iou import PartIoU
from tests.checks.planting import assert_healthy, caught, make
from tests.checks.segmenting import Joined, make_parts, make_rooms, with_metric

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


class LastBatch(MeanOfBatches):
    """Forgets all batches but the last."""

    def update(self, state: State, *, probabilities: Tensor, target: Tensor) -> None:
        for tensor in state.values():
            tensor.zero_()
        super().update(state, probabilities=probabilities, target=target)


class Dies(MeanOfBatches):
    """Cannot take what it is given."""

    def update(self, state: State, *, probabilities: Tensor, target: Tensor) -> None:
        raise KeyError("no such\nthing")


@pytest.mark.parametrize("metric", [MeanOfBatches, LastBatch])
def test_a_metric_per_batch_on_parts(tmp_path: Path, metric: type[MeanOfBatches]) -> None:
    finding = caught(with_metric(make_parts(tmp_path), metric(30)), "per-batch-metric", "eval.aggregation")
    assert finding.where.config_path == "metrics.0"
    assert "'miou' of the metric 'part_iou'" in finding.summary
    assert "4 samples as one batch" in finding.measured
    one, other = finding.evidence["figures"]["miou"]
    assert one != other


def test_a_metric_per_batch_on_ragged_rooms(tmp_path: Path) -> None:
    finding = caught(with_metric(make_rooms(tmp_path), MeanOfBatches(4)), "per-batch-metric", "eval.aggregation")
    assert f"miou {finding.evidence['figures']['miou'][0]:.6g}" in finding.measured


def test_both_figures_are_what_counting_gives(tmp_path: Path) -> None:
    """The one batch's figure is the global one, which a metric of counts gives for every split."""
    built = make_rooms(tmp_path)
    (finding,) = per_batch_metric(Context(with_metric(built, MeanOfBatches(4)), World()))
    whole, dealt = finding.evidence["figures"]["miou"]
    # By hand. Four rooms, each class as often as the other up to one point; wrong are none, a half, a half, a quarter.
    assert 0.4 < whole < 0.6
    assert dealt > 0.6, "the mean of 1 and of what the other three rooms reach"


def test_a_metric_that_dies_is_told_before_the_first_evaluation(tmp_path: Path) -> None:
    finding = caught(with_metric(make_rooms(tmp_path), Dies(4)), "per-batch-metric", "eval.protocol")
    assert "KeyError" in finding.measured
    assert (finding.where.file or "").endswith("test_per_batch_metric.py")


def test_means_of_samples_are_healthy(tmp_path: Path) -> None:
    """Summed in float32, in another order: within rounding."""
    assert per_batch_metric(Context(with_metric(make_rooms(tmp_path), OfClouds()), World())) == []
    assert per_batch_metric(Context(with_metric(make_parts(tmp_path), OfClouds()), World())) == []


def test_the_metrics_of_this_package_are_healthy(tmp_path: Path) -> None:
    parts, rooms = make_parts(tmp_path), make_rooms(tmp_path, Joined)
    assert isinstance(parts.selection.meters[0].metric, PartIoU)
    assert isinstance(rooms.selection.meters[0].metric, IoU)
    for built in (parts, rooms, make(tmp_path)):
        assert_healthy(built)


def test_one_sample_tells_nothing(tmp_path: Path) -> None:
    context = Context(with_metric(make_parts(tmp_path), MeanOfBatches(30)), World(), forward_s=0.0)
    assert per_batch_metric(context) == []
