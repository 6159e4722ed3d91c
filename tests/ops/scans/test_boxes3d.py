"""Boxes of KITTI against the numbers of two public code bases, on real frames and on points that lie on faces."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.store.boxes3d.kitti_objects import DONT_CARE, Calibration, read_calibration, read_objects
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

FRAMES = ("000000", "000001", "000003")
FLOAT32 = float(np.finfo(np.float32).eps)


def points_in_box(points: np.ndarray, box: np.ndarray, **rule: Any) -> np.ndarray:
    """Mask of the points in one box, of a camera's frame unless another is stated."""
    given = (torch.from_numpy(points), torch.from_numpy(box)[None])
    mask: np.ndarray = points_in_boxes(*given, **{"frame": "camera", **rule}).numpy() == 0
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


@run_each("margin, name, different", [(0.0, "exact", []), (0.01, "reference_margin", [(15, 1102)])])
def test_boxes_of_a_lidar_are_the_references(shared: Path, margin: float, name: str, different: list[Any]) -> None:
    """The reference widens by less than its margin, where ours includes the face: point 1102 is at 1.01 of 1 + 0.01."""
    arrays = load_golden(shared, "points_in_boxes", area="boxes3d").arrays
    points, boxes = arrays["case00/in_points"], arrays["case00/in_boxes"]
    inside = np.stack([points_in_box(points, box, frame="lidar", margin=margin) for box in boxes])
    expected = arrays[f"case00/{name}"] > 0
    assert np.argwhere(inside != expected).tolist() == [[*pair] for pair in different]
    if not margin:
        first = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes), frame="lidar")
        assert np.array_equal(first, arrays["case00/first_box"])
        assert np.array_equal(inside.sum(axis=1), arrays["case00/count"])


@run_each(
    "frame, of_camera, of_lidar",
    [
        ("000000", [376], [377]),
        ("000001", [70, 9, 18], [71, 9, 18]),
        ("000002", [1351, 67], [1349, 67]),
        ("000003", [680], [674]),
    ],
)
def test_boxes_of_real_frames_hold_as_many_points(
    folder: Path, frame: str, of_camera: list[int], of_lidar: list[int]
) -> None:
    """The counts differ since a camera's y and a LiDAR's z are not parallel. Conversion by hand: bottom to centre."""
    calibration = read_calibration(folder / f"calib/{frame}.txt")
    objects = read_objects(folder / f"label_2/{frame}.txt")
    boxes, points = objects.boxes_camera[objects.types != DONT_CARE], velodyne(folder, frame).astype(np.float64)
    to_lidar = np.linalg.inv(calibration.camera_of_velodyne)
    x, y, z = to_lidar[:3, :3] @ boxes[:, :3].T + to_lidar[:3, 3:]
    length, height, width, turn = boxes[:, 3:].T
    lidar = np.column_stack([x, y, z + height / 2, length, width, height, -turn - np.pi / 2])
    for chosen, cloud, expected, name in (
        (boxes, calibration.to_camera(points), of_camera, "camera"),
        (lidar, points, of_lidar, "lidar"),
    ):
        assert [int(points_in_box(cloud, box, frame=name).sum()) for box in chosen] == expected


def test_the_frame_of_a_lidar_by_hand() -> None:
    """A box of 4 x 2 x 1 m, its heading to the left: along y it is long. Faces belong to it, `bottom` is cut off."""
    boxes = torch.tensor([[1.0, 0, 5, 4, 2, 1, np.pi / 2], [0, 0, 0, -1, 2, 2, 0]])
    points = torch.tensor([[1.0, 2, 5.5], [2, -2, 4.5], [2.5, 0, 5], [1, 0, 4.6], [1, 0, 5.6], [0, 0, 0]])
    assert points_in_boxes(points, boxes, frame="lidar").tolist() == [0, 0, -1, 0, -1, -1]
    assert points_in_boxes(points, boxes, frame="lidar", margin=0.75).tolist() == [0, 0, 0, 0, -1, 1]
    assert points_in_boxes(points, boxes, frame="lidar", bottom=0.25).tolist() == [0, -1, -1, -1, -1, -1]
    with pytest.raises(TypeError, match="frame"):
        points_in_boxes(points, boxes)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frame: found 'velodyne', allowed are 'camera' and 'lidar'"):
        points_in_boxes(points, boxes, frame="velodyne")  # type: ignore[arg-type]


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
    found = points_in_boxes(points, boxes, frame="camera")
    assert found.tolist() == [0, 0, 1, 2, -1, -1]
    assert points_in_boxes(points, boxes[:0], frame="camera").tolist() == [-1] * 6
    assert points_in_boxes(points[:0], boxes, frame="camera").tolist() == []
    assert points_in_boxes(points.int(), boxes.half(), frame="camera").tolist() == [0, 0, 1, 2, -1, -1]
    points[1, 1] = torch.nan
    assert points_in_boxes(points, boxes, frame="camera").tolist() == [0, -1, 1, 2, -1, -1]
    assert points_in_boxes(points, boxes, frame="camera", margin=1.5).tolist() == [0, -1, 0, 2, 2, -1]


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
        points_in_boxes(points, boxes, frame="camera")


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
