"""CrowdHuman's Jaccard index: how much the sets of detections and of people of an image agree."""

from __future__ import annotations

import numpy as np

from sightline.metrics.box_groups import BoxGroups, overlap

__all__ = ["THRESHOLDS", "jaccard_counts", "jaccard_index"]

THRESHOLDS = np.arange(10) / 10
"""Scores above which detections are kept."""
_LEVEL = 0.5


def jaccard_counts(groups: BoxGroups, number: int, num_images: int, *, epsilon: float) -> np.ndarray:
    """Pairs, detections and labels (T, N, 3) that count in every image, for a class and each of `THRESHOLDS`.

    Pairs of an IoU above 0.5 are chosen for the largest sum of IoU. What is left over and lies by more than half in an
    ignored label does not count, whether detection or label. Source: Shao et al. 2018, its published evaluation.
    """
    counts = np.zeros((len(THRESHOLDS), num_images, 3), dtype=np.int64)
    for own, its in groups.groups():
        rows, labels = groups.boxes[own], groups.labels[its]
        if (rows[:, 6] if len(rows) else labels[:, 5])[0] != number:
            continue
        image = int((rows if len(rows) else labels)[0, 0])
        is_region = groups.is_ignored[its]
        regions, people = labels[is_region, 1:5], labels[~is_region, 1:5]
        is_hidden, is_inside = (
            (overlap(each, regions, True, epsilon) > _LEVEL).any(axis=1) for each in (rows[:, 1:5], people)
        )
        alike = overlap(rows[:, 1:5], people, False, epsilon)
        alike[alike <= _LEVEL] = 0
        counts[:, image] = _of_image(alike, rows[:, 5], is_hidden, is_inside)
    return counts


def jaccard_index(counts: np.ndarray) -> np.ndarray:
    """The index (T), a mean over images that have a detection or a label; NaN where none has."""
    pairs, detections, labels = np.moveaxis(counts, 2, 0)
    there = detections + labels > 0
    index = pairs / (detections + labels - pairs + 1e-6)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (index * there).sum(axis=1) / there.sum(axis=1)
    return mean


def _of_image(alike: np.ndarray, scores: np.ndarray, is_hidden: np.ndarray, is_inside: np.ndarray) -> np.ndarray:
    """Pairs, detections and labels (T, 3); scores fall."""
    from scipy.optimize import linear_sum_assignment

    kept = [int((scores > threshold).sum()) for threshold in THRESHOLDS]
    counts = np.zeros((len(kept), 3), dtype=np.int64)
    rivals, wanted = np.flatnonzero(alike.any(axis=1)), np.flatnonzero(alike.any(axis=0))
    block = alike[np.ix_(rivals, wanted)]
    chosen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for place, count in enumerate(kept):
        num_rivals = int(np.searchsorted(rivals, count))
        if num_rivals not in chosen:
            pairs = linear_sum_assignment(block[:num_rivals], maximize=True)
            is_pair = block[pairs] > 0
            chosen[num_rivals] = rivals[pairs[0][is_pair]], wanted[pairs[1][is_pair]]
        own, its = chosen[num_rivals]
        num_hidden = int(is_hidden[:count].sum() - is_hidden[own].sum())
        num_inside = int(is_inside.sum() - is_inside[its].sum())
        counts[place] = len(own), count - num_hidden, len(is_inside) - num_inside
    return counts
