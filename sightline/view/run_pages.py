"""Pages of a run: curves of its training, and errors of its detections.

Curves of a run over its steps: losses with their chance level, metrics, and the learning rate.

HTML page of a detector's errors: a table of error kinds, labels by their kind, curves, and the worst images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.contrast.task import CHANCE_SUFFIX
from sightline.areas.detect.metrics.box_errors import KINDS, DetectionErrors
from sightline.areas.detect.output import COLORS
from sightline.areas.detect.pictures import Color, DrawnBox, draw_boxes
from sightline.contract.errors import UserError
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.draw.page import PageChart, PageImage, PageTable, PageText, render_page
from sightline.draw.pictures import Picture
from sightline.runs.run_directory import read_lines

_NO_CURVE = frozenset({"step", "epoch", "split", "time_s", "num_samples", "grad_norm", "negatives", "samples_per_s"})
"""Keys without a curve: those that identify a line, and those that only grow or never change."""
_COLUMNS = 3

Line = Mapping[str, Any]


def name_runs(runs: Sequence[Path], *, verb: str) -> list[str]:
    """Name runs by their folders, or by their paths where these are alike. Raises UserError for a run given twice."""
    for names in ([run.resolve().name for run in runs], [str(run) for run in runs]):
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{verb}: a run is given twice; name every run once")


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


_COLORS: Mapping[str, Color] = {
    "found": COLORS["found"],
    "missed": COLORS["missed"],
    "ignored": COLORS["ignored"],
    "suppressed": (204, 121, 167),
    "localisation": (230, 159, 0),
    "classification": (0, 158, 115),
    "both": (0, 114, 178),
    "duplicate": (160, 100, 60),
    "background": COLORS["made up"],
}


def find_best_score(errors: DetectionErrors) -> float:
    """Return the score threshold with the largest F1 score; 0 if no detection is correct."""
    counts = ~errors.is_ignored
    scores, is_found = errors.groups.boxes[counts, 5], errors.is_found[counts]
    order = np.argsort(-scores, kind="stable")
    num_found = is_found[order].cumsum()
    f1 = num_found / (np.arange(1, len(num_found) + 1) + (~errors.groups.is_ignored).sum())
    return float(scores[order][f1.argmax()]) if num_found.any() else 0.0


def find_worst_images(errors: DetectionErrors, score: float, *, most: int) -> list[int]:
    """List the images with the most errors (wrong detections from this score on, labels not found), worst first."""
    is_lost = ~errors.groups.is_ignored & ~errors.is_label_found
    images = np.concatenate([errors.groups.boxes[_error_mask(errors, score), 0], errors.groups.labels[is_lost, 0]])
    numbers, counts = np.unique(images.astype(int), return_counts=True)
    return [int(number) for number in numbers[np.argsort(-counts, kind="stable")][:most]]


def draw_errors(pixels: np.ndarray, image: int, errors: DetectionErrors, score: float, *, name: str) -> Picture:
    """Draw an image (H, W, 3) uint8 with its detections of at least this score, each with its kind of error."""
    groups, is_real = errors.groups, ~errors.groups.is_ignored
    labels = np.flatnonzero(groups.labels[:, 0] == image)
    rows = np.flatnonzero((groups.boxes[:, 0] == image) & (groups.boxes[:, 5] >= score))
    ignored = groups.labels[labels[~is_real[labels]], 1:5]
    boxes = [DrawnBox(tuple(corners), _COLORS["ignored"], "", "hatched") for corners in ignored]
    for row in rows[np.argsort(errors.kind[rows] >= 0, kind="stable")]:  # errors are drawn last, on top
        error_kind = KINDS[errors.kind[row]] if errors.kind[row] >= 0 else ""
        kind = error_kind or ("ignored" if errors.is_ignored[row] else "found")
        caption = f"{error_kind[:3]} {groups.boxes[row, 5]:.2f}" if error_kind else ""
        boxes.append(DrawnBox(tuple(groups.boxes[row, 1:5]), _COLORS[kind], caption))
    lost = labels[(is_real & ~errors.is_label_found)[labels]]
    for row in lost:
        kind = "suppressed" if errors.is_suppressed[row] else "missed"
        boxes.append(DrawnBox(tuple(groups.labels[row, 1:5]), _COLORS[kind], "", "dashed"))
    caption = f"{name}: {len(lost)} not found, {int(_error_mask(errors, score)[rows].sum())} wrong"
    return Picture(name, draw_boxes(pixels, boxes, legend=_COLORS), caption)


def encode_errors(document: Mapping[str, Any], pictures: Sequence[Picture], *, title: str, notes: Sequence[str]) -> str:
    """Encode the page as one self-contained HTML text. `document` has `metrics` of `box_errors` and its table."""
    about, metrics = document["box_errors"], document["metrics"]
    kinds = [(kind, about["counts"][kind], f"{metrics[f'gain_{kind}']:.4f}") for kind in KINDS]
    names = ("labels", "not_found", "missed", "suppressed")
    bins = [(name, *("-" if row[key] is None else row[key] for key in names)) for name, row in about["labels"].items()]
    curve = about["curve"]
    precisions = tuple(zip(curve["recall"], curve["precision"], strict=True))
    misses = tuple(
        (x, 1 - y) for x, y in zip(curve["false_per_image"], curve["recall"], strict=True) if x > 0 and y < 1
    )
    panels = [
        ChartPanel("precision", "recall", (Series("all classes", precisions),), "linear", "linear"),
        ChartPanel("miss rate", "false positives an image", (Series("all classes", misses),)),
    ]
    drawn = [panel if panel.series[0].points else None for panel in panels]
    images = [PageImage(picture.pixels, picture.caption) for picture in pictures]
    return render_page(
        title,
        [
            PageText("notes", notes),
            PageText("heading", ["Errors and what each kind costs"]),
            PageTable(("error", "count", "AP50 gained by repair"), kinds),
            PageText("heading", ["Labels that were not found"]),
            PageTable(("labels", "all", "not found", "missed", "suppressed"), bins),
            PageText("heading", ["Curves"]),
            PageChart([drawn], panel_width=420, panel_height=280),
            PageText("heading", ["Worst images"]),
            *images,
        ],
    )


def _error_mask(errors: DetectionErrors, score: float) -> np.ndarray:
    return (errors.kind >= 0) & (errors.groups.boxes[:, 5] >= score)
