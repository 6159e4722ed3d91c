"""Kinds of errors of 3D boxes: what is found wrongly, and what is missed, by distance and number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.metrics.rows import DetectionColumn, FrameGroups, TruthColumn, assert_scored, group_frames
from sightline.contract import registry
from sightline.contract.arguments import Probability
from sightline.contract.metric import Metric, State, WorstSamples, append_rows
from sightline.ops.boxes.rotated_overlaps import box3d_iou

__all__ = ["KINDS", "Boxes3dErrors"]

KINDS = ("class", "place", "double", "background", "reversed", "missed")
_CLASS, _PLACE, _DOUBLE, _BACKGROUND = range(4)
_RIGHT = -1
_NEAR_M = 2.0
"""Distance from above within which a detection is about a label."""
_SMALL_M, _SMALL_OVERLAP, _OVERLAP = 1.0, 0.25, 0.5
_DISTANCES_M = (0.0, 15.0, 30.0, 50.0)
_POINTS = (1, 5, 20, 100)
_NUM_POINTS = 9
"""Column of truths after those of `truth3d`."""
_NUM_WORST = 3


@registry.metrics.add("boxes3d_errors")
class Boxes3dErrors(Metric):
    """Errors of the detections from `score` on, as shares: of the detections, and of the labels for `missed`.

    Detections, highest score first, take the free label of their class that their volume overlaps most, by an IoU of at
    least 0.5 (0.25 where the label is shorter than 1 m). Of those that take one, `reversed` head to its other side, by
    more than 90 degrees. Any other is the first that applies: `double` (it fits a label of its class that is taken),
    `class` (it fits one of another class), `place` (its centre is within 2 m of a label of its class from above, or
    overlaps one), else `background`. A label that no detection took, and that no error of class or place is about, is
    `missed`. Detections about ignored labels do not count. NaN without detections, and all of them without labels that
    count.

    >>> import torch
    >>> from sightline.areas.boxes3d.metrics.boxes3d_errors import Boxes3dErrors
    >>> from sightline.parts.metrics import Meter
    >>> car = [9.0, 0, 0, 4, 2, 2, 0]
    >>> batch = {"detections3d": torch.tensor([[*car[:6], 3.1, 0.9, 0]]), "truth3d": torch.tensor([[*car, 0, 0]])}
    >>> batch |= {name + "_offsets": torch.tensor([0, 1]) for name in ("detections3d", "truth3d")}
    >>> meter = Meter(Boxes3dErrors(class_names=("car",)))
    >>> meter.update(**batch, sample_index=torch.tensor([0]))
    >>> {name: value for name, value in meter.compute().items() if value}
    {'error_reversed': 1.0}

    Source: made here, after the kinds of Bolya et al. 2020, TIDE.
    """

    higher_is_better: Mapping[str, bool] = dict.fromkeys([f"error_{kind}" for kind in KINDS], False)
    rows = ("detections", "truths")

    def __init__(self, *, class_names: tuple[str, ...], score: Probability = 0.3) -> None:
        self.class_names, self.score = tuple(class_names), score

    def new_state(self) -> State:
        """Return empty detections and truths."""
        return {
            "detections": torch.zeros(0, 10, dtype=torch.float64),
            "truths": torch.zeros(0, 11, dtype=torch.float64),
        }

    def update(
        self,
        state: State,
        *,
        detections3d: Tensor,
        detections3d_offsets: Tensor,
        truth3d: Tensor,
        truth3d_offsets: Tensor,
        sample_index: Tensor,
        num_points: Tensor | None = None,
    ) -> None:
        """Add the frames of a batch; `num_points` (T,) of the labels, -1 where it is not known."""
        assert_scored(detections3d)
        append_rows(state, "detections", sample_index.repeat_interleave(detections3d_offsets.diff()), detections3d)
        known = torch.full((len(truth3d),), -1) if num_points is None else num_points
        rows = torch.cat([truth3d, known.to(truth3d)[:, None]], dim=1)
        append_rows(state, "truths", sample_index.repeat_interleave(truth3d_offsets.diff()), rows)

    def compute(self, state: State) -> dict[str, float]:
        """Compute the share of each kind."""
        errors = self._classify(state)
        counted = errors.kind[errors.is_counted]
        shares = {kind: _share(counted == number) for number, kind in enumerate(KINDS)}
        shares["reversed"] = _share(errors.is_reversed[errors.is_counted])
        shares["missed"] = _share(errors.is_missed[errors.is_real])
        is_any = bool(errors.is_real.any())
        return {f"error_{kind}": share if is_any else float("nan") for kind, share in shares.items()}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_errors`, counts of labels and reasons of NaN figures; `box_errors`, and `missed_by`.

        These are the counts of each kind, and labels by distance and by number of points.
        """
        errors = self._classify(state)
        counts = {kind: int((errors.kind[errors.is_counted] == number).sum()) for number, kind in enumerate(KINDS)}
        counts["reversed"] = int(errors.is_reversed[errors.is_counted].sum())
        counts["missed"] = int(errors.is_missed.sum())
        truths = errors.groups.truths
        distance = np.hypot(truths[:, 0], truths[:, 1])
        reason = f"no detection that counts has a score of {self.score:g} or more"
        is_found = {"error_" + ", error_".join(kind for kind in KINDS if kind != "missed"): reason}
        num_real = int(errors.is_real.sum())
        about = {
            "protocol": f"errors of detections from the score {self.score:g} on",
            "box_type": "3D",
            "num_boxes": num_real,
            "num_ignored": len(truths) - num_real,
            "undefined": {"all": "no label counts"} if not num_real else {} if errors.is_counted.any() else is_found,
        }
        return {
            "scored_boxes_errors": about,
            "box_errors": {kind: {"counted": count} for kind, count in counts.items()},
            "missed_by": {
                **_count_by(distance, _DISTANCES_M, "m", errors),
                **_count_by(truths[:, _NUM_POINTS], _POINTS, "points", errors),
            },
        }

    def worst_samples(self, state: State) -> WorstSamples:
        """List the frames with the most errors of each kind."""
        errors = self._classify(state)
        frames, of_kind = errors.groups.frames, {}
        for number, kind in enumerate(KINDS):
            if kind == "missed":
                rows = errors.groups.truth_frame[errors.is_missed]
            else:
                is_wrong = errors.is_reversed if kind == "reversed" else errors.kind == number
                rows = errors.groups.detection_frame[is_wrong & errors.is_counted]
            found, counts = np.unique(frames[rows], return_counts=True)
            order = np.argsort(-counts, kind="stable")[:_NUM_WORST]
            of_kind[kind] = dict(zip(found[order].tolist(), counts[order].tolist(), strict=True))
        return WorstSamples(of_kind, self.score)

    def _classify(self, state: State) -> BoxErrors3d:
        detections = state["detections"]
        is_good = detections[:, 1 + DetectionColumn.SCORE] >= self.score
        return classify(group_frames(detections[is_good], state["truths"]))


class BoxErrors3d(NamedTuple):
    """Errors of detections (D,) and labels (T,): `kind` an index into `KINDS`, -1 for a detection with a label."""

    groups: FrameGroups
    kind: np.ndarray
    is_reversed: np.ndarray
    is_counted: np.ndarray
    is_real: np.ndarray
    is_missed: np.ndarray


def classify(groups: FrameGroups) -> BoxErrors3d:
    """Classify detections and labels, frame by frame."""
    detections, truths = groups.detections, groups.truths
    kind, is_reversed = np.full(len(detections), _RIGHT), np.zeros(len(detections), dtype=bool)
    is_counted, is_free = np.ones(len(detections), dtype=bool), np.ones(len(truths), dtype=bool)
    is_about = np.zeros(len(truths), dtype=bool)
    is_real = truths[:, TruthColumn.IS_IGNORED] == 0
    for frame in range(len(groups.frames)):
        first, last = groups.detection_starts[frame : frame + 2]
        rows = first + np.argsort(-detections[first:last, DetectionColumn.SCORE], kind="stable")
        begin, end = groups.truth_starts[frame : frame + 2]
        own, boxes = truths[begin:end], detections[rows]
        overlap = box3d_iou(torch.from_numpy(boxes[:, :7]), torch.from_numpy(own[:, :7])).numpy()
        needed = np.where(own[:, 3] < _SMALL_M, _SMALL_OVERLAP, _OVERLAP)
        distance = np.hypot(*(boxes[:, None, axis] - own[:, axis] for axis in range(2)))
        is_same = boxes[:, DetectionColumn.CLASS, None] == own[:, TruthColumn.CLASS]
        fits, is_label = overlap >= needed, is_real[begin:end]
        hides = ~is_label & (is_same | (own[:, TruthColumn.CLASS] < 0))
        near = (distance < _NEAR_M) | (overlap > 0)
        for place, row in enumerate(rows):
            free = np.flatnonzero(fits[place] & is_same[place] & is_label & is_free[begin:end])
            if len(free):
                chosen = free[overlap[place, free].argmax()]
                is_free[begin + chosen] = False
                turn = np.cos(boxes[place, 6] - own[chosen, 6])
                is_reversed[row] = turn < 0
            elif (hides[place] & near[place]).any():
                is_counted[row] = False
            elif (fits[place] & is_same[place] & is_label).any():
                kind[row] = _DOUBLE
            elif (wrong := fits[place] & ~is_same[place] & is_label).any():
                kind[row] = _CLASS
                is_about[begin + np.flatnonzero(wrong)] = True
            elif (close := near[place] & is_same[place] & is_label).any():
                kind[row] = _PLACE
                is_about[begin + np.flatnonzero(close)] = True
            else:
                kind[row] = _BACKGROUND
    return BoxErrors3d(groups, kind, is_reversed, is_counted, is_real, is_real & is_free & ~is_about)


def _count_by(
    values: np.ndarray, bounds: tuple[float, ...], unit: str, errors: BoxErrors3d
) -> dict[str, dict[str, int]]:
    """Count labels, and the missed ones, between bounds; those below the first, which are not known, are left out."""
    table = {}
    for low, high in zip(bounds, (*bounds[1:], np.inf), strict=True):
        inside = errors.is_real & (values >= low) & (values < high)
        name = f"{low:g} to {high:g} {unit}" if high < np.inf else f"{low:g} {unit} or more"
        table[name] = {"labels": int(inside.sum()), "missed": int((inside & errors.is_missed).sum())}
    return table


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")
