"""AP of 3D boxes for sets of any size, by overlap and by distance, and the errors of what is found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.boxes3d.metrics.pair_overlaps import upright_overlaps
from sightline.areas.boxes3d.metrics.plain_kernels import average_resampled, match_greedily
from sightline.areas.boxes3d.metrics.rows import Box3dRows, DetectionColumn, FrameGroups, TruthColumn, group_frames
from sightline.areas.boxes3d.score_remarks import MatchedPairs, list_remarks, size_errors, yaw_errors
from sightline.contract import registry
from sightline.contract.arguments import PositiveFraction
from sightline.contract.errors import ConfigError
from sightline.contract.intervals import LEVEL, describe_interval
from sightline.contract.metric import State
from sightline.ops.numba_kernels import run_parallel

__all__ = ["Boxes3dAp"]

_DISTANCES = {"ap_0_5m": 0.5, "ap_1m": 1.0, "ap_2m": 2.0}
_ERRORS_AT = "ap_2m"
"""Matching whose pairs errors are of: it needs neither sizes nor headings to be right."""
_ERRORS = ("centre_error_m", "height_error_m", "size_error", "yaw_error_rad", "axis_error_rad")
_OVERLAP, _SMALL_OVERLAP, _SMALL_M = 0.5, 0.25, 1.0
_NUM_RESAMPLINGS = 1000


@registry.metrics.add("boxes3d_ap")
class Boxes3dAp(Box3dRows):
    """AP of 3D boxes by overlap of volumes and by distance of centres from above, over all points of the curve.

    Reads `detections3d` (D, 9), x y z dx dy dz yaw, score and class, and `truth3d` (T, 9) with class and if a label is
    ignored. Detections, highest score first, take the free label of their class and frame that fits best. `ap_overlap`
    needs an IoU of at least 0.5, of classes whose labels are on average shorter than 1 m 0.25, or `min_overlap` of the
    class; `ap_0_5m`, `ap_1m`, `ap_2m` a distance below that, and `ap_distance` is their mean. All are means over the
    classes with labels, NaN without. The errors are means over the pairs at 2 m, NaN without: `centre_error_m` from
    above, `height_error_m` of z, `size_error` 1 - IoU of sizes, `yaw_error_rad` of headings modulo 360 degrees,
    `axis_error_rad` modulo 180: a large difference of the two are reversed headings. A detection on an ignored label of
    its class, or with its centre in an ignored region of no class, does not count. Intervals are a bootstrap over
    frames. Raises ConfigError for a `min_overlap` of no class.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.boxes3d.metrics.boxes3d_ap import Boxes3dAp
    >>> batch = {  # a frame of two cars: one is found 0.75 m aside and reversed, the other is not
    ...     "detections3d": torch.tensor([[20.0, 0.75, -1, 4, 2, 1.5, torch.pi, 0.9, 0]]),
    ...     "detections3d_offsets": torch.tensor([0, 1]),
    ...     "truth3d": torch.tensor([[20.0, 0, -1, 4, 2, 1.5, 0, 0, 0], [30, 0, -1, 4, 2, 1.5, 0, 0, 0]]),
    ...     "truth3d_offsets": torch.tensor([0, 2]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(Boxes3dAp(class_names=("car",)))
    >>> meter.update(**batch)
    >>> {name: round(value, 3) for name, value in meter.compute().items()}
    {'ap_overlap': 0.0, 'ap_0_5m': 0.0, 'ap_1m': 0.5, 'ap_2m': 0.5, 'ap_distance': 0.333, 'centre_error_m': 0.75,
    'height_error_m': 0.0, 'size_error': 0.0, 'yaw_error_rad': 3.142, 'axis_error_rad': 0.0}

    Source: Everingham et al. 2010, The PASCAL VOC challenge (AP); Caesar et al. 2020, nuScenes (distances, errors).
    """

    higher_is_better: Mapping[str, bool] = {
        **dict.fromkeys(("ap_overlap", *_DISTANCES, "ap_distance"), True),
        **dict.fromkeys(_ERRORS, False),
    }

    def __init__(
        self, *, class_names: tuple[str, ...], min_overlap: Mapping[str, PositiveFraction] | None = None
    ) -> None:
        self.class_names = tuple(class_names)
        self._min_overlap = dict(min_overlap or {})
        if unknown := [name for name in self._min_overlap if name not in self.class_names]:
            raise ConfigError(
                f"metrics.boxes3d_ap.min_overlap: the data set has no class '{unknown[0]}', but "
                f"{', '.join(self.class_names)}; names are compared letter by letter"
            )

    def compute(self, state: State) -> dict[str, float]:
        """Compute the means over classes."""
        figures = [found.figures() for found in self._match(state)]
        return {name: _mean([row[name] for row in figures]) for name in self.higher_is_better}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return the figures of every class but those at one distance, and how many of its labels are not ignored."""
        return {
            name: {**{k: v for k, v in found.figures().items() if k not in _DISTANCES}, "count": found.num_labels}
            for name, found in zip(self.class_names, self._match(state), strict=True)
        }

    def class_intervals(self, state: State) -> dict[str, ResampledFigures]:
        """Return `ap_overlap` and `ap_distance` of every class, and both of frames that are drawn anew."""
        found = [*self._match(state)]
        num_frames = len({int(index) for one in found for index in one.label_frames})
        return {
            name: ResampledFigures(
                [one.figures()[name] for one in found],
                [np.mean([one.resample(kind) for kind in kinds], axis=0) for one in found],
                [len(one.label_frames) for one in found],
                num_frames,
            )
            for name, kinds in (("ap_overlap", ("ap_overlap",)), ("ap_distance", tuple(_DISTANCES)))
        }

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_3d`: the protocol, counts of labels, and remarks on what was found."""
        found = [*self._match(state)]
        is_ignored = state["truths"][:, 1 + TruthColumn.IS_IGNORED] > 0
        num_boxes = int((~is_ignored).sum())
        levels = ", ".join(f"{name} {one.level:g}" for name, one in zip(self.class_names, found, strict=True))
        unpaired = [name for name in _ERRORS if not any(len(one.pairs.detected) for one in found)]
        about = {
            "protocol": f"all points of the curve, overlaps of volumes from {levels}; distances 0.5, 1, 2 m",
            "box_type": "3D",
            "num_boxes": num_boxes,
            "num_ignored": int(is_ignored.sum()),
            "undefined": (
                ({", ".join(unpaired): "no detection is within 2 m of a label"} if unpaired else {})
                if num_boxes
                else {"all": "no label counts"}
            ),
            "remarks": [line for one in found for line in list_remarks(one.pairs)],
        }
        return {"scored_boxes_3d": about}

    def _match(self, state: State) -> Iterator[_ClassMatches]:
        groups = group_frames(state["detections"], state["truths"])
        fits = _measure_fits(groups)
        for number, name in enumerate(self.class_names):
            yield _ClassMatches(groups, fits, number, name, self._min_overlap.get(name))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


class _Fits(NamedTuple):
    """How well the pairs (P,) of all frames fit, the more the better: IoU of volumes, and distance of centres below 0.

    `hidden` (D,) marks detections whose centre lies in an ignored region of no class.
    """

    overlap: np.ndarray
    nearness: np.ndarray
    hidden: np.ndarray


def _measure_fits(groups: FrameGroups) -> _Fits:
    detection, truth = groups.list_pairs()
    first, second = groups.detections[detection, :7], groups.truths[truth, :7]
    _, volume = upright_overlaps(first, second)
    away = first[:, :3] - second[:, :3]
    cos, sin = np.cos(second[:, 6]), np.sin(second[:, 6])
    along, across = cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0]
    is_inside = (np.abs(np.column_stack([along, across, away[:, 2]])) <= second[:, 3:6] / 2).all(axis=1)
    hidden = np.zeros(len(groups.detections), dtype=bool)
    is_region = (groups.truths[:, TruthColumn.CLASS] < 0) & (groups.truths[:, TruthColumn.IS_IGNORED] > 0)
    hidden[detection[is_inside & is_region[truth]]] = True
    return _Fits(volume, -np.hypot(away[:, 0], away[:, 1]), hidden)


class _ClassMatches:
    """Detections of one class by falling score, matched to its labels by overlap, and at each distance."""

    def __init__(self, groups: FrameGroups, fits: _Fits, number: int, name: str, min_overlap: float | None) -> None:
        truths = groups.truths
        is_own = truths[:, TruthColumn.CLASS] == number
        is_ignored = truths[:, TruthColumn.IS_IGNORED] > 0
        labels = is_own & ~is_ignored
        self.num_labels = int(labels.sum())
        self.label_frames = groups.frames[np.unique(groups.truth_frame[labels])]
        size = truths[labels, 3:5].max(axis=1).mean() if self.num_labels else math.nan
        self.level = min_overlap or (_SMALL_OVERLAP if size < _SMALL_M else _OVERLAP)
        self._groups, self._fits = groups, fits
        self._times: np.ndarray | None = None
        self._truth_state = np.where(is_own, is_ignored.astype(np.int64), -1)
        chosen = np.flatnonzero(groups.detections[:, DetectionColumn.CLASS] == number)
        self._order = chosen[np.argsort(-groups.detections[chosen, DetectionColumn.SCORE], kind="stable")]
        self._of_frame = self._order[np.argsort(groups.detection_frame[self._order], kind="stable")]
        self._partners = {"ap_overlap": self._find_partners(fits.overlap, self.level)}
        nearer = {kind: math.nextafter(-limit, math.inf) for kind, limit in _DISTANCES.items()}  # than the limit itself
        self._partners |= {kind: self._find_partners(fits.nearness, level) for kind, level in nearer.items()}
        partner = self._partners[_ERRORS_AT]
        rows = self._order[self._is_true(partner)]
        self.pairs = MatchedPairs(name, groups.detections[rows, :7], truths[partner[rows], :7])

    def _find_partners(self, fit: np.ndarray, level: float) -> np.ndarray:
        """Return the label (D,) that each detection takes, -1 for none."""
        groups = self._groups
        partner = np.full(len(groups.detections), -1)
        starts = np.searchsorted(groups.detection_frame[self._of_frame], np.arange(len(groups.frames) + 1))
        arguments = (self._of_frame, starts, *groups.starts, fit, level, self._truth_state, partner)
        run_parallel(match_greedily, len(groups.frames), *arguments)
        return partner

    def _is_true(self, partner: np.ndarray) -> np.ndarray:
        taken = partner[self._order]
        return (taken >= 0) & (self._truth_state[taken] == 0)

    def _curve(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the detections that count, by falling score, and which of them found a label."""
        partner = self._partners[kind][self._order]
        is_true = self._is_true(self._partners[kind])
        counts = is_true | ((partner < 0) & ~self._fits.hidden[self._order])
        return self._order[counts], is_true[counts]

    def figures(self) -> dict[str, float]:
        """Return the figures of the class."""
        values = {kind: self._average(kind) for kind in ("ap_overlap", *_DISTANCES)}
        values["ap_distance"] = sum(values[kind] for kind in _DISTANCES) / len(_DISTANCES)
        return {**values, **self._errors()}

    def _average(self, kind: str) -> float:
        if not self.num_labels:
            return math.nan
        rows, is_true = self._curve(kind)
        found = np.cumsum(is_true)
        precision = np.maximum.accumulate((found / np.arange(1, len(rows) + 1))[::-1])[::-1]
        return float(precision[is_true].sum()) / self.num_labels

    def _errors(self) -> dict[str, float]:
        detected, labelled = self.pairs.detected, self.pairs.labelled
        if not len(detected):
            return dict.fromkeys(_ERRORS, math.nan)
        centre = np.hypot(*(detected[:, :2] - labelled[:, :2]).T)
        height = np.abs(detected[:, 2] - labelled[:, 2])
        errors = (centre, height, size_errors(detected[:, 3:6], labelled[:, 3:6]))
        turned = yaw_errors(detected[:, 6], labelled[:, 6])
        return {
            name: math.fsum(values.tolist()) / len(values)
            for name, values in zip(_ERRORS, (*errors, *turned), strict=True)
        }

    def resample(self, kind: str) -> np.ndarray:
        """Return the AP (R,) of frames that are drawn with replacement from those that have a label or a detection."""
        averages = np.full(_NUM_RESAMPLINGS, np.nan)
        if len(self.label_frames) < 2:
            return averages
        rows, is_true = self._curve(kind)
        frame_of, num_frames = self._groups.detection_frame, len(self._groups.frames)
        labels = np.bincount(self._groups.truth_frame[self._truth_state == 0], minlength=num_frames)
        if self._times is None:
            used = np.flatnonzero((labels > 0) | (np.bincount(frame_of[self._order], minlength=num_frames) > 0))
            self._times = _draw_frames(used, num_frames)
        run_parallel(average_resampled, len(averages), self._times, frame_of[rows], is_true, labels, averages)
        return averages


def _draw_frames(used: np.ndarray, num_frames: int) -> np.ndarray:
    """Draw as many frames as there are in `used`, with replacement: how often (R, F) each frame is drawn."""
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = used[generator.integers(len(used), size=(_NUM_RESAMPLINGS, len(used)))]
    numbered = drawn + num_frames * np.arange(_NUM_RESAMPLINGS)[:, None]
    return np.bincount(numbered.ravel(), minlength=_NUM_RESAMPLINGS * num_frames).reshape(_NUM_RESAMPLINGS, num_frames)


@dataclass(frozen=True, eq=False)
class ResampledFigures:
    """K figures, each beside its values (R,) of frames that are drawn with replacement; `counts` frames have labels.

    `num_samples` is the number of different ones.
    """

    figures: Sequence[float]
    resampled: Sequence[np.ndarray]
    counts: Sequence[int]
    num_samples: int

    def intervals(self) -> list[dict[str, Any]]:
        """Compute the 95 % percentile interval of each figure, which holds the figure; no ends for fewer than two."""
        described = []
        for figure, values, count in zip(self.figures, self.resampled, self.counts, strict=True):
            known, ends = values[~np.isnan(values)], None
            if count > 1 and len(known):
                low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
                ends = min(low, figure), max(high, figure)
            described.append(describe_interval("bootstrap over frames", ends, count))
        return described
