"""Benchmarks of turned boxes and of pillars: overlaps beside shapely, suppression, and a loop over points in numba."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import BenchmarkCase, Implementation, Run, allclose, equal, implementation
from sightline import ops
from sightline.ops.boxes.rotated_overlaps import drop_empty_boxes, make_footprints
from sightline.ops.boxes.suppression import sort_falling
from sightline.ops.operator import OPERATORS

SPAN_M = 80.0
"""Side of the square that boxes are drawn in: a street as a LiDAR sees it."""
RANGE_M = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
"""Range of KITTI's recipes, whose pillars are 0.16 m wide."""
PILLARS: dict[str, Any] = {"side_m": (0.16, 0.16), "range_m": RANGE_M, "max_points": 32, "max_pillars": 16_000}
CLOSE = allclose(1e-9)


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="geometry",
            label="turned_iou_{boxes}x{labels}",
            size={"boxes": 1000, "labels": 1000},
            quick={"boxes": 60, "labels": 40},
            make=lambda boxes, labels: {"boxes": draw_cars(boxes, seed=0), "labels": draw_cars(labels, seed=1)},
            baseline=implementation("plain", lambda sets: _overlap_plainly(**sets), CLOSE),
            variants=(
                implementation("sightline", lambda sets: ops.box3d_iou_bev(sets["boxes"], sets["labels"]), CLOSE),
                Implementation("shapely", _open_shapely, CLOSE, "shapely"),
                Implementation("shapely_strtree", _open_shapely_tree, CLOSE, "shapely"),
            ),
        ),
        BenchmarkCase(
            suite="geometry",
            label="suppress_turned_{boxes}",
            size={"boxes": 4096},
            quick={"boxes": 100},
            make=_make_detections,
            baseline=implementation("plain_loop", lambda inputs: _suppress_plainly(**inputs), equal),
            variants=(implementation("sightline", lambda inputs: ops.box3d_nms(**inputs, iou_threshold=0.2), equal),),
        ),
        BenchmarkCase(
            suite="geometry",
            label="pillars_{points}",
            size={"points": 120_000},
            quick={"points": 2000},
            make=draw_scan,
            baseline=implementation(
                "numba_loop", lambda inputs: _fill_in_numba(**inputs), allclose(0.0), needs="numba"
            ),
            variants=(implementation("sightline", lambda inputs: _fill_pillars(**inputs), allclose(0.0)),),
        ),
    ]


def draw_cars(count: int, *, seed: int) -> Tensor:
    """Draw boxes (N, 7) of the size of cars, turned at random, in a square of 80 m."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([4.0, 1.8, 1.5]) + 0.2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    height = drawn.new_zeros(count, 1)
    return torch.cat([SPAN_M * drawn[:, :2], height, sizes, 2 * torch.pi * drawn[:, 2:]], dim=1)


def _make_detections(*, boxes: int) -> dict[str, Tensor]:
    scores = torch.rand(boxes, generator=torch.Generator().manual_seed(2))
    return {"boxes": draw_cars(boxes, seed=0), "scores": scores}


def draw_scan(*, points: int) -> dict[str, Tensor]:
    """Draw `points` (N, 4) of which there are more nearby, as in a scan."""
    generator = torch.Generator().manual_seed(0)
    distance, turn, height = torch.rand(3, points, generator=generator)
    distance, turn = 3 + 67 * distance.square(), torch.pi * (turn - 0.5)
    coordinates = (distance * turn.cos(), distance * turn.sin(), 3 * height - 2.5, height)
    return {"points": torch.stack(coordinates, dim=1)}


# --- overlaps ---------------------------------------------------------------------------------------------------------


def _overlap_plainly(boxes: Tensor, labels: Tensor) -> Tensor:
    tables = (make_footprints(drop_empty_boxes(each)) for each in (boxes, labels))
    shared = OPERATORS["bev_overlap"].plain(*tables, False)
    areas = (boxes[:, 3] * boxes[:, 4])[:, None] + labels[:, 3] * labels[:, 4]
    return shared / (areas - shared)


def _polygons(boxes: Tensor) -> Any:
    import shapely

    x, y, _, length, width, _, yaw = boxes.numpy().T
    along, across = np.array([1, -1, -1, 1]) / 2, np.array([1, 1, -1, -1]) / 2
    ahead, left = length[:, None] * along, width[:, None] * across
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    corners = np.stack([x[:, None] + cosine * ahead - sine * left, y[:, None] + sine * ahead + cosine * left], axis=-1)
    return shapely.polygons(corners)


@contextmanager
def _open_shapely(sets: dict[str, Tensor]) -> Iterator[Run]:
    """Intersect all pairs of polygons, which are made beforehand."""
    import shapely

    one, other = _polygons(sets["boxes"]), _polygons(sets["labels"])

    def run() -> Tensor:
        shared = shapely.area(shapely.intersection(one[:, None], other))
        return torch.from_numpy(shared / (shapely.area(one)[:, None] + shapely.area(other) - shared))

    yield run


@contextmanager
def _open_shapely_tree(sets: dict[str, Tensor]) -> Iterator[Run]:
    """Intersect the pairs that a tree of the polygons finds."""
    import shapely

    one, other = _polygons(sets["boxes"]), _polygons(sets["labels"])

    def run() -> Tensor:
        row, column = shapely.STRtree(other).query(one)
        shared = np.zeros((len(one), len(other)))
        shared[row, column] = shapely.area(shapely.intersection(one[row], other[column]))
        return torch.from_numpy(shared / (shapely.area(one)[:, None] + shapely.area(other) - shared))

    yield run


# --- suppression ------------------------------------------------------------------------------------------------------


def _suppress_plainly(boxes: Tensor, scores: Tensor) -> Tensor:
    order = sort_falling(scores)
    table, one = make_footprints(drop_empty_boxes(boxes))[order], torch.zeros_like(order)
    return order[OPERATORS["keep_apart"].plain(table, scores, one, one == 0, 0.2, False)]


# --- pillars ----------------------------------------------------------------------------------------------------------


def _fill_pillars(points: Tensor) -> dict[str, Tensor]:
    found = ops.hard_pillars(points, **PILLARS)
    return {"index": found.point_index[0], "cells": found.cells[0], "num_points": found.num_points[0]}


def _fill_in_numba(points: Tensor) -> dict[str, Tensor]:
    lowest, highest = np.array(RANGE_M, dtype=np.float32).reshape(2, 3)
    side = np.array([*PILLARS["side_m"], RANGE_M[5] - RANGE_M[2]], dtype=np.float32)
    grid = np.round((highest - lowest) / side).astype(np.int64)
    limits = PILLARS["max_points"], PILLARS["max_pillars"]
    index, cells, num_points = _compile_loop()(points.numpy(), lowest, side, grid, *limits)
    return {name: torch.from_numpy(v) for name, v in (("index", index), ("cells", cells), ("num_points", num_points))}


@cache
def _compile_loop() -> Any:
    import numba

    return numba.njit(_loop_over_points)


def _loop_over_points(
    points: np.ndarray, lowest: np.ndarray, side: np.ndarray, grid: np.ndarray, max_points: int, max_pillars: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill pillars in the plainest way: twenty lines, without counts of what is dropped and without frames."""
    table = np.full((grid[1], grid[0]), -1, dtype=np.int32)
    index, cells = np.full((max_pillars, max_points), -1), np.full((max_pillars, 2), -1)
    num_points, count, cell = np.zeros(max_pillars, dtype=np.int64), 0, np.zeros(3, dtype=np.int64)
    for point in range(len(points)):
        is_inside = True
        for axis in range(3):
            place = np.floor((points[point, axis] - lowest[axis]) / side[axis])
            if not (place >= 0 and place < grid[axis]):
                is_inside = False
                break
            cell[axis] = np.int64(place)
        if is_inside:
            pillar = table[cell[1], cell[0]]
            if pillar == -1 and count < max_pillars:
                pillar, count = count, count + 1
                table[cell[1], cell[0]] = pillar
                cells[pillar, 0], cells[pillar, 1] = cell[1], cell[0]
            if pillar >= 0 and num_points[pillar] < max_points:
                index[pillar, num_points[pillar]] = point
                num_points[pillar] += 1
    return index, cells, num_points
