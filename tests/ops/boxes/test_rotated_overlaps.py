"""Overlaps of turned boxes against polygons that are cut by half-planes, the numbers of shapely, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.boxes.rotated_overlaps import (
    box3d_iou,
    box3d_iou_bev,
    box3d_nearest_iou_bev,
    box3d_overlap,
    box3d_overlap_bev,
    drop_empty_boxes,
    make_footprints,
)
from sightline.ops.operator import OPERATORS
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

MEASURES = {
    "inter_bev": box3d_overlap_bev,
    "bev": box3d_iou_bev,
    "iou3d": box3d_iou,
    "nearest_bev": box3d_nearest_iou_bev,
}
LOOSE = {"far origin", "thin", "angle 1000 turns"}
OVERLAPS = [box3d_overlap_bev, box3d_iou_bev, box3d_overlap, box3d_iou]
Measure = Callable[..., Tensor]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "iou_rotated", area="boxes3d")


@run_each("case", range(4))
def test_overlaps_are_those_of_shapely(golden: Golden, case: int) -> None:
    """Of random crowds all pairs, of 28 named pairs the rows: touching, nested, without an area, far off, thin."""
    a, b = (golden.tensor(f"case{case:02}/in_{name}") for name in "ab")
    names = golden.info["cases"][case].get("names")
    bound = torch.tensor([1e-6 if name in LOOSE else 1e-9 for name in names or [""]], dtype=torch.float64)
    for name, measure in MEASURES.items():
        if (key := f"case{case:02}/{name}") in golden.arrays:
            assert ((measure(a, b, aligned=names is not None) - golden.tensor(key)).abs() <= bound).all(), name
    for is_aligned in [False, True][: 1 + (names is not None)]:
        tables = make_footprints(drop_empty_boxes(a)), make_footprints(drop_empty_boxes(b)), is_aligned
        operator = OPERATORS["bev_overlap"]
        assert torch.equal(operator(*tables), operator.plain(*tables)), "the kernel has other bits"


def test_named_pairs_have_finite_gradients(golden: Golden) -> None:
    """Where edges coincide or a box has no area, too; and those of a box without one are 0."""
    for measure in (*OVERLAPS, box3d_nearest_iou_bev):
        a, b = (golden.tensor(f"case03/in_{name}").requires_grad_() for name in "ab")
        measure(a, b, aligned=True).sum().backward()
        for boxes in (a, b):
            assert boxes.grad is not None
            assert torch.isfinite(boxes.grad).all()
            assert not boxes.grad[(boxes[:, 3:5] <= 0).any(dim=1)].any()


def draw_boxes(count: int, *, seed: int, span_m: float = 6.0) -> Tensor:
    """Boxes (N, 7), every other one along an axis, on a grid of half metres: many edges coincide and corners touch."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    boxes = torch.cat([span_m * drawn[:, :3], 4 * drawn[:, 3:6] + 0.5, 6.5 * drawn[:, 6:] - 3.25], dim=1)
    boxes[::2, :6] = (boxes[::2, :6] * 2).round() / 2
    boxes[::2, 6] = (boxes[::2, 6] / (math.pi / 2)).round() * (math.pi / 2)
    return boxes


def cut_polygons(box: np.ndarray, other: np.ndarray) -> float:
    """Area that two boxes share: the corners of one are cut by the half-planes of the other, edge by edge."""
    polygon, edges = corners_of(box), corners_of(other)
    for begin, end in zip(edges, np.roll(edges, -1, axis=0), strict=True):
        side = [float(np.cross(end - begin, corner - begin)) for corner in polygon]
        cut = []
        for index, corner in enumerate(polygon):
            following, height, next_height = (
                polygon[(index + 1) % len(polygon)],
                side[index],
                side[index - len(side) + 1],
            )
            if height >= 0:
                cut.append(corner)
            if (height >= 0) != (next_height >= 0):
                cut.append(corner + (following - corner) * height / (height - next_height))
        polygon = cut
        if len(polygon) < 3:
            return 0.0
    x, y = np.array(polygon).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def corners_of(box: np.ndarray) -> list[np.ndarray]:
    """The four corners, counter-clockwise."""
    x, y, _, length, width, _, yaw = box
    ahead, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return [np.array([x, y]) + along * length / 2 * ahead + across * width / 2 * left for along, across in signs]


@pytest.mark.filterwarnings("ignore:Arrays of 2-dimensional vectors:DeprecationWarning")
def test_all_pairs_are_polygons_cut_by_half_planes() -> None:
    a, b = draw_boxes(24, seed=0), draw_boxes(20, seed=1)
    area = torch.tensor([[cut_polygons(one, other) for other in b.numpy()] for one in a.numpy()], dtype=torch.float64)
    assert (area > 0).sum() > 100
    top = torch.minimum(a[:, None, 2] + a[:, None, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum(a[:, None, 2] - a[:, None, 5] / 2, b[:, 2] - b[:, 5] / 2)
    volume = area * (top - bottom).clamp(min=0)
    base, other_base, size, other_size = a[:, 3] * a[:, 4], b[:, 3] * b[:, 4], a[:, 3:6].prod(1), b[:, 3:6].prod(1)
    for measure, expected in (
        (box3d_overlap_bev, area),
        (box3d_iou_bev, area / (base[:, None] + other_base - area)),
        (box3d_overlap, volume),
        (box3d_iou, volume / (size[:, None] + other_size - volume)),
    ):
        found = measure(a, b)
        assert (found - expected).abs().max() < 1e-12
        assert (found.T - measure(b, a)).abs().max() < 1e-13
        rows = torch.stack([measure(a[k : k + 1], b[k : k + 1], aligned=True)[0] for k in range(20)])
        assert torch.equal(rows, found.diagonal()[:20])
        assert torch.equal(measure(a[:20], b, aligned=True), rows)


def test_moved_and_turned_together_they_share_the_same() -> None:
    a, b = draw_boxes(30, seed=2), draw_boxes(30, seed=3)
    expected = box3d_iou(a, b)
    turn, (sine, cosine) = 0.7, (math.sin(0.7), math.cos(0.7))
    turned = torch.tensor([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    moved = [torch.cat([boxes[:, :3] @ turned + 50, boxes[:, 3:6], boxes[:, 6:] + turn], dim=1) for boxes in (a, b)]
    assert (box3d_iou(*moved) - expected).abs().max() < 1e-12


def test_values_by_hand() -> None:
    """Two squares of 2 m, one turned by 45 degrees, share an octagon; half of the height, half of the volume."""
    square, turned = torch.tensor([0.0, 0, 0, 2, 2, 2, 0]), torch.tensor([0.0, 0, 1, 2, 2, 2, math.pi / 4])
    pair = square[None].double(), turned[None].double()
    octagon = 8 * (math.sqrt(2) - 1)
    assert box3d_overlap_bev(*pair).item() == pytest.approx(octagon, abs=1e-7)
    assert box3d_iou_bev(*pair).item() == pytest.approx(octagon / (8 - octagon), abs=1e-7)
    assert box3d_overlap(*pair).item() == pytest.approx(octagon, abs=1e-7)
    assert box3d_iou(*pair).item() == pytest.approx(octagon / (16 - octagon), abs=1e-7)
    assert box3d_iou(square[None].half(), turned[None].half()).dtype == torch.float32


@pytest.mark.parametrize("measure", OVERLAPS)
def test_gradients_are_slopes(measure: Measure) -> None:
    """Also of boxes along the axes, whose edges do not rise, where none coincide."""
    a, b = draw_boxes(12, seed=4), draw_boxes(12, seed=5)
    a[:, 6] = torch.where(torch.arange(12) % 3 == 0, 0.0, a[:, 6])
    b[:6, :2] = a[:6, :2] + torch.tensor([0.31, -0.43])
    b[:, 3:6] += 0.0371
    b[:, 2] = a[:, 2] + 0.213
    assert (measure(a, b, aligned=True) > 0).sum() >= 6
    pair = a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: measure(a, b, aligned=True), pair, fast_mode=True)


def test_the_gradient_of_the_area_is_the_length_of_the_edges_that_move() -> None:
    """By hand: of 4 x 2 beside 4 x 2, 1 m further: the edges that lie in the other box are 1.5 and 3 m long.

    A shift along x wins or loses 1.5 m, and 1 m of length half of it; a turn, what the edges sweep.
    """
    a = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[1.0, 0.5, 0, 4, 2, 1, 0]], dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(box3d_overlap_bev(a, b).sum(), (a, b))
    assert torch.allclose(grads[0], torch.tensor([[1.5, 3, 0, 0.75, 1.5, 0, 1.125]], dtype=torch.float64))
    assert torch.allclose(grads[1], torch.tensor([[-1.5, -3, 0, 0.75, 1.5, 0, 1.125]], dtype=torch.float64))


EXTREMES = [0.0, -0.0, 1e-300, 1e-30, 1e-8, 0.3, 1.0, 2.0, math.pi / 2, math.pi, 1e4, 1e30, 1e99, 1e150, 1e300]
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("measure", [*OVERLAPS, box3d_nearest_iou_bev])
def test_no_numbers_of_a_box_make_nan_or_more_than_one(measure: Measure) -> None:
    drawn = np.random.default_rng(0)
    values = np.array([*EXTREMES, *NOT_FINITE]) * drawn.choice([1.0, 1.0, -1.0], (60, 7, 1))
    boxes = torch.from_numpy(np.take_along_axis(values, drawn.integers(0, values.shape[2], (60, 7, 1)), axis=2)[..., 0])
    boxes[::3] = boxes[::3].abs().nan_to_num(1.0, 1.0, 1.0)
    boxes[::6, :2] = 0
    boxes = boxes.requires_grad_()
    found = measure(boxes, boxes)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert found.max() <= 1 + 1e-9 or "overlap" in measure.__name__
    (gradient,) = torch.autograd.grad(found.clamp(max=1e100).sum(), boxes)
    assert torch.isfinite(gradient).all()
    has_area = (boxes[:, 3:5] > 0).all(dim=1) & (boxes.abs() <= 1e100).all(dim=1)
    assert not found[~has_area].any()
    assert not gradient[~has_area].any()


def test_equal_boxes_share_all_and_touching_ones_nothing() -> None:
    boxes = draw_boxes(200, seed=6)
    equal = box3d_iou(boxes, boxes, aligned=True)
    assert ((equal > 1 - 1e-12) & (equal <= 1)).all()
    along = boxes[::2].clone()
    along[:, 6] = 0
    for column in range(3):
        beside = along.clone()
        beside[:, column] += along[:, 3 + column]
        assert not box3d_iou(along, beside, aligned=True).any()
        assert not box3d_iou(beside, along, aligned=True).any()


@run_each("yaw, sizes", [(0.0, (4, 2)), (0.78, (4, 2)), (math.pi / 4, (2, 4)), (-math.pi / 4, (2, 4)), (3.1, (4, 2))])
def test_the_nearer_axis_by_hand(yaw: float, sizes: tuple[int, int]) -> None:
    box = torch.tensor([[1.0, 2, 0, 4, 2, 1, yaw]], dtype=torch.float64)
    laid = torch.tensor([[1.0, 2, 5, *sizes, 1, 0]], dtype=torch.float64)
    assert box3d_nearest_iou_bev(box, laid).item() == 1
    assert box3d_nearest_iou_bev(box, laid, aligned=True).tolist() == [1]
    assert box3d_nearest_iou_bev(box, laid[:, [0, 1, 2, 4, 3, 5, 6]]).item() == pytest.approx(4 / 12)


SOME = torch.rand(3, 7)


@run_each(
    "boxes1, boxes2, aligned, message",
    [
        (SOME[:, :5], SOME, False, r"boxes1: found \(3, 5\) torch\.float32, expected numbers \(N, 7\): x, y, z, dx"),
        (SOME, SOME[0], False, r"boxes2: found \(7,\) torch\.float32"),
        (SOME > 0, SOME, False, r"boxes1: found \(3, 7\) torch\.bool"),
        ([[0.0] * 7], SOME, False, "boxes1: found a list, expected a tensor"),
        (SOME, SOME[:2], True, "boxes2: found 2 rows, boxes1 has 3; aligned rows are as many"),
        (SOME, SOME.to("meta"), False, "boxes2: found on meta, boxes1 on cpu"),
    ],
)
def test_other_forms_are_refused(boxes1: Any, boxes2: Any, aligned: bool, message: str) -> None:
    for measure in (*OVERLAPS, box3d_nearest_iou_bev):
        with pytest.raises(ValueError, match=message):
            measure(boxes1, boxes2, aligned=aligned)
