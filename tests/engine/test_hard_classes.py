"""The classes of `final.json` that a run is worst at: hand-worked states, either direction of figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline import registry
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.types import ComponentConfig


def evaluated(name: str, state: dict[str, torch.Tensor], **facts: Any) -> Evaluation:
    metric = registry.metrics.build(ComponentConfig(name), facts=facts)
    meter = BoundMetric(metric, None)  # type: ignore[arg-type]
    return make_evaluation([MetricResult(meter, "", state)], num_samples=1, seconds=0.0)


def test_the_least_accurate_classes_come_first_and_those_without_samples_are_left_out() -> None:
    names = ("a", "b", "c", "d", "e", "f", "g")
    right, wrong = (9, 1, 5, 0, 7, 8, 10), (1, 9, 5, 0, 3, 2, 0)  # d has no samples
    confusion = torch.diag(torch.tensor(right))
    for row, count in enumerate(wrong):
        confusion[row, (row + 1) % 7] += count
    found = evaluated("accuracy", {"confusion": confusion}, num_classes=7, class_names=names).hard_classes
    assert found["figure"] == "accuracy"
    assert list(found["classes"].items()) == [("b", 0.1), ("c", 0.5), ("e", 0.7), ("f", 0.8), ("a", 0.9)]


def test_the_largest_error_is_the_worst() -> None:
    """Two frames of three joints, the third never labelled."""
    state = {
        "distance_mm": torch.tensor([[1.0, 8.0, 0.0], [3.0, 4.0, 0.0]], dtype=torch.float64),
        "labelled": torch.tensor([[1, 1, 0], [1, 1, 0]]),
        "seen": torch.ones(2, dtype=torch.int64),
    }
    found = evaluated("joint_error", state, num_joints=3, joint_names=("wrist", "tip", "palm")).hard_classes
    assert found == {"figure": "error_mm", "classes": {"tip": 6.0}}


def test_classes_as_good_as_the_best_are_not_hard() -> None:
    state = {"confusion": torch.tensor([[4, 0, 0], [0, 3, 0], [2, 0, 2]])}
    assert evaluated("accuracy", state, num_classes=3, class_names=tuple("abc")).hard_classes["classes"] == {"c": 0.5}


@pytest.mark.parametrize("counts", [[[4]], [[4, 0], [0, 0]], [[0, 4], [4, 0]]])
def test_one_class_is_not_the_worst_of_any(counts: list[list[int]]) -> None:
    size = len(counts)
    state = {"confusion": torch.tensor(counts)}
    assert evaluated("accuracy", state, num_classes=size, class_names=tuple("ab"[:size])).hard_classes == {}
