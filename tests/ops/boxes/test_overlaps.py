"""Overlaps and codings of boxes: published and hand-worked values, exact gradients, bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as maskUtils
from torch import Tensor

from sightline.areas.detect.assigned_boxes import best_iou_of_boxes
from sightline.areas.detect.output import GreedyNMS
from sightline.ops.boxes.codes import centreness, decode_deltas, decode_distances, encode_deltas, encode_distances
from sightline.ops.boxes.overlaps import (
    OVERLAPS,
    box_area,
    box_centres,
    box_ioa,
    box_iou,
    box_sizes,
    clip_boxes_to_image,
    ioa,
    iou,
)
from sightline.ops.boxes.priors import Priors
from sightline.ops.points.affine_maps import warp_boxes
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden
from tests.ops.boxes.crowds import aligned_pairs, crowd

MATRICES = (box_iou, box_ioa)

TIES = [40, 43, 44]
"""Equal, touching and nested pairs, where a minimum has more than one gradient."""


def golden(shared: Path) -> Golden:
    return load_golden(shared, "iou_family", area="detect")


def graded(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """1 - overlap of aligned rows, and the gradient of its sum by `a`."""
    a = a.clone().requires_grad_()
    loss = 1 - OVERLAPS[name](a, b)
    return loss.detach(), torch.autograd.grad(loss.sum(), a)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (5, 5, 15, 15), (0.142857, -0.079365, 0.031746, 0.031746, 0.037696)),
        ((0, 0, 10, 20), (0, 0, 20, 10), (0.333333, 0.083333, 0.270833, 0.237082, 0.248778)),
        ((0, 0, 10, 10), (20, 0, 30, 10), (0, -0.333333, -0.4, -0.4, -0.294444)),
    ],
)
def test_overlaps_are_those_worked_by_hand(a: tuple[int, ...], b: tuple[int, ...], expected: tuple[float, ...]) -> None:
    found = [float(overlap(torch.tensor(a), torch.tensor(b))) for overlap in OVERLAPS.values()]
    assert found == pytest.approx(expected, abs=1e-6)


@run_each("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_boxes_of_whole_numbers_are_exact(dtype: torch.dtype) -> None:
    """By hand; float32 has no 2^24 + 1, and numbers of few bits would overflow."""
    offset = {torch.uint8: 240, torch.int16: 32_000}.get(dtype, 2**24 + 1)
    a = torch.tensor([[offset, 0, offset + 2, 200]]).to(dtype)
    b = torch.tensor([[offset + 1, 0, offset + 4, 200]]).to(dtype)
    assert box_area(a).tolist() == [400]
    assert iou(a, b).tolist() == [pytest.approx(1 / 4, abs=1e-15)]
    assert box_iou(a, b).tolist() == [[pytest.approx(1 / 4, abs=1e-15)]]
    assert ioa(a, b).tolist() == box_ioa(a, b)[0].tolist() == [0.5]
    assert box_centres(a).tolist() == [[offset + 1, 100]]
    assert iou(a.float(), b.float()).dtype == torch.float32
    assert best_iou_of_boxes(one_anchor(offset + 0.5), a).tolist() == [pytest.approx(1.5 / 2.5)]
    halved = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]])
    assert warp_boxes(a, halved).tolist() == [[offset / 2, 0, offset / 2 + 1, 100]]
    kept = GreedyNMS(iou_threshold=0.3)(torch.cat([a, b]), torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.uint8))
    assert kept.indices.tolist() == [0, 1]


def one_anchor(left: float) -> Priors:
    """Of 2 x 200 pixels."""
    coordinates = torch.tensor([[left, 0, left + 2, 200]], dtype=torch.float64)
    return Priors("anchors", coordinates, (8,), ((1, 1),), (1,))


BOXES = torch.rand(3, 4)


@run_each(
    "boxes1, boxes2, message",
    [
        (torch.rand(3, 5), BOXES, r"boxes1: found the shape \(3, 5\), expected \(N, 4\): x1, y1, x2, y2"),
        (BOXES, torch.rand(4), r"boxes2: found the shape \(4,\), expected \(N, 4\)"),
        (torch.rand(2, 3, 4), BOXES, r"boxes1: found the shape \(2, 3, 4\), expected \(N, 4\)"),
        (BOXES > 0, BOXES, r"boxes1: found torch.bool, expected numbers"),
        (BOXES, BOXES.to(torch.complex64), r"boxes2: found torch.complex64, expected numbers"),
        (BOXES.tolist(), BOXES, r"boxes1: found a list, expected a tensor \(N, 4\)"),
        (BOXES, BOXES.to("meta"), "boxes2: found on meta, boxes1 on cpu; move one"),
    ],
)
def test_what_is_no_boxes_is_refused(boxes1: Any, boxes2: Any, message: str) -> None:
    for matrix in MATRICES:
        with pytest.raises(ValueError, match=message):
            matrix(boxes1, boxes2)


def test_matrices_compile_whole_with_their_gradients() -> None:
    a, b = (each.float() for each in aligned_pairs(8))
    compiled = torch.compile(lambda a: box_iou(a, b).sum(), fullgraph=True, backend="aot_eager")
    given = a.clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(given), given)
    (expected,) = torch.autograd.grad(box_iou(given, b).sum(), given)
    assert torch.equal(found, expected)


def test_shares_are_those_of_pycocotools() -> None:
    """Its boxes are x, y, width, height; with a crowd the overlap is divided by the detection's area."""
    boxes, others = crowd(2, count=30), crowd(4, count=20)
    as_coco = [torch.cat([each[:, :2], each[:, 2:] - each[:, :2]], dim=1).numpy() for each in (boxes, others)]
    for matrix, is_crowd in ((box_iou, 0), (box_ioa, 1)):
        expected = maskUtils.iou(*as_coco, [is_crowd] * len(others))
        assert np.abs(matrix(boxes, others).numpy() - expected).max() < 1e-14


def test_iou_counts_pixels() -> None:
    """On whole pixels the areas are numbers of pixels, counted here in masks."""
    boxes = crowd(1, height=40, width=40).clamp(0, 40)
    rows, columns = np.mgrid[:40, :40] + 0.5
    masks = [(columns > x1) & (columns < x2) & (rows > y1) & (rows < y2) for x1, y1, x2, y2 in boxes.numpy()]
    boxes, masks = boxes[box_area(boxes) > 0], [mask for mask in masks if mask.any()]
    shared_pixels = np.array([[(a & b).sum() for b in masks] for a in masks])
    union = np.array([[(a | b).sum() for b in masks] for a in masks])
    assert np.array_equal(box_iou(boxes, boxes).numpy(), shared_pixels / union)
    assert np.array_equal(box_ioa(boxes, boxes).numpy(), shared_pixels / np.array([[a.sum()] for a in masks]))


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_and_gradients_are_the_published_ones(shared: Path, name: str) -> None:
    stored = golden(shared)
    loss, gradient = graded(name, stored.tensor("a"), stored.tensor("b"))
    assert (1 - loss - stored.tensor(f"own/{name}")).abs().max() < 1e-12
    off = (gradient - stored.tensor(f"own/grad_of_sum_1_minus_{name}")).abs().amax(dim=1)
    off[TIES] = 0
    assert off.max() < 1e-12
    if f"d2/{name}_loss" in stored.arrays:  # it adds 1e-7 to areas and diagonals
        assert (loss - stored.tensor(f"d2/{name}_loss")).abs().max() < 2e-7
        off = (gradient - stored.tensor(f"d2/{name}_loss_grad")).abs().amax(dim=1)
        off[TIES] = 0
        assert off.max() < 2e-7
    if f"s3later/{name}_loss" in stored.arrays:
        assert (loss - stored.tensor(f"s3later/{name}_loss")).abs().max() < 2e-7
        off = (gradient - stored.tensor(f"s3later/{name}_loss_grad")).abs().amax(dim=1)
        off[TIES] = 0
        assert off.max() < 2e-7


def test_matrices_are_the_published_ones(shared: Path) -> None:
    stored = golden(shared)
    a, b = stored.tensor("a").float()[:30], stored.tensor("b").float()[:25]
    assert (box_iou(a, b) - stored.tensor("pairwise_iou_float32")).abs().max() < 1e-6
    expected = stored.tensor("pairwise_ioa_inter_over_second_float32")
    assert (box_ioa(b, a).T - expected).abs().max() < 1e-6


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OVERLAPS, "ioa"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    a, b = aligned_pairs(8)
    overlap = {**OVERLAPS, "ioa": ioa}[name]
    if name == "ciou":  # its factor has no gradient, so only the value of the rest can be differentiated
        a[:, 2:], b[:, 2:] = a[:, :2] + 4, b[:, :2] + 5
    assert torch.autograd.gradcheck(overlap, (a.requires_grad_(), b.requires_grad_()))
    assert torch.autograd.gradcheck(lambda a, b: overlap(a[:, None], b), (a[:3], b[:2]))


@run_each("name", [*OVERLAPS, "ioa"])
@run_each("dtype", [torch.float32, torch.float64])
def test_boxes_without_an_area_overlap_nothing(shared: Path, name: str, dtype: torch.dtype) -> None:
    stored = golden(shared)
    a = torch.cat([stored.tensor("degenerate/a"), torch.tensor([[9, 9, 3, 3], [5, 5, 5, 5], [2, 8, 6, 3]])]).to(dtype)
    b = torch.cat([stored.tensor("degenerate/b"), torch.tensor([[0, 0, 9, 9], [0, 0, 9, 9], [2, 3, 6, 8]])]).to(dtype)
    a, b = a.requires_grad_(), b.requires_grad_()
    found = {**OVERLAPS, "ioa": ioa}[name](a, b)
    assert found.isfinite().all()
    assert torch.equal(iou(a, b), torch.tensor([0, 0, 1, 0, 0, 0]).to(dtype))
    for gradient in torch.autograd.grad(found.sum(), (a, b)):
        assert gradient.isfinite().all()
    if name in ("giou", "diou"):
        expected = stored.tensor(f"degenerate/d2_{name}_loss_float32")
        assert (1 - found[:3].detach() - expected).abs().max() < 1e-6


@run_each("dtype", [torch.float16, torch.bfloat16])
@run_each("name", OVERLAPS)
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    """Boxes of 1,000 pixels: the square of a side is no number of float16."""
    a, b = (each.mul(100).to(dtype) for each in aligned_pairs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = OVERLAPS[name](a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, OVERLAPS[name](a.float(), b.float()))


# --- all pairs --------------------------------------------------------------------------------------------------------


def test_matrices_have_gradients_where_one_is_needed() -> None:
    a, b = (each[:5].requires_grad_() for each in aligned_pairs())
    assert torch.autograd.gradcheck(box_iou, (a, b))
    with torch.no_grad():
        assert not box_iou(a, b).requires_grad


def test_boxes_are_cut_to_the_image_by_hand() -> None:
    boxes = torch.tensor([[-2.0, -1, 5, 30], [3, 4, 50, 6], [40, 4, 50, 6]])
    found = clip_boxes_to_image(boxes, (20, 30))
    assert found.tolist() == [[0, 0, 5, 20], [3, 4, 30, 6], [30, 4, 30, 6]]
    assert clip_boxes_to_image(boxes[0], (20, 30)).tolist() == found[0].tolist()
    assert clip_boxes_to_image(boxes.int(), (20, 30)).tolist() == found.tolist()


# --- Codings of boxes: published and hand-worked values, and bounds of what is decoded ---


PLUS_ONE = torch.tensor([0, 0, 1, 1])
"""A box of the old convention, whose width is x2 - x1 + 1, as a half-open one."""


def assert_near(found: Tensor, expected: Tensor, bound: float) -> None:
    """No entry is off by more than `bound` times the largest of its row, or times 1; rows may be none."""
    assert found.shape == expected.shape
    scale = expected.abs().amax(dim=1, keepdim=True).clamp(min=1)
    assert ((found - expected).abs() <= bound * scale).all()


def test_numbers_worked_by_hand() -> None:
    prior, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([2.0, 3, 14, 23])
    assert encode_deltas(prior, box).tolist() == pytest.approx([0.3, 0.15, 0.182322, 0], abs=1e-6)
    distances = encode_distances(torch.tensor([6.0, 10.0]), box)
    assert distances.tolist() == [4, 7, 8, 13]
    assert float(centreness(distances)) == pytest.approx(0.518875, abs=1e-6)
    assert float(centreness(torch.tensor([3.0, 2, 3, 2]))) == 1
    assert centreness(torch.tensor([[0.0, 2, 3, 2], [-1, 2, 3, 2], [0, 0, 0, 0]])).tolist() == [0, 0, 0]


@run_each("case", range(10))
def test_deltas_are_the_published_ones(shared: Path, case: int) -> None:
    golden = load_golden(shared, "box_coding", area="detect")
    stored = {key.partition("/")[2]: golden.tensor(key) for key in golden.arrays if key.startswith(f"delta{case}/")}
    weights = tuple(golden.info["cases"][case]["weights"])
    anchors, boxes, drawn = stored["anchors"], stored["gt"], stored["random_deltas"]
    assert_near(encode_deltas(anchors, boxes, weights=weights), stored["deltas"], 1e-12)
    for name, deltas in (("decoded", drawn), ("decoded_of_deltas", stored["deltas"])):  # theirs decodes in float32
        assert_near(decode_deltas(anchors.float(), deltas.float(), weights=weights), stored[name], 1e-6)
    old = encode_deltas(anchors + PLUS_ONE, boxes + PLUS_ONE)
    assert_near(old, stored["crowddet_plus1_deltas"], 1e-12)
    assert_near(decode_deltas(anchors + PLUS_ONE, drawn), stored["crowddet_plus1_decoded"], 1e-12)


@run_each("case", range(10))
def test_distances_are_the_published_ones(shared: Path, case: int) -> None:
    """Theirs may be in sizes of the prior, ours are in strides; theirs decode negative distances as 0."""
    golden = load_golden(shared, "box_coding", area="detect")
    stored = {key.partition("/")[2]: golden.tensor(key) for key in golden.arrays if key.startswith(f"ltrb{case}/")}
    points = box_centres(stored["source"])
    unit = box_sizes(stored["source"]).repeat(1, 2) if golden.info["ltrb_normalised"][case] else 1.0
    found = encode_distances(points, stored["gt"], strides=unit)
    assert_near(found, stored["ltrb"], 1e-12)
    assert_near(decode_distances(points, found.relu(), strides=unit), stored["decoded"], 1e-12)
    assert_near(centreness(found)[:, None], stored["centerness"][:, None], 1e-12)


def test_decoded_boxes_are_bounded_and_finite() -> None:
    prior = torch.tensor([0.0, 0, 16, 16])
    found = decode_deltas(prior, torch.tensor([0, 0, 1e4, -1e4]))
    assert found.tolist() == pytest.approx([-492, 8, 508, 8])
    assert box_sizes(decode_deltas(prior, torch.tensor([0, 0, math.log(62), 0])))[0] == pytest.approx(62 * 16)
    assert encode_deltas(prior, torch.tensor([3.0, 3, 3, 3])).isfinite().all()
    half = decode_deltas(prior.half(), torch.full((4,), 6.0).half())
    assert half.dtype == torch.float32
    assert half.isfinite().all()
