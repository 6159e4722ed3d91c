"""Curves of a run over its steps: losses with their chance level, metrics, and the learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.chart import ChartPanel, Series, render_svg
from sightline.errors import UserError
from sightline.runs.run_documents import read_lines
from sightline.tasks.contrast import CHANCE_SUFFIX

__all__ = ["draw_runs", "encode_curves"]

_NO_CURVE = frozenset({"step", "epoch", "split", "time_s", "num_samples", "grad_norm", "negatives", "samples_per_s"})
"""Keys without a curve: those that identify a line, and those that only grow or never change."""
_COLUMNS = 3

Line = Mapping[str, Any]


def draw_runs(runs: Sequence[Path]) -> str:
    """Draw an SVG of the losses and metrics of runs, a loss with its chance level if the run records it."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("view: a run is given twice; name every run once")
    lines = [read_lines(run / "metrics.jsonl") for run in runs]
    return encode_curves(
        {name if len(runs) > 1 else "": run_lines for name, run_lines in zip(names, lines, strict=True)}
    )


def encode_curves(runs: Mapping[str, Sequence[Line]]) -> str:
    """Draw an SVG with one panel per loss and metric, and one curve per run and split.

    A training loss is drawn with its chance level if the run states one, and its ratio to chance with the line 1. The
    chance level of an evaluation differs, as its batches have another size, and is not drawn. Null values are left out.
    """
    lines = [line for run_lines in runs.values() for line in run_lines]
    names = list(dict.fromkeys(name for line in lines for name in line if _is_curve(name)))
    losses = [name for name in names if name.startswith("loss/")]
    panels = [_panel(name, runs) for name in [*losses, *(name for name in names if name not in losses)]]
    drawn = [panel for panel in panels if panel.series]
    return render_svg([drawn[start : start + _COLUMNS] for start in range(0, len(drawn), _COLUMNS)])


def _is_curve(name: str) -> bool:
    return name not in _NO_CURVE and name != "chance" and not name.startswith("time_s/")


def _panel(name: str, runs: Mapping[str, Sequence[Line]]) -> ChartPanel:
    series = []
    for run, lines in runs.items():
        for split in dict.fromkeys(line["split"] for line in lines):
            series.append(_series(f"{run} {split}".strip(), name, (line for line in lines if line["split"] == split)))
        chance = f"{run} train, chance".strip()
        if name.startswith("loss/") and name != "loss/total":
            series.append(_series(chance, "chance", lines))
        elif name.endswith(CHANCE_SUFFIX):
            series.append(Series(chance, tuple((line["step"], 1.0) for line in lines if line.get(name) is not None)))
    return ChartPanel(
        name, "step", tuple(curve for curve in series if curve.points), x_scale="linear", y_scale="linear"
    )


def _series(label: str, name: str, lines: Iterable[Line]) -> Series:
    return Series(label, tuple((line["step"], line[name]) for line in lines if line.get(name) is not None))
