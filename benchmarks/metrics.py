"""Benchmarks of metrics: part IoU and CrowdHuman's against the usual loops, COCO's twelve against pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.case import BenchmarkCase, Implementation, Run, allclose, implementation
from sightline.areas.clouds.sets.shapenet_part import ShapeNetPart
from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.crowds import CrowdAp
from sightline.contract.metric import State
from sightline.parts.metrics.part_iou import PartIoU

BATCH = 64
_RULES = {"": False, "_all_parts": True}
_TOLERANCE = 1e-12
"""Tolerance of float64 sums of some thousand numbers up to 1, in another order."""
NUM_CLASSES = 80
_COCO_NAMES = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar ar_small ar_medium ar_large".split()
"""Our names of the twelve metrics of pycocotools, in its order."""
PEOPLE = 22
SIZE_PX = (800, 1200)
_CROWD_NAMES = ("crowd_ap", "mr2", "ji")


def cases() -> list[BenchmarkCase]:
    return [_make_part_case(), _make_box_case(), _make_crowd_case()]


# --- part IoU --------------------------------------------------------------------------------------------------------


def _make_part_case() -> BenchmarkCase:
    return BenchmarkCase(
        suite="metrics",
        label="part_iou_{shapes}x{points}",
        size={"shapes": 2874, "points": 2048},
        quick={"shapes": 70, "points": 32},
        make=_make_predictions,
        baseline=implementation("per_shape", _compute_per_shape, _compare_figures),
        variants=(implementation("sightline", _compute_by_counts, _compare_figures),),
    )


def _make_predictions(*, shapes: int, points: int) -> dict[str, Any]:
    """Draw predictions that are right at two of three points, for a split as large as ShapeNetPart's test split.

    All batches share the probabilities of a single one, which saves 1.2 GB.
    """
    facts = ShapeNetPart.expected_info().facts
    parts = facts["parts_of_category"]
    generator = torch.Generator().manual_seed(0)
    category = torch.randint(0, len(parts), (BATCH,), generator=generator)
    first = torch.tensor([part_ids[0] for part_ids in parts])[category]
    counts = torch.tensor([len(part_ids) for part_ids in parts])[category]
    fractions = torch.rand(BATCH, points, generator=generator)
    target = first[:, None] + (fractions * counts[:, None]).long()
    logits = torch.randn(BATCH, points, facts["num_classes"], generator=generator)
    is_known = torch.rand(BATCH, points, generator=generator) < 2 / 3
    logits[is_known, target[is_known]] += 8
    return {
        "probabilities": logits.softmax(dim=2),
        "target": target,
        "category": category,
        "num_shapes": shapes,
        "facts": facts,
    }


def _iterate_batches(inputs: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Iterate over batches: probabilities (B, N, C), targets (B, N), categories (B,) and indices (B,)."""
    for start in range(0, inputs["num_shapes"], BATCH):
        index = torch.arange(start, min(start + BATCH, inputs["num_shapes"]))
        size = len(index)
        yield inputs["probabilities"][:size], inputs["target"][:size], inputs["category"][:size], index


def _compute_by_counts(inputs: dict[str, Any]) -> dict[str, float]:
    names = ("num_classes", "parts_of_category", "class_names", "category_names")
    metric = PartIoU(**{name: inputs["facts"][name] for name in names})
    state = metric.new_state(num_samples=inputs["num_shapes"])
    for probabilities, target, category, index in _iterate_batches(inputs):
        metric.update(
            state,
            probabilities=probabilities.flatten(0, 1),
            target=target.flatten(),
            cloud_offsets=torch.arange(len(index) + 1) * target.shape[1],
            category=category,
            sample_index=index,
        )
    return metric.compute(state)


def _compute_per_shape(inputs: dict[str, Any]) -> dict[str, float]:
    """Compute the metrics in the usual form: NumPy masks for every shape and each part of its category."""
    parts_of_category = [np.array(parts) for parts in inputs["facts"]["parts_of_category"]]
    figures: dict[str, float] = {}
    for suffix, is_among_all in _RULES.items():
        ious: list[list[float]] = [[] for _ in parts_of_category]
        num_right = num_points = 0
        for probabilities, target, category, _ in _iterate_batches(inputs):
            for scores, label, number in zip(probabilities.numpy(), target.numpy(), category.tolist(), strict=True):
                parts = parts_of_category[number]
                answer = scores.argmax(axis=1) if is_among_all else parts[scores[:, parts].argmax(axis=1)]
                ious[number].append(float(np.mean([_iou(answer == part, label == part) for part in parts])))
                num_right, num_points = num_right + int(np.sum(answer == label)), num_points + len(label)
        figures[f"instance_miou{suffix}"] = float(np.mean([iou for group in ious for iou in group]))
        figures[f"class_miou{suffix}"] = float(np.mean([np.mean(group) for group in ious if group]))
        figures[f"point_accuracy{suffix}"] = num_right / num_points
    return figures


def _iou(answered: np.ndarray, labelled: np.ndarray) -> float:
    union = np.sum(answered | labelled)
    return float(np.sum(answered & labelled) / union) if union else 1.0


def _compare_figures(inputs: Any, expected: dict[str, float], actual: dict[str, float]) -> str | None:
    for name, value in expected.items():
        if not abs(actual[name] - value) <= _TOLERANCE:
            return f"{name} is {actual[name]:.12f}, the baseline has {value:.12f}"
    return None


# --- box AP ----------------------------------------------------------------------------------------------------------


def _make_box_case() -> BenchmarkCase:
    """Make the case of COCO's twelve metrics; pycocotools' time excludes building its data structures."""
    size, quick = {"images": 5000, "detections": 100}, {"images": 20, "detections": 10}
    pycocotools = Implementation("pycocotools", _open_pycocotools, allclose(1e-9), needs="pycocotools")
    form = implementation("sightline", _compute_box_ap, allclose(1e-9))
    return BenchmarkCase("metrics", "box_ap_{images}x{detections}", size, quick, _make_boxes, pycocotools, (form,))


def _make_boxes(*, images: int, detections: int) -> dict[str, np.ndarray]:
    """Draw 8 labels per image, of 80 classes, and detections, 60 % with the right class: image, box, score, class."""
    generator = np.random.default_rng(0)
    index, order, shape = np.arange(images)[:, None], np.arange(detections) % 8, (images, detections)
    corners, sizes = 500 * generator.random((images, 8, 2)), np.exp(generator.uniform(2, 5.5, (images, 8, 2)))
    label = generator.integers(0, NUM_CLASSES, (images, 8))
    first = corners[:, order] + sizes[:, order] * generator.normal(0, 0.1, (*shape, 2))
    last = first + sizes[:, order] * generator.uniform(0.8, 1.25, first.shape)
    guess = np.where(generator.random(shape) < 0.6, label[:, order], generator.integers(0, NUM_CLASSES, shape))
    truth = (0 * label + index, *corners.transpose(2, 0, 1), *(corners + sizes).transpose(2, 0, 1), 0 * label, label)
    detected = (0 * guess + index, *first.transpose(2, 0, 1), *last.transpose(2, 0, 1), generator.random(shape), guess)
    return {"truth": np.stack(truth, axis=2), "detections": np.stack(detected, axis=2)}


def _compute_box_ap(inputs: dict[str, np.ndarray]) -> Tensor:
    """Compute the metrics by `BoxAp` in batches of 16 images, as in an evaluation."""
    metric = BoxAp(class_names=tuple(map(str, range(NUM_CLASSES))))
    state = metric.new_state()
    truth, detections = map(torch.from_numpy, inputs.values())
    area = (truth[..., 3:5] - truth[..., 1:3]).prod(dim=2, keepdim=True)
    truth = torch.cat([truth[..., 1:5], truth[..., 6:], area, torch.zeros_like(area)], dim=2)
    for index in torch.arange(len(truth)).split(16):
        metric.update(
            state,
            detections=detections[index, :, 1:].flatten(0, 1),
            detection_offsets=torch.arange(len(index) + 1) * detections.shape[1],
            truth=truth[index].flatten(0, 1),
            truth_offsets=torch.arange(len(index) + 1) * truth.shape[1],
            sample_index=index,
        )
    return torch.tensor(itemgetter(*_COCO_NAMES)(metric.compute(state)), dtype=torch.float64)


@contextmanager
def _open_pycocotools(inputs: dict[str, np.ndarray]) -> Iterator[Run]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    numbers = {"images": len(inputs["truth"]), "categories": NUM_CLASSES}
    coco.dataset = {name: [{"id": number} for number in range(count)] for name, count in numbers.items()}

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, detections, "bbox")
            for stage in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
                stage()
        return torch.from_numpy(evaluation.stats)

    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        tables = (rows.reshape(-1, 7) for rows in inputs.values())
        truth, detections = (coco.loadRes(table - np.pad(table[:, 1:3], ((0, 0), (3, 2)))) for table in tables)
    yield run


# --- crowd AP --------------------------------------------------------------------------------------------------------


def _make_crowd_case() -> BenchmarkCase:
    """Make the case: CrowdHuman's number of images; two of three detections are near one of 22 people per image."""
    size, quick = {"images": 4370, "detections": 300}, {"images": 12, "detections": 40}
    form = implementation("sightline", _compute_crowd_ap, allclose(1e-9))
    literal = implementation("loop", _compute_crowd_ap_by_loops, allclose(1e-9))
    return BenchmarkCase("metrics", "crowd_ap_{images}x{detections}", size, quick, _make_crowds, literal, (form,))


def _make_crowds(*, images: int, detections: int) -> dict[str, Any]:
    """Draw boxes (N, G, 4) of people, the last two per image ignored, and detections (N, D, 5) with scores."""
    draw = np.random.default_rng(0)
    corner, height = (
        draw.uniform(-20, SIZE_PX, (images, PEOPLE, 2))[..., ::-1],
        draw.lognormal(4.8, 0.6, (images, PEOPLE)),
    )
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


def _compute_crowd_ap(inputs: dict[str, Any]) -> Tensor:
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
            file_px=torch.tensor([SIZE_PX] * len(index)),
            sample_index=index,
        )
    figures = metric.compute(state)
    return torch.tensor([figures[name] for name in _CROWD_NAMES], dtype=torch.float64)


def _compute_crowd_ap_by_loops(inputs: dict[str, Any]) -> Tensor:
    """Compute the metrics as the published script: overlap matrices per image and threshold, box by box."""
    height, width = SIZE_PX
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
