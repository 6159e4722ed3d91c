"""`sightline evaluate --errors`: a detector's errors as a table, as JSON, and as a page with the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.binding import AvailableKeys, bind
from sightline.engine.build import DataSubset
from sightline.engine.evaluate import BoundMetric, Evaluation
from sightline.evaluation.box_results import box_images
from sightline.metrics.box_errors import KINDS, BoxErrors, classify_errors
from sightline.runs.run_directory import RunDirectory
from sightline.types import SampleKey
from sightline.verbs.output import print_note, show_table
from sightline.view.box_errors import draw_errors, encode_errors, find_best_score, find_worst_images

__all__ = ["bind_error_metric", "show_errors"]

_MAX_IMAGES = 12
_READ_KEYS = (
    *("detections", "detection_offsets", "truth", "truth_visible", "truth_offsets", "file_px", "sample_index"),
    *("candidates", "candidate_offsets"),
)


def bind_error_metric(part: DataSubset) -> BoundMetric:
    """Bind the error metric with its defaults; it reads candidates before suppression if they are predicted."""
    metric: Any = BoxErrors(class_names=tuple(part.dataset.info.facts["class_names"]))
    return BoundMetric(
        metric, bind(metric.update, AvailableKeys("evaluation", _READ_KEYS), owner="--errors", exclude=("state",))
    )


def show_errors(
    evaluation: Evaluation,
    part: DataSubset,
    document: Mapping[str, Any],
    folder: Path,
    *,
    order: Sequence[int] | None = None,
) -> None:
    """Print the tables, and write `errors.json` and `errors.html` to the folder.

    `order` are the subset's sample indices in the order of the evaluation, if they differ.
    """
    result = next(r for r in evaluation.results if isinstance(r.metric.metric, BoxErrors))
    metric: Any = result.metric.metric
    error_table, metrics = document["box_errors"], document["metrics"]
    rows = [(kind, error_table["counts"][kind], metrics[f"gain_{kind}"]) for kind in KINDS]
    show_table(f"errors; AP50 {metrics['error_ap50']:.4f}", ("error", "count", "AP50 gained by repair"), rows)
    names = ("not_found", "missed", "suppressed", "labels")
    not_found = [(name, *(row[key] for key in names)) for name, row in error_table["labels"].items() if row["labels"]]
    show_table("labels that were not found", ("labels", *names[:-1], "of"), not_found)
    errors = classify_errors(result.state, len(metric.class_names), metric.most)
    score = find_best_score(errors)
    images = box_images(part)
    pictures = []
    for image in find_worst_images(errors, score, most=_MAX_IMAGES):
        index = image if order is None else int(order[image])
        pixels = part.dataset[SampleKey(index, 0, 0)]["image"].numpy()
        pictures.append(draw_errors(pixels, image, errors, score, name=images.image(index).name))
    header, kind = document["scored_boxes_errors"], document["data"].get("box_type", "unnamed")
    counts = f"{header['num_boxes']} to find, {header['num_ignored']} ignored"
    notes = [
        f"{header['protocol']}; {kind} boxes of {evaluation.num_samples} images: {counts}; "
        f"AP50 {metrics['error_ap50']:.4f}",
        f"Pictures show detections of a score of at least {score:.3f}, where F1 is largest.",
        "Suppressed labels were not found, though a detection had found them before suppression.",
    ]
    gains = {name: value for name, value in metrics.items() if name == "error_ap50" or name.startswith("gain_")}
    folder.mkdir(parents=True, exist_ok=True)
    target = RunDirectory(folder, is_writer=True)
    worst = [picture.caption for picture in pictures]
    target.write_json(
        "errors.json", {**error_table, "metrics": gains, **header, "data": document["data"], "worst": worst}
    )
    target.write_text("errors.html", encode_errors(document, pictures, title="Errors of a detector", notes=notes))
    print_note(f"errors: {folder / 'errors.html'}")
