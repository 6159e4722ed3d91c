"""Guard G16: metrics whose figures depend on how the samples are dealt to batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.checks.answers import maker_of, score
from sightline.checks.per_batch_metric import _sheets, per_batch_metric
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


class MeanAccuracyOfBatches:
    """The mean over batches of the share of samples answered rightly."""

    def new_state(self) -> State:
        return {"sum": torch.zeros((), dtype=torch.float64), "batches": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        state["sum"] += (probabilities.argmax(1) == label).double().mean()
        state["batches"] += 1

    def compute(self, state: State) -> dict[str, float]:
        return {"accuracy": float(state["sum"] / state["batches"])}


@pytest.mark.parametrize(("batch_size", "figures"), [(2, [1 / 3, 1 / 2]), (4, [1 / 2, 2 / 3]), (16, [1 / 2, 2 / 3])])
def test_a_metric_per_batch_on_whole_samples(tmp_path: Path, batch_size: int, figures: list[float]) -> None:
    """By hand: of four samples the first and the last are right, and of three the first; that one is a batch alone."""
    built = with_metric(make(tmp_path, f"train.batch_size={batch_size}"), MeanAccuracyOfBatches())
    finding = caught(built, "per-batch-metric", "eval.aggregation")
    assert finding.evidence["figures"]["accuracy"] == pytest.approx(figures, rel=1e-12)


def test_both_figures_are_what_counting_gives(tmp_path: Path) -> None:
    """The one batch's is that of a metric of counts, the other the mean of what counting gives for each batch."""
    built = make_rooms(tmp_path)
    context = Context(with_metric(built, MeanOfBatches(4)), World())
    (finding,) = per_batch_metric(context)
    maker = maker_of(context)
    assert maker is not None
    counts = built.selection.meters[0]
    whole = score(context, counts, _sheets(maker, [0, 1, 2, 3]))["miou"]
    parts = [score(context, counts, _sheets(maker, ranks))["miou"] for ranks in ([0], [1, 2, 3])]
    assert finding.evidence["figures"]["miou"] == pytest.approx([whole, sum(parts) / 2], rel=1e-12)
    assert parts[0] == 1, "the first sample is answered rightly"


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


def test_without_a_forward_pass_nothing_is_said(tmp_path: Path) -> None:
    """How a model answers is then not known."""
    context = Context(with_metric(make_parts(tmp_path), MeanOfBatches(30)), World(), forward_s=0.0)
    assert per_batch_metric(context) == []
