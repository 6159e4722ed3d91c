"""COCO result files: writing the detections of an evaluation, and scoring detections of any detector."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.binding import AvailableKeys, UnknownKeyError, bind
from sightline.data.boxes.detections import BoxImages, DetectionResults, Detections, duplicate_image_ids, read_results
from sightline.data.boxes.records import ground_truth_rows, visible_fractions
from sightline.data.store.prepared_set import summarise_folder
from sightline.engine.build import DataSubset, build_metrics
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluation, MetricResult, make_evaluation
from sightline.errors import ConfigError, DataError
from sightline.evaluation.saved_predictions import MANIFEST
from sightline.metrics.base import make_state, sorted_rows
from sightline.types import Batch, ComponentConfig

__all__ = ["RESULTS", "DetectionWriter", "box_images", "score_boxes", "scoring_order"]

RESULTS = "detections.json"
"""Name of the COCO result file, with the image and category ids of the data set's own files."""


class DetectionWriter:
    """Writer of an evaluation's detections as `RESULTS`, called by an `Evaluator` batch by batch; and of a manifest.

    Raises DataError for a part whose images have no ids, or share one.
    """

    def __init__(self, path: Path, part: DataSubset, world: World) -> None:
        self.path = path
        self._images = box_images(part)
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
        self._directory.write_json(MANIFEST, {**about, **classes, **counts, "file": RESULTS})


def box_images(part: DataSubset) -> BoxImages:
    """Return the data set of a split. Raises DataError if its images have no ids."""
    if not isinstance(part.dataset, BoxImages):
        raise DataError(
            f"files of detections are of one set of images with boxes; {type(part.dataset).__name__} is not one, its "
            "samples have no image ids of their own"
        )
    return part.dataset


def score_boxes(
    part: DataSubset, components: Sequence[ComponentConfig], path: Path, *, more: Sequence[BoundMetric] = ()
) -> tuple[Evaluation, list[str], DetectionResults]:
    """Compute metrics for a file of detections; also return names of metrics that need more, and the read results.

    `path` is a file, or a folder with one; `more` are further metrics. Images are not decoded. Raises
    ConfigError if no metric can be computed, DataError for a file that does not fit.
    """
    started = time.perf_counter()
    images = box_images(part)
    results = read_results(_find_results_file(path), images)
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
    others = []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = bind(
                metric.update, AvailableKeys("files", batch), owner=f"metrics.{component.name}", exclude=("state",)
            )
        except UnknownKeyError:
            others.append(component.name)
            continue
        bound_metrics.append(BoundMetric(metric, update))
    if not bound_metrics:
        raise ConfigError(
            f"metrics: none of {', '.join(others)} is computed from boxes; box_ap, crowd_ap and miss_rate are"
        )
    metric_results = []
    for meter in (*bound_metrics, *more):
        state = make_state(meter.metric, num_samples=len(images))
        meter.update.function(state, **meter.update.select(batch))
        metric_results.append(MetricResult(meter, "", state))
    seconds = time.perf_counter() - started
    return make_evaluation(metric_results, num_samples=len(images), seconds=seconds), others, results


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
