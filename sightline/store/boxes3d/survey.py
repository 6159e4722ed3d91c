"""What is measured of the boxes of a set before anything is trained: by class, and beside the points of some frames."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.count_test import Choice, count_inside

__all__ = ["BoxSurvey", "FramePoints", "SurveyedFrame", "describe_classes", "measure_frame", "propose_range"]

NUM_SECTORS = 8
"""Sectors of the directions about the sensor, and of yaw."""
_NEAR_M = 2.0
"""Distance around a box in which its ground is looked for."""
_MIN_GROUND_POINTS = 20
_GROUND_QUANTILE = 0.02
_GROUND_THICKNESS_M = 0.25
_MIN_GROUND_SHARE = 0.25
"""Share of the points around a box that lie on its ground at least: scattered points have no ground."""
_STRIDE = 16
"""Pillars along x and y are a multiple of it, so that maps of all strides fit each other."""
_PILLARS_M = (0.4, 0.32, 0.25, 0.2, 0.16, 0.1)
_PILLARS_PER_WIDTH = 3.5
"""Pillars that lie on the width of the narrowest class at least."""
MAX_PILLARS = 40_000
"""Limit of the pillars of a frame in public code of PointPillars."""


class FramePoints(NamedTuple):
    """Points of a frame: (N, 3) float64, its remissions (N,) or None, and remarks on how the file was read."""

    points: np.ndarray
    remission: np.ndarray | None = None


class SurveyedFrame(NamedTuple):
    """What is measured of the points of a frame.

    `inside` (M,) are points in boxes; `above_ground_m` (M,) is how far bottoms are above the ground near them, NaN
    where there is too little of it. `directions` (8,) counts points by their azimuth from -180 degrees. `remission` are
    its smallest, median, 99 % and largest value.
    """

    name: str
    inside: np.ndarray
    above_ground_m: np.ndarray
    directions: np.ndarray
    z_quantiles: tuple[float, float]
    share_outside_z: float
    num_pillars: int
    share_dropped: float
    remission: tuple[float, ...] = ()


@dataclass(frozen=True)
class BoxSurvey:
    """Boxes of all frames by name, in their order, and what some frames with points show; `splits` are the frames'.

    `range_m` and `pillar_m` are those stated, or proposed from the boxes. `stated` are parts that the user stated;
    `image_rows` counts labels with image boxes, and those whose image boxes are placeholders. `bin_columns` are the
    columns as which raw files are read, and a number that fits better, 0 without one.
    """

    tables: Mapping[str, BoxTable]
    splits: Mapping[str, str]
    class_names: tuple[str, ...]
    choice: Choice
    frames: Sequence[SurveyedFrame]
    range_m: tuple[float, ...]
    pillar_m: float
    is_range_stated: bool = False
    stated: frozenset[str] = frozenset()
    largest_angle: float = 0.0
    image_rows: tuple[int, int] = (0, 0)
    bin_columns: tuple[int, int] = (0, 0)
    remission_max: float = 1.0

    @property
    def boxes(self) -> np.ndarray:
        """All boxes (M, 7) that are not ignored."""
        rows = [table.boxes[~table.is_ignored] for table in self.tables.values()]
        return np.concatenate([np.zeros((0, 7)), *rows])

    @property
    def label(self) -> np.ndarray:
        """Classes (M,) of `boxes`."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(t.label[~t.is_ignored] for t in self.tables.values())])


def measure_frame(
    name: str, table: BoxTable, frame: FramePoints, *, range_m: Sequence[float], pillar_m: float
) -> SurveyedFrame:
    """Measure the points of a frame beside its boxes."""
    points = frame.points
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    sectors = ((azimuth + math.pi) / (2 * math.pi) * NUM_SECTORS).astype(np.int64).clip(0, NUM_SECTORS - 1)
    low, high = (tuple(range_m[:3]), tuple(range_m[3:]))
    in_plane = ((points[:, :2] >= low[:2]) & (points[:, :2] <= high[:2])).all(axis=1)
    in_range = in_plane & (points[:, 2] >= low[2]) & (points[:, 2] <= high[2])
    num_pillars, dropped = _count_pillars(points[in_range], low, high, pillar_m)
    z = np.quantile(points[:, 2], (0.01, 0.99)) if len(points) else np.zeros(2)
    remission: tuple[float, ...] = ()
    if frame.remission is not None and len(frame.remission):
        quantiles = np.quantile(frame.remission, (0, 0.5, 0.99, 1))
        remission = tuple(float(value) for value in quantiles)
    return SurveyedFrame(
        name,
        count_inside(points, table.boxes),
        np.array([_measure_ground(points, box) for box in table.boxes]),
        np.bincount(sectors, minlength=NUM_SECTORS),
        (float(z[0]), float(z[1])),
        1 - float(in_range.sum()) / max(int(in_plane.sum()), 1),
        num_pillars,
        dropped / max(len(points), 1),
        remission,
    )


def _measure_ground(points: np.ndarray, box: np.ndarray) -> float:
    """Return how far the bottom of a box is above the ground: the 2 % quantile of z of the points around it."""
    reach = math.hypot(box[3], box[4]) / 2 + _NEAR_M
    local = points - box[:3]
    local = local[(np.abs(local[:, 0]) <= reach) & (np.abs(local[:, 1]) <= reach)]
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    along, across = cosine * local[:, 0] + sine * local[:, 1], cosine * local[:, 1] - sine * local[:, 0]
    is_around = (np.abs(along) > box[3] / 2) | (np.abs(across) > box[4] / 2)
    around = local[is_around, 2]
    if len(around) < _MIN_GROUND_POINTS:
        return math.nan
    ground = float(np.quantile(around, _GROUND_QUANTILE))
    is_surface = float((np.abs(around - ground) <= _GROUND_THICKNESS_M).mean()) >= _MIN_GROUND_SHARE
    return -box[5] / 2 - ground if is_surface else math.nan


def _count_pillars(points: np.ndarray, low: Sequence[float], high: Sequence[float], pillar_m: float) -> tuple[int, int]:
    """Count the pillars with points, and the points in pillars beyond `MAX_PILLARS` in the order of the file."""
    if not len(points):
        return 0, 0
    cells = np.floor((points[:, :2] - low[:2]) / pillar_m).astype(np.int64)
    keys = cells[:, 0] * (round((high[1] - low[1]) / pillar_m) + 1) + cells[:, 1]
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    by_time = counts[np.argsort(first, kind="stable")]
    return len(counts), int(by_time[MAX_PILLARS:].sum())


def propose_range(boxes: np.ndarray, label: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Propose a range (x, y, z low; x, y, z high) that holds all boxes (at least one), and the side of a pillar, in m.

    A pillar is at most a share of the width of the narrowest class; along x and y the range is a whole number of 16
    pillars. In z it is from half a metre below the bottoms to half a metre above the tops.
    """
    widths = [float(np.minimum(boxes[label == each, 3], boxes[label == each, 4]).mean()) for each in np.unique(label)]
    pillar = next((side for side in _PILLARS_M if min(widths) / _PILLARS_PER_WIDTH >= side), _PILLARS_M[-1])
    reach = np.hypot(boxes[:, 3], boxes[:, 4])[:, None] / 2
    low, high = (boxes[:, :2] - reach).min(axis=0), (boxes[:, :2] + reach).max(axis=0)
    step = pillar * _STRIDE
    low, high = np.floor(low / step - 1e-9) * step, np.ceil(high / step + 1e-9) * step
    bottom, top = (boxes[:, 2] - boxes[:, 5] / 2).min(), (boxes[:, 2] + boxes[:, 5] / 2).max()
    z_low, z_high = _round_z(bottom - 0.5, top + 0.5)
    return tuple(round(float(value), 4) for value in (*low, z_low, *high, z_high)), pillar


_LONG_M = 2.5
"""Length from which anchors of a class are asked for more overlap, as KITTI's cars are."""


def list_overrides(boxes: np.ndarray, label: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the words by which the config of one's own boxes suits `boxes` (M, 7) of `label` (M,), at least one.

    They state the extent and the pillars of `propose_range`, and of each class that has boxes an anchor of their mean
    size and height.
    """
    extent, pillar = propose_range(boxes, label)
    anchors = []
    for index, name in enumerate(class_names):
        rows = boxes[label == index]
        if len(rows):
            size = ", ".join(f"{value:.2f}" for value in rows[:, 3:6].mean(axis=0))
            bottom = float((rows[:, 2] - rows[:, 5] / 2).mean())
            high, low = (0.6, 0.45) if rows[:, 3].mean() > _LONG_M else (0.5, 0.35)
            key = json.dumps(name, ensure_ascii=False)
            anchors.append(f"{key}: {{size: [{size}], bottom: {bottom:.2f}, positive: {high}, negative: {low}}}")
    limits = f"[{', '.join(f'{value:g}' for value in extent)}]"
    return [
        *(f"{name}={limits}" for name in ("model.extent_m", *_LIMITS)),
        f"model.pillar_m=[{pillar:g}, {pillar:g}]",
        f"task.anchors={{{', '.join(anchors)}}}",
    ]


_LIMITS = ("transforms.train.3.extent_m", "transforms.evaluate.0.extent_m")
"""Places of `limit_extent` in `configs/boxes3d/own_boxes3d.yaml`."""


def _round_z(low: float, high: float) -> tuple[float, float]:
    return math.floor(low * 2) / 2, max(math.ceil(high * 2) / 2, math.floor(low * 2) / 2 + 1)


def describe_classes(survey: BoxSurvey) -> dict[str, dict[str, Any]]:
    """Describe the boxes of each class: numbers, sizes, bottoms, yaw, points inside and the anchor that fits them."""
    boxes, label = survey.boxes, survey.label
    inside = _join_inside(survey)
    outside = is_outside(boxes, survey.range_m)
    described: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(survey.class_names):
        mine = label == index
        if not mine.any():
            described[name] = {"boxes": 0}
            continue
        rows = boxes[mine]
        bottoms = rows[:, 2] - rows[:, 5] / 2
        mean, std = rows[:, 3:6].mean(axis=0), rows[:, 3:6].std(axis=0)
        sectors = ((rows[:, 6] + math.pi) / (2 * math.pi) * NUM_SECTORS).astype(np.int64).clip(0, NUM_SECTORS - 1)
        counts = inside.get(index, np.zeros(0))
        described[name] = {
            "boxes": int(mine.sum()),
            "size_m": " x ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True)),
            "bottom_m": f"{bottoms.mean():.2f} ± {bottoms.std():.2f}",
            "share_wider_than_long": round(float((rows[:, 3] < rows[:, 4]).mean()), 3),
            "boxes_by_yaw": np.bincount(sectors, minlength=NUM_SECTORS).tolist(),
            "share_outside_range": round(float(outside[mine].mean()), 3),
            "points_inside_median": float(np.median(counts)) if len(counts) else None,
            "share_without_points": round(float((counts == 0).mean()), 3) if len(counts) else None,
            "anchor": [round(float(value), 2) for value in (*mean, bottoms.mean())],
        }
    return described


def is_outside(boxes: np.ndarray, range_m: Sequence[float]) -> np.ndarray:
    """Return a mask (M,) of boxes whose centre is outside of a range, borders included."""
    is_out = (boxes[:, :3] < np.array(range_m[:3])) | (boxes[:, :3] > np.array(range_m[3:]))
    outside: np.ndarray = np.any(is_out, axis=1)
    return outside


def _join_inside(survey: BoxSurvey) -> dict[int, np.ndarray]:
    """Return the points in the boxes of each class, of the frames that were measured."""
    pairs = [(survey.tables[frame.name], frame.inside) for frame in survey.frames]
    label = np.concatenate([np.zeros(0, np.int64), *(table.label[~table.is_ignored] for table, _ in pairs)])
    counts = np.concatenate([np.zeros(0, np.int64), *(inside[~table.is_ignored] for table, inside in pairs)])
    return {index: counts[label == index] for index in range(len(survey.class_names))}


def guess_scale(high: float) -> float:
    """Return the end of the usual scale that holds the highest remission: 1, 8 bits, 16 bits, or the number above."""
    return float(next((limit for limit in (1, 2**8 - 1, 2**16 - 1) if high <= limit), math.ceil(high)))
