"""`sightline evaluate --data CONFIG --predictions PATH`: the score of predictions in files, without a run."""

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
    """Score files against the test part of a config's data by its metrics; of the config nothing else is read.

    `errors` is a folder for the errors of boxes, where they are asked for.
    """
    load_plugins(plugins)
    sections = read_sections(config_path_of_run(config), ("data", "metrics"), overrides)
    dataset = registry.data.build(sections["data"], facts={"split": "test"})
    part = DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    is_boxes = "truth" in dataset.info.fields
    if is_boxes:
        evaluation, others = _of_boxes(part, sections["metrics"], predictions, with_errors=errors is not None)
    elif errors is not None:
        raise UserError(f"--errors: is about boxes; {sections['data'].name} has none")
    else:
        evaluation, others = _of_points(part, sections["metrics"], predictions)
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
    for one in evaluation.results:
        if isinstance(one.metric.metric, BoxAp):
            theirs = pycocotools_figures(one.metric.metric, one.state, torch.arange(evaluation.num_samples))
            document |= {} if theirs is None else {"pycocotools": theirs}
    show_evaluation(document, title=f"{predictions} on test", dataset=dataset)
    if errors is not None:
        show_errors(evaluation, part, document, errors, order=scoring_order(box_images(part)).tolist())
    write_document(json, document)
    return 0


def _of_points(part: DataSubset, metrics: Sequence[ComponentConfig], path: Path) -> tuple[Evaluation, list[str]]:
    given = ExternalPredictions(path, part)
    if given.surplus:
        some = ", ".join(map(str, given.surplus[:3]))
        print_note(f"not scored: {len(given.surplus)} files of samples outside the test part, such as {some}")
    return score_labels(part, metrics, given)


def _of_boxes(
    part: DataSubset, metrics: Sequence[ComponentConfig], path: Path, *, with_errors: bool
) -> tuple[Evaluation, list[str]]:
    if with_errors:
        metrics = [each for each in metrics if each.name != "box_errors"]
    evaluation, others, given = score_boxes(part, metrics, path, more=[bind_error_metric(part)] if with_errors else [])
    for count, what in (
        (given.num_other_images, "images outside the test part"),
        (given.num_other_classes, "classes that the config does not choose"),
    ):
        if count:
            print_note(f"not scored: {count} boxes of {what}")
    images = box_images(part)
    most = min(
        (one.metric.metric.most for one in evaluation.results if isinstance(one.metric.metric, BoxAp)), default=NO_LIMIT
    )
    truths = [ground_truth_rows(images.record(index)) for index in range(len(images))]
    for fault in results_faults(given.detections, truths, images.classes.names, most=most):
        print_note(f"warning: {path}: {fault}")
    return evaluation, others
