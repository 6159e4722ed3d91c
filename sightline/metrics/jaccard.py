"""CrowdHuman's Jaccard index: the agreement of the sets of detections and of people of an image."""

from __future__ import annotations

import numpy as np

from sightline.metrics.box_groups import BoxGroups
from sightline.metrics.match_kernels import count_pairs
from sightline.numba_kernels import run_parallel

__all__ = ["THRESHOLDS", "jaccard_counts", "jaccard_index"]

THRESHOLDS = np.arange(10) / 10
"""Score thresholds of detections."""
_LEVEL = 0.5


def jaccard_counts(groups: BoxGroups, number: int, num_images: int, *, epsilon: float) -> np.ndarray:
    """Count pairs, detections and labels (T, N, 3) of every image, for a class and each of `THRESHOLDS`.

    Pairs of an IoU above 0.5 are chosen for the largest sum of IoU. An unpaired detection or label that is by more than
    half inside an ignored label does not count. Source: Shao et al. 2018, its published evaluation.

    Pairs of an IoU above 0.5 are chosen for the largest sum of IoU. What is left over and lies by more than half in an
    ignored label does not count, whether detection or label. Source: Shao et al. 2018, its published evaluation.
    """
    starts = (groups.box_starts, groups.label_starts)
    group_counts = np.zeros((len(starts[0]) - 1, len(THRESHOLDS), 3), dtype=np.int64)
    arrays = (groups.boxes[:, 1:6], starts[0], groups.labels[:, 1:5], starts[1], groups.is_ignored, THRESHOLDS)
    run_parallel(count_pairs, len(group_counts), *map(np.ascontiguousarray, arrays), _LEVEL, epsilon, group_counts)
    counts = np.zeros((len(THRESHOLDS), num_images, 3), dtype=np.int64)
    is_class = groups.group_keys[:, 0] == number
    counts[:, groups.group_keys[is_class, 1]] = group_counts[is_class].transpose(1, 0, 2)
    return counts


def jaccard_index(counts: np.ndarray) -> np.ndarray:
    """Compute the index (T,) from counts (T, N, 3), a mean over images with a detection or a label; NaN if none has."""
    pairs, detections, labels = np.moveaxis(counts, 2, 0)
    is_counted = detections + labels > 0
    index = pairs / (detections + labels - pairs + 1e-6)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (index * is_counted).sum(axis=1) / is_counted.sum(axis=1)
    return mean
