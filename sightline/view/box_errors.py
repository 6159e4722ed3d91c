"""The errors of a detector as a page: a table of kinds, labels by their kind, curves, and the worst images."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from sightline.box_pictures import Color, DrawnBox, draw_boxes
from sightline.chart import ChartPanel, Series, render_svg
from sightline.errors import escape_to_one_line
from sightline.metrics.box_errors import KINDS, DetectionErrors
from sightline.pictures import Picture, encode_png
from sightline.tasks.detection_pictures import COLORS

__all__ = ["best_score", "draw_errors", "encode_errors", "worst_images"]

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


def best_score(errors: DetectionErrors) -> float:
    """The score from which detections have the largest F1: the harmonic mean of precision and recall; 0 without any."""
    counts = ~errors.is_ignored
    scores, found = errors.groups.boxes[counts, 5], errors.is_found[counts]
    order = np.argsort(-scores, kind="stable")
    right = found[order].cumsum()
    f1 = right / (np.arange(1, len(right) + 1) + (~errors.groups.is_ignored).sum())
    return float(scores[order][f1.argmax()]) if right.any() else 0.0


def worst_images(errors: DetectionErrors, score: float, *, most: int) -> list[int]:
    """The images with the most errors among detections of at least this score and labels not found, the worst first."""
    is_lost = ~errors.groups.is_ignored & ~errors.is_label_found
    images = np.concatenate([errors.groups.boxes[_wrong(errors, score), 0], errors.groups.labels[is_lost, 0]])
    numbers, counts = np.unique(images.astype(int), return_counts=True)
    return [int(number) for number in numbers[np.argsort(-counts, kind="stable")][:most]]


def draw_errors(pixels: np.ndarray, image: int, errors: DetectionErrors, score: float, *, name: str) -> Picture:
    """An image (H, W, 3) uint8 with its detections of at least this score, each with its kind of error."""
    groups, is_real = errors.groups, ~errors.groups.is_ignored
    labels = np.flatnonzero(groups.labels[:, 0] == image)
    rows = np.flatnonzero((groups.boxes[:, 0] == image) & (groups.boxes[:, 5] >= score))
    boxes = [
        DrawnBox(tuple(groups.labels[row, 1:5]), _COLORS["ignored"], "", "hatched") for row in labels[~is_real[labels]]
    ]
    for row in rows[np.argsort(errors.kind[rows] >= 0, kind="stable")]:  # what is wrong lies above
        wrong = KINDS[errors.kind[row]] if errors.kind[row] >= 0 else ""
        kind = wrong or ("ignored" if errors.is_ignored[row] else "found")
        caption = f"{wrong[:3]} {groups.boxes[row, 5]:.2f}" if wrong else ""
        boxes.append(DrawnBox(tuple(groups.boxes[row, 1:5]), _COLORS[kind], caption))
    lost = labels[(is_real & ~errors.is_label_found)[labels]]
    for row in lost:
        kind = "suppressed" if errors.is_suppressed[row] else "missed"
        boxes.append(DrawnBox(tuple(groups.labels[row, 1:5]), _COLORS[kind], "", "dashed"))
    caption = f"{name}: {len(lost)} not found, {int(_wrong(errors, score)[rows].sum())} wrong"
    return Picture(name, draw_boxes(pixels, boxes, legend=_COLORS), caption)


def encode_errors(document: Mapping[str, Any], pictures: Sequence[Picture], *, title: str, notes: Sequence[str]) -> str:
    """The page, with everything in it. `document` has `metrics` of `box_errors` and its table."""
    about, metrics = document["box_errors"], document["metrics"]
    kinds = [(kind, about["counts"][kind], f"{metrics[f'gain_{kind}']:.4f}") for kind in KINDS]
    names = ("labels", "not_found", "missed", "suppressed")
    bins = [(name, *("-" if row[key] is None else row[key] for key in names)) for name, row in about["labels"].items()]
    curve = about["curve"]
    missed = [(x, 1 - y) for x, y in zip(curve["false_per_image"], curve["recall"], strict=True) if x > 0 and y < 1]
    found = tuple(zip(curve["recall"], curve["precision"], strict=True))
    panels = (
        ChartPanel("precision", "recall", (Series("all classes", found),), "linear", "linear") if found else None,
        ChartPanel("miss rate", "false positives an image", (Series("all classes", tuple(missed)),))
        if missed
        else None,
    )
    images = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(encode_png(each.pixels)).decode()}" alt="">'
        f"<figcaption>{html.escape(escape_to_one_line(each.caption))}</figcaption></figure>"
        for each in pictures
    )
    page = resources.files("sightline.view").joinpath("errors.html").read_text(encoding="utf-8")
    content = {
        "IMAGES": images,
        "CURVES": render_svg([panels], panel_width=420, panel_height=280),
        "BINS": _table(("labels", "all", "not found", "missed", "suppressed"), bins),
        "KINDS": _table(("error", "count", "AP50 gained by repair"), kinds),
        "NOTES": "".join(f"<li>{html.escape(escape_to_one_line(line))}</li>" for line in notes),
        "TITLE": html.escape(escape_to_one_line(title)),
    }
    for mark in content:
        assert f"%{mark}%" in page, f"errors.html has lost its place for {mark}"
    # in one pass, so that no file's name is taken for a mark
    return re.sub(f"%({'|'.join(content)})%", lambda found: content[found[1]], page)


def _wrong(errors: DetectionErrors, score: float) -> np.ndarray:
    return (errors.kind >= 0) & (errors.groups.boxes[:, 5] >= score)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[html.escape(escape_to_one_line(str(cell))) for cell in row] for row in rows]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in lines)
    return f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead><tbody>{body}</tbody></table>"
