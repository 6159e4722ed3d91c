"""Overlaps of the pairs of detections and labels of every frame: in the image, from above, and of volumes."""

from __future__ import annotations

import numpy as np
import torch

from sightline.areas.boxes3d.metrics.rows import FrameGroups
from sightline.ops.boxes.rotated_overlaps import box3d_overlap_bev

__all__ = ["image_overlaps", "shares_in_regions", "upright_overlaps"]


def image_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the IoU (P,) of image boxes (P, 4), left, top, right, bottom; 0 where one is not stated."""
    shared, area, other = _shared_areas(first, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(shared > 0, shared / (area + other - shared), 0.0)


def shares_in_regions(groups: FrameGroups, detections: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return the largest share (D,) of each detection's image box (D, 4) that a region of its frame covers.

    `regions` (T, 5) are the image boxes of all labels, and 1 for a region.
    """
    detection, truth = groups.list_pairs()
    chosen = regions[truth, 4] > 0
    detection, truth = detection[chosen], truth[chosen]
    shared, area, _ = _shared_areas(detections[detection], regions[truth, :4])
    shares = np.zeros(len(detections))
    with np.errstate(invalid="ignore", divide="ignore"):
        np.maximum.at(shares, detection, np.where(shared > 0, shared / area, 0.0))
    return shares


def _shared_areas(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shared area (P,) of image boxes (P, 4), 0 for those not stated, and both areas."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    areas = [(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) for corners in (first, second)]
    return shared, areas[0], areas[1]


def upright_overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the IoU (P,) of boxes (P, 7) from above, and of their volumes; 0 where a number is not finite."""
    reach = (np.hypot(first[:, 3], first[:, 4]) + np.hypot(second[:, 3], second[:, 4])) / 2
    with np.errstate(invalid="ignore"):
        near = np.hypot(*(first[:, :2] - second[:, :2]).T) <= reach
        near &= np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        near &= (first[:, 3:6] > 0).all(axis=1) & (second[:, 3:6] > 0).all(axis=1)
    rows = np.flatnonzero(near)
    above, volume = np.zeros(len(first)), np.zeros(len(first))
    for part in np.array_split(rows, max(1, len(rows) // _PAIRS_AT_ONCE)):
        above[part], volume[part] = _overlap(first[part], second[part])
    return above, volume


_PAIRS_AT_ONCE = 2**18


def _overlap(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes, others = torch.from_numpy(first), torch.from_numpy(second)
    shared = box3d_overlap_bev(boxes, others, aligned=True).numpy()
    bases = [rows[:, 3] * rows[:, 4] for rows in (first, second)]
    shared = np.minimum(shared, np.minimum(*bases))
    half, other_half, apart = first[:, 5] / 2, second[:, 5] / 2, second[:, 2] - first[:, 2]
    height = np.minimum(half, apart + other_half) - np.maximum(-half, apart - other_half)
    volume = shared * np.maximum(height, 0)
    volumes = bases[0] * first[:, 5] + bases[1] * second[:, 5]
    return shared / (bases[0] + bases[1] - shared), volume / (volumes - volume)
