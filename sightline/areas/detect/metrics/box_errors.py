"""Detection errors by type (TIDE), and the average precision that each type costs."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch

from sightline.areas.detect.metrics.crowds import nan_mean, protocol_header
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.metric import State
from sightline.parts.metrics.box_groups import (
    BoxGroups,
    BoxRows,
    DetectionColumn,
    GroupMatches,
    LabelColumn,
    Matches,
    group_boxes,
    iou_or_ioa,
    precision_and_recall,
)

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_MATCH_IOU = 0.5
_MIN_IOU = 0.1
_LEVEL = np.array([_MATCH_IOU])


@registry.metrics.add("box_errors")
class BoxErrors(BoxRows):
    """TIDE error types: `error_ap50`, and for each type the AP50 gained by fixing it: `gain_<kind>`.

    A detection that matches no label at an IoU of 0.5 is, of these the first that applies: `localisation` (its largest
    IoU with a label of its class is 0.1 to 0.5), `classification` (0.5 or more with one of another class), `duplicate`
    (0.5 or more with one of its class, which another matched), `background` (at most 0.1 with any), else `both`.
    Unmatched labels that no error of the first two kinds is about are `missed`. Fixing moves the highest-scoring
    detection of each unmatched label onto it, with its class, and drops the others of the kind; duplicates, background
    and both are dropped; missed labels are left out. Each gain is that of a new evaluation. Detections absorbed by
    ignored labels are no errors, the `most` highest-scoring of an image and class are used.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.box_errors import BoxErrors
    >>> batch = {  # an image of two people: one is found, the other is not, and a detection is wrong
    ...     "detections": torch.tensor([[0, 0, 40, 80, 0.9, 0], [150, 0, 190, 80, 0.8, 0]]),
    ...     "detection_offsets": torch.tensor([0, 2]),
    ...     "truth": torch.tensor([[0, 0, 40, 80, 0, 3200, 0], [60, 0, 100, 80, 0, 3200, 0]]),
    ...     "truth_visible": torch.tensor([1.0, 1.0]),
    ...     "truth_offsets": torch.tensor([0, 2]),
    ...     "file_px": torch.tensor([[100, 200]]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(BoxErrors(class_names=("person",)))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'error_ap50': 0.5049504950495048, 'gain_classification': 0.0, 'gain_localisation': 0.0, 'gain_both': 0.0,
    'gain_duplicate': 0.0, 'gain_background': 0.0, 'gain_missed': 0.49504950495049505}

    Source: Bolya et al. 2020, TIDE, section 2.
    """

    higher_is_better = None

    def __init__(self, *, class_names: tuple[str, ...], most: Count = 500) -> None:
        self.class_names = tuple(class_names)
        self.most = most

    def compute(self, state: State) -> dict[str, float]:
        """Compute AP50, and the cost of each error type."""
        num_classes = len(self.class_names)
        errors = classify_errors(state, num_classes, self.most)
        ap50 = _ap50(state, num_classes, self.most)
        gains = {kind: _ap50(repair_errors(state, errors, kind), num_classes, self.most) - ap50 for kind in KINDS}
        return {"error_ap50": ap50, **{f"gain_{kind}": gain for kind, gain in gains.items()}}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `box_errors`: counts of each type, and of unmatched labels."""
        errors = classify_errors(state, len(self.class_names), self.most)
        is_real = ~errors.groups.is_ignored
        not_found = {
            "labels": int(is_real.sum()),
            "not_found": int((is_real & ~errors.is_label_found).sum()),
            "missed": int(errors.is_missed.sum()),
        }
        counts = {kind: int((errors.kind == kind_index).sum()) for kind_index, kind in enumerate(KINDS[:-1])}
        about = {
            "counts": {**counts, "missed": not_found["missed"]},
            "labels": not_found,
        }
        title = f"Errors at IoU 0.5 (TIDE), at most {self.most} an image and class"
        return {"scored_boxes_errors": protocol_header(title, state), "box_errors": about}


class DetectionErrors(NamedTuple):
    """Error type of each detection of `groups` (D,), an index into `KINDS` or -1, and the index of the label concerned.

    `is_found` and `is_ignored` (D,) mask true positives, and detections that do not count; `is_label_found` and
    `is_missed` mask labels (G,).
    """

    groups: BoxGroups
    kind: np.ndarray
    label: np.ndarray
    is_found: np.ndarray
    is_ignored: np.ndarray
    is_label_found: np.ndarray
    is_missed: np.ndarray


def classify_errors(state: State, num_classes: int, most: int) -> DetectionErrors:
    """Classify the error of each detection."""
    groups = group_boxes(state["detections"], state["labels"], num_classes)
    matched: GroupMatches = groups.match(groups.is_ignored[None], levels=_LEVEL, most=most)
    ignored = matched.is_ignored[0, 0] | (groups.rank >= most)
    is_wrong = ~matched.is_matched[0, 0] & ~ignored
    kind, label = np.full(len(groups.boxes), -1), np.full(len(groups.boxes), -1)
    real = np.flatnonzero(~groups.is_ignored)
    real = real[np.argsort(groups.labels[real, LabelColumn.IMAGE], kind="stable")]
    wrong = np.flatnonzero(is_wrong)
    wrong = wrong[np.argsort(groups.boxes[wrong, DetectionColumn.IMAGE], kind="stable")]
    begins = [
        np.searchsorted(groups.labels[real, LabelColumn.IMAGE], groups.boxes[wrong, DetectionColumn.IMAGE], side=side)
        for side in ("left", "right")
    ]
    edges = np.flatnonzero(np.diff(groups.boxes[wrong, DetectionColumn.IMAGE], prepend=-1, append=np.inf))
    for first, last in itertools.pairwise(edges):
        rows, label_rows = wrong[first:last], real[begins[0][first] : begins[1][first]]
        kind[rows], label[rows] = _kinds(groups.boxes[rows], groups.labels[label_rows], label_rows)
    about = np.isin(kind, [KINDS.index("classification"), KINDS.index("localisation")])
    is_missed = ~groups.is_ignored & ~matched.is_label_matched[0, 0]
    is_missed[label[about]] = False
    is_found = matched.is_matched[0, 0] & ~ignored
    return DetectionErrors(
        groups,
        kind,
        label,
        is_found,
        ignored,
        matched.is_label_matched[0, 0],
        is_missed,
    )


def _kinds(boxes: np.ndarray, labels: np.ndarray, label_indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classify the unmatched detections of an image.

    Error type (D,), and the index of the label concerned, or -1 (D,).
    """
    if not len(labels):
        return np.full(len(boxes), KINDS.index("background")), np.full(len(boxes), -1)
    overlap = iou_or_ioa(boxes[:, DetectionColumn.BOX], labels[:, LabelColumn.BOX], False)
    is_same_class = boxes[:, DetectionColumn.CLASS, None] == labels[:, LabelColumn.CLASS]
    same_class_overlap, other_class_overlap = np.where(is_same_class, overlap, 0), np.where(is_same_class, 0, overlap)
    conditions = {
        "localisation": (same_class_overlap.max(axis=1) >= _MIN_IOU) & (same_class_overlap.max(axis=1) < _MATCH_IOU),
        "classification": other_class_overlap.max(axis=1) >= _MATCH_IOU,
        "duplicate": same_class_overlap.max(axis=1) >= _MATCH_IOU,
        "background": overlap.max(axis=1) <= _MIN_IOU,
    }
    kind = np.select(list(conditions.values()), [KINDS.index(name) for name in conditions], KINDS.index("both"))
    label = np.select(
        [kind == KINDS.index(name) for name in ("localisation", "classification", "duplicate")],
        [same_class_overlap.argmax(axis=1), other_class_overlap.argmax(axis=1), same_class_overlap.argmax(axis=1)],
        -1,
    )
    return kind, np.append(label_indices, -1)[label]


def repair_errors(state: State, errors: DetectionErrors, kind: str) -> State:
    """Return the state with one error type fixed, detections and labels of `errors.groups` in their order."""
    groups = errors.groups
    boxes, labels = groups.boxes.copy(), groups.labels
    if kind == "missed":
        return {**state, "detections": torch.from_numpy(boxes), "labels": torch.from_numpy(labels[~errors.is_missed])}
    is_kind = errors.kind == KINDS.index(kind)
    keeps = ~is_kind
    if kind in ("classification", "localisation"):
        rows = np.flatnonzero(is_kind)
        rows = rows[~errors.is_label_found[errors.label[rows]]]
        rows = rows[np.argsort(-boxes[rows, DetectionColumn.SCORE], kind="stable")]
        _, firsts = np.unique(errors.label[rows], return_index=True)
        rows = rows[firsts]
        matched_labels = labels[errors.label[rows]]
        boxes[rows, DetectionColumn.BOX] = matched_labels[:, LabelColumn.BOX]
        boxes[rows, DetectionColumn.CLASS] = matched_labels[:, LabelColumn.CLASS]
        keeps[rows] = True
    return {**state, "detections": torch.from_numpy(boxes[keeps]), "labels": torch.from_numpy(labels)}


def _ap50(state: State, num_classes: int, most: int) -> float:
    """Compute COCO's AP at an IoU of 0.5, a mean over classes that have labels."""
    groups = group_boxes(state["detections"], state["labels"], num_classes)
    matched = groups.match(groups.is_ignored[None], levels=_LEVEL, most=most)
    result = []
    for number in range(num_classes):
        detection_rows, label_rows = groups.class_slices(number)
        is_used = groups.rank[detection_rows] < most
        num_labels = int((~groups.is_ignored[label_rows]).sum())
        is_matched, ignored = (mask[0][:, detection_rows][:, is_used] for mask in matched[:2])
        precision, _ = precision_and_recall(
            [Matches(groups.boxes[detection_rows, 5][is_used], is_matched, ignored, num_labels)]
        )
        result.append(float(precision.mean()) if num_labels else float("nan"))
    return nan_mean(result)
