"""COCO result files: those of an evaluation are written, those of any detector are judged for plausibility."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.sets.detections import (
    BoxImages,
    Detections,
    duplicate_image_ids,
)
from sightline.contract.errors import DataError
from sightline.contract.metric import sorted_rows
from sightline.contract.types import Batch
from sightline.engine.build import DataSubset
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.parts.metrics.box_groups import iou_or_ioa
from sightline.workbench.evaluate.saved_predictions import MANIFEST

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


_MAX_LOWEST_SCORE = 0.05
_MAX_DUPLICATE_SHARE, _MAX_EMPTY_SHARE = 1e-3, 0.02
_MIN_LABELS = 20
_MIN_FACTOR = 1.5
"""Minimal factor by which another reading must match more labels to be the likelier one."""


_MIN_LABEL_SHARE = 0.05
"""Minimal share of the labels that another reading must match; boxes anywhere match some by chance."""
_MAX_SHARE_COORDINATE = 2.0
"""Maximal coordinate of boxes in shares of an image (boxes may exceed its border), not in pixels."""
_PLAIN = "left, top, width, height"
_WANTED = "left, top, width, height in pixels of the files"
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


def results_faults(
    results: Sequence[Detections],
    truths: Sequence[np.ndarray],
    class_names: Sequence[str],
    *,
    most: int,
    category_offset: int = 0,
) -> Iterator[str]:
    """Yield sentences on implausible detections, compared with `truths` (G, 7) by image, and what to do.

    `most` detections per image and class are evaluated by the metrics of the config; the file was read with
    `category_offset`.
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
    if len(class_names) > 1:
        yield from _find_class_faults(results, truths, class_names, category_offset)


def _find_box_faults(results: Sequence[Detections], truths: Sequence[np.ndarray]) -> Iterator[str]:
    """Report another reading of the boxes (order of columns, rescaled canvas) that matches more labels."""
    num_labels = sum(int((truth[:, 6] == 0).sum()) for truth in truths)
    num_matched = _count_matched_labels([result.boxes for result in results], results, truths)
    min_matches = max(_MIN_FACTOR * num_matched, _MIN_LABEL_SHARE * num_labels)
    is_share = max((np.abs(result.boxes).max(initial=0) for result in results), default=0) <= _MAX_SHARE_COORDINATE
    for readings, min_significant in (
        (_reorder_boxes(results, is_share=is_share), _min_significant_count(num_matched)),
        ({} if is_share else _rescale_boxes(results), _MIN_LABELS),
    ):
        counts = {reading: _count_matched_labels(boxes, results, truths) for reading, (boxes, _) in readings.items()}
        best = max(counts, key=counts.__getitem__, default="")
        if counts.get(best, 0) >= max(min_matches, min_significant):
            yield (
                f"boxes look like {best}: so read they find {counts[best]} labels, as they are {num_matched}; write "
                f"{readings[best][1]}"
            )
            return


def _min_significant_count(plain: int) -> int:
    """Return the number of labels that chance does not match if `plain` are: three deviations more, 20 at most."""
    return next(
        (count for count in range(plain + 1, _MIN_LABELS) if (count - plain) ** 2 >= 9 * (count + plain)), _MIN_LABELS
    )


def _reorder_boxes(results: Sequence[Detections], *, is_share: bool) -> dict[str, tuple[list[np.ndarray], str]]:
    """Read the boxes by other orders of the columns; as shares of the image if `is_share`."""
    rows = [
        np.concatenate([result.boxes[:, :2], result.boxes[:, 2:] - result.boxes[:, :2]], axis=1) for result in results
    ]
    readings = {}
    for name, corners in _ORDERS.items():
        if is_share:
            sizes = [np.array([result.image.width, result.image.height] * 2) for result in results]
            boxes = [corners(*row.T) * size for row, size in zip(rows, sizes, strict=True)]
            readings[f"{name} as shares of the image"] = boxes, _WANTED
        elif name != _PLAIN:
            readings[name] = [corners(*row.T) for row in rows], _WANTED
    return readings


def _rescale_boxes(results: Sequence[Detections]) -> dict[str, tuple[list[np.ndarray], str]]:
    """Rescale the boxes from a resized or letterboxed canvas, estimated from their extent, to the files."""
    canvas = np.quantile(np.concatenate([result.boxes[:, 2:] for result in results]), 0.999, axis=0)
    sizes = np.array([(result.image.width, result.image.height) for result in results])
    stretched = sizes / canvas
    ways = {"stretched to": stretched, "padded to": stretched.max(axis=1, keepdims=True).repeat(2, axis=1)}
    return {
        f"those of images {way} about {canvas[0]:.0f} x {canvas[1]:.0f} pixels": (
            [result.boxes * np.tile(factor, 2) for result, factor in zip(results, factors, strict=True)],
            "them in pixels of the files",
        )
        for way, factors in ways.items()
    }


def _count_matched_labels(
    boxes: Sequence[np.ndarray], results: Sequence[Detections], truths: Sequence[np.ndarray]
) -> int:
    """Count labels with IoU >= 0.5 to one of the image's top-scoring boxes (as many as labels), of any class."""
    count = 0
    for image_boxes, result, truth in zip(boxes, results, truths, strict=True):
        valid_truth = truth[truth[:, 6] == 0]
        top_boxes = image_boxes[np.argsort(-result.scores, kind="stable")[: len(valid_truth)]]
        count += int((iou_or_ioa(top_boxes, valid_truth[:, :4], False).max(axis=0, initial=0) >= 0.5).sum())
    return count


def _find_class_faults(
    results: Sequence[Detections], truths: Sequence[np.ndarray], class_names: Sequence[str], category_offset: int
) -> Iterator[str]:
    """Report if the classes of well-placed boxes match those of the labels after a shift by one."""
    shifts: list[np.ndarray] = []
    for result, truth in zip(results, truths, strict=True):
        valid_truth = truth[truth[:, 6] == 0]
        if len(valid_truth) and len(result.boxes):
            iou = iou_or_ioa(result.boxes, valid_truth[:, :4], False)
            shifts.append((result.label - valid_truth[iou.argmax(axis=1), 4])[iou.max(axis=1) >= 0.5])
    shift = np.concatenate(shifts) if shifts else np.zeros(0)
    num_equal = int((shift == 0).sum())
    for offset in (1, -1):
        count = int((shift == offset).sum())
        if count >= max(_MIN_LABELS, _MIN_FACTOR * num_equal):
            other = class_names[max(0, -offset)], class_names[max(0, offset)]
            yield (
                f"category ids look shifted by {offset}: of {len(shift)} well-placed boxes {num_equal} have the class "
                f"of their label, and {count} the {'next' if offset > 0 else 'previous'} one "
                f"('{other[1]}' for '{other[0]}'); if they count from another number than the set's, give "
                f"category_offset={category_offset + offset}"
            )
