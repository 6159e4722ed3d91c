"""`sightline evaluate --data CONFIG --predictions PATH`: the score of predictions in files, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sightline import registry
from sightline.config import read_sections
from sightline.data.boxes.records import truth_of
from sightline.data.loading.reading import BatchReader
from sightline.engine.build import Part
from sightline.engine.evaluate import Evaluation
from sightline.engine.loading import config_file
from sightline.engine.session import described_part
from sightline.errors import UserError
from sightline.evaluation.box_results import box_images, order_of, score_boxes
from sightline.evaluation.given_predictions import GivenPredictions, score
from sightline.evaluation.pycocotools_figures import pycocotools_figures
from sightline.evaluation.results_faults import results_faults
from sightline.metrics.box_ap import BoxAp
from sightline.metrics.box_groups import ALL
from sightline.plugins import load_plugins
from sightline.types import Component
from sightline.verbs.common import write_document
from sightline.verbs.errors import error_meter, show_errors
from sightline.verbs.output import note, show_evaluation

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
    sections = read_sections(config_file(config), ("data", "metrics"), overrides)
    dataset = registry.data.build(sections["data"], facts={"split": "test"})
    part = Part(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    is_boxes = "truth" in dataset.info.fields
    if is_boxes:
        evaluation, others = _of_boxes(part, sections["metrics"], predictions, with_errors=errors is not None)
    elif errors is not None:
        raise UserError(f"--errors: is about boxes; {sections['data'].name} has none")
    else:
        evaluation, others = _of_points(part, sections["metrics"], predictions)
    if others:
        note(f"not computed from {'boxes' if is_boxes else 'labels of points'}: {', '.join(others)}")
    document = {
        "metrics": dict(evaluation.metrics),
        "per_class": {name: dict(row) for name, row in evaluation.per_class.items()},
        **evaluation.tables,
        "data": described_part(sections["data"].name, part, evaluation),
        "predictions": str(predictions),
        "selection": "given",
    }
    for one in evaluation.measured:
        if isinstance(one.meter.metric, BoxAp):
            theirs = pycocotools_figures(one.meter.metric, one.state, torch.arange(evaluation.num_samples))
            document |= {} if theirs is None else {"pycocotools": theirs}
    show_evaluation(document, title=f"{predictions} on test", dataset=dataset)
    if errors is not None:
        show_errors(evaluation, part, document, errors, order=order_of(box_images(part)).tolist())
    write_document(json, document)
    return 0


def _of_points(part: Part, metrics: Sequence[Component], path: Path) -> tuple[Evaluation, list[str]]:
    given = GivenPredictions(path, part)
    if given.surplus:
        some = ", ".join(map(str, given.surplus[:3]))
        note(f"not scored: {len(given.surplus)} files of samples outside the test part, such as {some}")
    return score(part, metrics, given)


def _of_boxes(
    part: Part, metrics: Sequence[Component], path: Path, *, with_errors: bool
) -> tuple[Evaluation, list[str]]:
    if with_errors:
        metrics = [each for each in metrics if each.name != "box_errors"]
    evaluation, others, given = score_boxes(part, metrics, path, more=[error_meter(part)] if with_errors else [])
    for count, what in (
        (given.num_other_images, "images outside the test part"),
        (given.num_other_classes, "classes that the config does not choose"),
    ):
        if count:
            note(f"not scored: {count} boxes of {what}")
    images = box_images(part)
    most = min(
        (one.meter.metric.most for one in evaluation.measured if isinstance(one.meter.metric, BoxAp)), default=ALL
    )
    truths = [truth_of(images.record(index)) for index in range(len(images))]
    for fault in results_faults(given.found, truths, images.classes.names, most=most):
        note(f"warning: {path}: {fault}")
    return evaluation, others
