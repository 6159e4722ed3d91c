"""Benchmark of part segmentation metrics on a test split, against the usual loop over shapes and parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.bench.case import BenchmarkCase, implementation
from sightline.data.clouds.shapenet_part import ShapeNetPart
from sightline.metrics.part_iou import PartIoU

BATCH = 64
_RULES = {"": False, "_all_parts": True}
_TOLERANCE = 1e-12
"""Tolerance of float64 sums of some thousand numbers up to 1, in another order."""


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="metrics",
            label="part_iou_{shapes}x{points}",
            size={"shapes": 2874, "points": 2048},
            quick={"shapes": 70, "points": 32},
            make=_make_predictions,
            baseline=implementation("per_shape", _compute_per_shape, _compare_figures),
            variants=(implementation("sightline", _compute_by_counts, _compare_figures),),
        )
    ]


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
