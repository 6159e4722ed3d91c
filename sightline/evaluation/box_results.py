"""Detections in files of results: those of an evaluation written, and those of anyone scored."""

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
"""A COCO file of results, with the ids of images and categories that the data set's own files have."""


class DetectionWriter:
    """Keeps the detections of an evaluation as `RESULTS`, for an `Evaluator` to call batch by batch; and a manifest.

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
        """Keep the detections of a batch."""
        index = batch["sample_index"].cpu().repeat_interleave(predictions["detection_offsets"].diff().cpu())
        self._rows.append(torch.cat([index.double()[:, None], predictions["detections"].double().cpu()], dim=1))

    def finish(self, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
        """Write the detections, image by image, and the manifest, led by `about`. Every process calls."""
        gathered, _ = self._world.gather_rows(torch.cat(self._rows).to(self._world.device), operation="detections")
        rows = sorted_rows(gathered).cpu().numpy()
        ids = self._images.classes.ids
        lines = []
        for own in np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1):
            if len(own):
                found = Detections(self._images.image(int(own[0, 0])), own[:, 1:5], own[:, 5], own[:, 6])
                lines += [json.dumps(row) for row in found.to_coco(ids)]
        self._directory.write_text(RESULTS, "[" + ",\n".join(lines) + "]\n")
        classes = {"class_names": list(self._images.classes.names), "category_ids": list(ids)}
        counts = {"num_images": evaluation.num_samples, "num_detections": len(lines)}
        self._directory.write_json(MANIFEST, {**about, **classes, **counts, "file": RESULTS})


def box_images(part: DataSubset) -> BoxImages:
    """The data set of a part. Raises DataError for one whose images have no ids of their own."""
    if not isinstance(part.dataset, BoxImages):
        raise DataError(
            f"files of detections are of one set of images with boxes; {type(part.dataset).__name__} is not one, its "
            "samples have no image ids of their own"
        )
    return part.dataset


def score_boxes(
    part: DataSubset, components: Sequence[ComponentConfig], path: Path, *, more: Sequence[BoundMetric] = ()
) -> tuple[Evaluation, list[str], DetectionResults]:
    """The metrics of these blocks for the detections of a file; the names of those that need more; what was read.

    `path` is a file, or a folder with one; `more` are further metrics. Images are not decoded. Raises
    ConfigError where no metric can be computed, DataError for a file that does not fit.
    """
    started = time.perf_counter()
    images = box_images(part)
    given = read_results(_file_of(path), images)
    order = scoring_order(images)
    records = [images.record(int(index)) for index in order]
    found = [given.detections[index] for index in order]
    detections = [np.column_stack([each.boxes, each.scores, each.label]) for each in found]
    batch = {
        "sample_index": torch.arange(len(images)),
        "file_px": torch.tensor([(each.image.height, each.image.width) for each in found]).reshape(-1, 2),
        **_joined("truth", list(map(ground_truth_rows, records)), "truth_offsets"),
        **_joined("truth_visible", list(map(visible_fractions, records)), "truth_offsets"),
        **_joined("detections", detections, "detection_offsets"),
    }
    meters: list[BoundMetric] = []
    others = []
    for component, metric in zip(components, build_metrics(components, part.dataset.info.facts), strict=True):
        try:
            update = bind(
                metric.update, AvailableKeys("files", batch), owner=f"metrics.{component.name}", exclude=("state",)
            )
        except UnknownKeyError:
            others.append(component.name)
            continue
        meters.append(BoundMetric(metric, update))
    if not meters:
        raise ConfigError(
            f"metrics: none of {', '.join(others)} is computed from boxes; box_ap, crowd_ap and miss_rate are"
        )
    measured = []
    for meter in (*meters, *more):
        state = make_state(meter.metric, num_samples=len(images))
        meter.update.function(state, **meter.update.select(batch))
        measured.append(MetricResult(meter, "", state))
    seconds = time.perf_counter() - started
    return make_evaluation(measured, num_samples=len(images), seconds=seconds), others, given


def scoring_order(images: BoxImages) -> np.ndarray:
    """The order in which images are scored: of equal scores the lower image id comes first, as in pycocotools."""
    return np.argsort([images.image(index).image_id for index in range(len(images))], kind="stable")


def _file_of(path: Path) -> Path:
    """The file of results that a folder holds. Raises DataError where it holds none, or several."""
    if not path.is_dir():
        return path
    files = [path / RESULTS] if (path / RESULTS).is_file() else [*path.glob("*.json"), *path.glob("*.odgt")]
    if len(files) != 1:
        raise DataError(f"--predictions {path}: holds {summarise_folder(path)}; give the file of results itself")
    return files[0]


def _joined(name: str, parts: Sequence[np.ndarray], offsets: str) -> dict[str, Tensor]:
    ends = list(accumulate((len(each) for each in parts), initial=0))
    return {name: torch.from_numpy(np.concatenate(parts)), offsets: torch.tensor(ends)}
