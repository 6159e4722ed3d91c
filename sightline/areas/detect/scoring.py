"""Files of detections: written by an evaluation, and scored, as those of any detector."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.metric import make_state, sorted_rows
from sightline.contract.types import Batch, ComponentConfig
from sightline.engine.build import build_metrics
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.engine.run_data import DataSubset
from sightline.parts.metrics.box_groups import NO_LIMIT, iou_or_ioa
from sightline.store.boxes.detections import BoxImages, DetectionResults, Detections, duplicate_image_ids, read_results
from sightline.store.boxes.records import ground_truth_rows, visible_fractions
from sightline.store.prepared.prepared_set import summarise_folder
from sightline.workbench.evaluate.saved_predictions import MANIFEST
from sightline.workbench.evaluate.scoring import ScoredFiles, Scoring

RESULTS = "detections.json"
"""Name of the COCO result file, with the image and category ids of the data set's own files."""


class DetectionWriter:
    """Writer of an evaluation's detections as `RESULTS`, called by an `Evaluator` batch by batch; and of a manifest.

    Raises DataError for a part whose images have no ids, or share one.
    """

    writes = "detections"
    """Predictions of a task that are written."""

    def __init__(self, path: Path, part: DataSubset, world: World) -> None:
        self.path = path
        self._images, self._part = box_images(part), part
        if shared := duplicate_image_ids(map(self._images.image, range(len(self._images)))):
            raise DataError(
                f"--save-predictions: {next(iter(shared.values()))}, and rows would be of either; evaluate the images "
                "of each annotation file by themselves (data.tested, or prepare with annotations=[FILE])"
            )
        self._rows: list[Tensor] = [torch.zeros(0, 7, dtype=torch.float64)]
        self._world = world
        self._directory = world.run_directory(path)
        self._directory.remove(MANIFEST)

    def __call__(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """Store the detections of a batch."""
        index = batch["sample_index"].cpu().repeat_interleave(predictions["detection_offsets"].diff().cpu())
        self._rows.append(torch.cat([index.double()[:, None], predictions["detections"].double().cpu()], dim=1))

    def finish(self, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
        """Write the detections by image, and the manifest, which begins with `about`. Called on every process."""
        gathered, _ = self._world.gather_rows(torch.cat(self._rows).to(self._world.device), operation="detections")
        rows = sorted_rows(gathered).cpu().numpy()
        ids = self._images.classes.ids
        lines = []
        for image_rows in np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1):
            if len(image_rows):
                detections = Detections(
                    self._images.image(int(image_rows[0, 0])), image_rows[:, 1:5], image_rows[:, 5], image_rows[:, 6]
                )
                lines += [json.dumps(row) for row in detections.to_coco(ids)]
        self._directory.write_text(RESULTS, "[" + ",\n".join(lines) + "]\n")
        classes = {"class_names": list(self._images.classes.names), "category_ids": list(ids)}
        counts = {"num_images": evaluation.num_samples, "num_detections": len(lines)}
        worst = evaluation.worst_samples
        errors = {} if worst is None else {"worst_samples": worst.to_dict(self._part.sample_name)}
        self._directory.write_json(MANIFEST, {**about, **classes, **counts, **errors, "file": RESULTS})


def box_images(part: DataSubset) -> BoxImages:
    """Return the data set of a split. Raises DataError if its images have no ids."""
    if not isinstance(part.dataset, BoxImages):
        raise DataError(
            f"files of detections are of one set of images with boxes; {type(part.dataset).__name__} is not one, its "
            "samples have no image ids of their own"
        )
    return part.dataset


class BoxScoring(Scoring):
    """Scoring of COCO result files by the metrics of boxes."""

    needs = frozenset({"truth"})
    scored = "boxes"

    def score(
        self,
        part: DataSubset,
        metrics: Sequence[ComponentConfig],
        path: Path,
        *,
        category_offset: int = 0,
    ) -> ScoredFiles:
        """Compute the metrics of a file of detections."""
        evaluation, skipped, predictions = score_boxes(part, metrics, path, category_offset=category_offset)
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
        faults = results_faults(predictions.detections, truths, most=most)
        notes += [f"warning: {path}: {fault}" for fault in faults]
        order = scoring_order(images)
        return ScoredFiles(evaluation, skipped, notes, lambda index: part.sample_name(int(order[index])))


def score_boxes(
    part: DataSubset,
    components: Sequence[ComponentConfig],
    path: Path,
    *,
    category_offset: int = 0,
) -> tuple[Evaluation, list[str], DetectionResults]:
    """Compute metrics for a file of detections; also return names of metrics that need more, and the read results.

    `path` is a file, or a folder with one; category ids are `category_offset` too high.
    Images are not decoded. Raises ConfigError if no metric can be computed, DataError for a file that does not fit.
    """
    started = time.perf_counter()
    images = box_images(part)
    results = read_results(_find_results_file(path), images, category_offset=category_offset)
    order = scoring_order(images)
    records = [images.record(int(index)) for index in order]
    detections_by_image = [results.detections[index] for index in order]
    detections = [
        np.column_stack([detection.boxes, detection.scores, detection.label]) for detection in detections_by_image
    ]
    batch = {
        "sample_index": torch.arange(len(images)),
        "file_px": torch.tensor(
            [(detection.image.height, detection.image.width) for detection in detections_by_image]
        ).reshape(-1, 2),
        **_concatenate("truth", list(map(ground_truth_rows, records)), "truth_offsets"),
        **_concatenate("truth_visible", list(map(visible_fractions, records)), "truth_offsets"),
        **_concatenate("detections", detections, "detection_offsets"),
    }
    bound_metrics: list[BoundMetric] = []
    skipped = []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = bind(
                metric.update, AvailableKeys("files", batch), owner=f"metrics.{component.name}", exclude=("state",)
            )
        except UnknownKeyError:
            skipped.append(component.name)
            continue
        bound_metrics.append(BoundMetric(metric, update))
    if not bound_metrics:
        raise ConfigError(
            f"metrics: none of {', '.join(skipped)} is computed from boxes; box_ap, box_errors, crowd_ap, miss_rate are"
        )
    metric_results = []
    for meter in bound_metrics:
        state = make_state(meter.metric, num_samples=len(images))
        meter.update.function(state, **meter.update.select(batch))
        metric_results.append(MetricResult(meter, "", state))
    seconds = time.perf_counter() - started
    return make_evaluation(metric_results, num_samples=len(images), seconds=seconds), skipped, results


def scoring_order(images: BoxImages) -> np.ndarray:
    """Return the order of images (n,) for scoring: by image id, which breaks ties of scores as in pycocotools."""
    return np.argsort([images.image(index).image_id for index in range(len(images))], kind="stable")


def _find_results_file(path: Path) -> Path:
    """Find the result file in a folder. Raises DataError unless there is exactly one."""
    if not path.is_dir():
        return path
    files = [path / RESULTS] if (path / RESULTS).is_file() else [*path.glob("*.json"), *path.glob("*.odgt")]
    if len(files) != 1:
        raise DataError(f"{path}: holds {summarise_folder(path)}; give the file of results itself")
    return files[0]


def _concatenate(name: str, parts: Sequence[np.ndarray], offsets: str) -> dict[str, Tensor]:
    ends = list(accumulate((len(part) for part in parts), initial=0))
    return {name: torch.from_numpy(np.concatenate(parts)), offsets: torch.tensor(ends)}


# --- plausibility of a file's detections ------------------------------------------------------------------------------

_MAX_LOWEST_SCORE = 0.05
_MAX_DUPLICATE_SHARE, _MAX_EMPTY_SHARE = 1e-3, 0.02
_MIN_FACTOR = 1.5
_MIN_LABELS = {0.5: 20, 0.9: 5, 0.99: 2}
"""Another order of the numbers is likelier if it matches, at an IoU, this many labels at least, and `_MIN_FACTOR` times
as many. Corners read as sizes of boxes near the upper left corner of an image still match at an IoU of 0.5."""

_MAX_SHARE_COORDINATE = 2.0
"""Maximal coordinate of boxes in shares of an image (boxes may exceed its border), not in pixels."""
_PLAIN = "left, top, width, height"
_REQUIRED_FORMAT = "left, top, width, height in pixels of the files"
_ORDERS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    _PLAIN: lambda a, b, c, d: np.column_stack([a, b, a + c, b + d]),
    "left, top, right, bottom": lambda a, b, c, d: np.column_stack([a, b, c, d]),
    "middle x, middle y, width, height": lambda a, b, c, d: np.column_stack(
        [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    ),
    "top, left, height, width": lambda a, b, c, d: np.column_stack([b, a, b + d, a + c]),
    "top, left, bottom, right": lambda a, b, c, d: np.column_stack([b, a, d, c]),
}
"""Functions from the four columns of rows to corners (D, 4), for each possible order."""


def results_faults(results: Sequence[Detections], truths: Sequence[np.ndarray], *, most: int) -> Iterator[str]:
    """Yield sentences on implausible detections, compared with `truths` (G, 7) by image, and what to do.

    `most` detections per image and class are evaluated by the metrics of the config.
    """
    scores = np.concatenate([result.scores for result in results]) if results else np.zeros(0)
    if not len(scores):
        yield "no detection is of these images; check that the file is of this part, and that it was written to its end"
        return
    if scores.min() > _MAX_LOWEST_SCORE:
        yield (
            f"the lowest score is {scores.min():.3g}: detections below it were dropped, and curves end early; write "
            f"all from {_MAX_LOWEST_SCORE:g} on, for crowds from 0.01 on"
        )
    pairs = list(zip(results, truths, strict=True))
    empty = [result.image.name for result, truth in pairs if (truth[:, 6] == 0).any() and not len(result.scores)]
    if len(empty) > _MAX_EMPTY_SHARE * len(results):
        yield (
            f"{len(empty)} of {len(results)} images have labels and no detections, such as '{empty[0]}'; their labels "
            "count as missed: write the results of all images"
        )
    rows = [np.column_stack([result.boxes, result.scores, result.label]) for result in results]
    num_duplicates = sum(len(image_rows) - len(np.unique(image_rows, axis=0)) for image_rows in rows)
    if num_duplicates > _MAX_DUPLICATE_SHARE * len(scores):
        yield (
            f"{num_duplicates} of {len(scores)} rows are there twice, and count as wrong: "
            "merge the parts of the file once"
        )
    max_counts = [max(np.bincount(result.label, minlength=1)) for result in results]
    if max(max_counts) > most:
        yield (
            f"{sum(count > most for count in max_counts)} images have more than {most} detections of a class, "
            f"{max(max_counts)} at most; the others are not looked at: set `most` of the metrics"
        )
    num_labels = max((np.bincount(t[t[:, 6] == 0, 4].astype(int), minlength=1).max() for t in truths), default=0)
    if num_labels > most:
        yield (
            f"an image has {num_labels} labels of a class, and {most} detections are looked at: "
            "set `most` of the metrics"
        )
    yield from _find_box_faults(results, truths)


def _find_box_faults(results: Sequence[Detections], truths: Sequence[np.ndarray]) -> Iterator[str]:
    """Report boxes in shares of the image, or another order of their four numbers that matches more labels."""
    if max(np.abs(result.boxes).max(initial=0) for result in results) <= _MAX_SHARE_COORDINATE:
        yield f"boxes look like shares of the image; write {_REQUIRED_FORMAT}"
        return
    rows = [np.concatenate([result.boxes[:, :2], result.boxes[:, 2:] - result.boxes[:, :2]], 1) for result in results]
    overlaps = {
        order: _find_overlaps([corners(*row.T) for row in rows], results, truths) for order, corners in _ORDERS.items()
    }
    for iou, least in _MIN_LABELS.items():
        counts = {order: int((found >= iou).sum()) for order, found in overlaps.items()}
        best = max(counts, key=counts.__getitem__)
        if counts[best] >= max(_MIN_FACTOR * counts[_PLAIN], least):
            at = "" if iou == min(_MIN_LABELS) else f" at an IoU of {iou:g}"
            yield (
                f"boxes look like {best}: so read they find {counts[best]} labels{at}, as they are {counts[_PLAIN]}; "
                f"write {_REQUIRED_FORMAT}"
            )
            return


def _find_overlaps(
    boxes: Sequence[np.ndarray], results: Sequence[Detections], truths: Sequence[np.ndarray]
) -> np.ndarray:
    """Return, for each label, the highest IoU with the image's top-scoring boxes (as many as labels), of any class."""
    overlaps = [np.zeros(0)]
    for image_boxes, result, truth in zip(boxes, results, truths, strict=True):
        valid_truth = truth[truth[:, 6] == 0]
        top_boxes = image_boxes[np.argsort(-result.scores, kind="stable")[: len(valid_truth)]]
        overlaps.append(iou_or_ioa(top_boxes, valid_truth[:, :4], False).max(axis=0, initial=0))
    return np.concatenate(overlaps)
