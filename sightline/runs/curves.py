"""Curves of a run over its steps: losses with their chance level, metrics, and the learning rate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sightline.contract.errors import UserError
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.parts.losses.contrast import CHANCE_SUFFIX
from sightline.runs.run_documents import read_lines
from sightline.runs.run_records import Line

_NO_CURVE = frozenset({"step", "epoch", "split", "time_s", "num_samples", "grad_norm", "negatives", "samples_per_s"})
"""Keys without a curve: those that identify a line, and those that only grow or never change."""
_COLUMNS = 3
RESULTS_PICTURE = "results.svg"
"""Picture of the curves in a run's folder, where `log.curves` is on."""


def name_runs(runs: Sequence[Path], *, verb: str) -> list[str]:
    """Name runs by their folders (`tour`, or `tour/1` of a numbered one), or by their paths where these are alike.

    Raises UserError for a run given twice.
    """
    for names in ([_name_folder(Path(os.path.realpath(run))) for run in runs], [str(run) for run in runs]):
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{verb}: a run is given twice; name every run once")


def _name_folder(folder: Path) -> str:
    """Name a folder by its last part, and by the one before if that is a number, as in runs/NAME/1."""
    return "/".join(folder.parts[-2 if folder.name.isdecimal() else -1 :])


def draw_runs(runs: Sequence[Path]) -> str:
    """Draw an SVG of the losses and metrics of runs, a loss with its chance level if the run records it."""
    names = name_runs(runs, verb="view") if len(runs) > 1 else [""]
    return encode_curves({name: read_lines(run / "metrics.jsonl") for name, run in zip(names, runs, strict=True)})


def encode_curves(runs: Mapping[str, Sequence[Line]]) -> str:
    """Draw an SVG of the panels of `make_curve_panels`."""
    return render_svg(make_curve_panels(runs))


def make_curve_panels(runs: Mapping[str, Sequence[Line]]) -> list[list[ChartPanel]]:
    """Make rows of panels, one panel per loss and metric, and one curve per run and split.

    A training loss is drawn with its chance level if the run states one, and its ratio to chance with the line 1. The
    chance level of an evaluation differs, as its batches have another size, and is not drawn. Null values are left out.
    """
    lines = [line for run_lines in runs.values() for line in run_lines]
    names = list(dict.fromkeys(name for line in lines for name in line if _is_curve(name)))
    losses = [name for name in names if name.startswith("loss/")]
    panels = [_panel(name, runs) for name in [*losses, *(name for name in names if name not in losses)]]
    drawn = [panel for panel in panels if panel.series]
    return [drawn[start : start + _COLUMNS] for start in range(0, len(drawn), _COLUMNS)]


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
    return ChartPanel(name, "step", tuple(curve for curve in series if curve.points), "linear", "linear")


def _series(label: str, name: str, lines: Iterable[Line]) -> Series:
    return Series(label, tuple((line["step"], line[name]) for line in lines if line.get(name) is not None))
