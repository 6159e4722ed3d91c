"""`sightline evaluate --data CONFIG --predictions PATH`: scoring of prediction files, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sightline import registry
from sightline.config import read_sections
from sightline.data.boxes.records import ground_truth_rows
from sightline.data.loading.batch_reader import BatchReader
from sightline.engine.build import DataSubset
from sightline.engine.evaluate import Evaluation
from sightline.engine.run_loading import config_path_of_run
from sightline.engine.session import describe_data_subset
from sightline.errors import UserError
from sightline.evaluation.box_results import box_images, score_boxes, scoring_order
from sightline.evaluation.external_predictions import ExternalPredictions, score_labels
from sightline.evaluation.pycocotools_figures import pycocotools_figures
from sightline.evaluation.result_checks import results_faults
from sightline.metrics.box_ap import BoxAp
from sightline.metrics.box_groups import NO_LIMIT
from sightline.plugins import load_plugins
from sightline.types import ComponentConfig
from sightline.verbs.common import write_document
from sightline.verbs.detection_errors import bind_error_metric, show_errors
from sightline.verbs.output import print_note, show_evaluation

__all__ = ["score_files"]


def score_files(
    config: Path,
    predictions: Path,
    *,
    overrides: Sequence[str],
    plugins: Sequence[Path],
    json: Path | None,
    errors: Path | None = None,
) -> int:
    """Score files on the test split of a config's data by its metrics; nothing else of the config is read.

    `errors` is the folder for `--errors` (errors of boxes), or None.
    """
    load_plugins(plugins)
    sections = read_sections(config_path_of_run(config), ("data", "metrics"), overrides)
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
    show_evaluation(document, title=f"{predictions} on test", dataset=dataset)
    if errors is not None:
        show_errors(evaluation, part, document, errors, order=scoring_order(box_images(part)).tolist())
    write_document(json, document)
    return 0


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
