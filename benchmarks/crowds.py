"""Benchmark of CrowdHuman's metrics on a validation split, against a loop over images and detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sightline.bench.case import BenchmarkCase, allclose, implementation
from sightline.metrics.base import State
from sightline.metrics.crowd_ap import CrowdAp

PEOPLE = 22
SIZE = (800, 1200)
_NAMES = ("crowd_ap", "mr2", "ji")


def cases() -> list[BenchmarkCase]:
    """Make the case: CrowdHuman's number of images; two of three detections are near one of 22 people per image."""
    size, quick = {"images": 4370, "detections": 300}, {"images": 12, "detections": 40}
    form = implementation("sightline", _compute_by_sightline, allclose(1e-9))
    literal = implementation("loop", _compute_by_loops, allclose(1e-9))
    return [BenchmarkCase("metrics", "crowd_ap_{images}x{detections}", size, quick, _make_crowds, literal, (form,))]


def _make_crowds(*, images: int, detections: int) -> dict[str, Any]:
    """Draw boxes (N, G, 4) of people, the last two per image ignored, and detections (N, D, 5) with scores."""
    draw = np.random.default_rng(0)
    corner, height = draw.uniform(-20, SIZE, (images, PEOPLE, 2))[..., ::-1], draw.lognormal(4.8, 0.6, (images, PEOPLE))
    people = np.concatenate([corner, corner + height[..., None] * [0.41, 1.0]], axis=2)
    person = draw.integers(0, PEOPLE, (images, detections))
    nearest = np.take_along_axis(people, person[..., None], axis=1)
    is_near = draw.random((images, detections, 1)) < 2 / 3
    sizes = np.take_along_axis(height, person, axis=1)[..., None]
    detected = nearest + sizes * np.where(
        is_near, draw.normal(0, 0.08, nearest.shape), draw.normal(0, 2, (*person.shape, 1))
    )
    detected[..., 2:] = np.maximum(detected[..., 2:], detected[..., :2] + 1)
    score = draw.random(person.shape) ** np.where(is_near[..., 0], 1, 3)
    return {"people": people, "detections": np.concatenate([detected, score[..., None]], axis=2)}


def _compute_by_sightline(inputs: dict[str, Any]) -> Tensor:
    """Compute the metrics by `CrowdAp` in batches of 16 images, as in an evaluation."""
    metric = CrowdAp(class_names=("person",))
    state: State = metric.new_state()
    people, detections = map(torch.from_numpy, inputs.values())
    is_ignored = (torch.arange(PEOPLE) >= PEOPLE - 2).double().expand(people.shape[:2])
    label_columns = torch.stack([0 * is_ignored, (people[..., 2:] - people[..., :2]).prod(dim=2), is_ignored], dim=2)
    truth, detections = (
        torch.cat([people, label_columns], dim=2),
        torch.cat([detections, 0 * detections[..., :1]], dim=2),
    )
    for index in torch.arange(len(truth)).split(16):
        metric.update(
            state,
            detections=detections[index].flatten(0, 1),
            detection_offsets=torch.arange(len(index) + 1) * detections.shape[1],
            truth=truth[index].flatten(0, 1),
            truth_visible=torch.ones(len(index) * PEOPLE),
            truth_offsets=torch.arange(len(index) + 1) * PEOPLE,
            file_px=torch.tensor([SIZE] * len(index)),
            sample_index=index,
        )
    figures = metric.compute(state)
    return torch.tensor([figures[name] for name in _NAMES], dtype=torch.float64)


def _compute_by_loops(inputs: dict[str, Any]) -> Tensor:
    """Compute the metrics as the published script: overlap matrices per image and threshold, box by box."""
    height, width = SIZE
    far = [width - 1, height - 1, width, height]
    entries: list[tuple[float, bool]] = []
    jaccard: list[list[float]] = [[] for _ in range(10)]
    for people, detections in zip(*inputs.values(), strict=True):
        boxes, by_score = people.clip(0, far), detections[np.argsort(-detections[:, 4], kind="stable")]
        clipped = by_score[:, :4].clip(0, far)
        people_boxes, regions = boxes[:-2], boxes[-2:]
        overlaps = _overlap(clipped, people_boxes, is_iou=True)
        is_hidden, is_covered = _covered_mask(clipped, regions), _covered_mask(people_boxes, regions)
        is_matched = [False] * len(people_boxes)
        for row in range(len(by_score)):
            best, matched = 0.5, -1
            for column in range(len(people_boxes)):
                if not is_matched[column] and overlaps[row, column] > best:
                    best, matched = overlaps[row, column], column
            if matched >= 0:
                is_matched[matched] = True
            if matched >= 0 or not is_hidden[row]:
                entries.append((by_score[row, 4], matched >= 0))
        for threshold in range(10):
            is_selected = by_score[:, 4] > threshold / 10
            jaccard[threshold].append(
                _jaccard_index(
                    _overlap(clipped[is_selected], people_boxes, is_iou=True), is_hidden[is_selected], is_covered
                )
            )
    entries.sort(key=lambda entry: -entry[0])
    is_right = np.array([item for _, item in entries])
    recall = is_right.cumsum() / (len(inputs["people"]) * (PEOPLE - 2))
    precision = is_right.cumsum() / np.arange(1, len(entries) + 1)
    fppi = (~is_right).cumsum() / len(inputs["people"])
    rates = []
    for point in (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0):
        above = np.flatnonzero(fppi >= point)
        rates.append(1 - recall[above[0] if len(above) else -1])
    area = (np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()
    rate = np.exp(np.mean(np.log(rates))) if min(rates) > 0 else 0.0
    return torch.tensor([area, rate, max(np.mean(item) for item in jaccard)], dtype=torch.float64)


def _overlap(a: np.ndarray, b: np.ndarray, *, is_iou: bool) -> np.ndarray:
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    intersection = sides.clip(min=0).prod(axis=2)
    first_area, second_area = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    overlap: np.ndarray = intersection / (first_area[:, None] + (second_area - intersection if is_iou else 0) + 1e-6)
    return overlap


def _covered_mask(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    mask: np.ndarray = _overlap(boxes, regions, is_iou=False).max(axis=1) > 0.5
    return mask


def _jaccard_index(overlaps: np.ndarray, hidden: np.ndarray, inside: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(np.where(overlaps > 0.5, overlaps, 0), maximize=True)
    is_pair = overlaps[rows, columns] > 0.5
    rows, columns = rows[is_pair], columns[is_pair]
    count = len(hidden) - hidden.sum() + hidden[rows].sum() + len(inside) - inside.sum() + inside[columns].sum()
    return float(len(rows) / (count - len(rows) + 1e-6))
