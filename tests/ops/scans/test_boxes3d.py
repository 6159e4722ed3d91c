"""Boxes of KITTI against the numbers of two public code bases, on real frames and on points that lie on faces."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.kitti_object import Calibration, read_calibration
from sightline.ops.boxes.points_in_boxes import points_in_boxes
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

FRAMES = ("000000", "000001", "000003")
FLOAT32 = float(np.finfo(np.float32).eps)


def points_in_box(points: np.ndarray, box: np.ndarray, **rule: float) -> np.ndarray:
    """Mask of the points in one box."""
    mask: np.ndarray = points_in_boxes(torch.from_numpy(points), torch.from_numpy(box)[None], **rule).numpy() == 0
    return mask


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "kitti_box_membership", area="lidar")


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data/kitti_object_mini"


def velodyne(folder: Path, frame: str) -> np.ndarray:
    return np.fromfile(folder / f"velodyne/{frame}.bin", dtype="<f4").reshape(-1, 4)[:, :3]


@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_hold_the_points_that_the_reference_says(golden: Golden, folder: Path, frame: str) -> None:
    calibration = read_calibration(folder / f"calib/{frame}.txt")
    camera = calibration.to_camera(velodyne(folder, frame))
    arrays = golden.arrays
    boxes = arrays[f"frame_{frame}/boxes_camera_xyz_lhw_ry"]
    for number, box in enumerate(boxes):
        found = np.flatnonzero(points_in_box(camera, box))
        assert np.array_equal(found, arrays[f"frame_{frame}/box{number}/point_index"])
        assert len(found) == arrays[f"frame_{frame}/count_convex_hull"][number]


@pytest.mark.parametrize("frame", FRAMES)
def test_the_chain_of_frames_is_the_references(golden: Golden, folder: Path, frame: str) -> None:
    """Its matrices are float32: a coordinate of 80 m, a few of which are added, is off by as many roundings.

    It divides by the depth and forgets the offset in the last row of P2, which is undone here.
    """
    calibration, points = read_calibration(folder / f"calib/{frame}.txt"), velodyne(folder, frame)[::64]
    arrays = golden.arrays
    camera = calibration.to_camera(points)
    bound = 8 * FLOAT32 * 80
    assert np.abs(camera - arrays[f"frame_{frame}/rect_every64"]).max() <= bound
    pixels, depth = calibration.to_image(camera), arrays[f"frame_{frame}/depth_every64"]
    assert (np.isnan(pixels[:, 0]) == (camera[:, 2] <= 0)).mean() > 0.999
    is_ahead = depth > 1.0
    expected = arrays[f"frame_{frame}/image_uv_every64"][is_ahead]
    expected = expected * (depth / (depth + calibration.projection[2, 3]))[is_ahead, None]
    # A pixel is a ratio of sums of about 1000 px times 80 m; near the camera's plane it is large itself.
    assert (np.abs(pixels[is_ahead] - expected) <= 8 * FLOAT32 * (1000 * 80 + np.abs(expected) * 80)).all()


@run_each("case", range(10))
def test_faces_belong_to_a_box(golden: Golden, case: int) -> None:
    """Points of the golden file lie on faces too; those are exact where the box is not turned."""
    arrays = golden.arrays
    box, points = arrays[f"random{case}/box_camera_xyz_lhw_ry"], arrays[f"random{case}/points"]
    found, expected = points_in_box(points, box), arrays[f"random{case}/inside"]
    offset = points - box[:3]
    along = np.cos(box[6]) * offset[:, 0] - np.sin(box[6]) * offset[:, 2]
    across = np.sin(box[6]) * offset[:, 0] + np.cos(box[6]) * offset[:, 2]
    faces = [np.abs(along) - box[3] / 2, np.abs(across) - box[5] / 2, offset[:, 1], offset[:, 1] + box[4]]
    is_on_a_face = np.min(np.abs(faces), axis=0) < 1e-12
    assert np.array_equal(found[~is_on_a_face], expected[~is_on_a_face])
    assert (found != expected).sum() == 0 or box[6] != 0


def test_margin_and_bottom_by_hand() -> None:
    box = np.array([0.0, 0.0, 10.0, 4.0, 1.5, 2.0, 0.0])
    points = np.array([[2.05, -1, 10], [2.2, -1, 10], [0, 0.05, 10], [0, -0.05, 10], [0, -1.55, 10], [0, -1, 11.05]])
    assert points_in_box(points, box).tolist() == [False, False, False, True, False, False]
    assert points_in_box(points, box, margin=0.1).tolist() == [True, False, False, True, True, True]
    assert points_in_box(points, box, margin=0.1, bottom=0.1).tolist() == [True, False, False, False, True, True]


def test_the_first_box_that_holds_a_point_is_found_by_hand() -> None:
    """Two boxes that share a half, one turned by a quarter; a point that is no number, and formats of fewer digits."""
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0], [1, 0, 0, 4, 2, 2, 0], [9, 0, 0, 4, 2, 1, np.pi / 2]])
    points = torch.tensor([[-2.0, -1, 0], [1, -1, 1], [3, -2, -1], [9, 0, 1.9], [10.9, 0, 0], [0, 1, 0]])
    found = points_in_boxes(points, boxes)
    assert found.tolist() == [0, 0, 1, 2, -1, -1]
    assert points_in_boxes(points, boxes[:0]).tolist() == [-1] * 6
    assert points_in_boxes(points[:0], boxes).tolist() == []
    assert points_in_boxes(points.int(), boxes.half()).tolist() == [0, 0, 1, 2, -1, -1]
    points[1, 1] = torch.nan
    assert points_in_boxes(points, boxes).tolist() == [0, -1, 1, 2, -1, -1]
    assert points_in_boxes(points, boxes, margin=1.5).tolist() == [0, -1, 0, 2, 2, -1]


@run_each(
    "points, boxes, message",
    [
        (torch.rand(5, 4), torch.rand(2, 7), r"points: found \(5, 4\) torch\.float32, expected numbers \(N, 3\)"),
        (torch.rand(5, 3), torch.rand(7), r"boxes: found \(7,\) torch\.float32, expected numbers \(N, 7\)"),
        (torch.rand(5, 3) > 0, torch.rand(2, 7), r"points: found \(5, 3\) torch\.bool"),
        (torch.rand(5, 3), torch.rand(2, 7, device="meta"), "boxes: found on meta, points on cpu"),
    ],
)
def test_other_forms_of_points_and_boxes_are_refused(points: torch.Tensor, boxes: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points_in_boxes(points, boxes)


def test_points_behind_the_camera_have_no_pixel() -> None:
    """By hand: the projection alone would mirror them into the image."""
    calibration = Calibration(np.eye(4), np.array([[100.0, 0, 50, 0], [0, 100, 40, 0], [0, 0, 1, 0]]))
    pixels = calibration.to_image(np.array([[1.0, 2.0, 10.0], [1.0, 2.0, -10.0], [1.0, 2.0, 0.0]]))
    assert pixels[0].tolist() == [60.0, 60.0]
    assert np.isnan(pixels[1:]).all()


@pytest.mark.parametrize("bits", [0x7F80_0001, 0x7FC0_0000, 0x7F80_0000], ids=["signalling", "quiet", "infinite"])
def test_points_that_are_not_finite_stay_so_without_a_warning(bits: int) -> None:
    calibration = Calibration(np.eye(4), np.eye(3, 4))
    points = np.ones((2, 3), dtype=np.float32)
    points.view(np.uint32)[1, 0] = bits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformed = calibration.to_camera(points)
        assert not np.isfinite(transformed[1]).all()
        assert np.array_equal(transformed[0], [1.0, 1.0, 1.0])
