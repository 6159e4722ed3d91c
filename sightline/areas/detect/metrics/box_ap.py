"""COCO box AP and AR in the pixels of the files, from all images at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline.areas.detect.metrics.crowds import protocol_header
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.intervals import LeftOutFigures
from sightline.contract.metric import State
from sightline.parts.metrics.box_curves import BoxCurves, mean_of_known
from sightline.parts.metrics.box_groups import (
    BoxRows,
    DetectionColumn,
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

    def match(self, state: State) -> BoxCurves:
        """Match the detections of a state with its labels, for each range of areas."""
        groups = group_boxes(state["detections"], state["labels"], len(self.class_names))
        return BoxCurves.of(groups, _AREAS, most=max(self.most, *_FEWER))

    def compute(self, state: State) -> dict[str, float]:
        """Compute the numbers, means over classes that have labels."""
        curves_of = self.match(state)
        result, recalls = {}, {}
        for area in _AREAS:
            curves = [curves_of.curve(number, area, self.most) for number in range(len(self.class_names))]
            result[f"ap{area}"] = mean_of_known([precision for precision, _ in curves])
            recalls[f"ar{area}"] = mean_of_known([recall for _, recall in curves])
            if not area:
                for name, row in _ROWS.items():
                    result[name] = mean_of_known([precision[row] for precision, _ in curves])
        for fewer in _FEWER:
            curves = [curves_of.curve(number, "", fewer) for number in range(len(self.class_names))]
            recalls[f"ar{fewer}"] = mean_of_known([recall for _, recall in curves])
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
        curves_of = self.match(state)
        result: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.class_names):
            precision, _ = curves_of.curve(number, "", self.most)
            _, label_rows = curves_of.groups.class_slices(number)
            count = int((~curves_of.label_ignored[0][label_rows]).sum())
            result[name] = {"ap": mean_of_known([precision]), "ap50": mean_of_known([precision[0]]), "count": count}
        return result

    def class_intervals(self, state: State) -> dict[str, LeftOutFigures]:
        """Return `ap` and `ap50` of every class, and both without each of at most 10 groups of its images."""
        curves_of = self.match(state)
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
                [[mean_of_known([p[rows]]) for p in of_class] for of_class in precisions],
                [count for _, count in dealt],
                num_samples=len(np.unique(labels[:, LabelColumn.IMAGE])),
            )
            for name, rows in (("ap", slice(None)), ("ap50", slice(1)))
        }
