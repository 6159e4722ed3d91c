"""CrowdHuman's figures of a whole validation part, against the loop of its rules over images and detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sightline.bench.agreement import allclose
from sightline.bench.case import BenchmarkCase, implementation
from sightline.metrics.base import State
from sightline.metrics.crowd_ap import CrowdAp

__all__ = ["cases"]

PEOPLE = 22
SIZE = (800, 1200)
_NAMES = ("crowd_ap", "mr2", "ji")


def cases() -> list[BenchmarkCase]:
    """As many images as CrowdHuman tests on; two of three detections are near one of its 22 people an image."""
    size, quick = {"images": 4370, "detections": 300}, {"images": 12, "detections": 40}
    form = implementation("sightline", _by_sightline, allclose(1e-9))
    literal = implementation("loop", _by_loops, allclose(1e-9))
    return [BenchmarkCase("metrics", "crowd_ap_{images}x{detections}", size, quick, _crowds, literal, (form,))]


def _crowds(*, images: int, detections: int) -> dict[str, Any]:
    """Boxes (N, G, 4) of people, the last two of each image ignored, and detections (N, D, 5) with their scores."""
    draw = np.random.default_rng(0)
    corner, height = draw.uniform(-20, SIZE, (images, PEOPLE, 2))[..., ::-1], draw.lognormal(4.8, 0.6, (images, PEOPLE))
    people = np.concatenate([corner, corner + height[..., None] * [0.41, 1.0]], axis=2)
    chosen = draw.integers(0, PEOPLE, (images, detections))
    near = np.take_along_axis(people, chosen[..., None], axis=1)
    is_near = draw.random((images, detections, 1)) < 2 / 3
    sizes = np.take_along_axis(height, chosen, axis=1)[..., None]
    moved = near + sizes * np.where(is_near, draw.normal(0, 0.08, near.shape), draw.normal(0, 2, (*chosen.shape, 1)))
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    score = draw.random(chosen.shape) ** np.where(is_near[..., 0], 1, 3)
    return {"people": people, "detections": np.concatenate([moved, score[..., None]], axis=2)}


def _by_sightline(inputs: dict[str, Any]) -> Tensor:
    """In batches of 16 images, as they come in an evaluation."""
    metric = CrowdAp(class_names=("person",))
    state: State = metric.new_state()
    people, found = map(torch.from_numpy, inputs.values())
    is_ignored = (torch.arange(PEOPLE) >= PEOPLE - 2).double().expand(people.shape[:2])
    others = torch.stack([0 * is_ignored, (people[..., 2:] - people[..., :2]).prod(dim=2), is_ignored], dim=2)
    truth, found = torch.cat([people, others], dim=2), torch.cat([found, 0 * found[..., :1]], dim=2)
    for index in torch.arange(len(truth)).split(16):
        metric.update(
            state,
            detections=found[index].flatten(0, 1),
            detection_offsets=torch.arange(len(index) + 1) * found.shape[1],
            truth=truth[index].flatten(0, 1),
            truth_visible=torch.ones(len(index) * PEOPLE),
            truth_offsets=torch.arange(len(index) + 1) * PEOPLE,
            file_px=torch.tensor([SIZE] * len(index)),
            sample_index=index,
        )
    figures = metric.compute(state)
    return torch.tensor([figures[name] for name in _NAMES], dtype=torch.float64)


def _by_loops(inputs: dict[str, Any]) -> Tensor:
    """As the published script: matrices of overlaps of each image, for each threshold anew; boxes one by one."""
    height, width = SIZE
    far = [width - 1, height - 1, width, height]
    listed: list[tuple[float, bool]] = []
    jaccard: list[list[float]] = [[] for _ in range(10)]
    for people, found in zip(*inputs.values(), strict=True):
        boxes, own = people.clip(0, far), found[np.argsort(-found[:, 4], kind="stable")]
        cut = own[:, :4].clip(0, far)
        real, regions = boxes[:-2], boxes[-2:]
        alike = _overlap(cut, real, is_iou=True)
        hidden, inside = _hidden(cut, regions), _hidden(real, regions)
        taken = [False] * len(real)
        for row in range(len(own)):
            best, chosen = 0.5, -1
            for column in range(len(real)):
                if not taken[column] and alike[row, column] > best:
                    best, chosen = alike[row, column], column
            if chosen >= 0:
                taken[chosen] = True
            if chosen >= 0 or not hidden[row]:
                listed.append((own[row, 4], chosen >= 0))
        for place in range(10):
            kept = own[:, 4] > place / 10
            jaccard[place].append(_index(_overlap(cut[kept], real, is_iou=True), hidden[kept], inside))
    listed.sort(key=lambda entry: -entry[0])
    is_right = np.array([each for _, each in listed])
    recall = is_right.cumsum() / (len(inputs["people"]) * (PEOPLE - 2))
    precision = is_right.cumsum() / np.arange(1, len(listed) + 1)
    fppi = (~is_right).cumsum() / len(inputs["people"])
    rates = []
    for point in (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0):
        reached = np.flatnonzero(fppi >= point)
        rates.append(1 - recall[reached[0] if len(reached) else -1])
    area = (np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()
    rate = np.exp(np.mean(np.log(rates))) if min(rates) > 0 else 0.0
    return torch.tensor([area, rate, max(np.mean(each) for each in jaccard)], dtype=torch.float64)


def _overlap(a: np.ndarray, b: np.ndarray, *, is_iou: bool) -> np.ndarray:
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    shared = sides.clip(min=0).prod(axis=2)
    own, its = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (a, b))
    overlap: np.ndarray = shared / (own[:, None] + (its - shared if is_iou else 0) + 1e-6)
    return overlap


def _hidden(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    hidden: np.ndarray = _overlap(boxes, regions, is_iou=False).max(axis=1) > 0.5
    return hidden


def _index(alike: np.ndarray, hidden: np.ndarray, inside: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(np.where(alike > 0.5, alike, 0), maximize=True)
    is_pair = alike[rows, columns] > 0.5
    rows, columns = rows[is_pair], columns[is_pair]
    count = len(hidden) - hidden.sum() + hidden[rows].sum() + len(inside) - inside.sum() + inside[columns].sum()
    return float(len(rows) / (count - len(rows) + 1e-6))
