"""Scoring of files of detections, and a detector's errors as tables, as JSON and as a page.

The page holds a table of error kinds, the labels that were not found, and the worst images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.detect.box_results import box_images, results_faults, score_boxes, scoring_order
from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.box_errors import KINDS, BoxErrors, DetectionErrors, classify_errors
from sightline.areas.detect.sets.records import ground_truth_rows
from sightline.areas.detect.task import Detect
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.types import ComponentConfig, PrintedTable, SampleKey
from sightline.draw.boxes import COLORS, Color, DrawnBox, draw_boxes, name_class
from sightline.draw.page import PageImage, PageTable, PageText, render_page
from sightline.draw.pictures import Picture
from sightline.engine.build import DataSubset
from sightline.engine.evaluate import BoundMetric, Evaluation, Evaluator
from sightline.engine.run_loading import OpenRun
from sightline.parts.metrics.box_groups import NO_LIMIT, DetectionColumn, LabelColumn
from sightline.workbench.evaluate.scoring import ErrorReport, ScoredFiles, Scoring

_MAX_IMAGES, _MAX_CONFUSIONS = 12, 20
_CONFUSED = ("class", "taken for", "count")
_NOT_FOUND = ("labels", "not found", "missed", "suppressed")
_READ_KEYS = (
    *("detections", "detection_offsets", "truth", "truth_visible", "truth_offsets", "file_px", "sample_index"),
    *("candidates", "candidate_offsets"),
)


class BoxScoring(Scoring):
    """Scoring of COCO result files by the metrics of boxes, and the errors of detections."""

    needs = frozenset({"truth"})
    scored = "boxes"
    has_errors = True

    def score(
        self,
        part: DataSubset,
        metrics: Sequence[ComponentConfig],
        path: Path,
        *,
        with_errors: bool,
        category_offset: int = 0,
    ) -> ScoredFiles:
        """Compute the metrics of a file of detections."""
        if with_errors:
            metrics = [metric for metric in metrics if metric.name != "box_errors"]
        more = [bind_error_metric(part)] if with_errors else []
        evaluation, others, predictions = score_boxes(part, metrics, path, more=more, category_offset=category_offset)
        notes = [*predictions.notes]
        notes += [
            f"not scored: {count} boxes of {kind}"
            for count, kind in (
                (predictions.num_other_images, "images outside the test part"),
                (predictions.num_other_classes, "classes that the config does not choose"),
            )
            if count
        ]
        images = box_images(part)
        limits = [result.metric.metric.most for result in evaluation.results if isinstance(result.metric.metric, BoxAp)]
        truths = [ground_truth_rows(images.record(index)) for index in range(len(images))]
        most = min(limits, default=NO_LIMIT)
        faults = results_faults(
            predictions.detections, truths, images.classes.names, most=most, category_offset=category_offset
        )
        notes += [f"warning: {path}: {fault}" for fault in faults]
        return ScoredFiles(evaluation, others, notes, {}, scoring_order(images).tolist())

    def add_errors(self, evaluator: Evaluator, part: DataSubset, run: OpenRun) -> Evaluator:
        """Return the evaluator with the error metric added. Raises UserError for a task without boxes."""
        if not isinstance(run.task, Detect):
            return super().add_errors(evaluator, part, run)
        run.task.keeps_candidates = True
        others = [meter for meter in evaluator.metrics if not isinstance(meter.metric, BoxErrors)]
        return replace(evaluator, metrics=[*others, bind_error_metric(part)])

    def report_errors(
        self,
        evaluation: Evaluation,
        part: DataSubset,
        document: Mapping[str, Any],
        *,
        order: Sequence[int] | None = None,
    ) -> ErrorReport:
        """Report the errors as tables, `errors.json` and `errors.html`.

        `order` are the subset's sample indices in the order of the evaluation, if they differ.
        """
        result = next(r for r in evaluation.results if isinstance(r.metric.metric, BoxErrors))
        metric: Any = result.metric.metric
        error_table, metrics = document["box_errors"], document["metrics"]
        rows = [(kind, error_table["counts"][kind], metrics[f"gain_{kind}"]) for kind in KINDS]
        error_rows = PrintedTable(
            f"errors; AP50 {metrics['error_ap50']:.4f}", ("error", "count", "AP50 gained by repair"), rows
        )
        not_found = PrintedTable("labels that were not found", _NOT_FOUND, [_not_found_row(error_table)])
        taken = [tuple(row.values()) for row in error_table["confusions"][:_MAX_CONFUSIONS]]
        confused = PrintedTable("classes taken for others", _CONFUSED, taken)
        errors = classify_errors(result.state, len(metric.class_names), metric.most)
        score = find_best_score(errors)
        images = box_images(part)
        pictures = []
        for image in find_worst_images(errors, score, most=_MAX_IMAGES):
            index = image if order is None else int(order[image])
            pixels = part.dataset[SampleKey(index, 0, 0)]["image"].numpy()
            name = images.image(index).name
            pictures.append(draw_errors(pixels, image, errors, score, name=name, class_names=metric.class_names))
        header, kind = document["scored_boxes_errors"], document["data"].get("box_type", "unnamed")
        counts = f"{header['num_boxes']} to find, {header['num_ignored']} ignored"
        notes = [
            f"{header['protocol']}; {kind} boxes of {evaluation.num_samples} images: {counts}; "
            f"AP50 {metrics['error_ap50']:.4f}",
            f"Pictures show detections of a score of at least {score:.3f}, where F1 is largest.",
            "Suppressed labels were not found, though a detection had found them before suppression.",
        ]
        gains = {name: value for name, value in metrics.items() if name == "error_ap50" or name.startswith("gain_")}
        worst = [picture.caption for picture in pictures]
        files = {
            "errors.json": {**error_table, "metrics": gains, **header, "data": document["data"], "worst": worst},
            "errors.html": encode_errors(document, pictures, title="Errors of a detector", notes=notes),
        }
        return ErrorReport([error_rows, *([confused] if confused.rows else []), not_found], files)


def bind_error_metric(part: DataSubset) -> BoundMetric:
    """Bind the error metric with its defaults; it reads candidates before suppression if they are predicted."""
    metric: Any = BoxErrors(class_names=tuple(part.dataset.info.facts["class_names"]))
    return BoundMetric(
        metric, bind(metric.update, AvailableKeys("evaluation", _READ_KEYS), owner="--errors", exclude=("state",))
    )


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


def draw_errors(
    pixels: np.ndarray, image: int, errors: DetectionErrors, score: float, *, name: str, class_names: Sequence[str]
) -> Picture:
    """Draw an image (H, W, 3) uint8 with its detections of at least this score, each in the colour of its error.

    Captions are classes and scores; an error of classification also says which class it is.
    """
    groups, is_real = errors.groups, ~errors.groups.is_ignored
    labels = np.flatnonzero(groups.labels[:, 0] == image)
    rows = np.flatnonzero((groups.boxes[:, 0] == image) & (groups.boxes[:, 5] >= score))
    ignored = groups.labels[labels[~is_real[labels]], 1:5]
    boxes = [DrawnBox(tuple(corners), _COLORS["ignored"], "", "hatched") for corners in ignored]
    for row in rows[np.argsort(errors.kind[rows] >= 0, kind="stable")]:  # errors are drawn last, on top
        error_kind = KINDS[errors.kind[row]] if errors.kind[row] >= 0 else ""
        kind = error_kind or ("ignored" if errors.is_ignored[row] else "found")
        caption = name_class(int(groups.boxes[row, DetectionColumn.CLASS]), class_names, groups.boxes[row, 5])
        if kind == "classification":
            caption += f", is {name_class(int(groups.labels[errors.label[row], LabelColumn.CLASS]), class_names)}"
        boxes.append(DrawnBox(tuple(groups.boxes[row, 1:5]), _COLORS[kind], caption))
    lost = labels[(is_real & ~errors.is_label_found)[labels]]
    for row in lost:
        kind = "suppressed" if errors.is_suppressed[row] else "missed"
        caption = name_class(int(groups.labels[row, LabelColumn.CLASS]), class_names)
        boxes.append(DrawnBox(tuple(groups.labels[row, 1:5]), _COLORS[kind], caption, "dashed"))
    caption = f"{name}: {len(lost)} not found, {int(_error_mask(errors, score)[rows].sum())} wrong"
    return Picture(name, draw_boxes(pixels, boxes, legend=_COLORS), caption)


def encode_errors(document: Mapping[str, Any], pictures: Sequence[Picture], *, title: str, notes: Sequence[str]) -> str:
    """Encode the page as one self-contained HTML text. `document` has `metrics` of `box_errors` and its table."""
    about, metrics = document["box_errors"], document["metrics"]
    kinds = [(kind, about["counts"][kind], f"{metrics[f'gain_{kind}']:.4f}") for kind in KINDS]
    confused = PageTable(_CONFUSED, [tuple(row.values()) for row in about["confusions"][:_MAX_CONFUSIONS]])
    taken = [PageText("heading", ["Classes taken for others"]), confused] if confused.rows else []
    images = [PageImage(picture.pixels, picture.caption, is_photo=True) for picture in pictures]
    return render_page(
        title,
        [
            PageText("notes", notes),
            PageText("heading", ["Errors and what each kind costs"]),
            PageTable(("error", "count", "AP50 gained by repair"), kinds),
            *taken,
            PageText("heading", ["Labels that were not found"]),
            PageTable(_NOT_FOUND, [_not_found_row(about)]),
            PageText("heading", ["Worst images"]),
            *images,
        ],
    )


def _not_found_row(about: Mapping[str, Any]) -> tuple[Any, ...]:
    row = about["labels"]
    return tuple("-" if row[key] is None else row[key] for key in ("labels", "not_found", "missed", "suppressed"))


def _error_mask(errors: DetectionErrors, score: float) -> np.ndarray:
    return (errors.kind >= 0) & (errors.groups.boxes[:, 5] >= score)
