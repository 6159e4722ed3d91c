"""Grouping and matching of detections and labels by class and image, shared by box metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.intervals import LeftOutFigures
from sightline.contract.metric import Metric, State, append_rows
from sightline.ops.numba_kernels import run_parallel
from sightline.parts.metrics.average_precision import IOU_THRESHOLDS
from sightline.parts.metrics.match_kernels import match_boxes

_MAX_GROUPS = 10
NO_LIMIT = 2**31
"""More detections than an image has."""


class BoxColumn:
    """Columns that rows of detections and of labels share: the sample's index, and the box in pixels."""

    IMAGE, LEFT, TOP, RIGHT, BOTTOM = 0, 1, 2, 3, 4
    BOX = slice(LEFT, BOTTOM + 1)


class DetectionColumn(BoxColumn):
    """Columns (7) of a metric's `detections`, and of `BoxGroups.boxes`."""

    SCORE, CLASS = 5, 6
    SCORED_BOX = slice(BoxColumn.LEFT, SCORE + 1)


class LabelColumn(BoxColumn):
    """Columns of a metric's `labels`: image, box, class, area in square pixels, 1 if ignored; in `VisibleBoxRows` more.

    The visible share is the ninth column.
    """

    CLASS, AREA, IS_IGNORED, VISIBLE = 5, 6, 7, 8


class BoxRows(Metric):
    """Base of metrics with detections and labels."""

    rows = ("detections", "labels")

    def new_state(self) -> State:
        """Return empty detections and labels."""
        sizes = {"detections": 7, "labels": 8}
        return {name: torch.zeros(0, columns, dtype=torch.float64) for name, columns in sizes.items()}

    def update(
        self,
        state: State,
        *,
        detections: Tensor,
        detection_offsets: Tensor,
        truth: Tensor,
        truth_offsets: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add the images of a batch: detections (D, 6), truth (G, 7), their offsets (B+1,), sample_index (B,).

        Raises ValueError for scores that are NaN.
        """
        assert_scored(detections)
        for name, rows, offsets in (("detections", detections, detection_offsets), ("labels", truth, truth_offsets)):
            append_rows(state, name, sample_index.repeat_interleave(offsets.diff()), rows)


class VisibleBoxRows(Metric):
    """Base of metrics with detections, labels with their visible share, and images with their sizes."""

    rows = ("detections", "labels", "images")

    def new_state(self) -> State:
        """Return empty detections, labels and images."""
        sizes = {"detections": 7, "labels": 9, "images": 3}
        return {name: torch.zeros(0, columns, dtype=torch.float64) for name, columns in sizes.items()}

    def update(
        self,
        state: State,
        *,
        detections: Tensor,
        detection_offsets: Tensor,
        truth: Tensor,
        truth_visible: Tensor,
        truth_offsets: Tensor,
        file_px: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add a batch: detections (D, 6), truth (G, 7), truth_visible (G,), offsets (B+1,), file_px (B, 2).

        Raises ValueError for scores that are NaN.
        """
        assert_scored(detections)
        append_rows(state, "detections", sample_index.repeat_interleave(detection_offsets.diff()), detections)
        labels = torch.cat([truth.double(), truth_visible.double()[:, None]], dim=1)
        append_rows(state, "labels", sample_index.repeat_interleave(truth_offsets.diff()), labels)
        append_rows(state, "images", sample_index, file_px)


def assert_scored(detections: Tensor) -> None:
    """Raise ValueError if scores of detections (D, 6) are NaN."""
    is_nan = detections[:, 4].isnan()
    if bool(is_nan.any()):
        raise ValueError(
            f"detections: the scores of {int(is_nan.sum())} of {len(detections)} are NaN; find where with "
            "`sightline check`"
        )


class GroupMatches(NamedTuple):
    """Matched detections (A, L, D), and those that do not count (A, L, D), for label sets A and thresholds L.

    `is_label_matched` (A, L, G) are the matched labels.
    """

    is_matched: np.ndarray
    is_ignored: np.ndarray
    is_label_matched: np.ndarray


class BoxGroups(NamedTuple):
    """Detections and labels sorted by class and image, detections then by falling score.

    Group g begins at `box_starts[g]` and `label_starts[g]`. `boxes` (D, 7) have image, left, top, right, bottom, score
    and class; `labels` (G, 8 or more) image, box, class, area, if it is ignored, and further columns. A label of no
    class is in the groups of all classes. `group_keys` (N, 2) are class and image, for groups that have a detection or
    a label.
    """

    boxes: np.ndarray
    labels: np.ndarray
    is_ignored: np.ndarray
    box_starts: np.ndarray
    label_starts: np.ndarray
    group_keys: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """Rank (D,) of each detection in its group, from 0."""
        return np.arange(len(self.boxes)) - np.repeat(self.box_starts[:-1], np.diff(self.box_starts))

    def class_slices(self, number: int) -> tuple[slice, slice]:
        """Return the slices of a class: detections, labels."""
        detection_bounds, label_bounds = (
            np.searchsorted(column, [number, number + 1])
            for column in (self.boxes[:, DetectionColumn.CLASS], self.labels[:, LabelColumn.CLASS])
        )
        return slice(*detection_bounds), slice(*label_bounds)

    def deal_images(self, number: int, num_images: int) -> tuple[np.ndarray, int]:
        """Deal all images to at most 10 groups, each with labels of a class: the group (num_images,) of each image.

        Returns also how many images have a label that counts; the others go with the next one that has.
        """
        _, label_rows = self.class_slices(number)
        of_labels = self.labels[label_rows, LabelColumn.IMAGE]
        labelled = np.unique(of_labels[~self.is_ignored[label_rows]])
        num_groups = min(_MAX_GROUPS, len(labelled))
        return np.searchsorted(labelled, np.arange(num_images)) % max(num_groups, 1), len(labelled)

    def groups(self) -> list[tuple[slice, slice]]:
        """Return the slices of each group: detections, labels."""
        pairs = zip(self.box_starts, self.box_starts[1:], self.label_starts, self.label_starts[1:], strict=False)
        return [(slice(a, b), slice(c, d)) for a, b, c, d in pairs]

    def match(
        self,
        label_ignored: np.ndarray,
        *,
        is_crowd: np.ndarray | None = None,
        levels: np.ndarray = IOU_THRESHOLDS,
        most: int = NO_LIMIT,
        epsilon: float = 0.0,
        reuses: bool = False,
    ) -> GroupMatches:
        """Match detections by the rules of `match_predictions`, with `label_ignored` (A, G) for each label set.

        `is_crowd` (G,) are crowds, by default the data set's own ignored labels. Only the `most` highest-scoring
        detections of a group take part. `epsilon` and `reuses` as in `match_boxes`.
        """
        is_crowd = self.is_ignored if is_crowd is None else is_crowd
        is_matched = np.zeros((len(label_ignored), len(levels), len(self.boxes)), dtype=bool)
        result = GroupMatches(
            is_matched, np.zeros_like(is_matched), np.zeros((*is_matched.shape[:2], len(self.labels)), dtype=bool)
        )
        boxes, labels = self.boxes[:, DetectionColumn.BOX], self.labels[:, LabelColumn.BOX]
        arrays = (boxes, self.box_starts, labels, self.label_starts, label_ignored)
        arguments = (*map(np.ascontiguousarray, (*arrays, is_crowd, levels)), most, epsilon, reuses)
        run_parallel(match_boxes, len(self.box_starts) - 1, *arguments, *result)
        return result


def group_boxes(detections: Tensor, labels: Tensor, num_classes: int, *, last_is_first: bool = False) -> BoxGroups:
    """Group the rows of metric states: detections (D, 7), labels (G, 8 or more), in the order of samples.

    Of labels that a detection overlaps equally the last is matched, with `last_is_first` the first of the data set.
    Raises ValueError for a class outside 0 .. C-1, but for that of a label of no class, -1.
    """
    boxes, rows = (array.cpu().numpy() for array in (detections, labels))
    for name, classes, lowest in (
        ("detections", boxes[:, DetectionColumn.CLASS], 0),
        ("truth", rows[:, LabelColumn.CLASS], -1),
    ):
        is_outside = ~((classes >= lowest) & (classes < num_classes))
        if is_outside.any():
            raise ValueError(
                f"{name}: found class {classes[is_outside][0]:g}, there are {num_classes} (0 .. {num_classes - 1})"
            )
    has_class = rows[:, LabelColumn.CLASS] >= 0
    copies = np.repeat(rows[~has_class], num_classes, axis=0)
    copies[:, LabelColumn.CLASS] = np.tile(np.arange(num_classes), int((~has_class).sum()))
    rows = np.concatenate([rows[has_class], copies])[:: -1 if last_is_first else 1]
    num_images = 1 + max(array[:, BoxColumn.IMAGE].max(initial=0) for array in (boxes, rows))
    keys = [
        (array[:, column] * num_images + array[:, BoxColumn.IMAGE]).astype(np.int64)
        for array, column in ((boxes, DetectionColumn.CLASS), (rows, LabelColumn.CLASS))
    ]
    orders = np.lexsort((-boxes[:, DetectionColumn.SCORE], keys[0])), np.argsort(keys[1], kind="stable")
    boxes, rows, keys = boxes[orders[0]], rows[orders[1]], [key[order] for key, order in zip(keys, orders, strict=True)]
    groups = np.unique(np.concatenate(keys))
    box_starts, label_starts = (np.append(np.searchsorted(array, groups), len(array)) for array in keys)
    of_groups = np.column_stack([groups // num_images, groups % num_images]).astype(np.int64)
    return BoxGroups(boxes, rows, rows[:, LabelColumn.IS_IGNORED] > 0, box_starts, label_starts, of_groups)


def leave_one_out_masks(groups: np.ndarray, num_labelled: int) -> list[np.ndarray]:
    """Return for each group that `deal_images` made the mask (num_images,) of the images outside of it."""
    return [groups != group for group in range(min(_MAX_GROUPS, num_labelled))]


def left_out_figures(values: Sequence[Sequence[float]], counts: Sequence[int], *, num_samples: int) -> LeftOutFigures:
    """Make the figures of classes within 0 to 1: the values of each are of all its images, then without each group."""
    figures, without = [of_class[0] for of_class in values], [np.array(of_class[1:]) for of_class in values]
    return LeftOutFigures(figures, without, counts, num_samples, bounds=(0.0, 1.0))


def iou_or_ioa(boxes: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray | bool, epsilon: float = 0.0) -> np.ndarray:
    """Compute the IoU (D, G) of boxes (D, 4) and labels (G, 4); for crowds the covered share of the detection (IoA)."""
    sides = np.minimum(boxes[:, None, 2:], labels[:, 2:]) - np.maximum(boxes[:, None, :2], labels[:, :2])
    shared = np.maximum(sides, 0).prod(axis=2)
    box_areas, label_areas = ((corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, labels))
    union = box_areas[:, None] + np.where(is_crowd, 0, label_areas - shared) + epsilon
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
