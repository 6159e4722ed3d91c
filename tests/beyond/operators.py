"""Rows of operators on points and boxes in 3D: each runs in a small form, against values written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sightline import ops
from tests.mission.rows import row
from tests.mission.trial import Edit


@row(
    "B3.1",
    "gather a scan in pillars of fixed sizes without losing a point in silence",
    "`ops.hard_pillars(points, side_m=(1, 1), range_m=..., max_points=2, max_pillars=2)`, `ops.dynamic_pillars`",
)
def gather_pillars(folder: Path) -> None:
    """Of six points one is outside, one too many in its pillar, and one in the third of two pillars."""
    points = torch.tensor([[2.5, 1.5, 0], [0.5, 0.5, 0], [2.0, 1.0, 0.9], [2.9, 1.9, -1], [3, 1, 0], [0.1, 1, 0]])
    found = ops.hard_pillars(points, side_m=(1, 1), range_m=(0, 0, -1, 3, 2, 1), max_points=2, max_pillars=2)
    assert found.point_index.tolist() == [[[0, 2], [1, -1]]]
    assert found.cells.tolist() == [[[1, 2], [0, 0]]]
    assert [int(count) for count in found.dropped] == [6, 1, 1, 1, 3, 1]
    assert found.dropped.share_of_points.tolist() == torch.tensor([0.4]).tolist()
    every = ops.dynamic_pillars(points, side_m=(1, 1), range_m=(0, 0, 3, 2))
    assert every.keys.tolist() == [0, 1, 5, -1, -1, -1]
    assert every.num_points.tolist() == [1, 1, 3, 0, 0, 0]
    assert every.pillar_index.tolist() == [2, 0, 2, 2, -1, 1]


@row(
    "B3.2",
    "measure what turned boxes share, exactly and with gradients",
    "`ops.box3d_iou_bev(boxes, others)`, `ops.box3d_iou(boxes, others, aligned=True)`",
)
def measure_overlaps(folder: Path) -> None:
    """Two squares of 2 m, one turned by 45 degrees and half as high again up: an octagon, and half of its volume."""
    square = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]], dtype=torch.float64, requires_grad=True)
    turned = torch.tensor([[0.0, 0, 1, 2, 2, 2, math.pi / 4]], dtype=torch.float64)
    octagon = 8 * (math.sqrt(2) - 1)
    assert abs(ops.box3d_iou_bev(square, turned).item() - octagon / (8 - octagon)) < 1e-12
    assert abs(ops.box3d_iou(square, turned, aligned=True).item() - octagon / (16 - octagon)) < 1e-12
    beside = torch.tensor([[1.0, 0.5, 0, 2, 2, 2, 0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ops.box3d_overlap_bev(square, beside).sum(), square)
    assert gradient[0, :5].tolist() == [1.5, 1, 0, 0.75, 0.5]
    apart = torch.tensor([[2.0, 0, 0, 2, 2, 2, 0], [0, 0, 0, -4, 2, 2, 0]], dtype=torch.float64)
    assert ops.box3d_iou(square, apart).tolist() == [[0, 0]]
    assert ops.box3d_nearest_iou_bev(turned, square).item() == 1


@row(
    "B3.3",
    "keep the best of detections that overlap, of a class or of all, and of centres that are close",
    "`ops.box3d_nms(boxes, scores, 0.3, labels)`, `ops.circle_nms(centres, scores, 4.0)`",
)
def suppress_detections(folder: Path) -> None:
    """Two cars half a metre apart share 7 of 9 m², one across 4 of 12 with each; of equal scores the lower index."""
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0], [0.5, 0, 0, 4, 2, 1, 0], [0, 0, 0, 4, 2, 1, math.pi / 2]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 0, 1])
    assert ops.box3d_nms(boxes, scores, 0.3).tolist() == [1]
    assert ops.box3d_nms(boxes, scores, 0.34).tolist() == [1, 2]
    assert ops.box3d_nms(boxes, scores, 0.3, labels).tolist() == [1, 2]
    assert ops.box3d_nms(boxes, torch.ones(3), 0.3).tolist() == [0]
    assert ops.box3d_nms(boxes, scores, 0.8, max_kept=2).tolist() == [1, 2]
    assert ops.circle_nms(boxes[:, :2], scores, 0.25).tolist() == [1]
    assert ops.circle_nms(boxes[:, :2], scores, 0.24).tolist() == [1, 2]


@row(
    "B3.4",
    "find the points in boxes of a camera or of a LiDAR, faces included, by stating which",
    '`ops.points_in_boxes(points, boxes, frame="lidar")`',
)
def find_points(folder: Path) -> None:
    """One box of 4 x 2 x 1 m: of a LiDAR around its centre, turned to the left; of a camera above its bottom."""
    lidar, camera = torch.tensor([[1.0, 0, 5, 4, 2, 1, math.pi / 2]]), torch.tensor([[0.0, 0, 10, 4, 1, 2, 0]])
    points = torch.tensor([[1.0, 2, 5.5], [2, -2, 4.5], [2.5, 0, 5], [1, 0, 5.6]])
    assert ops.points_in_boxes(points, lidar, frame="lidar").tolist() == [0, 0, -1, -1]
    points = torch.tensor([[2.0, -1, 9], [0, 0, 10], [0, 0.1, 10], [0, -0.5, 11.1]])
    assert ops.points_in_boxes(points, camera, frame="camera").tolist() == [0, 0, -1, -1]
    with pytest.raises(TypeError, match="frame"):
        ops.points_in_boxes(points, camera)  # type: ignore[call-arg]


MUTANTS: dict[str, Edit] = {
    "B3.1": Edit(
        "ops/voxels/pillars.py", "_share(self.num_crowded + self.num_left_out,", "_share(self.num_crowded + 0,"
    ),
    "B3.2": Edit(
        "ops/boxes/rotated_overlaps.py",
        "torch.maximum(-half1, offset - half2)",
        "torch.maximum(-half1, -half2)",
    ),
    "B3.3": Edit(
        "ops/boxes/rotated_suppression.py",
        "    is_kept = _keep_apart(table, scores.detach().double(), labels,",
        "    is_kept = _keep_apart(table, scores.detach().double(), labels * 0,",
    ),
    "B3.4": Edit(
        "ops/boxes/points_in_boxes.py",
        "turn = torch.promote_types(points.dtype, boxes.dtype), boxes[:, 6:].double()",
        "turn = torch.promote_types(points.dtype, boxes.dtype), 0 * boxes[:, 6:].double()",
    ),
}
"""One edit a row that breaks its feature and raises nothing."""
