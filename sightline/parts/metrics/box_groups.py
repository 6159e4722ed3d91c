"""Grouping and matching of detections and labels by class and image, shared by box metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.intervals import LeftOutFigures
from sightline.contract.metric import Metric, State, append_rows
from sightline.ops.numba_kernels import run_parallel
from sightline.parts.metrics.average_precision import IOU_THRESHOLDS
from sightline.parts.metrics.match_kernels import match_boxes, match_overlaps

_MAX_GROUPS = 10
NO_LIMIT = 2**31
"""More detections than an image has."""


class DetectionColumns(NamedTuple):
    """Columns of a metric's `detections`, and of `BoxGroups.boxes`: sample, box, score, class."""

    IMAGE: int
    BOX: slice
    SCORE: int
    CLASS: int

    @classmethod
    def of(cls, num_sides: int) -> DetectionColumns:
        """Return the columns (num_sides + 3) for boxes of 4 numbers in pixels, or of 7 in metres and radians."""
        return cls(0, slice(1, num_sides + 1), num_sides + 1, num_sides + 2)

    @property
    def SCORED_BOX(self) -> slice:  # noqa: N802 - a column, as the others
        """Columns of the box and its score."""
        return slice(self.BOX.start, self.SCORE + 1)


class LabelColumns(NamedTuple):
    """Columns of a metric's `labels`: sample, box, class, size, 1 if ignored; in `VisibleBoxRows` the visible share.

    The size is the area in square pixels as stated, or in space what the set states.
    """

    IMAGE: int
    BOX: slice
    CLASS: int
    AREA: int
    IS_IGNORED: int
    VISIBLE: int

    @classmethod
    def of(cls, num_sides: int) -> LabelColumns:
        """Return the columns (num_sides + 4, and that of the visible share) for boxes of 4 or 7 numbers."""
        return cls(0, slice(1, num_sides + 1), *range(num_sides + 1, num_sides + 5))


DetectionColumn, LabelColumn = DetectionColumns.of(4), LabelColumns.of(4)
"""Columns for boxes in images."""
TOP, BOTTOM = 2, 4
"""Columns of the upper and lower side of a box in an image."""
Overlaps = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Computes the overlaps (D, G), 0 to 1, of boxes (D, 7) and labels (G, 7) in space."""


class BoxRows(Metric):
    """Base of metrics with detections and labels, of boxes with `num_sides` numbers."""

    rows = ("detections", "labels")
    num_sides: ClassVar[int] = 4

    def new_state(self) -> State:
        """Return empty detections and labels."""
        sizes = {"detections": self.num_sides + 3, "labels": self.num_sides + 4}
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

        In space detections are (D, 9), truth (G, 10). Raises ValueError for scores that are NaN.
        """
        assert_scored(detections, num_sides=self.num_sides)
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


def assert_scored(detections: Tensor, *, num_sides: int = 4) -> None:
    """Raise ValueError if scores of detections (D, num_sides + 2) are NaN."""
    is_nan = detections[:, num_sides].isnan()
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

    Group g begins at `box_starts[g]` and `label_starts[g]`. `boxes` (D, 7, or 10 in space) have the columns
    `DetectionColumns`; `labels` (G, 8, or 11, or more) have `LabelColumns`, and further ones. A label of no class is in
    the groups of all classes. `group_keys` (N, 2) are class and image, for groups that have a detection or a label.
    Boxes have `num_sides` numbers.
    """

    boxes: np.ndarray
    labels: np.ndarray
    is_ignored: np.ndarray
    box_starts: np.ndarray
    label_starts: np.ndarray
    group_keys: np.ndarray
    num_sides: int = 4

    @property
    def detection_columns(self) -> DetectionColumns:
        """Columns of `boxes`."""
        return DetectionColumns.of(self.num_sides)

    @property
    def label_columns(self) -> LabelColumns:
        """Columns of `labels`."""
        return LabelColumns.of(self.num_sides)

    @property
    def rank(self) -> np.ndarray:
        """Rank (D,) of each detection in its group, from 0."""
        return np.arange(len(self.boxes)) - np.repeat(self.box_starts[:-1], np.diff(self.box_starts))

    def class_slices(self, number: int) -> tuple[slice, slice]:
        """Return the slices of a class: detections, labels."""
        detection_bounds, label_bounds = (
            np.searchsorted(column, [number, number + 1])
            for column in (self.boxes[:, self.detection_columns.CLASS], self.labels[:, self.label_columns.CLASS])
        )
        return slice(*detection_bounds), slice(*label_bounds)

    def deal_images(self, number: int, num_images: int) -> tuple[np.ndarray, int]:
        """Deal all images to at most 10 groups, each with labels of a class: the group (num_images,) of each image.

        Returns also how many images have a label that counts; the others go with the next one that has.
        """
        _, label_rows = self.class_slices(number)
        of_labels = self.labels[label_rows, self.label_columns.IMAGE]
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
        overlaps: Overlaps | None = None,
    ) -> GroupMatches:
        """Match detections by the rules of `match_predictions`, with `label_ignored` (A, G) for each label set.

        `is_crowd` (G,) are crowds, by default the data set's own ignored labels. Only the `most` highest-scoring
        detections of a group take part. `epsilon` and `reuses` as in `match_boxes`. Boxes in space need `overlaps`,
        which is asked once for each group, and is that with crowds, too; boxes in images have their IoU, and with a
        crowd the share that it covers.
        """
        is_crowd = self.is_ignored if is_crowd is None else is_crowd
        is_matched = np.zeros((len(label_ignored), len(levels), len(self.boxes)), dtype=bool)
        result = GroupMatches(
            is_matched, np.zeros_like(is_matched), np.zeros((*is_matched.shape[:2], len(self.labels)), dtype=bool)
        )
        boxes, labels = self.boxes[:, self.detection_columns.BOX], self.labels[:, self.label_columns.BOX]
        rules = (*map(np.ascontiguousarray, (label_ignored, is_crowd, levels)), most)
        num_groups = len(self.box_starts) - 1
        if overlaps is None:
            assert self.num_sides == 4, "boxes in space need `overlaps`"
            arrays = map(np.ascontiguousarray, (boxes, self.box_starts, labels, self.label_starts))
            run_parallel(match_boxes, num_groups, *arrays, *rules, epsilon, reuses, *result)
            return result
        matrices = [overlaps(boxes[rows], labels[columns]).ravel() for rows, columns in self.groups()]
        starts = np.cumsum([0, *map(len, matrices)])
        known = np.concatenate([np.zeros(0), *matrices])
        run_parallel(
            match_overlaps, num_groups, known, starts, self.box_starts, self.label_starts, *rules, reuses, *result
        )
        return result


def group_boxes(
    detections: Tensor, labels: Tensor, num_classes: int, *, last_is_first: bool = False, num_sides: int = 4
) -> BoxGroups:
    """Group the rows of metric states: detections (D, 7), labels (G, 8 or more), in the order of samples.

    Of boxes with 7 `num_sides` they are (D, 10) and (G, 11 or more). Of labels that a detection overlaps equally the
    last is matched, with `last_is_first` the first of the data set. Raises ValueError for a class outside 0 .. C-1, but
    for that of a label of no class, -1.
    """
    detected, labelled = DetectionColumns.of(num_sides), LabelColumns.of(num_sides)
    boxes, rows = (array.cpu().numpy() for array in (detections, labels))
    for name, classes, lowest in (
        ("detections", boxes[:, detected.CLASS], 0),
        ("truth", rows[:, labelled.CLASS], -1),
    ):
        is_outside = ~((classes >= lowest) & (classes < num_classes))
        if is_outside.any():
            raise ValueError(
                f"{name}: found class {classes[is_outside][0]:g}, there are {num_classes} (0 .. {num_classes - 1})"
            )
    has_class = rows[:, labelled.CLASS] >= 0
    copies = np.repeat(rows[~has_class], num_classes, axis=0)
    copies[:, labelled.CLASS] = np.tile(np.arange(num_classes), int((~has_class).sum()))
    rows = np.concatenate([rows[has_class], copies])[:: -1 if last_is_first else 1]
    num_images = 1 + max(array[:, detected.IMAGE].max(initial=0) for array in (boxes, rows))
    keys = [
        (array[:, column] * num_images + array[:, detected.IMAGE]).astype(np.int64)
        for array, column in ((boxes, detected.CLASS), (rows, labelled.CLASS))
    ]
    orders = np.lexsort((-boxes[:, detected.SCORE], keys[0])), np.argsort(keys[1], kind="stable")
    boxes, rows, keys = boxes[orders[0]], rows[orders[1]], [key[order] for key, order in zip(keys, orders, strict=True)]
    groups = np.unique(np.concatenate(keys))
    box_starts, label_starts = (np.append(np.searchsorted(array, groups), len(array)) for array in keys)
    of_groups = np.column_stack([groups // num_images, groups % num_images]).astype(np.int64)
    return BoxGroups(boxes, rows, rows[:, labelled.IS_IGNORED] > 0, box_starts, label_starts, of_groups, num_sides)


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
