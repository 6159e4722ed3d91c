"""COCO box AP and AR in the pixels of the files, from all images at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sightline.areas.detect.metrics.crowds import protocol_header
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.intervals import LeftOutFigures
from sightline.contract.metric import State
from sightline.parts.metrics.average_precision import Matches, precision_and_recall
from sightline.parts.metrics.box_groups import (
    BoxGroups,
    BoxRows,
    DetectionColumn,
    GroupMatches,
    LabelColumn,
    group_boxes,
    iou_or_ioa,
    leave_one_out_masks,
    left_out_figures,
)

_AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
"""Area ranges of labels as stated in their files, in square pixels; both ends inclusive."""
_FEWER = (1, 10)
_ROWS = {"ap50": 0, "ap75": 5}
"""Rows of `IOU_THRESHOLDS` at 0.50 and 0.75."""


_MIN_CONFUSED_SCORE, _MIN_CONFUSED_IOU = 0.3, 0.5


def count_confusions(state: State, num_classes: int) -> np.ndarray:
    """Count labels (rows) by the class of the detection on them (C+1, C+1); the last row and column are background.

    Detections of score 0.3 or more take, highest-scoring first, the free label of any class with the largest IoU of at
    least 0.5. Others are found on background, unless half of them is in an ignored region; free labels are missed.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    detections, labels = (state[name].cpu().numpy() for name in ("detections", "labels"))
    detections = detections[detections[:, DetectionColumn.SCORE] >= _MIN_CONFUSED_SCORE]
    order = np.lexsort((-detections[:, DetectionColumn.SCORE], detections[:, DetectionColumn.IMAGE]))
    detections, labels = detections[order], labels[np.argsort(labels[:, LabelColumn.IMAGE], kind="stable")]
    images = [rows[:, LabelColumn.IMAGE] for rows in (detections, labels)]
    for image in np.unique(np.concatenate(images)):
        bounds = [np.searchsorted(column, image, side=side) for column in images for side in ("left", "right")]
        detected, truth = detections[bounds[0] : bounds[1]], labels[bounds[2] : bounds[3]]
        is_ignored = truth[:, LabelColumn.IS_IGNORED] > 0
        overlap = iou_or_ioa(detected[:, DetectionColumn.BOX], truth[:, LabelColumn.BOX], is_ignored)
        is_free = ~is_ignored
        for kind, row in zip(detected[:, DetectionColumn.CLASS].astype(int), overlap, strict=True):
            free_overlap = np.where(is_free, row, 0)
            if free_overlap.max(initial=0) >= _MIN_CONFUSED_IOU:
                label = free_overlap.argmax()
                counts[int(truth[label, LabelColumn.CLASS]), kind] += 1
                is_free[label] = False
            elif row[is_ignored].max(initial=0) < _MIN_CONFUSED_IOU:
                counts[-1, kind] += 1
        np.add.at(counts[:, -1], truth[is_free, LabelColumn.CLASS].astype(int), 1)
    return counts


@registry.metrics.add("box_ap")
class BoxAp(BoxRows):
    """COCO box AP and AR, means over IoU of 0.50 to 0.95: `ap` with `ap50` and `ap75`, and `ar`.

    Reads `detections` (D, 6), left, top, right, bottom, score and class, of the images that `detection_offsets` begin,
    and `truth` (G, 7) with class, area and if a label is ignored; all in pixels of the files. `_small`, `_medium` and
    `_large` are of labels under 32^2, up to 96^2 and above; `ar1`, `ar10` use the highest-scoring one and ten of an
    image and class, all others at most `most`. Ignored labels are crowds: they do not count, and any number of
    detections of their class may match one, of every class if theirs is -1. NaN without labels.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.box_ap import BoxAp
    >>> batch = {  # an image of two people: one is found, the other is not, and a detection is wrong
    ...     "detections": torch.tensor([[0, 0, 10, 20, 0.9, 0], [50, 0, 60, 20, 0.8, 0]]),
    ...     "detection_offsets": torch.tensor([0, 2]),
    ...     "truth": torch.tensor([[0, 0, 10, 20, 0, 200, 0], [12, 0, 22, 20, 0, 200, 0]]),
    ...     "truth_offsets": torch.tensor([0, 2]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(BoxAp(class_names=("person",)))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'ap': 0.5049504950495048, 'ap50': 0.5049504950495048, 'ap75': 0.5049504950495048,
    'ap_small': 0.5049504950495048, 'ap_medium': nan, 'ap_large': nan, 'ar': 0.5, 'ar_small': 0.5, 'ar_medium': nan,
    'ar_large': nan, 'ar1': 0.5, 'ar10': 0.5}

    Source: Lin et al. 2014, COCO, and its published evaluation.
    """

    higher_is_better = True

    def __init__(self, *, class_names: tuple[str, ...], most: Count = 100) -> None:
        self.class_names = tuple(class_names)
        self.most = most

    def compute(self, state: State) -> dict[str, float]:
        """Compute the numbers, means over classes that have labels."""
        curves_of = _curves(state, self.most, len(self.class_names))
        result, recalls = {}, {}
        for area in _AREAS:
            curves = [curves_of.curve(number, area, self.most) for number in range(len(self.class_names))]
            result[f"ap{area}"] = _mean([precision for precision, _ in curves])
            recalls[f"ar{area}"] = _mean([recall for _, recall in curves])
            if not area:
                for name, row in _ROWS.items():
                    result[name] = _mean([precision[row] for precision, _ in curves])
        for fewer in _FEWER:
            curves = [curves_of.curve(number, "", fewer) for number in range(len(self.class_names))]
            recalls[f"ar{fewer}"] = _mean([recall for _, recall in curves])
        return result | recalls

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes`, the protocol, label counts and reasons of NaN figures, and `confusion`."""
        about = protocol_header(f"COCO, IoU 0.50 to 0.95, at most {self.most} an image and class", state)
        area, is_ignored = state["labels"][:, LabelColumn.AREA], state["labels"][:, LabelColumn.IS_IGNORED] > 0
        for name, (low, high) in _AREAS.items():
            if name and about["num_boxes"] and not bool((~is_ignored & (area >= low) & (area <= high)).any()):
                reason = (
                    f"no label of {low:.0f} {'square pixels or more' if high > 1e9 else f'to {high:.0f} square pixels'}"
                )
                about["undefined"] |= {f"{figure}{name}": reason for figure in ("ap", "ar")}
        confusion = {
            "classes": [*self.class_names, "background"],
            "counts": count_confusions(state, len(self.class_names)).tolist(),
            "about": f"detections of score {_MIN_CONFUSED_SCORE} or more, at an IoU of {_MIN_CONFUSED_IOU}; labels on "
            "which none is are background, as are places of detections without a label",
        }
        return {"scored_boxes": about, "confusion": confusion}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return `ap`, `ap50`, and the number of counted labels of every class."""
        curves_of = _curves(state, self.most, len(self.class_names))
        result: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.class_names):
            precision, _ = curves_of.curve(number, "", self.most)
            _, label_rows = curves_of.groups.class_slices(number)
            count = int((~curves_of.label_ignored[0][label_rows]).sum())
            result[name] = {"ap": _mean([precision]), "ap50": _mean([precision[0]]), "count": count}
        return result

    def class_intervals(self, state: State) -> dict[str, LeftOutFigures]:
        """Return `ap` and `ap50` of every class, and both without each of at most 10 groups of its images."""
        curves_of = _curves(state, self.most, len(self.class_names))
        num_images = 1 + int(max(state[name][:, 0].max().item() if len(state[name]) else -1 for name in state))
        labels = curves_of.groups.labels[~curves_of.groups.is_ignored]
        dealt = [curves_of.groups.deal_images(number, num_images) for number in range(len(self.class_names))]
        precisions = [
            [
                curves_of.curve(number, "", self.most, image_mask=mask)[0]
                for mask in (None, *leave_one_out_masks(groups, count))
            ]
            for number, (groups, count) in enumerate(dealt)
        ]
        return {
            name: left_out_figures(
                [[_mean([p[rows]]) for p in of_class] for of_class in precisions],
                [count for _, count in dealt],
                num_samples=len(np.unique(labels[:, LabelColumn.IMAGE])),
            )
            for name, rows in (("ap", slice(None)), ("ap50", slice(1)))
        }


class _Curves(NamedTuple):
    """Detections matched for every range of areas, and a mask (A, G) of the labels that each range ignores."""

    groups: BoxGroups
    label_ignored: np.ndarray
    matched: GroupMatches

    def curve(
        self, number: int, area: str, most: int, *, image_mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision (L, 101) and recall (L,) of a class, from the `most` best detections of every image.

        With `image_mask` (num_images,), from those images alone.
        """
        kind = list(_AREAS).index(area)
        detection_rows, label_rows = self.groups.class_slices(number)
        chosen, counted = self.groups.rank[detection_rows] < most, ~self.label_ignored[kind][label_rows]
        if image_mask is not None:
            chosen = chosen & image_mask[self.groups.boxes[detection_rows, DetectionColumn.IMAGE].astype(int)]
            counted = counted & image_mask[self.groups.labels[label_rows, LabelColumn.IMAGE].astype(int)]
        is_matched, ignored = (mask[kind][:, detection_rows][:, chosen] for mask in self.matched[:2])
        num_labels = int(counted.sum())
        return precision_and_recall(
            [Matches(self.groups.boxes[detection_rows, 5][chosen], is_matched, ignored, num_labels)]
        )


def _curves(state: State, most: int, num_classes: int) -> _Curves:
    """Match every detection within its image and class, for each range of areas."""
    groups = group_boxes(state["detections"], state["labels"], num_classes)
    area = groups.labels[:, LabelColumn.AREA]
    label_ignored = np.stack([groups.is_ignored | (area < low) | (area > high) for low, high in _AREAS.values()])
    matched = groups.match(label_ignored, most=max(most, *_FEWER))
    corners = groups.boxes[:, DetectionColumn.BOX]
    sizes = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    is_other = np.stack([(sizes < low) | (sizes > high) for low, high in _AREAS.values()])
    matched = matched._replace(is_ignored=matched.is_ignored | ~matched.is_matched & is_other[:, None])
    return _Curves(groups, label_ignored, matched)


def _mean(values: list[np.ndarray]) -> float:
    """Return the mean of the values above -1; NaN if there are none."""
    flat = np.concatenate([np.ravel(array) for array in values]) if values else np.zeros(0)
    valid = flat[flat > -1]
    return float(valid.mean()) if valid.size else float("nan")
