"""Priors: the anchors of three published generators, one known cell, real maps, fitted shapes and coverage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.detect.assigned_boxes import best_iou_of_boxes
from sightline.ops.boxes.overlaps import box_area, box_centres, box_sizes
from sightline.ops.boxes.priors import PRESETS, AnchorShapes, PriorGrid, make_anchors, make_points
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.ops.boxes.crowds import crowd

STRIDES = (8, 16, 32, 64, 128)


def maps_of(height: int, width: int, strides: tuple[int, ...] = STRIDES) -> list[tuple[int, int]]:
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]


# --- published generators ---------------------------------------------------------------------------------------------


@run_each("case", range(8))
def test_anchors_are_those_of_detectron(shared: Path, case: int) -> None:
    """At the corners of cells, and at their middles."""
    golden = load_golden(shared, "anchors", area="detect")
    info = golden.info["cases"][case]
    strides, ratios = info["strides"], tuple(info["ratios"][0])
    shapes = [
        [pair for size in sizes for pair in AnchorShapes((1.0,), ratios, base_strides=size / stride).sizes(stride)]
        for sizes, stride in zip(info["sizes"], strides, strict=True)
    ]
    maps = [tuple(size) for size in info["feature_hw"]]
    found = make_anchors(maps, strides, shapes, grid=PriorGrid(info["offset"]), dtype=torch.float64)
    for level, rows in enumerate(found.level_slices):
        expected = golden.tensor(f"{info['key']}/level{level}").double()
        assert (found.coordinates[rows] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_anchors_are_those_of_crowddet_but_for_their_place(shared: Path) -> None:
    """Theirs have widths x2 - x1 + 1, stand about (8, 8), go ratio by ratio, and round the widths of the base 32."""
    golden = load_golden(shared, "anchors", area="detect")
    names = ("P3", "P4", "P5", "P6", "P7")
    first = [box_centres(golden.tensor(f"crowddet/{name}"))[::9] for name in names]  # of each cell, rows of cells
    maps = [(len(each[:, 1].unique()), len(each[:, 0].unique())) for each in first]
    found = make_anchors(maps, STRIDES, PRESETS["crowddet"], dtype=torch.float64)
    for name, rows, stride in zip(names, found.level_slices, STRIDES, strict=True):
        theirs = golden.tensor(f"crowddet/{name}").double() + torch.tensor([0, 0, 1, 1])
        theirs = theirs.view(-1, 3, 3, 4).transpose(1, 2).flatten(0, 2)  # ratio by ratio -> scale by scale
        ours = found.coordinates[rows]
        assert (box_centres(theirs) - 8 - (box_centres(ours) - stride / 2)).abs().max() < 1e-4
        exact = 32 / torch.tensor([1.0, 2, 3], dtype=torch.float64).sqrt()
        rounded = (exact / exact.round()).repeat(len(ours) // 3)[:, None]
        assert (box_sizes(theirs) * rounded - box_sizes(ours)).abs().max() < 1e-4


def test_s3_anchors_are_those_of_their_authors(shared: Path) -> None:
    golden = load_golden(shared, "anchors_s3", area="detect")
    for info in golden.info["cases"]:
        height, width = (int(side) for side in info["key"].split("x"))
        strides = (8, 16, 32)
        found = make_anchors(maps_of(height, width, strides), strides, PRESETS["s3"], dtype=torch.float64)
        assert len(found) == info["count"]
        # theirs: ratio by ratio, for each scale by scale, for each all cells
        parts = [
            found.coordinates[rows].view(*size, 2, 2, 4).permute(3, 2, 0, 1, 4).reshape(-1, 4)
            for rows, size in zip(found.level_slices, found.maps, strict=True)
        ]
        theirs = torch.cat(parts)
        assert torch.equal(theirs[:: info["row_step"]], golden.tensor(info["key"]))
        assert theirs.sum(dim=0).tolist() == info["column_sums"]


def torchvisions(maps: list[tuple[int, int]], image_px: tuple[int, int]) -> list[np.ndarray]:
    """The anchors of torchvision's RetinaNet, read off pytorch/vision: per level (H, W, ratio, size, 4), float32."""
    levels = []
    for (height, width), size in zip(maps, (32, 64, 128, 256, 512), strict=True):
        sizes = np.array([size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))], dtype=np.float32)
        anchors = np.zeros((height, width, 3, 3, 4), dtype=np.float32)
        for row, column, ratio, place in np.ndindex(height, width, 3, 3):
            root = np.sqrt(np.float32((0.5, 1.0, 2.0)[ratio]))
            half_width = np.round(np.float32(1) / root * sizes[place] / 2)
            half_height = np.round(root * sizes[place] / 2)
            x, y = column * (image_px[1] // width), row * (image_px[0] // height)
            anchors[row, column, ratio, place] = x - half_width, y - half_height, x + half_width, y + half_height
        levels.append(anchors)
    return levels


@pytest.mark.parametrize("image_px", [(96, 160), (224, 64), (256, 128)])
def test_anchors_are_those_of_torchvision(image_px: tuple[int, int]) -> None:
    """Steps are less than the stride where cells do not divide the image; the order of a cell is undone."""
    maps = maps_of(*image_px)
    shapes = AnchorShapes(PRESETS["retinanet"].scales, PRESETS["retinanet"].ratios, whole_px=True)
    assert shapes.sizes(8)[4] == (40, 40), "32 times the third root of 2 is 40.3"
    found = make_anchors(maps, STRIDES, shapes, grid=PriorGrid(0.0, image_px))
    for rows, expected in zip(found.level_slices, torchvisions(maps, image_px), strict=True):
        assert np.array_equal(found.coordinates[rows].numpy(), expected.swapaxes(2, 3).reshape(-1, 4))
    points = make_points(maps, STRIDES, grid=PriorGrid(0.0, image_px))
    assert torch.equal(found.centres, points.coordinates.repeat_interleave(9, dim=0))
    assert torch.equal(
        points.coordinates, torch.cat([box_centres(found.coordinates[rows][::9]) for rows in found.level_slices])
    )


def test_cells_of_the_last_level_are_nearer_than_their_stride() -> None:
    """A side of 800 pixels has 7 cells of the stride 128, 114 pixels apart; with a stride they would reach past it."""
    found = make_points([(7, 7)], (128,), grid=PriorGrid(0.0, (800, 800)))
    assert found.coordinates[:7, 0].tolist() == [0, 114, 228, 342, 456, 570, 684]
    assert make_points([(7, 7)], (128,)).coordinates[6].tolist() == [832, 64]


# --- layout -----------------------------------------------------------------------------------------------------------


def test_counts_are_the_published_ones() -> None:
    assert len(make_anchors(maps_of(800, 1344), STRIDES, PRESETS["retinanet"])) == 201_600
    assert len(make_anchors(maps_of(800, 1024, STRIDES[:3]), STRIDES[:3], PRESETS["s3"])) == 67_200


def test_a_known_cell_stands_where_a_map_has_it() -> None:
    """Row 2, column 3 of the second level of an image that is wider than high: (H, W, A), as (H, W, A K) flattens."""
    maps, strides = [(6, 10), (3, 5)], (8, 16)
    priors = make_anchors(maps, strides, PRESETS["retinanet"])
    place = 6 * 10 * 9 + (2 * 5 + 3) * 9 + 4  # the second scale, the second ratio: a square
    side = 64 * 2 ** (1 / 3)
    assert priors.coordinates[place].tolist() == pytest.approx(
        [56 - side / 2, 40 - side / 2, 56 + side / 2, 40 + side / 2]
    )
    assert (int(priors.prior_level[place]), float(priors.prior_stride[place])) == (1, 16)
    flat = torch.arange(len(priors)).split(priors.num_per_level)[1].view(3, 5, 9)
    assert int(flat[2, 3, 4]) == place
    points = make_points(maps, strides)
    assert points.coordinates[60 + 2 * 5 + 3].tolist() == [56, 40]
    assert torch.equal(points.to_boxes(2)[60 + 13], torch.tensor([40.0, 24, 72, 56]))
    assert torch.equal(priors.centres, points.centres.repeat_interleave(9, dim=0))
    assert (priors.centres - box_centres(priors.coordinates)).abs().max() < 1e-4


def test_ratios_keep_the_area_or_the_width() -> None:
    for width, height in AnchorShapes((1.0, 2.0), (0.5, 1.0, 3.0)).sizes(16)[3:]:
        assert width * height == pytest.approx(128**2)
    assert AnchorShapes((0.75,), (2.0, 4.0), preserves="width").sizes(8) == [(24, 48), (24, 96)]


def test_missing_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="found 2 maps, 1 strides, 1 shapes; expected one of each for every level"):
        make_anchors([(4, 4), (2, 2)], (8,), PRESETS["retinanet"])
    with pytest.raises(ValueError, match="found 0 maps, 0 strides"):
        make_points([], ())


def test_best_overlaps_are_those_of_the_whole_matrix() -> None:
    priors = make_anchors(maps_of(96, 128), STRIDES, PRESETS["crowddet"], dtype=torch.float64)
    boxes = crowd(2)
    expected = np.zeros(len(boxes))
    for row, box in enumerate(boxes.numpy()):
        rows = priors.coordinates.numpy()
        sides = np.minimum(rows[:, 2:], box[2:]) - np.maximum(rows[:, :2], box[:2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        areas = box_area(priors.coordinates).numpy() + np.prod(box[2:] - box[:2])
        expected[row] = (shared / (areas - shared)).max()
    assert np.abs(best_iou_of_boxes(priors, boxes).numpy() - expected).max() < 1e-15
