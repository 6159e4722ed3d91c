"""CrowdHuman's rules read literally, one loop after another, and scenes of people to hold against them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from sightline.metrics.base import Metric, State, sorted_rows

__all__ = ["POINTS", "Scene", "box_area", "literal_figures", "random_scenes", "shared_area", "state_of", "toy"]

POINTS = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)


class Scene(NamedTuple):
    """Height and width, labels (G, 6: box, is_ignored, visible) and detections (D, 5: box, score)."""

    size: tuple[int, int]
    labels: np.ndarray
    detections: np.ndarray


def state_of(metric: Metric, scenes: list[Scene], order: list[int] | None = None) -> State:
    """The metric's rows of these scenes, one class, in the order of samples whatever order they come in."""
    state = metric.new_state()
    for index in range(len(scenes)) if order is None else order:
        size, labels, found = scenes[index]
        area = (labels[:, 2] - labels[:, 0]) * (labels[:, 3] - labels[:, 1])
        truth = np.column_stack([labels[:, :4], np.zeros(len(labels)), area, labels[:, 4]])
        metric.update(
            state,
            detections=torch.from_numpy(np.column_stack([found, np.zeros(len(found))])),
            detection_offsets=torch.tensor([0, len(found)]),
            truth=torch.from_numpy(truth),
            truth_visible=torch.from_numpy(labels[:, 5].copy()),
            truth_offsets=torch.tensor([0, len(labels)]),
            file_px=torch.tensor([size]),
            sample_index=torch.tensor([index]),
        )
    return {name: sorted_rows(rows) for name, rows in state.items()}


def toy() -> list[Scene]:
    """The spec's hand-worked images."""
    first = [[0, 0, 10, 20, 0, 1], [12, 0, 22, 20, 0, 1], [50, 50, 90, 90, 1, math.nan]]
    found = [[0, 0, 10, 20, 0.9], [0, 0, 10, 18, 0.8], [60, 60, 70, 80, 0.7], [13, 0, 23, 20, 0.6]]
    second = [[0, 0, 20, 40, 0, 1]]
    both = (first, found), (second, [[50, 0, 60, 20, 0.95], [0, 0, 20, 38, 0.5]])
    return [Scene((100, 100), np.array(labels, dtype=float), np.array(its, dtype=float)) for labels, its in both]


def random_scenes(seed: int) -> list[Scene]:
    """People in rows, some doubled, ignored regions, boxes beyond the image, equal scores, images without any."""
    draw = np.random.default_rng(seed)
    scenes = []
    for _ in range(int(draw.integers(1, 6))):
        count = int(draw.integers(0, 14)) if draw.random() > 0.1 else 0
        height = draw.choice([20.0, 45, 60, 120, 200], count) * draw.uniform(0.9, 1.1, count)
        left, top = draw.uniform(-20, 230, count), draw.uniform(-20, 160, count)
        boxes = np.column_stack([left, top, left + 0.4 * height, top + height])
        boxes[1::3] = boxes[: len(boxes[1::3])] + draw.normal(0, 4, (len(boxes[1::3]), 4))
        visible = np.where(draw.random(count) < 0.9, draw.random(count), np.nan)
        labels = np.column_stack([boxes, draw.random(count) < 0.25, visible])
        near = boxes[draw.integers(0, max(count, 1), int(draw.integers(0, 25)))] if count else np.zeros((0, 4))
        near = near + draw.normal(0, draw.choice([0.5, 3, 8]), near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = np.round(draw.random(len(near)), int(draw.choice([1, 6])))
        scenes.append(Scene((180, 240), labels, np.column_stack([near, scores])))
    return scenes


def literal_figures(scenes: list[Scene]) -> dict[str, Any]:
    """AP, MR^-2 and the Jaccard index of each threshold, as section 9.1 of the spec states them."""
    cut = [(_cut(s.labels, s.size), _cut(s.detections, s.size)) for s in scenes]
    listed: list[tuple[float, bool]] = []
    for labels, found in cut:
        listed += _matched(labels, found)
    listed = sorted(listed, key=lambda entry: -entry[0])
    num_labels = sum(1 for labels, _ in cut for label in labels if not label[4])
    recall, precision, fppi = [], [], []
    right = wrong = 0
    for _, is_right in listed:
        right, wrong = right + is_right, wrong + (not is_right)
        recall.append(right / num_labels if num_labels else math.nan)
        precision.append(right / (right + wrong))
        fppi.append(wrong / len(scenes))
    area = sum((recall[k] - recall[k - 1]) * (precision[k] + precision[k - 1]) / 2 for k in range(1, len(listed)))
    rates = []
    for point in POINTS:
        reached = [k for k in range(len(listed)) if fppi[k] >= point]
        rates.append(1 - recall[reached[0] if reached else -1] if listed else 1.0)
    mean = math.exp(sum(map(math.log, rates)) / 9) if min(rates) > 0 else 0.0
    jaccard = []
    for threshold in range(10):
        each = [_jaccard(labels, found, threshold / 10) for labels, found in cut]
        counted = [index for index in each if index is not None]
        jaccard.append(sum(counted) / len(counted) if counted else math.nan)
    nothing = math.nan if not num_labels else None
    return {"crowd_ap": nothing or area, "mr2": nothing or mean, "jaccard": jaccard, "listed": listed}


def _cut(rows: np.ndarray, size: tuple[int, int]) -> list[list[float]]:
    height, width = size
    result = []
    for left, top, right, bottom, *others in rows.tolist():
        corner = [min(max(left, 0), width - 1), min(max(top, 0), height - 1)]
        result.append([*corner, min(max(right, 0), width), min(max(bottom, 0), height), *others])
    return result


def shared_area(a: list[float], b: list[float]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def box_area(a: list[float]) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])


def _iou(a: list[float], b: list[float]) -> float:
    return shared_area(a, b) / (box_area(a) + box_area(b) - shared_area(a, b) + 1e-6)


def _inside(a: list[float], b: list[float]) -> bool:
    return shared_area(a, b) / (box_area(a) + 1e-6) > 0.5


def _matched(labels: list[list[float]], found: list[list[float]]) -> list[tuple[float, bool]]:
    free = [label for label in labels if not label[4]]
    entries = []
    for detection in sorted(found, key=lambda row: -row[4]):
        best, chosen = 0.5, None
        for place, label in enumerate(free):
            if _iou(detection, label) > best:
                best, chosen = _iou(detection, label), place
        if chosen is not None:
            del free[chosen]
            entries.append((detection[4], True))
        elif not any(_inside(detection, label) for label in labels if label[4]):
            entries.append((detection[4], False))
    return entries


def _jaccard(labels: list[list[float]], found: list[list[float]], threshold: float) -> float | None:
    own = [row for row in found if row[4] > threshold]
    people, regions = [row for row in labels if not row[4]], [row for row in labels if row[4]]
    alike = np.array([[_iou(a, b) if _iou(a, b) > 0.5 else 0.0 for b in people] for a in own])
    rows, columns = linear_sum_assignment(alike, maximize=True) if own and people else ([], [])
    pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if alike[r, c] > 0]
    paired = [{r for r, _ in pairs}, {c for _, c in pairs}]
    m, n = (
        sum(k in of or not any(_inside(row, region) for region in regions) for k, row in enumerate(each))
        for each, of in zip((own, people), paired, strict=True)
    )
    return len(pairs) / (m + n - len(pairs) + 1e-6) if m + n else None
