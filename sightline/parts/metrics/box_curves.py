"""Precision and recall of boxes by class and by the size of labels, in images and in space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sightline.parts.metrics.average_precision import IOU_THRESHOLDS, Matches, precision_and_recall
from sightline.parts.metrics.box_groups import BoxGroups, GroupMatches, Overlaps

SizeRanges = Mapping[str, tuple[float, float]]
"""Name of a range -> its bounds, both inclusive, in the unit of the labels' sizes: square pixels in images."""


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """Compute the sizes (D,) of boxes: areas of (D, 4), volumes of (D, 7)."""
    sides = boxes[:, 2:] - boxes[:, :2] if boxes.shape[1] == 4 else boxes[:, 3:6]
    sizes: np.ndarray = sides.prod(axis=1)
    return sizes


class BoxCurves(NamedTuple):
    """Detections matched for every range of sizes, and a mask (A, G) of the labels that each range ignores.

    Labels outside of a range do not count in it, nor do detections outside of it that match none.
    """

    groups: BoxGroups
    ranges: Sequence[str]
    label_ignored: np.ndarray
    matched: GroupMatches

    @classmethod
    def of(
        cls,
        groups: BoxGroups,
        ranges: SizeRanges,
        *,
        most: int,
        levels: np.ndarray = IOU_THRESHOLDS,
        overlaps: Overlaps | None = None,
    ) -> BoxCurves:
        """Match every detection within its image and class, for each range of sizes, as `BoxGroups.match` does.

        Only the `most` highest-scoring of a group take part. Boxes in space need `overlaps`.
        """
        size = groups.labels[:, groups.label_columns.AREA]
        label_ignored = np.stack([groups.is_ignored | (size < low) | (size > high) for low, high in ranges.values()])
        matched = groups.match(label_ignored, levels=levels, most=most, overlaps=overlaps)
        sizes = box_sizes(groups.boxes[:, groups.detection_columns.BOX])
        is_other = np.stack([(sizes < low) | (sizes > high) for low, high in ranges.values()])
        matched = matched._replace(is_ignored=matched.is_ignored | ~matched.is_matched & is_other[:, None])
        return cls(groups, [*ranges], label_ignored, matched)

    def curve(
        self, number: int, size: str, most: int, *, image_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision (L, 101) and recall (L,) of a class, from the `most` best detections of every image.

        With `image_mask` (num_images,), from those images alone.
        """
        kind = self.ranges.index(size)
        detected, labelled = self.groups.detection_columns, self.groups.label_columns
        detection_rows, label_rows = self.groups.class_slices(number)
        chosen, counted = self.groups.rank[detection_rows] < most, ~self.label_ignored[kind][label_rows]
        if image_mask is not None:
            chosen = chosen & image_mask[self.groups.boxes[detection_rows, detected.IMAGE].astype(int)]
            counted = counted & image_mask[self.groups.labels[label_rows, labelled.IMAGE].astype(int)]
        is_matched, ignored = (mask[kind][:, detection_rows][:, chosen] for mask in self.matched[:2])
        scores = self.groups.boxes[detection_rows, detected.SCORE][chosen]
        return precision_and_recall([Matches(scores, is_matched, ignored, int(counted.sum()))])


def mean_of_known(values: Sequence[np.ndarray]) -> float:
    """Return the mean of the values above -1; NaN if there are none."""
    flat = np.concatenate([np.ravel(array) for array in values]) if values else np.zeros(0)
    valid = flat[flat > -1]
    return float(valid.mean()) if valid.size else float("nan")
