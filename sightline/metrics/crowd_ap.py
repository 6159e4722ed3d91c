"""CrowdHuman's metrics: average precision, log-average miss rate and Jaccard index of people in crowds."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.box_bins import BINS, Bin, in_bin, label_values
from sightline.metrics.box_groups import BoxGroups, BoxRows, GroupMatches, group_boxes
from sightline.metrics.box_header import nan_mean, protocol_header
from sightline.metrics.detection_curves import CALTECH_4, MISS_RATE_RULES, DetectionCurve, detection_curve
from sightline.metrics.jaccard import THRESHOLDS, jaccard_counts, jaccard_index

__all__ = ["CrowdAp"]

_EPSILON = 1e-6
_LEVEL = np.array([np.nextafter(0.5, 1)])
"""IoU threshold: an overlap has to be above one half."""
_RULES = {"mr2": MISS_RATE_RULES["crowdhuman"], "mr4": MISS_RATE_RULES["crowdhuman"]._replace(points=CALTECH_4)}


@registry.metrics.add("crowd_ap")
class CrowdAp(BoxRows):
    """CrowdHuman AP, MR^-2, MR^-4 and Jaccard index: `crowd_ap`, `mr2`, `mr4` and `ji`.

    Of the boxes that the data set scores. Boxes are cut at the image's border, a detection matches the free label that
    it overlaps most, by more than one half; unmatched detections that are by more than half inside an ignored label do
    not count. `mr2` and `mr4` are 0 if a miss rate is 0; `_clamped` ones use 1e-10 instead. `ji` is the best over the
    thresholds 0 to 0.9, at `ji_score`. All detections take part. With several classes figures are means over those that
    have labels. NaN without labels. The table `crowd_bins` has them for each of `box_bins.BINS`: labels outside of one
    may be matched and do not count, nor do unmatched detections outside of its heights. Source: Shao et al. 2018,
    CrowdHuman, section 4.
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
        image = torch.searchsorted(samples, state_rows[:, 0].contiguous())
        height, width = sizes[image].unbind(1)
        far = torch.stack([width, height], dim=1)
        state_rows[:, 1:3] = torch.minimum(state_rows[:, 1:3], far - 1).clamp(min=0)
        state_rows[:, 3:5] = torch.minimum(state_rows[:, 3:5], far).clamp(min=0)
        state_rows[:, 0] = image
        rows[name] = state_rows
    groups = group_boxes(rows["detections"], rows["labels"], num_classes, last_is_first=True)
    label_ignored = groups.is_ignored[None]
    is_other = np.zeros((1, len(groups.boxes)), dtype=bool)
    if bins is not None:
        values = label_values(groups)
        label_ignored = np.stack([groups.is_ignored | ~in_bin(label_bin, values) for label_bin in bins])
        heights = {"height": groups.boxes[:, 4] - groups.boxes[:, 2]}
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
