"""Tables of classes: a repeated row, a row of another class and a wrong mean are found; correct tables are silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.suite import all_checks
from tests.doctor.planting import make

Rows = list[float]


def _table(change: Callable[[Rows], Rows], mean: Callable[[Rows], float]) -> type:
    """A metric with the accuracy of each class, as `change` makes it of the right one, and their mean."""

    class Table:
        higher_is_better = True

        def __init__(self, *, class_names: Sequence[str]) -> None:
            self.class_names = list(class_names)

        def new_state(self) -> dict[str, Tensor]:
            return {name: torch.zeros(len(self.class_names), dtype=torch.int64) for name in ("correct", "seen")}

        def update(self, state: dict[str, Tensor], *, probabilities: Tensor, label: Tensor) -> None:
            size = len(self.class_names)
            state["correct"] += torch.bincount(label[probabilities.argmax(1) == label], minlength=size)
            state["seen"] += torch.bincount(label, minlength=size)

        def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
            rows = (state["correct"] / state["seen"].clamp(min=1)).tolist()
            table = dict(zip((f"{name}/recall" for name in self.class_names), change(rows), strict=True))
            return {**table, "mean_recall": mean(rows)}

    return Table


def _average(rows: Rows) -> float:
    return sum(rows) / len(rows)


def _find(folder: Path, metric: type) -> list[Finding]:
    all_checks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.metrics, "_entries", dict(registry.metrics._entries))
        registry.metrics.names()
        registry.metrics.add("own")(metric)
        built = make(folder, "metrics=[{name: own}]", "evaluate.metric=mean_recall")
        return CHECKS["class-figures"](Context(built, World()))


@pytest.mark.parametrize(
    ("change", "mean"),
    [
        (lambda rows: [rows[0], rows[0], *rows[2:]], _average),
        (lambda rows: [*rows[:4], rows[7], *rows[5:]], _average),
        (lambda rows: [*rows[:-1], 0.75], _average),
        (lambda rows: rows, lambda rows: 0.794),
        (lambda rows: rows, lambda rows: sum(rows) / 20),
    ],
    ids=["a row twice", "a later row twice", "a fixed row", "a fixed mean", "a mean of more rows"],
)
def test_a_wrong_table_is_found(tmp_path: Path, change: Callable[[Rows], Rows], mean: Callable[[Rows], float]) -> None:
    [finding] = _find(tmp_path, _table(change, mean))
    assert (finding.cause, finding.where.config_path) == ("report.table", "metrics.0")


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows, lambda rows: [100 * row for row in rows]],
    ids=["shares", "percent, with a mean of shares"],
)
def test_a_correct_table_is_silent(tmp_path: Path, change: Callable[[Rows], Rows]) -> None:
    factor = change([1.0])[0]
    assert _find(tmp_path, _table(change, lambda rows: factor * _average(rows))) == []


def test_a_mean_of_other_rows_is_not_judged(tmp_path: Path) -> None:
    """The mean agrees where all classes do: only the frequent ones are in it, as a protocol may have it."""
    assert _find(tmp_path, _table(lambda rows: rows, lambda rows: _average(rows[:10]))) == []
