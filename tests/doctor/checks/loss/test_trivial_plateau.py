"""A run whose loss stays at that of a constant answer, by its metrics.jsonl and its last weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.engine.build import TrainingSetup
from sightline.workbench.check.checks.loss_progress import stays_at, trivial_plateau
from sightline.workbench.check.context import Context
from tests.cases import run_each
from tests.doctor.planting import assert_complete
from tests.doctor.regressing import Maps, context_of, make_maps


def lines(*values: float | None, every: int = 25, metric: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """Training lines with these values of the loss, and evaluations with these of the metric among them."""
    found: list[dict[str, Any]] = [
        {"step": place * every, "split": "train", "loss/mean_square": value}
        for place, value in enumerate(values, start=1)
    ]
    found += [{"step": 10, "split": "validation", "overall_accuracy": value} for value in metric]
    return found


@run_each(
    "values, span",
    [
        ((1.0, 1.0, 1.01, 0.99), (50, 100)),  # of the first fifty steps nothing is said
        ((5.0, 3.0, 1.0, 1.0, 1.01), (50, 125)),
        ((1.0, 1.0, 1.0), None),  # 25 steps after the fiftieth
        ((1.0, 1.0, 1.0, 1.0, 0.9), None),  # it has left
        ((1.0, 1.0, 1.0, 0.95, 1.0), None),
        ((None, 1.0, None, 1.0, 1.0), (50, 125)),
        ((3e-4,) * 6, None),
    ],
)
def test_where_a_loss_stays(values: tuple[float | None, ...], span: tuple[int, int] | None) -> None:
    found = stays_at(lines(*values), "mean_square", 1.0)
    assert (None if found is None else found[:2]) == span


def run_of(
    folder: Path, model: nn.Module, *, metric: tuple[float, ...] = (0.2, 0.2)
) -> tuple[TrainingSetup, Context, float]:
    """A run's folder, its loss at that of zeros for 150 steps, with these weights in place of a checkpoint's."""
    built = make_maps(folder, model=model)
    zero = context_of(built).squared_losses["mean_square"].zero
    text = "".join(json.dumps(line) + "\n" for line in lines(*(zero,) * 6, metric=metric))
    (folder / "metrics.jsonl").write_text(text)
    context = context_of(built, folder)
    context.__dict__["trained_model"] = model.eval()
    return built, context, zero


def silent() -> Maps:
    """Trained to answer nothing."""
    model = Maps()
    with torch.no_grad():
        model.final.weight.zero_()
    return model


def test_a_network_that_answers_nothing(tmp_path: Path) -> None:
    _, context, zero = run_of(tmp_path, silent())
    (finding,) = trivial_plateau(context)
    assert (finding.severity, finding.cause) == ("warning", "model.constant_output")
    assert finding.evidence["trivial"] == pytest.approx(zero)
    assert "0 everywhere" in finding.summary
    assert "steps 50 to 150" in finding.measured
    assert_complete(finding)


def test_peaks_that_grow_and_metrics_that_improve_are_no_plateau(tmp_path: Path) -> None:
    """A healthy network of heat maps sits near the loss of zeros for long, and shows it in neither."""
    loud = silent()
    nn.init.constant_(loud.final.bias, 0.2)  # type: ignore[arg-type]
    assert trivial_plateau(run_of(tmp_path, loud)[1]) == []
    assert trivial_plateau(run_of(tmp_path, silent(), metric=(0.2, 0.3, 0.4, 0.5))[1]) == []


def test_without_a_run_or_lines_nothing_is_said(tmp_path: Path) -> None:
    assert trivial_plateau(context_of(make_maps(tmp_path))) == []
    assert trivial_plateau(context_of(make_maps(tmp_path), tmp_path)) == []
