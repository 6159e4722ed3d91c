"""Accuracy against recorded global values, and a hand-worked case with an absent class."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline import registry
from sightline.metrics import Accuracy, mean_class_accuracy, overall_accuracy
from sightline.types import ComponentConfig
from tests.golden_parity import load_golden


def measured(metric: Accuracy, scores: Tensor, label: Tensor, *, parts: int = 1) -> dict[str, Tensor]:
    state = metric.new_state()
    for some_scores, some_labels in zip(scores.tensor_split(parts), label.tensor_split(parts), strict=True):
        metric.update(state, probabilities=some_scores, label=some_labels)
    return state


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(4)])
def test_agrees_with_the_recorded_global_values(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_cls_accuracy")
    scores, label = golden.tensor(f"{case}.scores"), golden.tensor(f"{case}.target")
    metric = Accuracy(num_classes=scores.shape[1])
    found = metric.compute(measured(metric, scores, label, parts=3))
    # Divisions and at most 10 additions of numbers up to 1.
    assert found["overall_accuracy"] == pytest.approx(golden.tensor(f"{case}.oa").item(), abs=1e-15)
    assert found["mean_class_accuracy"] == pytest.approx(golden.tensor(f"{case}.macc").item(), abs=2e-15)


def test_hand_worked_with_an_absent_class() -> None:
    """Labels a a a b; a is right twice, b once; c never occurs but is answered once: 3/4, and (2/3 + 1) / 2."""
    scores = torch.eye(3)[torch.tensor([0, 0, 2, 1])]
    metric = Accuracy(num_classes=3, class_names=("a", "b", "c"))
    state = measured(metric, scores, torch.tensor([0, 0, 0, 1]))
    assert metric.compute(state) == {"overall_accuracy": 0.75, "mean_class_accuracy": pytest.approx(5 / 6, abs=1e-15)}
    rows = metric.per_class(state)
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"] == {"accuracy": pytest.approx(2 / 3, abs=1e-15), "count": 3}
    assert rows["b"] == {"accuracy": 1.0, "count": 1}
    assert math.isnan(rows["c"]["accuracy"])
    assert rows["c"]["count"] == 0
    assert metric.confusion(state).tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_functions_of_a_confusion_matrix_stand_alone() -> None:
    confusion = torch.tensor([[9, 1], [0, 0]])
    assert (overall_accuracy(confusion), mean_class_accuracy(confusion)) == (0.9, 0.9)


def test_facts_come_from_the_data_set() -> None:
    metric = registry.metrics.build(ComponentConfig("accuracy"), facts={"num_classes": 2, "class_names": ["x", "y"]})
    assert list(metric.per_class(metric.new_state())) == ["x", "y"]


def test_foreign_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label: found class 3, there are 3 \(0 .. 2\)"):
        measured(Accuracy(num_classes=3), torch.rand(2, 3), torch.tensor([0, 3]))


def test_wrong_shape_names_both() -> None:
    with pytest.raises(ValueError, match=r"found the shape \(4, 2\) .*expected \(4, 3\)"):
        measured(Accuracy(num_classes=3), torch.rand(4, 2), torch.zeros(4, dtype=torch.int64))
