"""Curves of pedestrian detection: precision over recall, and miss rate over false positives per image (FPPI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.contract.metric import State
from sightline.parts.metrics.box_groups import LabelColumn, Matches, cumulative_tp_fp

_CALTECH_2 = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
CALTECH_4 = np.array([0.0001, 0.0003, 0.001, 0.0032, 0.01, 0.0316, 0.1, 0.3162, 1.0])
"""FPPI at which MR^-2 and MR^-4 sample the miss rate, rounded as in their evaluators."""
_MIN_MISS_RATE = 1e-10
"""Replacement of a miss rate of 0, which has no logarithm."""


class MissRateRule(NamedTuple):
    """Sampling rule of a miss-rate curve: the first entry that reaches a point, or the last at or below it.

    `unreached` is the recall if no entry does: the last one of the curve, or 0.
    """

    points: np.ndarray
    picks: Literal["first", "last"]
    unreached: Literal["final", "zero"]


MISS_RATE_RULES: Mapping[str, MissRateRule] = {
    "crowdhuman": MissRateRule(_CALTECH_2, "first", "final"),
    "citypersons": MissRateRule(_CALTECH_2, "last", "zero"),
    "citypersons_script": MissRateRule(_CALTECH_2, "last", "final"),
    "ecp": MissRateRule(np.logspace(-2, 0, 9), "last", "zero"),
}
"""Sampling rules of published evaluators.

That of CityPersons reads the final recall if its curve begins above a point, by an index of -1; `citypersons` reads a
recall of 0 there.
"""


class DetectionCurve(NamedTuple):
    """Cumulative true and false positives (D,) of the counted detections, by falling score."""

    scores: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_labels: int
    num_images: int

    @property
    def recall(self) -> np.ndarray:
        """Recall (D,): the share of matched labels."""
        return self.true_positives / max(self.num_labels, 1)

    @property
    def precision(self) -> np.ndarray:
        """Precision (D,): the share of matched detections."""
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def fppi(self) -> np.ndarray:
        """False positives per image (D,)."""
        return self.false_positives / max(self.num_images, 1)

    def average_precision(self) -> float:
        """Compute the area below precision over recall by trapezia, from the highest-scoring detection on.

        NaN without labels.
        A perfect detector of n labels has 1 - 1 / n. Source: Shao et al. 2018, CrowdHuman, its published evaluation.
        """
        if not self.num_labels:
            return float("nan")
        means = (self.precision[1:] + self.precision[:-1]) / 2
        return float((np.diff(self.recall) * means).sum())

    def recalls_at(self, rule: MissRateRule) -> np.ndarray:
        """Return the recall (K,) at each of the rule's points."""
        if not len(self.scores):
            return np.zeros(len(rule.points))
        recall = np.append(self.recall, [0.0, self.recall[-1]])
        if rule.picks == "first":
            index = np.searchsorted(self.fppi, rule.points, side="left")
            missing = index == len(self.scores)
        else:
            index = np.searchsorted(self.fppi, rule.points, side="right") - 1
            missing = index < 0
        return recall[np.where(missing, -1 if rule.unreached == "final" else -2, index)]

    def miss_rate(self, rule: MissRateRule, *, is_clamped: bool = False) -> float:
        """Compute the log-average miss rate, the geometric mean at the rule's points; NaN without labels.

        0 if one of them is 0, as in the published evaluators, unless it is clamped at 1e-10. Source: Dollar et
        al. 2012, Pedestrian Detection: An Evaluation of the State of the Art.
        """
        if not self.num_labels:
            return float("nan")
        missed = 1 - self.recalls_at(rule)
        if is_clamped:
            missed = np.maximum(missed, _MIN_MISS_RATE)
        return float(np.exp(np.log(missed).mean())) if (missed > 0).all() else 0.0


def detection_curve(
    scores: np.ndarray, found: np.ndarray, ignored: np.ndarray, *, num_labels: int, num_images: int
) -> DetectionCurve:
    """Compute the curve of detections (D,) in the order of images, without the ignored ones."""
    counts = ~ignored
    matches = Matches(scores[counts], found[counts][None], np.zeros((1, int(counts.sum())), dtype=bool), num_labels)
    ordered, right, wrong = cumulative_tp_fp([matches])
    return DetectionCurve(ordered, right[0], wrong[0], num_labels, num_images)


def protocol_header(protocol: str, state: State) -> dict[str, Any]:
    """Return the protocol, the number of counted and ignored labels, and `undefined`: NaN figures with the reason."""
    num_ignored = int((state["labels"][:, LabelColumn.IS_IGNORED] > 0).sum())
    num_boxes = len(state["labels"]) - num_ignored
    undefined = {} if num_boxes else {"all": "no label counts"}
    return {"protocol": protocol, "num_boxes": num_boxes, "num_ignored": num_ignored, "undefined": undefined}


def nan_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    valid = [value for value in values if not np.isnan(value)]
    return float(np.mean(valid)) if valid else float("nan")
