"""Sheet of a run: its report in short, as one picture for a chat or a slide."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from sightline.contract.errors import join_some
from sightline.draw.charts import ChartPanel
from sightline.draw.page import PageBlock, PageChart, PageImage, PageTable, PageText
from sightline.draw.page_picture import draw_page
from sightline.runs.curves import make_curve_panels
from sightline.runs.run_records import ReportedRun, compare_runs, format_fact, note_figures, read_part
from sightline.store.files.image_files import read_image
from sightline.view.run_report import choose_lines, list_class_figures, list_pictures, make_class_table, make_headlines
from sightline.view.sheet import draw_sheet
from sightline.view.stages import ViewedSample

_MAX_POINTS = 400
"""Maximum number of points of a split's curve."""
_MAX_PANELS, _CHART_WIDTH, _MAX_PANEL_WIDTH = 4, 1200, 400
_MAX_FIGURES = 9
_NUM_ABOUT = 2
"""Number of tables side by side in which a run without figures is described."""
_MAX_TABLES, _MAX_CLASS_ROWS, _CLASS_COLUMNS = 3, 8, 3
"""Maximum number of tables of classes, of their rows, and of their figures beside the count."""
_MAX_IMAGES = 4
_MAX_RATIO = 5.5
"""Maximum width of the images of a row, in their height."""


def draw_run(run: ReportedRun, subjects: Sequence[ViewedSample] = ()) -> np.ndarray:
    """Draw the sheet of a run, (H, W, 3) uint8, with samples in place of what its last evaluation drew.

    Raises UserError for files of another form.
    """
    return draw_page(run.name, make_sheet(run, subjects))


def make_sheet(run: ReportedRun, subjects: Sequence[ViewedSample] = ()) -> list[list[PageBlock]]:
    """Make the rows of a run's sheet: head, curves, figures, images, and notes on what is missing or left out."""
    facts = compare_runs([run]).facts[0]
    metrics = read_part(run, lambda run: list(run.metrics), "final.json")
    about = [[name, format_fact(value)] for name, value in facts.items() if name not in metrics]
    figures = [[name, format_fact(facts[name])] for name in metrics]
    headlines = make_headlines([run])
    parts = [slice(None)] if headlines or figures else _divide(len(about), _NUM_ABOUT)
    head = [*headlines, *(PageTable(["", ""], about[part], is_numeric=False) for part in parts)]
    rows: list[list[PageBlock]] = [[*head, *([PageTable(["", ""], figures[:_MAX_FIGURES])] if figures else [])]]
    notes = read_part(run, lambda run: note_figures(run.final or {}), "final.json")
    panels = read_part(run, _choose_panels, "metrics.jsonl")
    if panels:
        shown = panels[:_MAX_PANELS]
        rows.append([PageChart([shown], panel_width=min(_MAX_PANEL_WIDTH, _CHART_WIDTH // len(shown)))])
    else:
        notes.append("no curves: metrics.jsonl has no line of this run")
    classes = read_part(run, _list_short_figures, "final.json")
    rows.append([*_make_class_tables(run, classes)])
    pictures = read_part(run, list_pictures, "predictions")
    if subjects:
        images = [_draw_subject(subject) for subject in subjects[:_MAX_IMAGES]]
    else:
        images = [PageImage(read_image(path), caption) for path, caption in pictures[:_MAX_IMAGES]]
    rows += _arrange(images)
    if not images:
        notes.append("no predictions: the run has no pictures of an evaluation; --samples draws samples of its data")
    more = {
        "curves": len(panels) - _MAX_PANELS,
        "figures": len(figures) - _MAX_FIGURES,
        "joints" if run.has_joints else "classes": len(classes) - _MAX_TABLES * _MAX_CLASS_ROWS,
        "samples" if subjects else "pictures": len(subjects or pictures) - _MAX_IMAGES,
    }
    if left_out := [f"{count} {name}" for name, count in more.items() if count > 0]:
        command = shlex.join(["sightline", "report", str(run.path)])
        notes.append(f"left out: {join_some(left_out, most=len(more))}; the page of {command} has them")
    return [*rows, [PageText("notes", notes)]] if notes else rows


def _choose_panels(run: ReportedRun) -> list[ChartPanel]:
    """Choose the curves of losses and of metrics, the total loss and what chose the checkpoint first.

    The total of a single loss is left out.
    """
    panels = [panel for row in make_curve_panels({"": choose_lines(run, most=_MAX_POINTS)}) for panel in row]
    evaluated = {name for line in run.lines if line["split"] != "train" for name in line}
    losses = [panel.title for panel in panels if panel.title.startswith("loss/")]
    left_out = ["loss/total"] if len(losses) == 2 else []
    chosen = [panel for panel in panels if panel.title in {*losses, *evaluated}.difference(left_out)]
    first = ("loss/total", run.config.get("evaluate.metric", "").strip('"'))
    return sorted(chosen, key=lambda panel: panel.title not in first)


def _list_short_figures(run: ReportedRun) -> dict[str, dict[str, object]]:
    """Return the first figures of each class or joint, and its count, without intervals."""
    rows = list_class_figures(run)
    names = dict.fromkeys(name for row in rows.values() for name in row if not name.endswith("95 %"))
    chosen = [name for name in names if name != "count"][:_CLASS_COLUMNS] + ["count"] * ("count" in names)
    return {label: {name: row.get(name) for name in chosen} for label, row in rows.items()}


def _make_class_tables(run: ReportedRun, classes: Mapping[str, Mapping[str, object]]) -> list[PageTable]:
    """Make tables of the classes or joints in order, about equally long, that stand side by side."""
    items = [*classes.items()][: _MAX_TABLES * _MAX_CLASS_ROWS]
    num_tables = math.ceil(len(items) / _MAX_CLASS_ROWS)
    parts = [dict(items[part]) for part in _divide(len(items), num_tables)]
    tables = [make_class_table([run.name], [part]) for part in parts]
    return [replace(table, head=["joint" if run.has_joints else "class", *table.head[1:]]) for table in tables]


def _divide(count: int, num_parts: int) -> list[slice]:
    """Divide a range into parts whose lengths differ by at most 1."""
    ends = [count * number // max(1, num_parts) for number in range(num_parts + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def _draw_subject(subject: ViewedSample) -> PageImage:
    """Draw the last stage of a sample: what is predicted, or what the model reads if that is not drawn."""
    return PageImage(draw_sheet(replace(subject, stages=subject.stages[-1:])), "")


def _arrange(images: Sequence[PageImage]) -> list[list[PageBlock]]:
    """Arrange images in rows that are at most `_MAX_RATIO` times as wide as high."""
    rows: list[list[PageBlock]] = []
    free = 0.0
    for image in images:
        ratio = image.pixels.shape[1] / len(image.pixels)
        if not rows or ratio > free:
            rows.append([])
            free = _MAX_RATIO
        rows[-1].append(image)
        free -= ratio
    return rows
