"""KITTI's AP of 3D boxes: in the image, from above and of volumes, and with the likeness of headings (AOS)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.metrics.kitti_kernels import COUNTS, IGNORED, UNSEEN, count_finds, find_true_scores
from sightline.areas.boxes3d.metrics.pair_overlaps import image_overlaps, shares_in_regions, upright_overlaps
from sightline.areas.boxes3d.metrics.rows import (
    DetectionColumn,
    FrameGroups,
    ImageColumn,
    TruthColumn,
    assert_scored,
    group_frames,
)
from sightline.areas.boxes3d.score_remarks import KittiLabels, list_remarks
from sightline.contract import registry
from sightline.contract.arguments import PositiveFraction
from sightline.contract.errors import ConfigError
from sightline.contract.metric import Metric, State, append_rows
from sightline.ops.numba_kernels import run_parallel
from sightline.store.boxes3d.conversions import FLAT_CAMERA

__all__ = ["DIFFICULTIES", "KINDS", "KittiAp", "choose_thresholds", "find_ceiling"]


class Difficulty(NamedTuple):
    """Labels that count: above `min_height_px` in the image, and occluded and truncated up to these."""

    min_height_px: float
    max_occluded: float
    max_truncated: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}
KINDS = ("3d", "bev", "2d")
"""What overlaps: volumes, bases from above, boxes in the image."""
_RECALLS = {"r40": np.arange(1, 41), "r11": np.arange(0, 41, 4)}
"""Of 41 slots, those whose precisions are averaged."""
_OVERLAPS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "strict": {"Car": (0.7, 0.7), "Pedestrian": (0.5, 0.5), "Cyclist": (0.5, 0.5)},
    "loose": {"Car": (0.5, 0.7), "Pedestrian": (0.25, 0.5), "Cyclist": (0.25, 0.5)},
}
"""Least overlap of each class, of volumes and from above, and in the image."""
_ALPHA_UNKNOWN = -10.0
_NO_IMAGE = (0.0, 0.0, 50.0, 50.0, math.nan, 0.0, 0.0)
"""Image columns of a label where no image is: of a height that counts, not truncated, not occluded."""


class _Rules(NamedTuple):
    """Difficulties by name, and the kinds of overlap that are compared."""

    difficulties: Mapping[str, Difficulty]
    kinds: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of figures without recalls and difficulty."""
        return [*(f"ap_{kind}" for kind in self.kinds), *(["aos"] if "2d" in self.kinds else [])]

    @property
    def ranked(self) -> list[str]:
        """Difficulties, the one that decides first."""
        return sorted(self.difficulties, key=lambda name: name != "moderate")


_RULES = {
    True: _Rules(DIFFICULTIES, KINDS),
    False: _Rules({"all": Difficulty(0, 0, 0)}, ("3d", "bev")),
}
"""With images, and without."""


@registry.metrics.add("kitti_ap")
class KittiAp(Metric):
    """KITTI's AP of volumes, from above and in the image, and AOS, each at 11 and 40 recalls, as shares of 1.

    Reads `detections3d` (D, 9), x y z dx dy dz yaw, score and class (-1 for one that is not scored), in the frame of
    the scanner, and what images state of them, `detections3d_image` (D, 5), left, top, right, bottom and the angle of
    observation; `kitti_truth` (T, 16), the labels of the files with box, class, if one is ignored, the same of images,
    and truncation and occlusion, NaN if not stated; and `to_camera` (B, 3, 4), from the scanner to the rectified
    camera, in whose frame KITTI compares boxes. A figure is named by kind, recalls and difficulty,
    `ap_3d_r40_moderate`: the mean over the classes with labels that count, NaN without. An overlap must be above that
    of the class: `overlaps` takes KITTI's own, strict or loose, `min_overlap` and `min_overlap_image` state those of
    other classes. AOS is NaN where a detection states no angle. An ignored label of a class is what KITTI calls a
    neighbour (Van for Car), an ignored region of no class is DontCare. Raises ConfigError for a class without an
    overlap.

    With `images: false` it reads `truth3d` (T, 9), box, class and if a label is ignored, and nothing of images and
    cameras: every label that is not ignored counts, and boxes are compared in the frame of the scanner. Figures are
    those of volumes and from above alone, `ap_3d_r40_all`, which are none of the three difficulties.

    With n labels that count, no detector exceeds (n - 1) / 40 at 40 recalls, for n up to 41.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.boxes3d.metrics.kitti_ap import KittiAp
    >>> cars = torch.tensor([[20.0, 0, -1, 4, 2, 1.5, 0], [30, 0, -1, 4, 2, 1.5, 0]])
    >>> image = torch.tensor([[100.0, 100, 200, 180, 0], [300, 100, 360, 150, 0]])
    >>> batch = {  # a frame of two cars that are found
    ...     "detections3d": torch.cat([cars, torch.tensor([[0.9, 0], [0.8, 0]])], dim=1),
    ...     "detections3d_image": image,
    ...     "detections3d_offsets": torch.tensor([0, 2]),
    ...     "kitti_truth": torch.cat([cars, torch.zeros(2, 2), image, torch.zeros(2, 2)], dim=1),
    ...     "kitti_truth_offsets": torch.tensor([0, 2]),
    ...     "to_camera": torch.tensor([[[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]]),
    ...     "sample_index": torch.tensor([0]),
    ... }
    >>> meter = Meter(KittiAp(class_names=("Car",)))
    >>> meter.update(**batch)
    >>> {name: round(value, 3) for name, value in meter.compute().items() if "3d" in name and "easy" in name}
    {'ap_3d_r40_easy': 0.025, 'ap_3d_r11_easy': 0.091}

    Source: Geiger et al. 2012, Are we ready for autonomous driving?, and its published evaluation; 40 recalls:
    Simonelli et al. 2019, Disentangling monocular 3D object detection.
    """

    higher_is_better = True
    rows = ("detections", "truths", "frames")

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        overlaps: Literal["strict", "loose"] = "strict",
        min_overlap: Mapping[str, PositiveFraction] | None = None,
        min_overlap_image: Mapping[str, PositiveFraction] | None = None,
        images: bool = True,
    ) -> None:
        self.class_names = tuple(class_names)
        self.overlaps = overlaps
        self.images, self._rules = images, _RULES[images]
        if not images:
            if min_overlap_image:
                raise ConfigError(
                    "metrics.kitti_ap.min_overlap_image: nothing is compared in images: false; leave it out"
                )
            self.update = self._update_without_images  # type: ignore[method-assign, assignment]
        self._levels = _choose_levels(self.class_names, overlaps, min_overlap or {}, min_overlap_image or {})

    def new_state(self) -> State:
        """Return empty detections, truths and frames."""
        sizes = {"detections": 15, "truths": 17, "frames": 13}
        return {name: torch.zeros(0, columns, dtype=torch.float64) for name, columns in sizes.items()}

    def update(
        self,
        state: State,
        *,
        detections3d: Tensor,
        detections3d_image: Tensor,
        detections3d_offsets: Tensor,
        kitti_truth: Tensor,
        kitti_truth_offsets: Tensor,
        to_camera: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add the frames of a batch, of which the offsets (B+1,) begin. Raises ValueError for scores that are NaN."""
        assert_scored(detections3d)
        detections = torch.cat([detections3d.double(), detections3d_image.double()], dim=1)
        append_rows(state, "detections", sample_index.repeat_interleave(detections3d_offsets.diff()), detections)
        append_rows(state, "truths", sample_index.repeat_interleave(kitti_truth_offsets.diff()), kitti_truth)
        append_rows(state, "frames", sample_index, to_camera.double().flatten(1))

    def _update_without_images(
        self,
        state: State,
        *,
        detections3d: Tensor,
        detections3d_offsets: Tensor,
        truth3d: Tensor,
        truth3d_offsets: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add the frames of a batch, of which no image is known: as of a camera that stands in the scanner."""
        unknown = detections3d.new_tensor(_NO_IMAGE, dtype=torch.float64)
        KittiAp.update(
            self,
            state,
            detections3d=detections3d,
            detections3d_image=unknown[:5].expand(len(detections3d), -1),
            detections3d_offsets=detections3d_offsets,
            kitti_truth=torch.cat([truth3d.double(), unknown.expand(len(truth3d), -1)], dim=1),
            kitti_truth_offsets=truth3d_offsets,
            to_camera=unknown.new_tensor(FLAT_CAMERA[:3]).expand(len(sample_index), -1, -1),
            sample_index=sample_index,
        )

    def compute(self, state: State) -> dict[str, float]:
        """Compute the mean of each figure over the classes that have labels that count."""
        of_classes = [curves.figures() for curves in self._curves(state)]
        return {
            f"{kind}_{recalls}_{difficulty}": _mean([f[difficulty][f"{kind}_{recalls}"] for f in of_classes])
            for recalls in _RECALLS
            for kind in self._rules.names
            for difficulty in self._rules.ranked
        }

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return the AP of volumes at 40 recalls of every class, and its number of labels that are not ignored."""
        return {
            name: {
                **{f"ap_3d_r40_{d}": curves.figures()[d]["ap_3d_r40"] for d in self._rules.ranked},
                "count": int((curves.is_own & ~curves.is_ignored).sum()),
            }
            for name, curves in zip(self.class_names, self._curves(state), strict=True)
        }

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_kitti`, the protocol and what it hides, and `by_difficulty`.

        That has the figures of each class and difficulty, the number of labels that count, why the others do not, and
        the highest AP that so many labels allow.
        """
        all_curves = [*self._curves(state)]
        is_ignored = state["truths"][:, 1 + TruthColumn.IS_IGNORED] > 0
        rows = {
            f"{name}, {difficulty}": {**figures, **curves.count_labels(difficulty)}
            for name, curves in zip(self.class_names, all_curves, strict=True)
            for difficulty, figures in curves.figures().items()
        }
        levels = ", ".join(f"{name} {self._levels[name][0]:g}" for name in self.class_names)
        without = "" if self.images else " without images: every label that is not ignored counts"
        about = {
            "protocol": f"KITTI{without}, overlaps of volumes and from above over {levels}",
            "box_type": "3D",
            "num_boxes": int((~is_ignored).sum()),
            "num_ignored": int(is_ignored.sum()),
            "undefined": _list_undefined(bool((~is_ignored).any()), all_curves),
            "remarks": list_remarks(KittiLabels(rows, *_image_columns(state)) if self.images else KittiLabels(rows)),
        }
        return {"scored_boxes_kitti": about, "by_difficulty": rows}

    def _curves(self, state: State) -> Iterator[_ClassCurves]:
        frames = _compare_frames(state)
        for number, name in enumerate(self.class_names):
            yield _ClassCurves(frames, self._rules, number, *self._levels[name])


def _list_undefined(has_labels: bool, curves: Sequence[_ClassCurves]) -> dict[str, str]:
    if not has_labels:
        return {"all": "no label counts"}
    if not curves or curves[0].frames.has_angles or "aos" not in curves[0].rules.names:
        return {}
    names = [f"aos_{recalls}_{difficulty}" for recalls in _RECALLS for difficulty in curves[0].rules.ranked]
    return {", ".join(names): "a detection states no angle of observation (alpha)"}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _choose_levels(
    names: Sequence[str], overlaps: str, own: Mapping[str, float], own_image: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return the least overlap of each class, of volumes and in the image. Raises ConfigError where none is stated."""
    known = _OVERLAPS[overlaps]
    faults = [
        f"metrics.kitti_ap.{argument}: the data set has no class '{name}', but {', '.join(names)}; names are compared "
        "letter by letter"
        for argument, given in (("min_overlap", own), ("min_overlap_image", own_image))
        for name in given
        if name not in names
    ]
    levels = {}
    for name in names:
        volume, image = known.get(name, (math.nan, math.nan))
        volume = own.get(name, volume)
        image = own_image.get(name, own.get(name, image) if name not in known else image)
        if math.isnan(volume) or math.isnan(image):
            faults.append(
                f"metrics.kitti_ap: KITTI states no overlap for the class '{name}', only for {', '.join(known)}; give "
                f"min_overlap: {{{name}: 0.5}}, or choose other classes"
            )
        levels[name] = volume, image
    if faults:
        raise ConfigError(*faults)
    return levels


def _image_columns(state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return what images state of the detections (D, 5), and of the labels (T, 7) that are not ignored."""
    detections, truths = state["detections"].cpu().numpy(), state["truths"].cpu().numpy()
    return detections[:, 10:], truths[truths[:, 1 + TruthColumn.IS_IGNORED] == 0][:, 10:]


class _Frames(NamedTuple):
    """All frames with their overlaps by kind (P,), and the share (D,) of each detection inside a region of no class."""

    groups: FrameGroups
    overlaps: Mapping[str, np.ndarray]
    hidden: np.ndarray
    has_angles: bool


def _compare_frames(state: State) -> _Frames:
    groups = group_frames(state["detections"], state["truths"])
    matrices = state["frames"].cpu().numpy()
    order = np.argsort(matrices[:, 0], kind="stable")
    matrices = matrices[order][np.searchsorted(matrices[order, 0], groups.frames)][:, 1:]
    boxes = [
        _to_level_camera(rows[:, :7], matrices[frame])
        for rows, frame in (
            (groups.detections, groups.detection_frame),
            (groups.truths, groups.truth_frame),
        )
    ]
    images = groups.detections[:, 9:], groups.truths[:, 9:]
    detection, truth = groups.list_pairs()
    above, volume = upright_overlaps(boxes[0][detection], boxes[1][truth])
    flat = image_overlaps(images[0][detection, :4], images[1][truth, :4])
    is_region = groups.truths[:, TruthColumn.CLASS] < 0
    hidden = shares_in_regions(groups, images[0][:, :4], np.column_stack([images[1][:, :4], is_region]))
    alpha = images[0][:, ImageColumn.ALPHA]
    has_angles = bool(np.isfinite(alpha).all() and (alpha != _ALPHA_UNKNOWN).all())
    return _Frames(groups, {"3d": volume, "bev": above, "2d": flat}, hidden, has_angles)


def _to_level_camera(boxes: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Move boxes (N, 7) to KITTI's camera, of which z becomes x, -x becomes y and -y becomes z; yaw stays.

    `matrices` (N, 12) move the middle of the bottom, as KITTI's labels state it. A camera looks level there, so that
    the frame is the scanner's but for the place of each box.
    """
    bottom = boxes[:, :3] - np.array([0.0, 0.0, 0.5]) * boxes[:, 5:6]
    m = matrices.reshape(-1, 3, 4)
    x, y, z = (
        m[:, i, 0] * bottom[:, 0] + m[:, i, 1] * bottom[:, 1] + m[:, i, 2] * bottom[:, 2] + m[:, i, 3] for i in range(3)
    )
    return np.column_stack([z, -x, boxes[:, 5] / 2 - y, boxes[:, 3:7]])


class _ClassCurves:
    """Labels and detections of one class, matched at every difficulty and kind of overlap."""

    def __init__(self, frames: _Frames, rules: _Rules, number: int, level: float, level_image: float) -> None:
        groups = frames.groups
        self.frames, self.rules = frames, rules
        self.levels = {"3d": level, "bev": level, "2d": level_image}
        self.is_own = groups.truths[:, TruthColumn.CLASS] == number
        self.is_ignored = groups.truths[:, TruthColumn.IS_IGNORED] > 0
        self._is_own_detection = groups.detections[:, DetectionColumn.CLASS] == number
        self._figures: dict[str, dict[str, float]] = {}

    def figures(self) -> dict[str, dict[str, float]]:
        """Return difficulty → figure → value, NaN where no label counts."""
        if not self._figures:
            for difficulty in self.rules.difficulties:
                curves = {kind: self._match(difficulty, kind) for kind in self.rules.kinds}
                named = {f"ap_{kind}": curve for kind, (curve, _) in curves.items()}
                named |= {"aos": curves["2d"][1]} if "aos" in self.rules.names else {}
                self._figures[difficulty] = {
                    f"{kind}_{recalls}": math.nan if curve is None else float(curve[slots].mean())
                    for recalls, slots in _RECALLS.items()
                    for kind, curve in named.items()
                }
        return self._figures

    def count_labels(self, difficulty: str) -> dict[str, Any]:
        """Return how many labels count, the first reason of each other one, and the highest AP that is possible."""
        rule, image = self.rules.difficulties[difficulty], self.frames.groups.truths[:, 9:]
        height = image[:, ImageColumn.BOTTOM] - image[:, ImageColumn.TOP]
        left = self.is_own & ~self.is_ignored
        why = {}
        for reason, is_out in (
            ("no image box", ~(height > 0)),
            (f"{rule.min_height_px:g} px or lower", ~(height > rule.min_height_px)),
            (f"occluded over {rule.max_occluded:g}", image[:, ImageColumn.OCCLUDED] > rule.max_occluded),
            (f"truncated over {rule.max_truncated:g}", image[:, ImageColumn.TRUNCATED] > rule.max_truncated),
        ):
            why[reason] = int((left & is_out).sum())
            left &= ~is_out
        count = int(left.sum())
        ceilings = {f"ceiling_{name}": find_ceiling(count, name) for name in _RECALLS}
        return {"count": count, **ceilings, "not_counted": {reason: n for reason, n in why.items() if n}}

    def _states(self, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
        rule, groups = self.rules.difficulties[difficulty], self.frames.groups
        detections, truths = groups.detections[:, 9:], groups.truths[:, 9:]
        heights = [rows[:, ImageColumn.BOTTOM] - rows[:, ImageColumn.TOP] for rows in (detections, truths)]
        is_hard = ~(heights[1] > rule.min_height_px) | (truths[:, ImageColumn.OCCLUDED] > rule.max_occluded)
        is_hard |= truths[:, ImageColumn.TRUNCATED] > rule.max_truncated
        truth_state = np.where(self.is_own, np.where(self.is_ignored | is_hard, IGNORED, COUNTS), UNSEEN)
        is_low = ~(np.abs(heights[0]) >= rule.min_height_px)
        detection_state = np.where(is_low, IGNORED, np.where(self._is_own_detection, COUNTS, UNSEEN))
        return truth_state, detection_state

    def _match(self, difficulty: str, kind: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return precision (41,) and, in the image, likeness of headings (41,), None where it is not defined."""
        truth_state, detection_state = self._states(difficulty)
        num_labels = int((truth_state == COUNTS).sum())
        if not num_labels:
            return None, None
        groups, overlaps = self.frames.groups, self.frames.overlaps[kind]
        scores = np.ascontiguousarray(groups.detections[:, DetectionColumn.SCORE])
        found = np.full(len(truth_state), np.nan)
        common = (*groups.starts, overlaps, self.levels[kind], truth_state, detection_state, scores)
        run_parallel(find_true_scores, len(groups.frames), *common, found)
        thresholds = choose_thresholds(found[~np.isnan(found)], num_labels)
        counts = np.zeros((len(groups.frames), len(thresholds), 2), dtype=np.int64)
        likeness = np.zeros(counts.shape[:2])
        hidden = self.frames.hidden if kind == "2d" else np.zeros(len(scores))
        angles = [np.ascontiguousarray(rows[:, 9 + ImageColumn.ALPHA]) for rows in (groups.truths, groups.detections)]
        run_parallel(count_finds, len(groups.frames), *common, hidden, *angles, thresholds, counts, likeness)
        num_found, num_false = counts.sum(axis=0).T
        precision = _fill_slots(num_found / np.maximum(num_found + num_false, 1))
        if kind != "2d" or not self.frames.has_angles:
            return precision, None
        return precision, _fill_slots(likeness.sum(axis=0) / np.maximum(num_found + num_false, 1))


def choose_thresholds(scores: np.ndarray, num_labels: int) -> np.ndarray:
    """Choose at most 41 of the scores (N,) of true positives, falling, one for each step of 1/40 in recall."""
    ranked = np.sort(scores)[::-1]
    chosen, reached = [], 0.0
    for number, score in enumerate(ranked.tolist(), start=1):
        is_last = number == len(ranked)
        following = number / num_labels if is_last else (number + 1) / num_labels
        if not is_last and following - reached < reached - number / num_labels:
            continue
        chosen.append(score)
        reached += 1 / 40
    return np.array(chosen, dtype=np.float64)


def find_ceiling(num_labels: int, recalls: str) -> float:
    """Return the AP of a detector that finds all of `num_labels` and nothing else; NaN for none."""
    if not num_labels:
        return math.nan
    num_slots = len(choose_thresholds(np.arange(num_labels, dtype=np.float64), num_labels))
    return float((_RECALLS[recalls] < num_slots).mean())


def _fill_slots(values: np.ndarray) -> np.ndarray:
    """Place values (K,) in the first of 41 slots, 0 in the others, and take the highest from each slot on."""
    slots = np.zeros(41)
    slots[: len(values)] = values[:41]
    return np.maximum.accumulate(slots[::-1])[::-1]
