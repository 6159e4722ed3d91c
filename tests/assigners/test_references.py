"""Every assigner against a literal reference with loops, on 200 seeded crowds with doubled boxes and ignore regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sightline.areas.detect.fcos import ATSS, FCOS
from sightline.areas.detect.retinanet import MaxIoU
from sightline.ops.boxes.priors import AnchorShapes, Priors, make_anchors, make_points
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED
from tests.ops.boxes.crowds import crowd

SEEDS = range(200)
STRIDES = (8, 16, 32)
MAPS = ((12, 16), (6, 8), (3, 4))
ANCHORS = make_anchors(MAPS, STRIDES, AnchorShapes((1.0,), (1.0, 2.0), base_strides=2), dtype=torch.float64)
POINTS = make_points(MAPS, STRIDES, dtype=torch.float64)


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes, a third of them doubled, and which are ignore regions: none, some, or all."""
    boxes = crowd(seed, count=12)
    drawn = torch.rand(len(boxes), generator=torch.Generator().manual_seed(seed))
    return boxes, drawn < (0.0, 0.25, 0.25, 1.0)[seed % 4 if seed < 196 else 3]


def matrix(a: np.ndarray, b: np.ndarray, *, over_b: bool = False) -> np.ndarray:
    """IoU (N, M), or the share of `b`."""
    found = np.zeros((len(a), len(b)))
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (a, b)]
    for row, (x1, y1, x2, y2) in enumerate(a):
        width = np.maximum(np.minimum(x2, b[:, 2]) - np.maximum(x1, b[:, 0]), 0)
        height = np.maximum(np.minimum(y2, b[:, 3]) - np.maximum(y1, b[:, 1]), 0)
        shared = width * height
        found[row] = shared / (areas[1] if over_b else areas[0][row] + areas[1] - shared)
    return found


def hide(matched: np.ndarray, priors: Priors, regions: np.ndarray) -> np.ndarray:
    """Background inside an ignore region is ignored."""
    rows = priors.coordinates.numpy()
    for region in regions:
        if priors.kind == "anchors":
            inside = matrix(region[None], rows, over_b=True)[0] > 0.5
        else:
            inside = ((rows >= region[:2]) & (rows < region[2:])).all(axis=1)
        matched[(matched == BACKGROUND) & inside] = IGNORED
    return matched


def literal_max_iou(overlap: np.ndarray, low_quality: str | None) -> np.ndarray:
    """Steps 1 to 4; boxes are the rows."""
    matched = np.full(overlap.shape[1], BACKGROUND)
    for prior in np.flatnonzero(overlap.max(axis=0) >= 0.4):
        best = int(overlap[:, prior].argmax())
        matched[prior] = best if overlap[best, prior] >= 0.5 else IGNORED
    claimed: dict[int, float] = {}
    for box in range(len(overlap)):
        if low_quality is None or overlap[box].max() <= 0:
            continue
        for prior in np.flatnonzero(overlap[box] == overlap[box].max()):
            if low_quality == "detectron":
                matched[prior] = overlap[:, prior].argmax()
            elif low_quality == "overwrite" or overlap[box, prior] > claimed.get(prior, 0):
                matched[prior], claimed[prior] = box, overlap[box, prior]
    return matched


def literal_fcos(boxes: np.ndarray) -> np.ndarray:
    matched = np.full(len(POINTS), BACKGROUND)
    points = POINTS.coordinates.tolist()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    limits = [-1, 64, 128, np.inf]
    for level, rows in enumerate(POINTS.level_slices):
        for prior in range(rows.start, rows.stop):
            x, y = points[prior]
            smallest = np.inf
            for box, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                if not (x1 < x < x2 and y1 < y < y2):
                    continue
                reach = 1.5 * STRIDES[level]
                if not (abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach):
                    continue
                if limits[level] <= max(x - x1, y - y1, x2 - x, y2 - y) <= limits[level + 1] and areas[box] < smallest:
                    matched[prior], smallest = box, areas[box]
    return matched


def literal_atss(boxes: np.ndarray) -> np.ndarray:
    rows = ANCHORS.coordinates.numpy()
    overlap, middles = matrix(boxes, rows), (rows[:, :2] + rows[:, 2:]) / 2
    matched, best = np.full(len(rows), BACKGROUND), np.full(len(rows), -1.0)
    for box, (x1, y1, x2, y2) in enumerate(boxes):
        distance = (middles[:, 0] - (x1 + x2) / 2) ** 2 + (middles[:, 1] - (y1 + y2) / 2) ** 2
        near: list[int] = []
        for level in ANCHORS.level_slices:
            places = np.arange(level.start, level.stop)
            near += places[np.lexsort([places, distance[level]])][: 9 * 2].tolist()
        limit = overlap[box, near].mean() + overlap[box, near].std(ddof=1)
        for prior in near:
            x, y = middles[prior]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if overlap[box, prior] >= limit and inside and overlap[box, prior] > best[prior]:
                matched[prior], best[prior] = box, overlap[box, prior]
    return matched


def in_all_boxes(matched: np.ndarray, is_ignored: torch.Tensor) -> np.ndarray:
    """Indices among the boxes that are no regions -> indices among all."""
    targets = np.flatnonzero(~is_ignored.numpy())
    return np.array([targets[each] if each >= 0 else each for each in matched], dtype=np.int64)


@pytest.mark.parametrize("low_quality", [None, "detectron", "overwrite"])
def test_max_iou_is_the_literal_one(low_quality: str | None) -> None:
    assigner = MaxIoU(low_quality=low_quality)  # type: ignore[arg-type]
    for seed in SEEDS:
        boxes, is_ignored = scene(seed)
        real = boxes[~is_ignored].numpy()
        expected = np.full(len(ANCHORS), BACKGROUND)
        if len(real):
            expected = in_all_boxes(literal_max_iou(matrix(real, ANCHORS.coordinates.numpy()), low_quality), is_ignored)
        found = assigner(ANCHORS, boxes, is_ignored).matched.numpy()
        assert np.array_equal(found, hide(expected, ANCHORS, boxes[is_ignored].numpy())), seed


@pytest.mark.parametrize("kind", ["fcos", "atss"])
def test_fcos_and_atss_are_the_literal_ones(kind: str) -> None:
    assigner, priors, literal = {"fcos": (FCOS(), POINTS, literal_fcos), "atss": (ATSS(), ANCHORS, literal_atss)}[kind]
    for seed in SEEDS:
        boxes, is_ignored = scene(seed)
        expected = in_all_boxes(literal(boxes[~is_ignored].numpy()), is_ignored)
        found = assigner(priors, boxes, is_ignored).matched.numpy()
        assert np.array_equal(found, hide(expected, priors, boxes[is_ignored].numpy())), seed


def test_a_limit_of_atss_is_compared_in_float() -> None:
    """Of 4,000 boxes those with a candidate whose IoU is less than 1e-4 from its limit, above or below it.

    A limit that is off by 1e-4 in either direction changes every one of them, and none of the seeded crowds.
    """
    draw = np.random.default_rng(0)
    corner, size = draw.uniform(0, [96, 64], (4000, 2)), draw.uniform(8, 48, (4000, 2))
    boxes, rows = np.concatenate([corner, corner + size], axis=1), ANCHORS.coordinates.numpy()
    overlap = matrix(boxes, rows)
    middles, own = (rows[:, :2] + rows[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = ((own[:, None] - middles) ** 2).sum(axis=2)
    near = np.concatenate(
        [level.start + np.argsort(distance[:, level], axis=1, kind="stable")[:, :18] for level in ANCHORS.level_slices],
        axis=1,
    )
    values = np.take_along_axis(overlap, near, axis=1)
    off = values - (values.mean(axis=1) + values.std(axis=1, ddof=1))[:, None]
    is_inside = ((middles[near] - boxes[:, None, :2] > 0.01) & (boxes[:, None, 2:] - middles[near] > 0.01)).all(axis=2)
    close = [((side * off > 1e-9) & (side * off < 1e-4) & is_inside).any(axis=1) for side in (-1, 1)]
    assert min(map(np.sum, close)) > 5
    for box in np.flatnonzero(close[0] | close[1]).tolist():
        chosen = near[box, (off[box] >= 0) & is_inside[box]]
        found = ATSS()(ANCHORS, torch.from_numpy(boxes[[box]]), torch.tensor([False])).matched
        assert (found == 0).nonzero().flatten().tolist() == sorted(chosen.tolist()), box


def test_the_guarantee_holds_and_changes_no_more_than_it_must() -> None:
    """Every box has an anchor; the sum of IoUs of those that got one afterwards is the highest that there is."""
    num_orphans = num_without_overlap = 0
    for seed in SEEDS:
        boxes = crowd(seed, count=24, height=64, width=64)
        boxes[seed % 24] += 500  # far from all anchors
        overlap = matrix(boxes.numpy(), ANCHORS.coordinates.numpy())
        before = literal_max_iou(overlap, "guarantee")
        found = MaxIoU()(ANCHORS, boxes, torch.zeros(len(boxes), dtype=torch.bool)).matched.numpy()
        owners = {*before[before >= 0].tolist()}
        orphans = sorted({*range(len(boxes))} - owners)
        assert {*found[found >= 0].tolist()} == {*range(len(boxes))}, seed

        changed = np.flatnonzero(found != before)
        assert sorted(found[changed].tolist()) == orphans, "one anchor for each box that had none, and no other change"
        locked = [max(np.flatnonzero(before == box), key=lambda p: (overlap[box, p], -p)) for box in owners]
        assert not {*changed.tolist()} & {*locked}, "the best anchor of every other box stays"

        free = np.setdiff1d(np.arange(len(before)), locked)
        rows, columns = linear_sum_assignment(overlap[np.ix_(orphans, free)], maximize=True)
        highest = overlap[np.ix_(orphans, free)][rows, columns].sum()
        reached = {prior: overlap[found[prior], prior] for prior in changed}
        assert sum(reached.values()) == pytest.approx(highest, abs=1e-12)
        num_orphans += len(orphans)
        num_without_overlap += sum(value == 0 for value in reached.values())
    assert num_orphans > 500
    assert num_without_overlap > 0


def test_a_box_that_overlaps_nothing_gets_the_nearest_anchor_of_its_size() -> None:
    """Sizes of the levels are 16, 32 and 64 times the root of 1 or 2 widths; a box far outside of 20 x 40 is of 16."""
    far = torch.tensor([[500.0, 20, 520, 60], [500, 20, 520, 60], [-300, -300, -200, -200], [50, 50, 50, 50]])
    found = MaxIoU()(ANCHORS, far, torch.zeros(4, dtype=torch.bool)).matched
    priors = [(found == box).nonzero().flatten().tolist() for box in range(4)]
    areas = [math.log(8 * 8 * 4 * 4**level) for level in range(3)]  # both ratios keep the area
    levels = [
        min(range(3), key=lambda level: abs(areas[level] - math.log(size))) for size in (800, 800, 10_000, 1e-300)
    ]
    assert levels == [1, 1, 2, 0]
    middles = ANCHORS.centres.tolist()
    assert [[middles[prior] for prior in each] for each in priors] == [[[120, 40]], [[120, 40]], [[16, 16]], [[52, 52]]]
    assert priors[0] != priors[1]
