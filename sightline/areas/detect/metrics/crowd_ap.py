"""CrowdHuman's metrics: average precision, log-average miss rate and Jaccard index of people in crowds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sightline.areas.detect.metrics.miss_rate import (
    CALTECH_4,
    MISS_RATE_RULES,
    DetectionCurve,
    detection_curve,
    nan_mean,
    protocol_header,
)
from sightline.contract import registry
from sightline.contract.metric import State
from sightline.ops.numba_kernels import run_parallel
from sightline.parts.metrics.box_groups import (
    BoxColumn,
    BoxGroups,
    BoxRows,
    DetectionColumn,
    GroupMatches,
    LabelColumn,
    group_boxes,
    iou_or_ioa,
)
from sightline.parts.metrics.match_kernels import count_pairs

THRESHOLDS = np.arange(10) / 10
"""Score thresholds of detections."""
_JACCARD_LEVEL = 0.5


def jaccard_counts(groups: BoxGroups, number: int, num_images: int, *, epsilon: float) -> np.ndarray:
    """Count pairs, detections and labels (T, N, 3) of every image, for a class and each of `THRESHOLDS`.

    Pairs of an IoU above 0.5 are chosen for the largest sum of IoU. An unpaired detection or label that is by more than
    half inside an ignored label does not count. Source: Shao et al. 2018, its published evaluation.
    """
    starts = (groups.box_starts, groups.label_starts)
    group_counts = np.zeros((len(starts[0]) - 1, len(THRESHOLDS), 3), dtype=np.int64)
    arrays = (
        groups.boxes[:, DetectionColumn.SCORED_BOX],
        starts[0],
        groups.labels[:, LabelColumn.BOX],
        starts[1],
        groups.is_ignored,
        THRESHOLDS,
    )
    run_parallel(
        count_pairs, len(group_counts), *map(np.ascontiguousarray, arrays), _JACCARD_LEVEL, epsilon, group_counts
    )
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


_EPSILON = 1e-6
_LEVEL = np.array([np.nextafter(0.5, 1)])
"""IoU threshold: an overlap has to be above one half."""
_RULES = {"mr2": MISS_RATE_RULES["crowdhuman"], "mr4": MISS_RATE_RULES["crowdhuman"]._replace(points=CALTECH_4)}


class Bin(NamedTuple):
    """Bin of labels with `low` <= value < `high` of a property."""

    quantity: str
    low: float
    high: float


BINS: Mapping[str, Bin] = {
    "visible >= 0.65": Bin("visible", 0.65, math.inf),
    "visible 0.2 to 0.65": Bin("visible", 0.2, 0.65),
    "visible < 0.2": Bin("visible", 0.0, 0.2),
    "height < 50 px": Bin("height", 0, 50),
    "height 50 to 150 px": Bin("height", 50, 150),
    "height >= 150 px": Bin("height", 150, math.inf),
    "density < 0.2": Bin("density", 0, 0.2),
    "density 0.2 to 0.5": Bin("density", 0.2, 0.5),
    "density >= 0.5": Bin("density", 0.5, math.inf),
}
"""Bins of labels by name, over three quantities.

`visible` is the visible share of a label, with CityPersons' limits; `height` that of its box in pixels of the
file; `density` its largest IoU with another label of its class that counts (Liu et al. 2019, Adaptive NMS).
"""


def label_values(groups: BoxGroups) -> dict[str, np.ndarray]:
    """Compute the quantity (G,) of every label, by quantity name.

    NaN if it is unknown, density 0 for ignored labels.
    """
    density = np.zeros(len(groups.labels))
    for _, label_rows in groups.groups():
        counted = label_rows.start + np.flatnonzero(~groups.is_ignored[label_rows])
        overlap = iou_or_ioa(groups.labels[counted, LabelColumn.BOX], groups.labels[counted, LabelColumn.BOX], False)
        np.fill_diagonal(overlap, 0)
        density[counted] = overlap.max(axis=1, initial=0)
    height = groups.labels[:, LabelColumn.BOTTOM] - groups.labels[:, LabelColumn.TOP]
    return {"visible": groups.labels[:, LabelColumn.VISIBLE], "height": height, "density": density}


def in_bin(one: Bin, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a mask (G,) of the labels in a bin."""
    return (values[one.quantity] >= one.low) & (values[one.quantity] < one.high)


@registry.metrics.add("crowd_ap")
class CrowdAp(BoxRows):
    """CrowdHuman AP, MR^-2, MR^-4 and Jaccard index: `crowd_ap`, `mr2`, `mr4` and `ji`.

    Of the boxes that the data set scores. Boxes are cut at the image's border, a detection matches the free label that
    it overlaps most, by more than one half; unmatched detections that are by more than half inside an ignored label do
    not count. `mr2` and `mr4` are 0 if a miss rate is 0; `_clamped` ones use 1e-10 instead. `ji` is the best over the
    thresholds 0 to 0.9, at `ji_score`. All detections take part. With several classes figures are means over those that
    have labels. NaN without labels. The table `crowd_bins` has them for each of `BINS`: labels outside of one
    may be matched and do not count, nor do unmatched detections outside of its heights.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.crowd_ap import CrowdAp
    >>> batch = {  # an image of two people: one is found, the other is not, and a detection is wrong
    ...     "detections": torch.tensor([[0, 0, 40, 80, 0.9, 0], [150, 0, 190, 80, 0.8, 0]]),
    ...     "detection_offsets": torch.tensor([0, 2]),
    ...     "truth": torch.tensor([[0, 0, 40, 80, 0, 3200, 0], [60, 0, 100, 80, 0, 3200, 0]]),
    ...     "truth_visible": torch.tensor([1.0, 1.0]),
    ...     "truth_offsets": torch.tensor([0, 2]),
    ...     "file_px": torch.tensor([[100, 200]]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(CrowdAp(class_names=("person",)))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'crowd_ap': 0.0, 'mr2': 0.5, 'mr2_clamped': 0.5, 'mr4': 0.5, 'mr4_clamped': 0.5, 'ji': 0.33333322222225925,
    'ji_score': 0.0}

    Source: Shao et al. 2018, CrowdHuman, section 4.
    """

    higher_is_better: ClassVar[dict[str, bool]] = {
        "crowd_ap": True,
        "ji": True,
        "mr2": False,
        "mr2_clamped": False,
        "mr4": False,
        "mr4_clamped": False,
    }

    def __init__(self, *, class_names: tuple[str, ...]) -> None:
        self.class_names = tuple(class_names)

    def compute(self, state: State) -> dict[str, float]:
        """Compute the figures of all labels."""
        scored = _score(state, len(self.class_names))
        curves = [scored.curve(number) for number in range(len(self.class_names))]
        result = _figures(curves)
        indices = [
            jaccard_index(jaccard_counts(scored.groups, number, len(state["images"]), epsilon=_EPSILON))
            for number, curve in enumerate(curves)
            if curve.num_labels
        ]
        index = np.mean(indices or [np.full(len(THRESHOLDS), np.nan)], axis=0)
        best = int(np.nan_to_num(index, nan=-1).argmax())
        result["ji"] = float(index[best])
        return result | {"ji_score": float("nan") if np.isnan(index[best]) else float(THRESHOLDS[best])}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_crowd`, and `crowd_bins`: the figures of each bin of labels."""
        scored = _score(state, len(self.class_names), bins=list(BINS.values()))
        values = label_values(scored.groups)
        about = protocol_header("CrowdHuman, IoU above 0.5, all detections", state)
        rows: dict[str, dict[str, Any]] = {}
        for kind, name in enumerate(BINS):
            curves = [scored.curve(number, kind) for number in range(len(self.class_names))]
            recall = nan_mean(
                [
                    float(c.true_positives[-1]) / c.num_labels if len(c.true_positives) else 0.0
                    for c in curves
                    if c.num_labels
                ]
            )
            rows[name] = {**_figures(curves), "recall": recall, "count": sum(curve.num_labels for curve in curves)}
            if not rows[name]["count"]:
                is_unknown = bool(np.isnan(values[BINS[name].quantity][~scored.groups.is_ignored]).all())
                about["undefined"][name] = "the set does not state it" if is_unknown else "no label is in this range"
        return {"scored_boxes_crowd": about, "crowd_bins": rows}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return `crowd_ap` and `mr2` of every class, and the number of counted labels."""
        scored = _score(state, len(self.class_names))
        curves = {name: scored.curve(number) for number, name in enumerate(self.class_names)}
        return {
            name: {"crowd_ap": c.average_precision(), "mr2": c.miss_rate(_RULES["mr2"]), "count": c.num_labels}
            for name, c in curves.items()
        }


class _Scored(NamedTuple):
    """Matched groups, and masks of labels (A, G) and unmatched detections that do not count, for each bin."""

    groups: BoxGroups
    label_ignored: np.ndarray
    matched: GroupMatches
    num_images: int

    def curve(self, number: int, kind: int = 0) -> DetectionCurve:
        """Compute the curve of a class."""
        detection_rows, label_rows = self.groups.class_slices(number)
        is_matched, ignored = (mask[kind, 0, detection_rows] for mask in self.matched[:2])
        num_labels = int((~self.label_ignored[kind, label_rows]).sum())
        scores = self.groups.boxes[detection_rows, 5]
        return detection_curve(scores, is_matched, ignored, num_labels=num_labels, num_images=self.num_images)


def _score(state: State, num_classes: int, bins: list[Bin] | None = None) -> _Scored:
    """Cut boxes at the border of their images and match them: for all labels, or for those of each bin."""
    sizes = state["images"][:, 1:].double()
    samples = state["images"][:, 0].contiguous()
    rows = {}
    for name in ("detections", "labels"):
        state_rows = state[name].clone()
        image = torch.searchsorted(samples, state_rows[:, BoxColumn.IMAGE].contiguous())
        height, width = sizes[image].unbind(1)
        far = torch.stack([width, height], dim=1)
        corners = state_rows[:, BoxColumn.BOX]  # a view: the rows change with it
        corners[:, :2] = torch.minimum(corners[:, :2], far - 1).clamp(min=0)
        corners[:, 2:] = torch.minimum(corners[:, 2:], far).clamp(min=0)
        state_rows[:, BoxColumn.IMAGE] = image
        rows[name] = state_rows
    groups = group_boxes(rows["detections"], rows["labels"], num_classes, last_is_first=True)
    label_ignored = groups.is_ignored[None]
    is_other = np.zeros((1, len(groups.boxes)), dtype=bool)
    if bins is not None:
        values = label_values(groups)
        label_ignored = np.stack([groups.is_ignored | ~in_bin(label_bin, values) for label_bin in bins])
        heights = {"height": groups.boxes[:, DetectionColumn.BOTTOM] - groups.boxes[:, DetectionColumn.TOP]}
        is_other = np.stack(
            [~in_bin(e, heights) if e.quantity == "height" else np.zeros_like(is_other[0]) for e in bins]
        )
    matched = groups.match(label_ignored, levels=_LEVEL, epsilon=_EPSILON)
    matched = matched._replace(is_ignored=matched.is_ignored | ~matched.is_matched & is_other[:, None])
    return _Scored(groups, label_ignored, matched, len(sizes))


def _figures(curves: list[DetectionCurve]) -> dict[str, float]:
    """Compute the figures, means over the classes that have labels."""
    result = {"crowd_ap": nan_mean([curve.average_precision() for curve in curves])}
    for name, rule in _RULES.items():
        result[name] = nan_mean([curve.miss_rate(rule) for curve in curves])
        result[f"{name}_clamped"] = nan_mean([curve.miss_rate(rule, is_clamped=True) for curve in curves])
    return result
