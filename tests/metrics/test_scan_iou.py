"""IoU by distance and of pixels: hand-worked, and refusals."""

from __future__ import annotations

import pytest
import torch

from sightline.metrics.labels import DistanceIoU, PixelIoU

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


def test_edges_must_rise() -> None:
    with pytest.raises(ValueError, match="give distances in rising order"):
        DistanceIoU(num_classes=2, edges_m=(10.0, 10.0))


def test_labels_that_are_no_image_are_refused() -> None:
    metric = PixelIoU(num_classes=3, ignore_index=0)
    with pytest.raises(ValueError, match=r"found the shape \(4,\); pixel_iou scores range images"):
        metric.update(metric.new_state(), seen=torch.zeros(4), label=torch.zeros(4))
