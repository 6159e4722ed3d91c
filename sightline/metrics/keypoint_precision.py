"""COCO keypoint average precision of several people in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sightline.errors import DataError
from sightline.metrics.average_precision import IOU_THRESHOLDS, match_predictions, precision_and_recall
from sightline.metrics.keypoints import keypoint_similarity

__all__ = ["MAX_DETECTIONS", "PersonLabels", "keypoint_average_precision", "oks_matrix"]

MAX_DETECTIONS = 20
"""Highest number of evaluated predictions of an image."""
_AREAS = {"": (0.0, 1e10), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class PersonLabels:
    """Labels of the people of one image: key points (G, J, 2) in pixels and a mask of the labelled ones (G, J).

    `area` (G,) and `box` (G, 4) as left, top, width, height in pixels, `is_crowd` (G,).
    """

    joints: np.ndarray
    is_labelled: np.ndarray
    area: np.ndarray
    box: np.ndarray
    is_crowd: np.ndarray


def oks_matrix(people: PersonLabels, found: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Compute the OKS (D, G) of predicted key points (D, J, 2) and each person; by the box if no joint is labelled."""
    columns = []
    for person, shown in enumerate(people.is_labelled):
        area = torch.full((len(found),), float(people.area[person]), dtype=torch.float64)
        if shown.any():
            distance = np.linalg.norm(found - people.joints[person], axis=-1)
            is_counted = np.broadcast_to(shown, distance.shape)
        else:
            distance, is_counted = _outside(found, people.box[person]), np.ones(found.shape[:2], dtype=bool)
        similarity = keypoint_similarity(
            torch.from_numpy(distance).double(), area, torch.from_numpy(sigmas), torch.from_numpy(is_counted.copy())
        )
        columns.append(similarity.numpy())
    return np.stack(columns, axis=1) if columns else np.zeros((len(found), 0))


def keypoint_average_precision(
    people: list[PersonLabels], found: list[np.ndarray], scores: list[np.ndarray], sigmas: np.ndarray
) -> dict[str, float]:
    """Compute `ap` and `ar` over OKS of 0.50 to 0.95, at 0.50 and 0.75, and for medium and large people.

    An item of each list for each image: `found` (D, J, 2) in pixels with `scores` (D,). A person without a labelled
    joint, or a crowd, is ignored; medium is an area of 32^2 to 96^2 pixels, large one above. A prediction's area
    is that of the box of its joints. -1 if nobody is of that size, as in COCO. Raises DataError if the
    lists are not of the same images. Source: Lin et al. 2014, COCO, and its published evaluation.
    """
    if not len(people) == len(found) == len(scores):
        raise DataError(
            f"{len(people)} images of people, {len(found)} of predictions, {len(scores)} of scores: not the same"
        )
    similarity_by_image = [oks_matrix(*pair, sigmas) for pair in zip(people, found, strict=True)]
    result: dict[str, float] = {}
    for suffix, (least, most) in _AREAS.items():
        images = [
            match_predictions(
                similarities,
                score,
                is_ignored=~labels.is_labelled.any(axis=1)
                | labels.is_crowd
                | (labels.area < least)
                | (labels.area > most),
                is_crowd=labels.is_crowd,
                is_outside_area=(_areas(joints) < least) | (_areas(joints) > most),
                max_detections=MAX_DETECTIONS,
            )
            for similarities, score, labels, joints in zip(similarity_by_image, scores, people, found, strict=True)
        ]
        precision, recall = precision_and_recall(images)
        result |= {f"ap{suffix}": _mean(precision), f"ar{suffix}": _mean(recall)}
        if not suffix:
            for level in (0.5, 0.75):
                (row,) = np.flatnonzero(np.isclose(IOU_THRESHOLDS, level))
                result |= {f"ap{level * 100:.0f}": _mean(precision[row]), f"ar{level * 100:.0f}": float(recall[row])}
    return result


def _outside(joints: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the distance (D, J) of joints outside a box enlarged by its own width and height on every side."""
    low, high = box[:2] - box[2:], box[:2] + 2 * box[2:]
    beyond: np.ndarray = np.linalg.norm(np.maximum(0.0, low - joints) + np.maximum(0.0, joints - high), axis=-1)
    return beyond


def _areas(joints: np.ndarray) -> np.ndarray:
    """Return the area (D,) of the box about each prediction's joints, in square pixels."""
    return np.prod(joints.max(axis=1) - joints.min(axis=1), axis=-1) if len(joints) else np.zeros(0)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values above -1; -1 if there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
