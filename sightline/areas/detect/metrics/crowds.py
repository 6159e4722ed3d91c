"""Metrics of people in crowds: miss rate over false positives per image (FPPI), precision, and the Jaccard index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.intervals import LeftOutFigures
from sightline.contract.metric import State
from sightline.ops.numba_kernels import run_parallel
from sightline.parts.metrics.average_precision import Matches, cumulative_tp_fp
from sightline.parts.metrics.box_groups import (
    BOTTOM,
    TOP,
    BoxGroups,
    DetectionColumn,
    GroupMatches,
    LabelColumn,
    VisibleBoxRows,
    group_boxes,
    iou_or_ioa,
    leave_one_out_masks,
    left_out_figures,
)
from sightline.parts.metrics.match_kernels import count_pairs

_CALTECH_2 = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
_CALTECH_4 = np.array([0.0001, 0.0003, 0.001, 0.0032, 0.01, 0.0316, 0.1, 0.3162, 1.0])
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
    scores: np.ndarray, is_matched: np.ndarray, ignored: np.ndarray, *, num_labels: int, num_images: int
) -> DetectionCurve:
    """Compute the curve of detections (D,) in the order of images, without the ignored ones."""
    counts = ~ignored
    matches = Matches(
        scores[counts], is_matched[counts][None], np.zeros((1, int(counts.sum())), dtype=bool), num_labels
    )
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


_MISS_RATE_LEVEL = np.array([0.5])
_WIDER = 1.25
"""Factor of a set-up's height range beyond which detections are left out."""


class _SetUp(NamedTuple):
    """Labels from `low` to `high` pixels of height and `min_visible` to `max_visible` of visible share, inclusive."""

    low: float
    high: float
    min_visible: float
    max_visible: float


_ABOVE_60, _ABOVE_20 = math.nextafter(0.6, 1), math.nextafter(0.2, 1)
_CITYPERSONS = {
    "reasonable": _SetUp(50, 1e10, 0.65, 1e10),
    "small": _SetUp(50, 75, 0.65, 1e10),
    "heavy": _SetUp(50, 1e10, 0.2, 0.65),
    "all": _SetUp(20, 1e10, 0.2, 1e10),
}
_SET_UPS: Mapping[str, Mapping[str, _SetUp]] = {
    "citypersons": _CITYPERSONS,
    "citypersons_script": _CITYPERSONS,
    "ecp": {
        "reasonable": _SetUp(40, math.inf, _ABOVE_60, math.inf),
        "small": _SetUp(30, 60, _ABOVE_60, math.inf),
        "occluded": _SetUp(40, math.inf, _ABOVE_20, 0.6),
        "all": _SetUp(20, math.inf, _ABOVE_20, math.inf),
    },
}
"""Set-ups of labels by protocol.

In EuroCity Persons the tags occluded or truncated by more than 10, 40, 80 % are shares of 0.9, 0.6, 0.2.
"""
_TITLES = {
    "citypersons": "CityPersons, recall 0 below the first detection",
    "citypersons_script": "CityPersons as its script computes it",
    "ecp": "EuroCity Persons",
}


@registry.metrics.add("miss_rate")
class MissRate(VisibleBoxRows):
    """Log-average miss rate (MR^-2): `mr_reasonable`, `mr_small`, `mr_all`, and `mr_heavy` or `mr_occluded`.

    `mr_heavy` is of CityPersons, `mr_occluded` of EuroCity Persons. Each set-up is of labels of certain heights and
    visible shares. An IoU of 0.5 matches one of them; an unmatched detection of which half is inside any other label
    does not count. The `most` highest-scoring detections of an image and class are used; then those outside the
    set-up's heights by a factor of 1.25 are left out. `citypersons_script` reads the final recall if the curve begins
    above a point, as that script does by mistake. Labels of EuroCity Persons are cut at the image's border. Where its
    rules are silent: of labels outside a set-up the IoU decides here, and the share of a detection only for those that
    the data set ignores; `most` holds as above. NaN if no label fits, or the set does not state the visible shares.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.crowds import MissRate
    >>> batch = {  # an image of two people: one is found, the other is not, and a detection is wrong
    ...     "detections": torch.tensor([[0, 0, 40, 80, 0.9, 0], [150, 0, 190, 80, 0.8, 0]]),
    ...     "detection_offsets": torch.tensor([0, 2]),
    ...     "truth": torch.tensor([[0, 0, 40, 80, 0, 3200, 0], [60, 0, 100, 80, 0, 3200, 0]]),
    ...     "truth_visible": torch.tensor([1.0, 1.0]),
    ...     "truth_offsets": torch.tensor([0, 2]),
    ...     "file_px": torch.tensor([[100, 200]]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(MissRate(class_names=("person",)))
    >>> meter.update(**batch)
    >>> meter.compute()
    {'mr_reasonable': 0.5, 'mr_small': nan, 'mr_heavy': nan, 'mr_all': 0.5}

    Source: Zhang et al. 2017, CityPersons; Braun et al. 2019, EuroCity Persons; their published evaluations.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        protocol: Literal["citypersons", "citypersons_script", "ecp"] = "citypersons",
        most: Count = 1000,
    ) -> None:
        self.class_names = tuple(class_names)
        self.protocol = protocol
        self.most = most

    def compute(self, state: State) -> dict[str, float]:
        """Compute the miss rate of each set-up, a mean over classes that have labels in it."""
        rates = {name: [self._rate(curve) for curve in curves] for name, curves in self._curves(state)}
        return {f"mr_{name}": nan_mean(class_rates) for name, class_rates in rates.items()}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_miss_rate`, with the number of labels in each set-up."""
        about = protocol_header(f"{_TITLES[self.protocol]}, IoU 0.5, at most {self.most} an image and class", state)
        counts = {name: sum(curve.num_labels for curve in curves) for name, curves in self._curves(state)}
        has_visible = bool(state["labels"][:, LabelColumn.VISIBLE].isfinite().any())
        reason = "no label is in this set-up" if has_visible else "the set does not state what is visible"
        about["undefined"] |= {f"mr_{name}": reason for name, count in counts.items() if not count}
        return {"scored_boxes_miss_rate": {**about, "set_ups": counts}}

    def _rate(self, curve: DetectionCurve) -> float:
        return curve.miss_rate(MISS_RATE_RULES[self.protocol], is_clamped=self.protocol == "ecp")

    def _curves(self, state: State) -> list[tuple[str, list[DetectionCurve]]]:
        """Compute the curve of each class, by set-up."""
        rows = self._cut(state) if self.protocol == "ecp" else state
        all_groups = group_boxes(rows["detections"], rows["labels"], len(self.class_names))
        detections = torch.from_numpy(all_groups.boxes[all_groups.rank < self.most])
        height = detections[:, BOTTOM] - detections[:, TOP]
        result = []
        for name, set_up in _SET_UPS[self.protocol].items():
            is_kept = (height >= set_up.low / _WIDER) & (height < set_up.high * _WIDER)
            if self.protocol == "ecp":
                is_kept &= height > set_up.low / _WIDER
            groups = group_boxes(detections[is_kept], rows["labels"], len(self.class_names))
            label_ignored = groups.is_ignored | ~_is_in(groups, set_up)
            is_crowd = groups.is_ignored if self.protocol == "ecp" else label_ignored
            is_matched, ignored, _ = groups.match(
                label_ignored[None], is_crowd=is_crowd, levels=_MISS_RATE_LEVEL, reuses=True
            )
            curves = []
            for number in range(len(self.class_names)):
                detection_rows, label_rows = groups.class_slices(number)
                curves.append(
                    detection_curve(
                        groups.boxes[detection_rows, 5],
                        is_matched[0, 0, detection_rows],
                        ignored[0, 0, detection_rows],
                        num_labels=int((~label_ignored[label_rows]).sum()),
                        num_images=len(state["images"]),
                    )
                )
            result.append((name, curves))
        return result

    def _cut(self, state: State) -> State:
        """Cut labels at the border of their images."""
        images = state["images"]
        row = torch.searchsorted(images[:, 0].contiguous(), state["labels"][:, LabelColumn.IMAGE].contiguous())
        far = images[row][:, [2, 1, 2, 1]]
        labels = state["labels"].clone()
        labels[:, LabelColumn.BOX] = torch.minimum(labels[:, LabelColumn.BOX].clamp(min=0), far)
        return {**state, "labels": labels}


def _is_in(groups: BoxGroups, set_up: _SetUp) -> np.ndarray:
    labels = groups.labels
    height, visible = labels[:, BOTTOM] - labels[:, TOP], labels[:, LabelColumn.VISIBLE]
    is_in: np.ndarray = (
        (height >= set_up.low)
        & (height <= set_up.high)
        & (visible >= set_up.min_visible)
        & (visible <= set_up.max_visible)
    )
    return is_in


# --- CrowdHuman: average precision, miss rates, Jaccard index ---------------------------------------------------------

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
_CROWD_LEVEL = np.array([np.nextafter(0.5, 1)])
"""IoU threshold: an overlap has to be above one half."""
_RULES = {"mr2": MISS_RATE_RULES["crowdhuman"], "mr4": MISS_RATE_RULES["crowdhuman"]._replace(points=_CALTECH_4)}


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
    height = groups.labels[:, BOTTOM] - groups.labels[:, TOP]
    return {"visible": groups.labels[:, LabelColumn.VISIBLE], "height": height, "density": density}


def in_bin(one: Bin, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a mask (G,) of the labels in a bin."""
    return (values[one.quantity] >= one.low) & (values[one.quantity] < one.high)


@registry.metrics.add("crowd_ap")
class CrowdAp(VisibleBoxRows):
    """CrowdHuman AP, MR^-2, MR^-4 and Jaccard index: `crowd_ap`, `mr2`, `mr4` and `ji`.

    Of the boxes that the data set scores. Boxes are cut at the image's border, a detection matches the free label that
    it overlaps most, by more than one half; unmatched detections that are by more than half inside an ignored label do
    not count. `mr2` and `mr4` are 0 if a miss rate is 0; `_clamped` ones use 1e-10 instead. `ji` is the best over the
    thresholds 0 to 0.9, at `ji_score`. All detections take part. With several classes figures are means over those that
    have labels. NaN without labels. The table `crowd_bins` has them for each of `BINS`: labels outside of one
    may be matched and do not count, nor do unmatched detections outside of its heights.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.detect.metrics.crowds import CrowdAp
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

    higher_is_better: Mapping[str, bool] = {
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

    def class_intervals(self, state: State) -> dict[str, LeftOutFigures]:
        """Return `crowd_ap` and `mr2` of every class, and both without each of at most 10 groups of its images."""
        scored = _score(state, len(self.class_names))
        dealt = [scored.groups.deal_images(number, scored.num_images) for number in range(len(self.class_names))]
        curves = [
            [scored.curve(number, image_mask=mask) for mask in (None, *leave_one_out_masks(groups, count))]
            for number, (groups, count) in enumerate(dealt)
        ]
        values = {
            "crowd_ap": [[c.average_precision() for c in of_class] for of_class in curves],
            "mr2": [[c.miss_rate(_RULES["mr2"]) for c in of_class] for of_class in curves],
        }
        counts, num_samples = [count for _, count in dealt], scored.num_images
        return {name: left_out_figures(rows, counts, num_samples=num_samples) for name, rows in values.items()}


class _Scored(NamedTuple):
    """Matched groups, and masks of labels (A, G) and unmatched detections that do not count, for each bin."""

    groups: BoxGroups
    label_ignored: np.ndarray
    matched: GroupMatches
    num_images: int

    def curve(self, number: int, kind: int = 0, *, image_mask: np.ndarray | None = None) -> DetectionCurve:
        """Compute the curve of a class; with `image_mask` (num_images,), of those images alone."""
        detection_rows, label_rows = self.groups.class_slices(number)
        image_mask = np.ones(self.num_images, dtype=bool) if image_mask is None else image_mask
        chosen = image_mask[self.groups.boxes[detection_rows, DetectionColumn.IMAGE].astype(int)]
        counted = image_mask[self.groups.labels[label_rows, DetectionColumn.IMAGE].astype(int)]
        is_matched, ignored = (mask[kind, 0, detection_rows][chosen] for mask in self.matched[:2])
        num_labels = int((~self.label_ignored[kind, label_rows] & counted).sum())
        scores = self.groups.boxes[detection_rows, 5][chosen]
        return detection_curve(scores, is_matched, ignored, num_labels=num_labels, num_images=int(image_mask.sum()))


def _score(state: State, num_classes: int, bins: list[Bin] | None = None) -> _Scored:
    """Cut boxes at the border of their images and match them: for all labels, or for those of each bin."""
    sizes = state["images"][:, 1:].double()
    samples = state["images"][:, 0].contiguous()
    rows = {}
    for name in ("detections", "labels"):
        state_rows = state[name].clone()
        image = torch.searchsorted(samples, state_rows[:, DetectionColumn.IMAGE].contiguous())
        height, width = sizes[image].unbind(1)
        far = torch.stack([width, height], dim=1)
        corners = state_rows[:, DetectionColumn.BOX]  # a view: the rows change with it
        corners[:, :2] = torch.minimum(corners[:, :2], far - 1).clamp(min=0)
        corners[:, 2:] = torch.minimum(corners[:, 2:], far).clamp(min=0)
        state_rows[:, DetectionColumn.IMAGE] = image
        rows[name] = state_rows
    groups = group_boxes(rows["detections"], rows["labels"], num_classes, last_is_first=True)
    label_ignored = groups.is_ignored[None]
    is_other = np.zeros((1, len(groups.boxes)), dtype=bool)
    if bins is not None:
        values = label_values(groups)
        label_ignored = np.stack([groups.is_ignored | ~in_bin(label_bin, values) for label_bin in bins])
        heights = {"height": groups.boxes[:, BOTTOM] - groups.boxes[:, TOP]}
        is_other = np.stack(
            [~in_bin(e, heights) if e.quantity == "height" else np.zeros_like(is_other[0]) for e in bins]
        )
    matched = groups.match(label_ignored, levels=_CROWD_LEVEL, epsilon=_EPSILON)
    matched = matched._replace(is_ignored=matched.is_ignored | ~matched.is_matched & is_other[:, None])
    return _Scored(groups, label_ignored, matched, len(sizes))


def _figures(curves: list[DetectionCurve]) -> dict[str, float]:
    """Compute the figures, means over the classes that have labels."""
    result = {"crowd_ap": nan_mean([curve.average_precision() for curve in curves])}
    for name, rule in _RULES.items():
        result[name] = nan_mean([curve.miss_rate(rule) for curve in curves])
        result[f"{name}_clamped"] = nan_mean([curve.miss_rate(rule, is_clamped=True) for curve in curves])
    return result
