"""IoU by distance and of pixels: hand-worked, equal to the plain IoU of each stretch, any split the same bits."""

from __future__ import annotations

import math

import pytest
import torch

from sightline.metrics.labels import DistanceIoU, IoU, PixelIoU

BOUNDS = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 99)]


def test_a_point_at_an_edge_belongs_to_the_farther_side() -> None:
    metric = DistanceIoU(num_classes=3, ignore_index=0, edges_m=(10.0, 20.0))
    state = metric.new_state()
    metric.update_labels(
        state,
        labels=torch.tensor([1, 2, 1, 2, 1, 1]),
        target=torch.tensor([1, 1, 1, 2, 2, 0]),
        point_range=torch.tensor([0.0, 9.99, 10.0, 20.0, 50.0, 5.0]),
    )
    found = metric.compute(state)
    assert found.keys() == {"miou_0_10m", "miou_10_20m", "miou_over_20m"}
    assert found["miou_0_10m"] == (1 / 2 + 0) / 2  # class 1: 1 of 2; class 2: predicted once, never right
    assert found["miou_10_20m"] == 1.0
    assert found["miou_over_20m"] == (0 + 1 / 2) / 2
    assert metric.tables(state)["by_distance"] == {
        "stretches": ["0_10m", "10_20m", "over_20m"],
        "iou": {"0": [None] * 3, "1": [0.5, 1.0, 0.0], "2": [0.0, None, 0.5]},
        "points": [2, 1, 2],
    }


def test_stretches_are_the_iou_of_their_points_and_any_split_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (900,), generator=generator)
    probabilities = torch.rand(900, 5, generator=generator)
    ranges = 70 * torch.rand(900, generator=generator)
    metric = DistanceIoU(num_classes=5, ignore_index=0, absent="zero")
    whole = metric.new_state()
    metric.update(whole, probabilities=probabilities, target=target, point_range=ranges)
    parts = []
    for start, end in ((0, 17), (17, 600), (600, 900)):
        state, rows = metric.new_state(), slice(start, end)
        metric.update(state, probabilities=probabilities[rows], target=target[rows], point_range=ranges[rows])
        parts.append(state["confusion"])
    assert torch.equal(torch.stack(parts).sum(dim=0), whole["confusion"])
    for name, (low, high) in zip(metric.stretches, BOUNDS, strict=True):
        inside = (ranges >= low) & (ranges < high)
        plain = IoU(num_classes=5, ignore_index=0, absent="zero")
        state = plain.new_state(num_samples=1)
        plain.update(
            state,
            probabilities=probabilities[inside],
            target=target[inside],
            cloud_offsets=torch.tensor([0, int(inside.sum())]),
            sample_index=torch.tensor([0]),
        )
        assert metric.compute(whole)[f"miou_{name}"] == plain.compute(state)["miou"]


def test_edges_must_rise() -> None:
    with pytest.raises(ValueError, match="give distances in rising order"):
        DistanceIoU(num_classes=2, edges_m=(10.0, 10.0))


def test_pixels_are_counted_once_and_empty_ones_never() -> None:
    metric = PixelIoU(num_classes=3, ignore_index=0)
    state = metric.new_state()
    assert math.isnan(metric.compute(state)["pixel_miou"])
    metric.update(state, seen=torch.tensor([1, 2, 1, 2]), label=torch.tensor([[[1, 1], [0, 2]]]))
    assert metric.compute(state) == {"pixel_miou": (1 / 2 + 1 / 2) / 2, "pixel_accuracy": 2 / 3}
    assert metric.per_class(state)["1"] == {"pixel_iou": 0.5}
    with pytest.raises(ValueError, match=r"found the shape \(4,\); pixel_iou scores range images"):
        metric.update(state, seen=torch.zeros(4), label=torch.zeros(4))
