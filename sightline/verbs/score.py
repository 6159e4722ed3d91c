"""`sightline score`: scoring of anyone's prediction files; a detector's errors as tables, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.areas.detect.box_results import (
    box_images,
    pycocotools_figures,
    results_faults,
    score_boxes,
    scoring_order,
)
from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.box_errors import KINDS, BoxErrors, classify_errors
from sightline.areas.detect.sets.records import ground_truth_rows
from sightline.commands.run import ScoreOptions
from sightline.config import read_sections
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.build import DataSubset
from sightline.engine.evaluate import BoundMetric, Evaluation
from sightline.engine.run_loading import config_path_of_run
from sightline.engine.session import describe_data_subset
from sightline.parts.metrics.box_groups import NO_LIMIT
from sightline.runs.run_directory import RunDirectory, write_document
from sightline.store.loading.batch_reader import BatchReader
from sightline.training.published_results import compare_figures_with_published, explain_no_rows
from sightline.verbs.output import print_note, show_evaluation, show_table
from sightline.view.run_pages import draw_errors, encode_errors, find_best_score, find_worst_images
from sightline.workbench.evaluate.saved_predictions import ExternalPredictions, score_labels


def score(options: ScoreOptions) -> int:
    """Score files on the test split of a config's data by its metrics; nothing else of the config is read."""
    assert_against(options.against)
    if options.errors != (options.out is not None):
        raise UserError(
            "--errors: writes a page with the worst images; give its folder with --out DIR, which serves only this"
        )
    errors, predictions = options.out, options.predictions
    load_plugins(options.plugins)
    sections = read_sections(config_path_of_run(options.data), ("data", "metrics"), options.overrides)
    dataset = registry.data.build(sections["data"], facts={"split": "test"})
    part = DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    is_boxes = "truth" in dataset.info.fields
    if is_boxes:
        evaluation, others = _score_boxes(part, sections["metrics"], predictions, with_errors=errors is not None)
    elif errors is not None:
        raise UserError(f"--errors: is about boxes; {sections['data'].name} has none")
    else:
        evaluation, others = _score_point_labels(part, sections["metrics"], predictions)
    if others:
        print_note(f"not computed from {'boxes' if is_boxes else 'labels of points'}: {', '.join(others)}")
    document = {
        "metrics": dict(evaluation.metrics),
        "per_class": {name: dict(row) for name, row in evaluation.per_class.items()},
        **evaluation.tables,
        "data": describe_data_subset(sections["data"].name, part, evaluation),
        "predictions": str(predictions),
        "selection": "given",
    }
    for result in evaluation.results:
        if isinstance(result.metric.metric, BoxAp):
            external_metrics = pycocotools_figures(
                result.metric.metric, result.state, torch.arange(evaluation.num_samples)
            )
            document |= {} if external_metrics is None else {"pycocotools": external_metrics}
    if options.against:
        document["published"] = compare_figures_with_published(sections["data"], dataset.info, evaluation.metrics)
        if not document["published"]:
            print_note(f"--against published: {explain_no_rows(sections['data'], dataset.info, evaluation.metrics)}")
    show_evaluation(document, title=f"{predictions} on test", dataset=dataset)
    if errors is not None:
        show_errors(evaluation, part, document, errors, order=scoring_order(box_images(part)).tolist())
    write_document(options.json, document)
    return 0


def assert_against(against: str | None) -> None:
    """Raise UserError for anything but published results to compare with."""
    if against not in (None, "published"):
        raise UserError(f"--against {against}: must be published")


def _score_point_labels(
    part: DataSubset, metrics: Sequence[ComponentConfig], path: Path
) -> tuple[Evaluation, list[str]]:
    predictions = ExternalPredictions(path, part)
    if predictions.surplus:
        examples = ", ".join(map(str, predictions.surplus[:3]))
        print_note(f"not scored: {len(predictions.surplus)} files of samples outside the test part, such as {examples}")
    return score_labels(part, metrics, predictions)


def _score_boxes(
    part: DataSubset, metrics: Sequence[ComponentConfig], path: Path, *, with_errors: bool
) -> tuple[Evaluation, list[str]]:
    if with_errors:
        metrics = [metric for metric in metrics if metric.name != "box_errors"]
    evaluation, others, predictions = score_boxes(
        part, metrics, path, more=[bind_error_metric(part)] if with_errors else []
    )
    for count, kind in (
        (predictions.num_other_images, "images outside the test part"),
        (predictions.num_other_classes, "classes that the config does not choose"),
    ):
        if count:
            print_note(f"not scored: {count} boxes of {kind}")
    images = box_images(part)
    max_detections = min(
        (result.metric.metric.most for result in evaluation.results if isinstance(result.metric.metric, BoxAp)),
        default=NO_LIMIT,
    )
    truths = [ground_truth_rows(images.record(index)) for index in range(len(images))]
    for fault in results_faults(predictions.detections, truths, images.classes.names, most=max_detections):
        print_note(f"warning: {path}: {fault}")
    return evaluation, others


# --- errors of a detector --------------------------------------------------------------------------------------------

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
